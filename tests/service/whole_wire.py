"""The whole service behind its wire, without a port and an engine: real operations, a real store and object store."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from api.wire_client import ROLE, automl_job, training_job

from luthier.api.service import Service
from luthier.jobs.schema import resources, tags
from luthier.jobs.settings import ServiceSettings
from luthier.jobs.store import Store
from luthier.objects.store import EmbeddedObjectStore
from luthier.protocol.call import ACCOUNT, GLOBAL_REGION, Call, Principal
from luthier.protocol.gateway import Gateway
from luthier.protocol.message import Request, Response
from luthier.service import jumpstart_bucket, sdk_defaults
from luthier.service.operations import KNOWN, operate

OWNER = (ACCOUNT, GLOBAL_REGION)
WORK_SECONDS = 5.0  # of processor time that one answer may take
SECONDS = 60.0  # that it may take on a machine with much else to do
VARIANT = {"VariantName": "a", "ModelName": "a", "InitialInstanceCount": 1, "InstanceType": "ml.g5.xlarge"}
KEYS = ("rows/train.jsonl", "a", "deep/../../x", "ü/ä")


class _Model(http.server.BaseHTTPRequestHandler):
    """Says back what it was asked, as what serves an endpoint would."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no fault of the model's."""


class WholeWire:
    """What of a service can be asked for; `seed` puts back what requests are likely to name."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = Store.open(f"sqlite:///{home / 'luthier.sqlite'}")
        self.objects = EmbeddedObjectStore(
            self.store.engine, home / "objects", (jumpstart_bucket.bucket(), sdk_defaults.bucket())
        )
        self.service = Service(ServiceSettings(home=home), self.store)
        self.gateway = Gateway(self._operate, KNOWN, lambda request, service: Principal())
        self.statuses: Counter[int] = Counter()
        self.asked: Counter[str] = Counter()
        self.slowest = 0.0
        self._model = _Server(str(home / "model.sock"), _Model)
        self._thread = threading.Thread(target=self._model.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._model.shutdown()
        self._model.server_close()
        self._thread.join()
        self.objects.close()
        self.store.close()

    def _operate(self, call: Call) -> dict[str, Any]:
        self.asked[f"{call.service}.{call.operation}"] += 1
        return operate(call, self.service, self.objects)

    def seed(self) -> None:
        """A bucket with objects and an upload that goes on, jobs at several stations with logs, a served endpoint."""
        with self.store.write() as connection:
            for table in (resources, tags):
                connection.execute(table.delete())
        self._ask("PUT", "/bucket")
        for key in KEYS:
            self.objects.put("bucket", key, [b'{"a": 1}\n' * 4])
        self._call("CreateTrainingJob", training_job())
        self._call("CreateAutoMLJobV2", automl_job())
        self._call("CreateModel", {"ModelName": "a", "PrimaryContainer": {"ModelDataUrl": "s3://bucket/a"},
                                   "ExecutionRoleArn": ROLE})  # fmt: skip
        self._call("CreateEndpointConfig", {"EndpointConfigName": "a", "ProductionVariants": [VARIANT]})
        self._call("CreateEndpoint", {"EndpointName": "a", "EndpointConfigName": "a"})
        endpoint = self.store.find("endpoint", OWNER, "a")
        job = self.store.find("training-job", OWNER, "job")
        assert endpoint is not None
        assert job is not None
        variants = tuple(replace(one, address=str(self.home / "model.sock")) for one in endpoint.endpoint.variants)
        self.store.update(endpoint.id, "InService", progress={"variants": variants})
        for folder in (self.service.settings.jobs / job.id, self.service.settings.endpoints / endpoint.id / "a"):
            (folder / "logs").mkdir(parents=True, exist_ok=True)
            (folder / "logs" / "events.jsonl").write_text(
                "".join(json.dumps({"timestamp": number, "message": f"line {number}", "offset": number}) + "\n"
                        for number in range(5))
            )  # fmt: skip

    def _call(self, name: str, parameters: dict[str, Any]) -> None:
        headers = {"x-amz-target": f"SageMaker.{name}", "content-type": "application/x-amz-json-1.1"}
        self._ask("POST", "/", headers, json.dumps(parameters).encode())

    def _ask(self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        answer = self.answer(
            Request(method=method, path=path, query="", headers=headers or {}, chunks=iter((body,)), peer="127.0.0.1")
        )
        assert answer.status in (200, 409), answer.body

    def answer(self, request: Request) -> Response:
        """The answer, read to its end: no failure, soon, with headers of one line."""
        started, worked = time.monotonic(), time.thread_time()
        response = self.gateway.respond(request)
        body = response.body if isinstance(response.body, bytes) else b"".join(response.body)
        seconds, worked = time.monotonic() - started, time.thread_time() - worked
        self.slowest = max(self.slowest, worked)
        self.statuses[response.status] += 1
        assert response.status < 500 or _not_offered(response, body), (request, body)
        assert seconds < SECONDS and worked < WORK_SECONDS, (request, seconds, worked)  # noqa: PT018
        assert all("\n" not in value and "\r" not in value for value in response.headers.values()), request
        return Response(response.status, response.headers, body)


def _not_offered(response: Response, body: bytes) -> bool:
    """S3's own answer for what a store does not have."""
    return response.status == 501 and b"<Code>NotImplemented</Code>" in body


@contextmanager
def whole_wire(home: Path) -> Iterator[WholeWire]:
    home.mkdir()
    made = WholeWire(home)
    try:
        made.seed()
        yield made
    finally:
        made.close()
