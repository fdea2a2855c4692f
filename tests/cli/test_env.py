"""`luthier env`: its variables, what it keeps of the user's, both shells, and `--unset`."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from luthier.cli.app import app
from luthier.cli.variables import (
    SHELLS,
    client_variables,
    environment_before,
    proxy_variables,
    saved_variables,
    shell_lines,
    warnings,
)
from luthier.client.endpoint import ServiceInfo, fetch_service_info, find_endpoint
from luthier.errors import UserError

ENDPOINT = "http://127.0.0.1:8777"
OPEN = ServiceInfo("0.3.0", False, 8778, "")
SIGNED = ServiceInfo("0.3.0", True, 8778, "")


@pytest.fixture(autouse=True)
def no_aws_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    proxies = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
    for name in (*proxies, *map(str.lower, proxies), "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def test_every_service_has_the_endpoint() -> None:
    found = client_variables(ENDPOINT, {}, OPEN)
    services = ("", "_S3", "_STS", "_SAGEMAKER", "_SAGEMAKER_RUNTIME", "_IAM", "_LOGS", "_CLOUDWATCH")
    assert [found[f"AWS_ENDPOINT_URL{service}"] for service in services] == [ENDPOINT] * 8
    assert found["SAGEMAKER_ADMIN_CONFIG_OVERRIDE"] == "s3://local-sagemaker-config/config.yaml"
    assert (found["AWS_REGION"], found["AWS_DEFAULT_REGION"]) == ("us-west-2", "us-west-2")
    assert (found["AWS_ACCESS_KEY_ID"], found["AWS_SECRET_ACCESS_KEY"]) == ("luthier", "luthier")


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ({"AWS_REGION": "eu-west-1"}, {"AWS_DEFAULT_REGION": "eu-west-1"}),
        ({"AWS_DEFAULT_REGION": "eu-west-1"}, {"AWS_REGION": "eu-west-1"}),
        ({"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2"}, {}),
        ({"AWS_REGION": ""}, {"AWS_REGION": "us-west-2", "AWS_DEFAULT_REGION": "us-west-2"}),
    ],
)
def test_the_users_region_is_kept(before: Mapping[str, str], expected: Mapping[str, str]) -> None:
    found = client_variables(ENDPOINT, before, OPEN)
    assert {name: value for name, value in found.items() if "REGION" in name} == expected


@pytest.mark.parametrize(
    "before",
    [{"AWS_ACCESS_KEY_ID": "AKIA"}, {"AWS_PROFILE": "work"}, {"AWS_WEB_IDENTITY_TOKEN_FILE": "/t"},
     {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://x"}],
)  # fmt: skip
def test_the_users_credentials_are_kept(before: Mapping[str, str]) -> None:
    assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & client_variables(ENDPOINT, before, OPEN).keys()


@pytest.mark.parametrize(
    ("file", "text", "own_keys", "own_region"),
    [
        ("credentials", "[default]\naws_access_key_id = A\naws_secret_access_key = B\n", True, False),
        ("credentials", "[work]\naws_access_key_id = A\n", False, False),
        ("config", "[default]\nregion = eu-west-1\n", False, True),
        ("config", "[default]\nsso_session = x\n", True, False),
        ("config", "[profile work]\nregion = eu-west-1\n", False, False),
        ("config", "[default]\ncredential_process = a%b\n", True, False),
    ],
)
def test_settings_in_aws_files_are_kept(tmp_path: Path, file: str, text: str, own_keys: bool, own_region: bool) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / file).write_text(text)
    found = client_variables(ENDPOINT, {}, OPEN)
    assert ("AWS_ACCESS_KEY_ID" not in found) is own_keys
    assert ("AWS_DEFAULT_REGION" not in found) is own_region


def test_a_broken_aws_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("region\n")
    with pytest.raises(UserError, match="config: cannot read it"):
        client_variables(ENDPOINT, {"AWS_CONFIG_FILE": str(tmp_path / "config")}, OPEN)


def test_a_service_with_keys_gets_no_dummy_credentials() -> None:
    assert "AWS_ACCESS_KEY_ID" not in client_variables(ENDPOINT, {}, SIGNED)
    assert "luthier keys create" in warnings(SIGNED, {}, False)[0]
    assert warnings(SIGNED, {"AWS_ACCESS_KEY_ID": "LKIA"}, False) == []


def test_no_proxy_excludes_the_service_from_the_users_proxy() -> None:
    found = client_variables(
        "http://10.0.0.7:9000", {"http_proxy": "http://corp:3128", "no_proxy": "corp.example"}, OPEN
    )
    assert found["NO_PROXY"] == found["no_proxy"] == "corp.example,127.0.0.1,localhost,10.0.0.7"
    assert "NO_PROXY" not in client_variables(ENDPOINT, {}, OPEN)


def test_the_https_proxy() -> None:
    found = proxy_variables(ENDPOINT, 8778, Path("/h/proxy/ca.pem"), {"https_proxy": "http://corp:3128"})
    address = "http://127.0.0.1:8778"
    assert found == {
        "HTTPS_PROXY": address, "https_proxy": address, "NO_PROXY": "127.0.0.1,localhost",
    } | dict.fromkeys(
        ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"),
        "/h/proxy/ca.pem",
    )  # fmt: skip
    assert "http://corp:3128" in warnings(OPEN, {"https_proxy": "http://corp:3128"}, True)[0]


def saved(before: Mapping[str, str | None]) -> str:
    return json.dumps(before)


def test_unset_restores_the_environment() -> None:
    now = {"HTTPS_PROXY": "http://127.0.0.1:8778", "AWS_REGION": "us-west-2", "OTHER": "x",
           "LUTHIER_ENV": saved({"HTTPS_PROXY": "http://corp:3128", "AWS_REGION": None})}  # fmt: skip
    before = environment_before(now)
    assert before == {"HTTPS_PROXY": "http://corp:3128", "OTHER": "x"}
    assert sorted(shell_lines({}, before, now, SHELLS["sh"])) == [
        "export HTTPS_PROXY=http://corp:3128", "unset AWS_REGION", "unset LUTHIER_ENV",
    ]  # fmt: skip


def test_what_the_user_set_in_between_is_the_users() -> None:
    new = {"AWS_ENDPOINT_URL": ENDPOINT, "AWS_ACCESS_KEY_ID": "luthier", "AWS_REGION": "us-west-2"}
    now = new | {"LUTHIER_ENV": saved_variables(new, {"AWS_REGION": "eu-west-1"}), "AWS_ACCESS_KEY_ID": "LKIA"}
    now.pop("AWS_ENDPOINT_URL")  # unset by the user
    assert environment_before(now) == {"AWS_ACCESS_KEY_ID": "LKIA", "AWS_REGION": "eu-west-1"}


def test_keys_set_after_the_first_env_survive_a_second_one(port: int) -> None:
    go = f'eval "$($luthier env --port {port})"'
    keys = "export AWS_ACCESS_KEY_ID=LKIA AWS_SECRET_ACCESS_KEY=s"
    kept = run_in_shell("sh", go, keys, go)
    assert (kept["AWS_ACCESS_KEY_ID"], kept["AWS_SECRET_ACCESS_KEY"]) == ("LKIA", "s")
    back = run_in_shell("sh", go, keys, go, 'eval "$($luthier env --unset)"')
    assert [name for name in back if name.startswith("AWS_")] == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]


def test_a_saved_environment_that_is_not_ours_is_refused() -> None:
    for text in ("nonsense", "[1]"):
        with pytest.raises(UserError, match="LUTHIER_ENV"):
            environment_before({"LUTHIER_ENV": text})


class VersionEndpoint(http.server.BaseHTTPRequestHandler):
    """Answers as a service whose /_luthier/version is `document`."""

    document: object = {}

    def do_GET(self) -> None:
        body = json.dumps(type(self).document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The port of a fake service whose home has a CA certificate."""
    (tmp_path / "h" / "proxy").mkdir(parents=True)
    (tmp_path / "h" / "proxy" / "ca.pem").touch()
    digest = hashlib.sha256(b"").hexdigest()
    VersionEndpoint.document = {"version": "1", "signatures": False, "proxy": 4711, "certificate": digest}
    with http.server.HTTPServer(("127.0.0.1", 0), VersionEndpoint) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


