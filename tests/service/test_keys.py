"""Access keys: made, listed without secrets, disabled; and what they mean for who may call."""

from __future__ import annotations

import io
import json
import re
import stat
import sys
from pathlib import Path
from typing import Any

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest

from luthier.errors import SettingError, UserError
from luthier.jobs.store import Store
from luthier.protocol.call import ACCOUNT, Principal
from luthier.protocol.errors import WireError
from luthier.protocol.message import Request
from luthier.service import keys as keys_module
from luthier.service.keys import AccessKey, Keys, authenticator


@pytest.fixture
def keys(store: Store) -> Keys:
    return Keys(store)


def signed(key: str, secret: str) -> Request:
    body = b"Action=GetCallerIdentity&Version=2011-06-15"
    made = botocore.awsrequest.AWSRequest(
        "POST", "http://127.0.0.1:8777/", data=body, headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    botocore.auth.SigV4Auth(botocore.credentials.Credentials(key, secret), "sts", "us-west-2").add_auth(made)
    headers = {name.lower(): value for name, value in made.headers.items()} | {"host": "127.0.0.1:8777"}
    return Request(method="POST", path="/", query="", headers=headers, chunks=iter([body]))


def test_a_key_is_stored_and_found_until_it_is_disabled(keys: Keys) -> None:
    made = keys.create("ann")
    assert re.fullmatch(r"LKIA[A-Z2-7]{16}", made.id)
    assert re.fullmatch(r"[A-Za-z0-9]{40}", made.secret)
    assert keys.find(made.id) == made
    assert keys.disable(made.id).disabled is not None
    assert keys.find(made.id) is None
    assert [key.id for key in keys.list()] == [made.id]


def test_two_keys_are_never_alike(keys: Keys) -> None:
    made = [keys.create("ann") for _ in range(20)]
    assert len({key.id for key in made} | {key.secret for key in made}) == 40


def test_disabling_again_keeps_the_first_time(keys: Keys) -> None:
    made = keys.create("ann")
    assert keys.disable(made.id).disabled == keys.disable(made.id).disabled


def test_an_unknown_key_is_named_with_the_closest(keys: Keys) -> None:
    made = keys.create("ann")
    with pytest.raises(SettingError, match=f"did you mean '{made.id}'"):
        keys.disable(made.id[:-1])


@pytest.mark.parametrize("user", ["", "a b", "a/b", "x" * 65, "ann\n"])
def test_a_user_that_iam_would_refuse_is_refused(keys: Keys, user: str) -> None:
    with pytest.raises(SettingError, match="--user"):
        keys.create(user)
    assert keys.list() == []


def test_without_any_key_everybody_is_the_account(keys: Keys) -> None:
    assert authenticator(keys)(Request(method="GET", path="/"), "s3") == Principal()
    assert authenticator(keys)(signed("AKIAOFAWS", "x" * 40), "sts") == Principal()


@pytest.mark.parametrize(
    "headers",
    [{"host": "evil.example:8777"}, {"host": "127.0.0.1:8777", "origin": "https://evil.example"},
     {"host": "127.0.0.1.evil.example"}, {"host": "amazonaws.com.evil.example"}, {"host": "10.0.0.1"}],
)  # fmt: skip
def test_without_any_key_a_browser_is_refused(keys: Keys, headers: dict[str, str]) -> None:
    """A page may send requests to loopback, and have its own name lead there."""
    with pytest.raises(WireError) as refused:
        authenticator(keys)(Request(method="GET", path="/", query="", headers=headers), "s3")
    assert (refused.value.code, refused.value.status) == ("AccessDenied", 403)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8777", "127.0.0.1", "localhost:1", "bucket.localhost:8777", "[::1]:8777", "",
             "bucket.s3.us-west-2.amazonaws.com", "sts.amazonaws.com"],
)  # fmt: skip
def test_this_machines_names_are_taken(keys: Keys, host: str) -> None:
    assert authenticator(keys)(Request(method="GET", path="/", query="", headers={"host": host}), "s3") == Principal()


def test_with_a_key_its_holder_is_told_and_all_others_are_refused(keys: Keys) -> None:
    key = keys.create("ann")
    authenticate = authenticator(keys)
    assert authenticate(signed(key.id, key.secret), "sts") == Principal(
        ACCOUNT, f"arn:aws:iam::{ACCOUNT}:user/ann", key.id
    )

    def whole(request: Request) -> bytes:
        authenticate(request, "sts")
        return request.body(1000)  # its hash proves the signer

    cases = {
        "SignatureDoesNotMatch": signed(key.id, "x" * 40),
        "InvalidClientTokenId": signed("LKIAUNKNOWN", key.secret),
        "MissingAuthenticationToken": Request(method="GET", path="/"),
    }
    for code, request in cases.items():
        with pytest.raises(WireError) as refused:
            whole(request)
        assert refused.value.code == code


def test_disabling_the_last_key_opens_nothing(keys: Keys) -> None:
    key = keys.create("ann")
    keys.disable(key.id)
    assert keys.required()
    assert not keys.usable()
    with pytest.raises(WireError) as refused:
        authenticator(keys)(signed(key.id, key.secret), "sts")
    assert refused.value.code == "InvalidClientTokenId"


def test_no_auth_takes_what_is_not_signed(keys: Keys) -> None:
    keys.create("ann")
    assert authenticator(keys, disabled=True)(Request(method="GET", path="/"), "s3") == Principal()


def program(monkeypatch: pytest.MonkeyPatch, home: Path, **request: Any) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"home": str(home), "database": "", **request})))
    keys_module.main()


def test_the_program_shows_a_secret_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    program(monkeypatch, home, do="create", user="ann")
    shown = capsys.readouterr()
    found = re.fullmatch(r"export AWS_ACCESS_KEY_ID=(\S+)\nexport AWS_SECRET_ACCESS_KEY=(\S+)\n", shown.out)
    assert found is not None
    assert "signed requests only" in shown.err
    program(monkeypatch, home, do="list", json=False)
    program(monkeypatch, home, do="list", json=True)
    program(monkeypatch, home, do="disable", id=found[1])
    listed = capsys.readouterr().out
    assert listed.count(found[1]) == 3
    assert found[2] not in listed
    assert "disabled" in listed.splitlines()[-1]


def test_the_database_with_the_secrets_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    program(monkeypatch, home, do="create", user="ann")
    for path in (home, *home.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize("do", [{"do": "list", "json": False}, {"do": "disable", "id": "K"}])
def test_looking_makes_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, do: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no service database; expected the --home of a service"):
        program(monkeypatch, tmp_path / "home", **do)
    assert not (tmp_path / "home").exists()


def test_a_key_knows_its_principal() -> None:
    assert (
        AccessKey(id="K", secret="s", account="1" * 12, user="bo", created=0.0).principal.arn
        == "arn:aws:iam::111111111111:user/bo"
    )
