"""A storm over a whole server: what is killed, who goes on asking meanwhile, and what has to be there in the end."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import random
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import psutil
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

from luthier.launchers.local import find_processes
from luthier.supervisor.folder import ServiceFolder

BUCKET, REGION = "storm", "us-west-2"
ROLE = "arn:aws:iam::123456789012:role/storm"
STATIONS = ["Starting", "Downloading", "Training", "Uploading", "Completed"]
BESIDE = {"report.html", "metrics.json", "ledger.jsonl", "model.tar.gz"}
ENDED = ("Completed", "Failed", "Stopped")
# What dies at a moment; with the server dead and the supervisor not, the latter leaves by itself, and so on.
STRIKES: tuple[frozenset[str], ...] = tuple(
    frozenset(words.split("+"))
    for words in ("server", "supervisor", "engine", "supervisor+engine", "server+supervisor", "server+engine",
                  "server+supervisor+engine")
)  # fmt: skip
MAX_CRASHES = 2  # of an engine without progress between that a job survives: the product gives up at one more
READY_SECONDS = 60.0
ENGINE_SECONDS = 20.0  # to wait for one that may be killed
_SERVER = Path(__file__).with_name("storm_server.py")


class Storm:
    """A server that is killed and started again, on one home and one port, while clients go on.

    `real` trains luthier/tiny by `luthier serve` as it is; else the fake engine is at work. `faults` is what must not
    be: an answer that a client should never have got.
    """

    def __init__(self, home: Path, seed: int, real: bool, database: str = "") -> None:
        self.home, self.real, self.database = home, real, database
        self.draw = random.Random(seed)
        self.port = _free_port()
        self.struck: Counter[str] = Counter()
        self.faults: list[str] = []
        self.server: subprocess.Popen[bytes] | None = None
        self.s3, self.sagemaker, self.logs = (self._client(name) for name in ("s3", "sagemaker", "logs"))

    def _client(self, name: str) -> Any:
        config = Config(retries={"total_max_attempts": 1}, proxies={}, connect_timeout=5, read_timeout=30)
        return boto3.client(
            name, endpoint_url=f"http://127.0.0.1:{self.port}", region_name=REGION, aws_access_key_id="luthier",
            aws_secret_access_key="luthier", config=config,
        )  # fmt: skip

    # The server

    def start(self) -> None:
        given: dict[str, Any] = {
            "home": str(self.home), "host": "127.0.0.1", "port": self.port, "database": self.database, "objects": "",
            "slots": "cpu,cpu", "serve_on": "cpu", "stall_seconds": 3600.0, "stop_seconds": 120.0,
            "limits": [], "proxy_port": None, "no_auth": False, "log": "",
        }  # fmt: skip
        module = ["-P", "-m", "luthier.server"]
        command = [sys.executable, *(module if self.real else [str(_SERVER)])]
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert self.server.stdin is not None
        with self.server.stdin:
            self.server.stdin.write(json.dumps(given).encode())

    def wait_ready(self) -> None:
        """Until health says that the server, its store and its supervisor are well."""
        self._until(self._healthy, READY_SECONDS, "the server to be ready")

    def _healthy(self) -> bool:
        assert self.server is not None
        assert self.server.poll() is None, f"the server ended with {self.server.returncode}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_luthier/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False

    def _until(self, reached: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
            time.sleep(0.05)

    # What is killed

    def strike(self, span: float) -> None:
        """Kill what the draw says, at one moment, and start the server again where it was among it.

        The moment is at most `span` seconds away; where an engine is to die, counted from when there is one.
        """
        victims = self.draw.choice(STRIKES)
        deadline = time.monotonic() + ENGINE_SECONDS
        while "engine" in victims and not self._engines() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(self.draw.uniform(0, span))
        if not self._engines():
            victims = victims - {"engine"} or frozenset({"server"})
        found = [process for victim in sorted(victims) for process in self._processes(victim)]
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.struck["+".join(sorted(victims))] += 1
        if "server" in victims and self.server is not None:
            self.server.wait()
            self.start()

    def _processes(self, victim: str) -> list[psutil.Process]:
        assert self.server is not None
        if victim == "engine":
            return self._engines()
        server = psutil.Process(self.server.pid)
        return [server] if victim == "server" else self._supervisors()

    def _supervisors(self) -> list[psutil.Process]:
        """Also one that outlived its server and has not left yet."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                command = process.cmdline()
                if command[-1:] == [str(self.home)] and ("supervisor" in command or command[-2].endswith("supervisor")):
                    found.append(process)
        return found

    def _engines(self) -> list[psutil.Process]:
        """Those whose job survives one more death: the storm is harder than what a job is given up for."""
        found = []
        for process in find_processes(self.home / "jobs"):
            with suppress(psutil.Error, OSError, ValueError, KeyError):  # it may be ending
                folder = ServiceFolder(Path(process.environ()["LUTHIER_SUPERVISED"]))
                if folder.state.crashes < MAX_CRASHES or folder.progress > folder.state.progress:
                    found.append(process)
        return found

    def end(self) -> None:
        """Kill everything."""
        if self.server is not None:
            left = [*self._supervisors(), *find_processes(self.home)]
            self.server.kill()
            self.server.wait()
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, 10)
        for client in (self.s3, self.sagemaker, self.logs):
            client.close()

    # What is asked

    def ask(self, operation: Callable[..., Any], **given: Any) -> Any:
        """The answer; None where a kill took it, and ClientError for a refusal."""
        try:
            answer = operation(**given)
            return answer if answer.keys() - {"ResponseMetadata"} else None  # torn: botocore takes it for empty
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500:
                self.faults.append(f"{operation.__name__} {given.get('Key', '')}: {error}")
            raise
        except (ConnectionError, HTTPClientError):
            time.sleep(0.1)
            return None

    def insist(self, operation: Callable[..., Any], **given: Any) -> Any:
        """Ask until there is an answer."""
        deadline = time.monotonic() + READY_SECONDS
        while (answer := self.ask(operation, **given)) is None:
            assert time.monotonic() < deadline, f"{operation.__name__} was not answered"
        return answer


