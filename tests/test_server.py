"""`luthier serve` as a real process: its doors, its starts and refusals, keys, logs, what it weighs, how it ends."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import postgres
import psutil
import pytest
import sqlalchemy as sa
from botocore.exceptions import ClientError
from server_process import ServerProcess, command, server
from typer.testing import CliRunner

from luthier import __version__
from luthier.cli.app import app
from luthier.cli.program import Program
from luthier.errors import LuthierError
from luthier.jobs.settings import ServiceSettings
from luthier.jobs.store import Store
from luthier.protocol.call import Principal
from luthier.server import main
from luthier.service.keys import Keys

MEGABYTES = 150
EVERYBODY = Principal().arn


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server(tmp_path_factory.mktemp("served") / "home") as running:
        yield running


def refused(home: Path, *arguments: str) -> str:
    """The one line with which a start is refused, asked in this process."""
    call = CliRunner().invoke(app, ["serve", "--port", "0", "--home", str(home), *arguments], standalone_mode=False)
    assert isinstance(call.return_value, Program)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(json.dumps(call.return_value.request)))
        mask = os.umask(0o077)
        try:
            with pytest.raises(LuthierError) as raised:
                main()
        finally:
            os.umask(mask)
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_it_says_what_to_do_next(served: ServerProcess) -> None:
    text = "".join(served.greeting)
    assert f"luthier {__version__} at {served.endpoint} " in text
    assert "authentication is off: every caller acts as account 123456789012" in text
    assert f'eval "$(luthier env --port {served.port})"' in text


def test_the_doors(served: ServerProcess) -> None:
    assert served.get("/_luthier/health") == (
        200, {"status": "ok", "version": __version__, "store": "ok", "supervisor": "ok"}
    )  # fmt: skip
    status, about = served.get("/_luthier/version")
    assert status == 200
    certificate = hashlib.sha256((served.home / "proxy" / "ca.pem").read_bytes()).hexdigest()
    assert about == {
        "version": __version__, "signatures": False, "proxy": about["proxy"], "certificate": certificate,
    }  # fmt: skip
    for headers in ({"Host": "evil.example"}, {"Host": "localhost", "Origin": "https://evil.example"}):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
        connection.request("GET", "/_luthier/version", headers=headers)
        assert connection.getresponse().status == 403
        connection.close()
    status, said = served.get("/_luthier/elsewhere")
    assert (status, list(said)) == (404, ["error"])


def test_boto3_and_what_is_counted_and_logged_of_it(served: ServerProcess) -> None:
    identity = served.client("sts").get_caller_identity()
    assert ":assumed-role/" in identity["Arn"]
    bucket, secret = "counted", "the body of an object"
    s3 = served.client("s3")
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    s3.put_object(Bucket=bucket, Key="a key", Body=secret.encode())
    assert s3.get_object(Bucket=bucket, Key="a key")["Body"].read() == secret.encode()
    with pytest.raises(ClientError, match=r"ValidationException|ResourceNotFound"):
        served.client("sagemaker").describe_training_job(TrainingJobName="nobody")
    page = served.get("/_luthier/metrics")[1]
    assert 'luthier_requests_total{code="200",operation="PutObject",service="s3"} 1.0' in page
    assert 'luthier_requests_total{code="400",operation="DescribeTrainingJob",service="sagemaker"} 1.0' in page
    assert 'luthier_request_seconds_bucket{le="60.0",operation="PutObject",service="s3"} 1.0' in page
    assert "luthier_queue_length 0.0" in page
    assert re.search(r"luthier_supervisor_beat_age_seconds \d", page)
    line = next(line for line in served.log() if line.get("operation") == "PutObject")
    assert (line["service"], line["status"], line["caller"]) == ("s3", 200, EVERYBODY)
    assert {"time", "request_id", "ms"} <= line.keys()
    text = (served.home / "logs" / "server.log").read_text("utf-8")
    assert secret not in text
    assert "AWS4-HMAC" not in text


def test_the_sdks_find_their_defaults(served: ServerProcess) -> None:
    body = served.client("s3").get_object(Bucket="local-sagemaker-config", Key="config.yaml")["Body"].read().decode()
    assert "DefaultS3Bucket: sagemaker-local-123456789012\n" in body


def test_it_is_light_and_loads_no_engine(served: ServerProcess) -> None:
    for service in ("sagemaker", "s3", "logs", "sts", "iam"):
        with pytest.raises(ClientError):
            call_something_unknown(served, service)
    process = psutil.Process(served.process.pid)
    assert process.memory_info().rss / 1e6 < MEGABYTES
    mapped = {Path(region.path).name for region in process.memory_maps() if region.path}
    assert not [name for name in mapped if re.match(r"libtorch|_C\.cpython|libarrow", name)]
    (supervisor,) = process.children()
    assert "luthier.service.supervisor_program" in supervisor.cmdline()


def call_something_unknown(served: ServerProcess, service: str) -> None:
    calls = {
        "sagemaker": lambda client: client.describe_training_job(TrainingJobName="nobody"),
        "s3": lambda client: client.head_bucket(Bucket="nobodys"),
        "logs": lambda client: client.get_log_events(logGroupName="none", logStreamName="none"),
        "sts": lambda client: client.get_session_token(),
        "iam": lambda client: client.list_users(),
    }
    calls[service](served.client(service))


def test_importing_the_program_brings_no_engine() -> None:
    code = (
        "import sys, luthier.server\n"
        "heavy = {'torch', 'transformers', 'peft', 'tokenizers', 'safetensors', 'pyarrow', 'numpy', 'pandas'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_one_server_for_each_home(served: ServerProcess) -> None:
    ended = subprocess.run(command(served.home), capture_output=True, text=True, timeout=60, check=False)
    said = ended.stderr
    assert (ended.returncode, ended.stdout, said.count("\n")) == (2, "", 1)
    assert said.startswith("luthier: error: ")
    assert f"the server with process id {served.process.pid} uses it" in said
    assert served.get("/_luthier/health")[0] == 200


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} of 127.0.0.1: in use" in refused(tmp_path / "home", "--port", str(port))
        assert "--proxy-port" in refused(tmp_path / "home", "--proxy-port", str(port))


def with_key(home: Path) -> None:
    store = Store.open(ServiceSettings(home=home).database_url)
    Keys(store).create("ann")
    store.close()


@pytest.mark.parametrize("host", ["203.0.113.1", "no such host"])
def test_an_address_that_is_not_ours(tmp_path: Path, host: str) -> None:
    with_key(tmp_path)
    assert "--host" in refused(tmp_path, "--host", host)


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "expected a folder that this user may write" in refused(tmp_path / "file" / "home")
    assert "expected a folder that this user may write" in refused(tmp_path / "file")


def test_a_database_of_a_newer_luthier(tmp_path: Path) -> None:
    with_key(tmp_path)
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'luthier.sqlite'}")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    assert "is of a newer Luthier; upgrade Luthier" in refused(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--database", "mysql://x/y"], "expected sqlite or postgresql"),
        (["--database", "sqlite://"], "a database in memory would forget every job"),
        (["--slots", "gpu"], "--slots"),
        (["--slots", "0+0"], "--slots"),
        (["--slots", "0,0+1"], "--slots"),
        (["--serve-on", "gpu"], "--serve-on"),
        (["--stall-seconds", "0"], "--stall-seconds 0: expected seconds from 1 to"),
        (["--stop-seconds", "-1"], "--stop-seconds -1: expected seconds from 0 to"),
        (["--limit", "memory"], "--limit memory: '' is not a size; expected a size such as 64G"),
        (["--objects", "ftp://host"], "--objects"),
        (["--log", "/proc/none/server.log"], "--log"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, arguments: list[str], words: str) -> None:
    assert words in refused(tmp_path / "home", *arguments)


def test_beyond_loopback_only_with_keys(tmp_path: Path) -> None:
    assert "first make a key: luthier keys create" in refused(tmp_path / "home", "--host", "0.0.0.0")
    assert "--no-auth" in refused(tmp_path / "home", "--host", "0.0.0.0", "--no-auth")


def make_key(home: Path, *options: str) -> tuple[str, str]:
    arguments = [sys.executable, "-m", "luthier", "keys", "create", *(options or ("ann",)), "--home", str(home)]
    made = subprocess.run(arguments, capture_output=True, text=True, check=True)
    pair = re.findall(r"export AWS_\w+=(\S+)", made.stdout)
    return pair[0], pair[1]


def test_with_keys_only_their_holders_are_served(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with server(home, "--host", "127.0.0.1") as running:
        assert ":assumed-role/" in running.client("sts").get_caller_identity()["Arn"]
        key = make_key(home)  # beside the running server
        assert running.client("sts", key).get_caller_identity()["Arn"].endswith("/ann")
        assert running.client("s3", key).list_buckets()["Buckets"] == []
        assert running.client("sagemaker", key).list_models()["Models"] == []
        for service, call in (("sts", "get_caller_identity"), ("s3", "list_buckets"), ("sagemaker", "list_models")):
            for wrong in (("luthier", "luthier"), (key[0], "x" * 40)):
                with pytest.raises(ClientError) as denied:
                    getattr(running.client(service, wrong), call)()
                assert denied.value.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 403)
        assert running.get("/_luthier/version")[1]["signatures"] is True
        assert any(line.get("caller") == "arn:aws:iam::123456789012:user/ann" for line in running.log())
        denied_lines = [line for line in running.log() if line.get("status") == 403]
        assert denied_lines
        assert {line["caller"] for line in denied_lines} == {""}
    with server(home, "--host", "0.0.0.0") as running:
        assert "signed requests only" in running.greeting[0]
        assert running.client("sts", key).get_caller_identity()["Account"] == "123456789012"
    with server(home, "--no-auth") as running:
        assert ":assumed-role/" in running.client("sts").get_caller_identity()["Arn"]


def test_a_limited_key_does_what_its_rights_allow_and_the_audit_log_says_who_did_what(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with server(home) as running:
        assert not (home / "logs" / "audit.log").exists()
        admin = make_key(home)
        bob = make_key(home, "bob", "--allow", "s3://team/bob/", "--allow", "jobs:bob-")
        everything, limited = running.client("s3", admin), running.client("s3", bob)
        everything.create_bucket(Bucket="team", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        everything.create_bucket(Bucket="other", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        everything.put_object(Bucket="team", Key="ann/a", Body=b"a")
        limited.put_object(Bucket="team", Key="bob/b", Body=b"b")
        assert limited.get_object(Bucket="team", Key="bob/b")["Body"].read() == b"b"
        assert [bucket["Name"] for bucket in limited.list_buckets()["Buckets"]] == ["team"]
        with pytest.raises(ClientError, match="this key may not read s3://team/ann/a"):
            limited.get_object(Bucket="team", Key="ann/a")
        with pytest.raises(ClientError, match="this key may not write s3://team/ann/b"):
            limited.put_object(Bucket="team", Key="ann/b", Body=b"b" * 100_000)
        with pytest.raises(ClientError, match="AccessDeniedException"):
            running.client("sagemaker", bob).describe_training_job(TrainingJobName="ann-1")
        with pytest.raises(ClientError):
            running.client("s3", (bob[0], "x" * 40)).list_buckets()
    lines = [json.loads(line) for line in (home / "logs" / "audit.log").read_text("utf-8").splitlines()]
    assert stat.S_IMODE((home / "logs" / "audit.log").stat().st_mode) == 0o600
    told = [(line["key"], line["operation"], line["resource"], line["status"], line["error"]) for line in lines]
    assert (admin[0], "s3:PutObject", "s3://team/ann/a", 200, "") in told
    assert (bob[0], "s3:GetObject", "s3://team/ann/a", 403, "AccessDenied") in told
    assert (bob[0], "s3:PutObject", "s3://team/ann/b", 403, "AccessDenied") in told
    assert (bob[0], "sagemaker:DescribeTrainingJob", "ann-1", 403, "AccessDeniedException") in told
    assert told[-1] == ("", "s3:-", "", 403, "SignatureDoesNotMatch")


def test_it_ends_gracefully(tmp_path: Path) -> None:
    """A request in flight is answered, the supervisor ends, and everything is there after the next start."""
    with server(tmp_path / "home") as running:
        s3 = running.client("s3")
        s3.create_bucket(Bucket="kept", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        supervisor = psutil.Process(running.process.pid).children()[0]
        status: list[int] = []
        uploading, go_on = threading.Event(), threading.Event()
        thread = threading.Thread(target=upload_slowly, args=(running.port, uploading, go_on, status))
        thread.start()
        assert uploading.wait(30)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert running.process.poll() is None
        go_on.set()
        thread.join(30)
        assert status == [200]
        assert running.process.wait(60) == 0
        assert not supervisor.is_running()
    with server(tmp_path / "home") as running:
        assert running.client("s3").get_object(Bucket="kept", Key="slow")["Body"].read() == b"x" * 200_000


def upload_slowly(port: int, uploading: threading.Event, go_on: threading.Event, status: list[int]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest("PUT", "/kept/slow")
    connection.putheader("Content-Length", "200000")
    connection.endheaders(b"x" * 100_000)
    time.sleep(0.3)
    uploading.set()
    go_on.wait(30)
    connection.send(b"x" * 100_000)
    status.append(connection.getresponse().status)
    connection.close()


def test_ctrl_c_ends_it_too(tmp_path: Path) -> None:
    with server(tmp_path / "home", ready=False) as running:
        assert running.stop(signal.SIGINT) == 0


def test_a_supervisor_that_dies_is_started_again(tmp_path: Path) -> None:
    with server(tmp_path / "home") as running:
        first = psutil.Process(running.process.pid).children()[0]
        first.kill()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            others = [child for child in psutil.Process(running.process.pid).children() if child.pid != first.pid]
            if others:
                break
            time.sleep(0.05)
        assert others
        assert any("exit code -9" in line.get("message", "") for line in running.log())
        assert running.get("/_luthier/health")[0] == 200


def test_a_killed_server_leaves_nothing_that_hinders_the_next(tmp_path: Path) -> None:
    with server(tmp_path / "home") as running:
        supervisor = psutil.Process(running.process.pid).children()[0]
        running.process.kill()
        running.process.wait()
    psutil.wait_procs([supervisor], timeout=30)
    assert not supervisor.is_running()
    with server(tmp_path / "home") as running:
        assert running.get("/_luthier/health")[0] == 200


def test_on_postgresql(tmp_path: Path) -> None:
    """The URL, which may hold a password, is on no command line and in no log."""
    with postgres.server() as url:
        with server(tmp_path / "home", environment={"LUTHIER_DATABASE": url}) as running:
            running.client("s3").create_bucket(Bucket="kept")
            process = psutil.Process(running.process.pid)
            arguments = [word for one in (process, *process.children()) for word in one.cmdline()]
            assert url not in " ".join(arguments)
            assert "postgresql" not in (running.home / "logs" / "server.log").read_text("utf-8")
            assert not (running.home / "luthier.sqlite").exists()
        with server(tmp_path / "home", "--database", url) as running:
            assert [bucket["Name"] for bucket in running.client("s3").list_buckets()["Buckets"]] == ["kept"]


def test_what_it_writes_is_its_owners_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    with server(home) as running:
        running.client("s3").create_bucket(Bucket="mine", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        running.client("s3").put_object(Bucket="mine", Key="key", Body=b"secret")
        found = {path: path.lstat().st_mode for path in home.rglob("*")}
    open_to_others = [path for path, mode in found.items() if mode & 0o077 and not stat.S_ISSOCK(mode)]
    assert [path.relative_to(home).as_posix() for path in open_to_others] == []


def test_a_page_in_a_browser_is_refused(served: ServerProcess) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
        connection.request("GET", "/", headers=headers)
        assert connection.getresponse().status == 403
        connection.close()


def test_logs_to_stderr(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path / "home", "--log", "-"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    found = re.search(r":(\d+) ", process.stdout.readline())
    assert found is not None
    connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)
    connection.request("GET", "/", headers={"Authorization": "AWS4-HMAC-SHA256 secret"})
    connection.getresponse().read()
    connection.close()
    process.terminate()
    _, errors = process.communicate(timeout=60)
    lines = [json.loads(line) for line in errors.splitlines()]
    assert any(line.get("service") == "s3" for line in lines)
    assert "secret" not in errors
    assert process.returncode == 0


def test_heads_are_bounded(served: ServerProcess) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ")
        answer = b""
        try:
            for _ in range(100):
                client.sendall(b"x" * 65536)
            answer = client.recv(65536)
        except OSError:
            pass
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert served.get("/_luthier/health")[0] == 200


def test_the_servers_own_environment_is_not_that_of_luthier_env(tmp_path: Path) -> None:
    """A server in a shell with `luthier env` in it must not take itself for AWS."""
    marked = json.dumps({"HTTPS_PROXY": None, "AWS_ENDPOINT_URL": None})
    environment = {"HTTPS_PROXY": "http://127.0.0.1:1", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "LUTHIER_ENV": marked}
    with server(tmp_path / "home", environment=environment) as running:
        inherited = psutil.Process(running.process.pid).environ()
    assert not {"HTTPS_PROXY", "AWS_ENDPOINT_URL", "LUTHIER_ENV"} & inherited.keys()
    assert os.environ.get("LUTHIER_ENV") is None
