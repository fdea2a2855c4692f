"""The published models: loaded when they are asked for, once, and small; importing the wire brings in nothing large."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from luthier.protocol import model, routing
from luthier.protocol.call import Principal
from luthier.protocol.gateway import Gateway
from luthier.protocol.message import Request

MOST = 110  # MB of a process that has answered a call of SageMaker's


def test_a_model_is_loaded_once() -> None:
    assert model.load("s3") is model.load("s3")
    assert model.has("sagemaker", "CreateModel")
    assert not model.has("sagemaker", "MakeCoffee")
    assert model.operation("sts", "GetCallerIdentity").name == "GetCallerIdentity"


def test_another_service_is_not_loaded() -> None:
    with pytest.raises(KeyError):
        model.load("ec2")


def test_texts_are_left_out_and_members_are_not() -> None:
    described = {
        "documentation": "long",
        "members": {"documentation": {"shape": "A"}},
        "list": [{"documentation": "x"}],
    }
    assert model._without_documentation(described) == {"members": {"documentation": {"shape": "A"}}, "list": [{}]}


def test_the_first_calls_may_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_models", {})
    routing._routes.cache_clear()
    gateway = Gateway(lambda call: {}, {"s3": {"ListBuckets"}}, lambda request, service: Principal())
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: gateway.respond(Request(method="GET", path="/")).status, range(32)))
    assert answers == [200] * 32
    routing._routes.cache_clear()


CHILD = """
import json, sys
from luthier.protocol.asgi import application
from luthier.protocol.call import Principal
from luthier.protocol.gateway import Gateway
from luthier.protocol.message import Request
gateway = Gateway(lambda call: {}, {"sagemaker": {"DeleteModel"}}, lambda request, service: Principal())
application(gateway, {})
headers = {"x-amz-target": "SageMaker.DeleteModel", "content-type": "application/x-amz-json-1.1"}
status = gateway.respond(Request(method="POST", path="/", headers=headers, chunks=iter([b'{"ModelName": "m"}']))).status
with open("/proc/self/status") as lines:
    resident = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
print(json.dumps([status, resident, sorted(sys.modules)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_wire_is_small() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", CHILD], capture_output=True, text=True, check=True, timeout=120)
    status, resident, modules = json.loads(done.stdout)
    assert status == 200
    assert resident < MOST
    assert not {"torch", "transformers", "numpy", "pandas", "pyarrow", "moto", "werkzeug", "cryptography"} & set(
        modules
    )