SHOW = f"{sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))'"


def run_in_shell(shell: str, *steps: str) -> dict[str, str]:
    """The environment after the steps, in a real shell."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"REQUESTS_CA_BUNDLE": "/it's mine.pem", "luthier": f"{sys.executable} -m luthier"}
    script = "\n".join([*steps, SHOW])
    done = subprocess.run([shell, "-c", script], capture_output=True, text=True, env=environment, check=True)
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    assert done.stderr == ""
    return found


def test_set_and_unset_in_a_real_shell(port: int, tmp_path: Path) -> None:
    go = f'eval "$($luthier env --port {port}'
    proxy = f"--proxy --home {tmp_path}/h"
    there = run_in_shell("sh", f'{go} {proxy})"')
    assert there["AWS_ENDPOINT_URL"] == f"http://127.0.0.1:{port}"
    assert there["HTTPS_PROXY"] == "http://127.0.0.1:4711"
    assert there["REQUESTS_CA_BUNDLE"] == str(tmp_path / "h" / "proxy" / "ca.pem")
    twice = run_in_shell("sh", f'{go} {proxy})"', f'{go})"')
    assert "HTTPS_PROXY" not in twice
    assert twice["REQUESTS_CA_BUNDLE"] == "/it's mine.pem"
    back = run_in_shell("sh", f'{go} {proxy})"', f'{go} {proxy})"', 'eval "$($luthier env --unset)"')
    assert not [name for name in back if name.startswith(("AWS_", "LUTHIER_ENV", "SAGEMAKER", "HTTPS_PROXY"))]
    assert back["REQUESTS_CA_BUNDLE"] == "/it's mine.pem"


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_in_fish(port: int) -> None:
    there = run_in_shell("fish", f"$luthier env --shell fish --port {port} | source")
    assert there["AWS_ENDPOINT_URL_S3"] == f"http://127.0.0.1:{port}"


def test_fish_lines_are_quoted() -> None:
    assign, remove = SHELLS["fish"]
    assert assign("A", "it's a \\ path") == "set -gx A 'it\\'s a \\\\ path'"
    assert remove("A") == "set -e A"


def test_no_answer_is_a_warning() -> None:
    shown = CliRunner().invoke(app, ["env", "--port", "1"])
    assert shown.exit_code == 0
    assert "export AWS_ENDPOINT_URL=http://127.0.0.1:1\n" in shown.stdout
    assert "nothing answers at http://127.0.0.1:1; start it with: luthier serve" in shown.stderr


def test_another_server_is_an_error(port: int) -> None:
    VersionEndpoint.document = {"hello": 1}
    with pytest.raises(UserError, match="not Luthier's service"):
        fetch_service_info(f"http://127.0.0.1:{port}")


def test_the_certificate_of_another_service_is_refused(port: int, tmp_path: Path) -> None:
    (tmp_path / "h" / "proxy" / "ca.pem").write_text("another")
    arguments = ["env", "--proxy", "--port", str(port), "--home", str(tmp_path / "h")]
    shown = CliRunner().invoke(app, arguments, standalone_mode=False)
    assert isinstance(shown.exception, UserError)
    assert "ca.pem; set --home to its home" in str(shown.exception)


def test_a_service_without_a_proxy(port: int) -> None:
    VersionEndpoint.document = {"version": "1", "signatures": False, "proxy": None, "certificate": ""}
    shown = CliRunner().invoke(app, ["env", "--proxy", "--port", str(port)], standalone_mode=False)
    assert isinstance(shown.exception, UserError)
    assert "--no-proxy" in str(shown.exception)


@pytest.mark.parametrize(
    ("host", "port_", "environment", "expected"),
    [
        (None, None, {}, "http://127.0.0.1:8777"),
        (None, None, {"AWS_ENDPOINT_URL": "http://h:1/"}, "http://h:1"),
        (None, None, {"AWS_ENDPOINT_URL": "http://h:1", "AWS_ENDPOINT_URL_SAGEMAKER": "http://h:2"}, "http://h:2"),
        ("h", None, {"AWS_ENDPOINT_URL": "http://x:1"}, "http://h:8777"),
        (None, 9, {"AWS_ENDPOINT_URL": "http://x:1"}, "http://127.0.0.1:9"),
        ("::1", 9, {}, "http://[::1]:9"),
    ],
)
def test_find_endpoint(host: str | None, port_: int | None, environment: Mapping[str, str], expected: str) -> None:
    assert find_endpoint(host, port_, environment) == expected