class Customer:
    """Submits jobs, describes them and puts objects, all the while; remembers what was acknowledged."""

    def __init__(self, storm: Storm, hyperparameters: Mapping[str, str]) -> None:
        self.storm, self.hyperparameters = storm, dict(hyperparameters)
        self.jobs: list[str] = []
        self.objects: dict[str, set[str]] = {}  # the digests that a key may have: the last acknowledged, later ones
        self.enough = threading.Event()
        self.ended: set[str] = set()
        self.described, self.put, self.unanswered = 0, 0, 0
        self._threads = [threading.Thread(target=self._guarded, args=(work,), daemon=True)
                         for work in (self._put_objects, self._describe)]  # fmt: skip
        self._draw = random.Random(storm.draw.random())

    def prepare(self, rows: bytes) -> None:
        self.storm.insist(
            self.storm.s3.create_bucket, Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        self.storm.insist(self.storm.s3.put_object, Bucket=BUCKET, Key="rows/train.jsonl", Body=rows)

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        self.enough.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.storm.faults.append(f"{work.__name__}: {error!r}")

    def submit(self, name: str) -> str:
        """Create a job, again and again until it is acknowledged: it must then be there once."""
        storm = self.storm
        source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/rows/"}}
        request = {
            "TrainingJobName": name, "RoleArn": ROLE, "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out/"},
            "InputDataConfig": [{"ChannelName": "training", "DataSource": source}],
            "Environment": {"LUTHIER_MODEL": "luthier/tiny"}, "StoppingCondition": {"MaxRuntimeInSeconds": 7200},
            "HyperParameters": self.hyperparameters,
        }  # fmt: skip
        try:
            storm.insist(storm.sagemaker.create_training_job, **request)
        except ClientError as error:
            if error.response["Error"]["Code"] != "ResourceInUse":  # an answer was lost, the job was not
                raise
        self.jobs.append(name)
        return name

    def _describe(self) -> None:
        seen: dict[str, int] = {}
        while not self.enough.wait(0.05):
            for name in [job for job in list(self.jobs) if job not in self.ended]:
                answer = self.storm.ask(self.storm.sagemaker.describe_training_job, TrainingJobName=name)
                if answer is None:
                    self.unanswered += 1
                    break
                self.described += 1
                self._check_onward(name, answer, seen)

    def _check_onward(self, name: str, answer: Mapping[str, Any], seen: dict[str, int]) -> None:
        """No describe may show an earlier station than one before it."""
        station = STATIONS.index(answer["SecondaryStatus"]) if answer["SecondaryStatus"] in STATIONS else -1
        if station < seen.get(name, 0):
            self.storm.faults.append(f"{name}: {answer['SecondaryStatus']} after {STATIONS[seen[name]]}")
        seen[name] = max(station, 0)
        if answer["TrainingJobStatus"] in ENDED:
            self.ended.add(name)

    def keep_busy(self, together: int) -> None:
        """See to it that so many jobs wait or run."""
        while len(self.jobs) - len(self.ended) < together:
            self.submit(f"job-{len(self.jobs)}")

    def _put_objects(self) -> None:
        for number in itertools.count():
            if self.enough.wait(0.02):
                return
            size = self._draw.choice((0, 10, 3000, 200_000, 6 << 20))
            content = hashlib.sha256(str(number).encode()).digest() * (size // 32 + 1)
            self._put(f"objects/{number % 40}", content, multipart=size > 5 << 20)

    def _put(self, key: str, content: bytes, multipart: bool) -> None:
        digest = hashlib.sha256(content).hexdigest()
        self.objects.setdefault(key, {""}).add(digest)  # "": it need not be there
        acknowledged = (
            self._upload(key, content)
            if multipart
            else self.storm.ask(self.storm.s3.put_object, Bucket=BUCKET, Key=key, Body=content)
        )
        if acknowledged is None:
            self.unanswered += 1
        else:
            self.objects[key] = {digest}
            self.put += 1

    def _upload(self, key: str, content: bytes) -> Any:
        storm, where = self.storm, {"Bucket": BUCKET, "Key": key}
        begun = storm.ask(storm.s3.create_multipart_upload, **where)
        if begun is None:
            return None
        done = []
        for number, start in enumerate(range(0, len(content), 5 << 20), 1):
            body = content[start : start + (5 << 20)]
            part = storm.ask(storm.s3.upload_part, **where, UploadId=begun["UploadId"], PartNumber=number, Body=body)
            if part is None:
                return None
            done.append({"PartNumber": number, "ETag": part["ETag"]})
        return storm.ask(
            storm.s3.complete_multipart_upload, **where, UploadId=begun["UploadId"], MultipartUpload={"Parts": done}
        )

    # In the end

    def wait(self, seconds: float) -> None:
        """Until every job has ended."""
        waiting, deadline = list(self.jobs), time.monotonic() + seconds
        while waiting:
            assert time.monotonic() < deadline, f"{len(waiting)} jobs did not end: {waiting[:5]}"
            found = self.storm.insist(self.storm.sagemaker.describe_training_job, TrainingJobName=waiting[0])
            if found["TrainingJobStatus"] in ENDED:
                waiting.pop(0)
            else:
                time.sleep(0.1)

    def weights(self, name: str) -> bytes:
        key = f"out/{name}/output/model.tar.gz"
        body = self.storm.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        with tarfile.open(fileobj=io.BytesIO(body)) as tar:
            inside = [each for each in tar.getnames() if each.endswith("model.safetensors")]
            handle = tar.extractfile(inside[0])
            assert handle is not None
            return handle.read()

    def check_objects(self) -> int:
        """What was acknowledged is there, whole; how many there are."""
        for key, digests in self.objects.items():
            try:
                body = self.storm.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
                found = hashlib.sha256(body).hexdigest()
            except self.storm.s3.exceptions.NoSuchKey:
                found = ""
            assert found in digests, f"{key} is not what was acknowledged"
        return len(self.objects)

    def check_job(self, name: str, expected: bytes, last_words: str) -> None:
        """It ended once, well, with one artifact, its log and metrics once, and the undisturbed run's weights."""
        found = self.storm.sagemaker.describe_training_job(TrainingJobName=name)
        assert found["TrainingJobStatus"] == "Completed", (name, found.get("FailureReason"))
        assert [one["Status"] for one in found["SecondaryStatusTransitions"]] == STATIONS, name
        assert all("EndTime" in one for one in found["SecondaryStatusTransitions"])
        listed = self.storm.s3.list_objects_v2(Bucket=BUCKET, Prefix=f"out/{name}/")["Contents"]
        assert {one["Key"] for one in listed} == {f"out/{name}/output/{file}" for file in BESIDE}
        assert self.weights(name) == expected, f"{name}: other weights than the undisturbed run's"
        folder = self.folder(name)
        engine = folder.log.read_text().splitlines()
        said = [line for line in self.log(name) if not line.startswith("supervisor: ")]
        assert said == [line for line in engine if line.strip()] or said == engine, f"{name}: lines lost or repeated"
        assert sum(last_words in line for line in engine) == 1, f"{name}: its engine finished twice"
        steps = [json.loads(line) for line in (folder.root / "metrics.jsonl").read_text().splitlines()]
        losses = [line["step"] for line in steps if "loss" in line]
        if self.storm.real:  # the fake engine drops no lines when it resumes
            assert losses == sorted(set(losses)), f"{name}: steps lost or repeated: {losses}"

    def folder(self, name: str) -> ServiceFolder:
        for path in (self.storm.home / "jobs").iterdir():
            if json.loads((path / "request.json").read_text())["TrainingJobName"] == name:
                return ServiceFolder(path)
        raise AssertionError(f"{name}: no folder")

    def log(self, name: str) -> list[str]:
        """All of a job's log, as CloudWatch Logs gives it."""
        logs, group = self.storm.logs, "/aws/sagemaker/TrainingJobs"
        streams = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{name}/")["logStreams"]
        assert len(streams) == 1, (name, streams)
        lines: list[str] = []
        given = {"logGroupName": group, "logStreamName": streams[0]["logStreamName"], "startFromHead": True}
        token: dict[str, str] = {}
        while True:
            page = logs.get_log_events(**given, **token)
            lines += [event["message"] for event in page["events"]]
            if token.get("nextToken") == page["nextForwardToken"]:
                return lines
            token = {"nextToken": page["nextForwardToken"]}


@contextmanager
def storm(home: Path, seed: int, real: bool, database: str = "") -> Iterator[Storm]:
    made = Storm(home, seed, real, database)
    try:
        made.start()
        made.wait_ready()
        yield made
    finally:
        made.end()


def failures(home: Path) -> list[str]:
    """Faults that nobody foresaw, as the logs of server and supervisor have them."""
    found = []
    for file in sorted((home / "logs").glob("*.log")):
        for line in file.read_text("utf-8", "replace").splitlines():
            with suppress(ValueError):  # a kill may have cut it
                if "Traceback" in line:
                    found.append(f"{file.name}: {json.loads(line)}")
    return found


def _free_port() -> int:
    with closing(socket.socket()) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
