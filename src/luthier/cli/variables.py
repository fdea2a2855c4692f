"""The environment variables that lead AWS's clients to the service, and the user's own from before.

LUTHIER_ENV remembers, as JSON, what each variable was before, so that the way back restores exactly that, and a second
`luthier env` starts from the user's own surroundings, not from what the first one left. Asks no server; reads ~/.aws
to leave alone what is the user's.
"""

from __future__ import annotations

import configparser
import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from luthier.client.endpoint import About
from luthier.errors import UserError

MARK = "LUTHIER_ENV"
SERVICES = ("S3", "STS", "SAGEMAKER", "SAGEMAKER_RUNTIME", "IAM", "LOGS")
REGION = "us-west-2"
ADMIN_CONFIG = "s3://local-sagemaker-config/config.yaml"
# Any of these brings credentials of the user's own, which are never replaced.
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
               "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")  # fmt: skip
PROFILE_CREDENTIALS = ("aws_access_key_id", "credential_process", "role_arn", "sso_session", "sso_start_url")
DUMMY = "luthier"
Environment = Mapping[str, str]


def undone(environment: Environment) -> dict[str, str]:
    """The environment as it was before `luthier env`."""
    before = dict(environment)
    try:
        saved = json.loads(before.pop(MARK, "{}"))
        if not isinstance(saved, dict):
            raise ValueError
    except ValueError:
        raise UserError(f"{MARK}: not what `luthier env` left there; unset it, or open a new shell") from None
    for name, value in saved.items():
        if value is None:
            before.pop(name, None)
        else:
            before[name] = str(value)
    return before


def variables(endpoint: str, before: Environment, about: About | None) -> dict[str, str]:
    """What every client needs."""
    found = {"AWS_ENDPOINT_URL": endpoint} | {f"AWS_ENDPOINT_URL_{service}": endpoint for service in SERVICES}
    found["SAGEMAKER_ADMIN_CONFIG_OVERRIDE"] = ADMIN_CONFIG
    region = before.get("AWS_REGION") or before.get("AWS_DEFAULT_REGION")
    if region or not _profile_has(before, ("region",)):
        # boto3 and the CLI read the one, SDKs in other languages the other.
        found |= {name: region or REGION for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if not before.get(name)}
    if not has_credentials(before) and (about is None or not about.signatures):
        found |= {"AWS_ACCESS_KEY_ID": DUMMY, "AWS_SECRET_ACCESS_KEY": DUMMY}
    if any(before.get(name) for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")):
        found |= _reached_directly(endpoint, before)
    return found


def _reached_directly(endpoint: str, before: Environment) -> dict[str, str]:
    """NO_PROXY with the service's host; the spelling in small letters wins in Python, so it has to agree."""
    name = re.sub(r"^http://|:\d+$", "", endpoint).strip("[]")
    kept = before.get("no_proxy") or before.get("NO_PROXY") or ""
    value = ",".join(dict.fromkeys([*filter(None, kept.split(",")), "127.0.0.1", "localhost", name]))
    return {spelling: value for spelling in ("NO_PROXY", "no_proxy") if spelling == "NO_PROXY" or spelling in before}


def proxy_variables(endpoint: str, proxy: int, certificate: Path, before: Environment) -> dict[str, str]:
    """What the HTTPS proxy on port `proxy` adds; both spellings agree, as the small one wins."""
    address = f"http://127.0.0.1:{proxy}"
    found = {name: address for name in ("HTTPS_PROXY", "https_proxy") if name == "HTTPS_PROXY" or name in before}
    found |= _reached_directly(endpoint, before)
    return found | dict.fromkeys(("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"), str(certificate))


def warnings(about: About | None, before: Environment, proxy: bool) -> list[str]:
    """What the user should know before anything fails."""
    found = []
    if about is not None and about.signatures and not has_credentials(before):
        found.append("the service takes signed requests only; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a key "
                     "of `luthier keys create`")  # fmt: skip
    if proxy and (other := before.get("https_proxy") or before.get("HTTPS_PROXY")):
        found.append(f"HTTPS_PROXY was {other}; Luthier's proxy leads to AWS's names only and refuses others")
    return found


def has_credentials(before: Environment) -> bool:
    """Whether the user has credentials of their own, by variables or in ~/.aws."""
    return any(before.get(name) for name in CREDENTIALS) or _profile_has(before, PROFILE_CREDENTIALS)


def _profile_has(before: Environment, names: tuple[str, ...]) -> bool:
    """Whether the profile in use has any of `names`, in either of AWS's two files."""
    profile = before.get("AWS_PROFILE") or "default"
    files = {
        before.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials": profile,
        before.get("AWS_CONFIG_FILE") or "~/.aws/config": profile if profile == "default" else f"profile {profile}",
    }
    for file, section in files.items():
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read(Path(file).expanduser(), encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
        if any(parser.has_option(section, name) for name in names):
            return True
    return False


SHELLS: Mapping[str, tuple[Callable[[str, str], str], Callable[[str], str]]] = {
    "sh": (lambda name, value: f"export {name}={shlex.quote(value)}", lambda name: f"unset {name}"),
    "fish": (lambda name, value: f"set -gx {name} {_fish_quoted(value)}", lambda name: f"set -e {name}"),
}


def _fish_quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def lines(
    wanted: Environment, before: Environment, now: Environment,
    shell: tuple[Callable[[str, str], str], Callable[[str], str]],
) -> list[str]:  # fmt: skip
    """The lines that lead from `now` to `before` with `wanted` on top."""
    assign, remove = shell
    after = {**before, **wanted}
    touched = [*wanted, *(name for name in now if name not in wanted and now[name] != before.get(name))]
    return [assign(name, after[name]) if name in after else remove(name) for name in touched]
