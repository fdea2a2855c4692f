"""Access keys. `luthier keys` runs `python -P -m luthier.service.keys` with its request on stdin.

Until the first key is created, authentication is off, which server.py allows on loopback only. From then on every
request must be signed, also after the last key is disabled: disabling a key must not turn authentication off.
protocol/signature.py checks the signatures.
"""

from __future__ import annotations

import json
import re
import secrets
import string
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from luthier import entrypoint
from luthier.errors import SettingError, UserError, did_you_mean
from luthier.jobs.schema import access_keys
from luthier.jobs.settings import ServiceSettings
from luthier.jobs.store import Store, database_file
from luthier.protocol.call import ACCOUNT, Principal
from luthier.protocol.errors import WireError
from luthier.protocol.message import Request
from luthier.protocol.signature import verify
from luthier.rights import Rights

PREFIX = "LKIA"  # AWS's keys start with AKIA; the prefix of a leaked key names its origin
# Host names that programs of this machine use; AWS's come through the HTTPS proxy.
LOCAL = re.compile(r"|127(\.\d{1,3}){3}|\[::1\]|([a-z0-9.-]+\.)?localhost|[a-z0-9.-]+\.amazonaws\.com(\.cn)?")
USER = re.compile(r"[A-Za-z0-9_+=,.@-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessKey:
    """One row of access_keys; times in seconds since 1970."""

    id: str
    secret: str
    account: str
    user: str
    created: float
    disabled: float | None = None
    rights: Sequence[str] | None = None

    @property
    def principal(self) -> Principal:
        arn = f"arn:aws:iam::{self.account}:user/{self.user}"
        return Principal(self.account, arn, self.id, Rights.parse(self.rights or ()))


class Keys:
    """The access keys of a store; every method queries the database, so a disabled key is refused at once."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def create(self, user: str, account: str = ACCOUNT, rights: Sequence[str] = ()) -> AccessKey:
        """Create a key for `user` with the words of --allow; SettingError for an unknown word, or an invalid name."""
        if not USER.fullmatch(user):
            raise SettingError(f"{user!r}: expected a name (--user) of 1 to 64 letters, digits or any of _+=,.@-")
        words = list(Rights.parse(rights).words) or None
        name = PREFIX + "".join(secrets.choice(string.ascii_uppercase + "234567") for _ in range(16))
        secret = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(40))
        key = AccessKey(id=name, secret=secret, account=account, user=user, created=time.time(), rights=words)
        with self.store.write() as connection:
            connection.execute(access_keys.insert().values({name: getattr(key, name) for name in AccessKey.__slots__}))
        return key

    def list(self) -> list[AccessKey]:
        """All keys, the oldest first, disabled ones included."""
        with self.store.engine.connect() as connection:
            rows = connection.execute(sa.select(access_keys).order_by(access_keys.c.created, access_keys.c.id)).all()
        return [_key(row) for row in rows]

    def find(self, key_id: str) -> AccessKey | None:
        """The key with this id, unless it is disabled."""
        query = sa.select(access_keys).where(access_keys.c.id == key_id, access_keys.c.disabled.is_(None))
        with self.store.engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        return _key(row) if row else None

    def disable(self, key_id: str) -> AccessKey:
        """Refuse a key from now on; SettingError for an unknown id."""
        changed = access_keys.update().where(access_keys.c.id == key_id)
        first = sa.func.coalesce(access_keys.c.disabled, time.time())
        with self.store.write() as connection:
            row = connection.execute(changed.values(disabled=first).returning(access_keys)).one_or_none()
        if row is None:
            hint = did_you_mean(key_id, [key.id for key in self.list()])
            raise SettingError(f"access key {key_id} not found{hint}; `luthier keys list` lists them")
        return _key(row)

    def required(self) -> bool:
        """Whether requests must be signed: once a key was created."""
        with self.store.engine.connect() as connection:
            return connection.execute(sa.select(access_keys.c.id).limit(1)).first() is not None

    def usable(self) -> bool:
        """Whether there is a key that is not disabled."""
        query = sa.select(access_keys.c.id).where(access_keys.c.disabled.is_(None)).limit(1)
        with self.store.engine.connect() as connection:
            return connection.execute(query).first() is not None


def authenticator(keys: Keys, disabled: bool = False) -> Callable[[Request, str], Principal]:
    """A function that returns the caller of a request: its signer, or the account while authentication is off.

    It is off until there is a key, or always if `disabled`.

    The function raises the WireErrors of signature.verify.
    """

    def authenticate(request: Request, service: str) -> Principal:
        if disabled or not keys.required():
            check_origin(request)
            return Principal()
        checked_keys: dict[str, AccessKey] = {}

        def secret_of(key_id: str) -> str | None:
            key = keys.find(key_id)
            if key is None:
                return None
            checked_keys[key_id] = key
            return key.secret

        return checked_keys[verify(request, secret_of, datetime.now(UTC))].principal

    return authenticate


def check_origin(request: Request, only_local: bool = True) -> None:
    """Refuse requests that a web page makes a browser send: they have an origin, or with `only_local` another host."""
    host = re.sub(r":\d+$", "", request.headers.get("host", "")).lower()
    if "origin" in request.headers or (only_local and not LOCAL.fullmatch(host)):
        local = (
            "Without access keys only programs on this machine are served, not browsers or requests for host "
            f"{host[:80]!r}; create a key with: luthier keys create"
        )
        raise WireError("AccessDenied", local if only_local else "Web pages are not served: remove Origin.", 403)


def _key(row: Any) -> AccessKey:
    return AccessKey(**{name: getattr(row, name) for name in AccessKey.__slots__})


@contextmanager
def _open_keys(request: Mapping[str, Any]) -> Iterator[Keys]:
    settings = ServiceSettings(home=Path(request["home"]), database=request["database"])
    file = database_file(settings.database_url)
    if request["do"] != "create" and file is not None and not file.exists():
        raise UserError(f"{file}: no service database; expected the --home of a service")
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = Store.open(settings.database_url)
    try:
        yield Keys(store)
    finally:
        store.close()


def _format(key: AccessKey) -> str:
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.created))
    rights = f"  {Rights.parse(key.rights)}" if key.rights else ""
    return f"{key.id}  {key.user}  created {created}{rights}" + ("  disabled" if key.disabled else "")


def main() -> None:
    """Run the request: {"home", "database", "do": create | list | disable, "user", "allow", "id", "json"}."""
    request = json.load(sys.stdin)
    with _open_keys(request) as keys:
        if request["do"] == "create":
            _show_new(keys.create(request["user"], rights=request.get("allow", ())))
        elif request["do"] == "disable":
            print(_format(keys.disable(request["id"])))  # noqa: T201
        elif request["json"]:
            public = ("id", "user", "account", "created", "disabled", "rights")
            print(json.dumps([{name: getattr(key, name) for name in public} for key in keys.list()], indent=1))  # noqa: T201
        else:
            rows = "\n".join(map(_format, keys.list()))
            print(rows or "no access keys: authentication is off; only this machine can connect")  # noqa: T201


def _show_new(key: AccessKey) -> None:
    """Print the secret, which is shown only now, as shell commands."""
    print(f"export AWS_ACCESS_KEY_ID={key.id}\nexport AWS_SECRET_ACCESS_KEY={key.secret}")  # noqa: T201
    note = "the secret is shown only once; from now on the service accepts signed requests only"
    print(f"luthier: key of {key.user}: {note}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    entrypoint.run(main)
