"""The environment variables that point AWS's clients at the service, and how to restore the user's own.

LUTHIER_ENV saves, as JSON, each variable's earlier value and the value set: `luthier env --unset` restores the earlier
one, and a second `luthier env` starts from the user's environment. A variable that the user changed since is the
user's. Calls no server; reads ~/.aws to keep the user's credentials.
"""

from __future__ import annotations

import configparser
import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from luthier.client.endpoint import ServiceInfo
from luthier.defaults import DEFAULT_REGION, DUMMY_KEY
from luthier.errors import UserError

SAVED = "LUTHIER_ENV"
SERVICES = ("S3", "STS", "SAGEMAKER", "SAGEMAKER_RUNTIME", "IAM", "LOGS", "CLOUDWATCH")
ADMIN_CONFIG = "s3://local-sagemaker-config/config.yaml"
# Any of these means that the user has credentials, which are never replaced.
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
               "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")  # fmt: skip
PROFILE_CREDENTIALS = ("aws_access_key_id", "credential_process", "role_arn", "sso_session", "sso_start_url")
# Of boto3 and the AWS CLI; requests; OpenSSL, Python's ssl and Go; curl and libcurl; Node.
CERTIFICATES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
Environment = Mapping[str, str]


def environment_before(environment: Environment) -> dict[str, str]:
    """Return the environment without the changes of `luthier env` that still stand."""
    before = dict(environment)
    try:
        saved = json.loads(before.pop(SAVED, "{}"))
        if not isinstance(saved, dict):
            raise ValueError
    except ValueError:
        raise UserError(f"{SAVED}: not written by `luthier env`; unset it, or open a new shell") from None
    for name, entry in saved.items():
        # 0.3 saved the earlier value alone.
        value, new = entry if isinstance(entry, list) and len(entry) == 2 else (entry, environment.get(name))
        if environment.get(name) != new:
            continue
        if value is None:
            before.pop(name, None)
        else:
            before[name] = str(value)
    return before


def saved_variables(new: Environment, before: Environment) -> str:
    """The value of LUTHIER_ENV for the variables `new`, from which `environment_before` returns to `before`."""
    return json.dumps({name: [before.get(name), value] for name, value in new.items()})


def client_variables(endpoint: str, before: Environment, service: ServiceInfo | None) -> dict[str, str]:
    """Return the variables that every client needs."""
    new = {"AWS_ENDPOINT_URL": endpoint} | {f"AWS_ENDPOINT_URL_{name}": endpoint for name in SERVICES}
    new["SAGEMAKER_ADMIN_CONFIG_OVERRIDE"] = ADMIN_CONFIG
    region = before.get("AWS_REGION") or before.get("AWS_DEFAULT_REGION")
    if region or not _profile_has(before, ("region",)):
        # boto3 and the CLI read AWS_DEFAULT_REGION, SDKs in other languages AWS_REGION.
        new |= {name: region or DEFAULT_REGION for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if not before.get(name)}
    if not has_credentials(before) and (service is None or not service.signatures):
        new |= {"AWS_ACCESS_KEY_ID": DUMMY_KEY, "AWS_SECRET_ACCESS_KEY": DUMMY_KEY}
    if any(before.get(name) for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")):
        new |= _no_proxy(endpoint, before)
    return new


def _no_proxy(endpoint: str, before: Environment) -> dict[str, str]:
    """Return NO_PROXY with the service's host added; Python prefers `no_proxy`, so both spellings get the value."""
    host = re.sub(r"^http://|:\d+$", "", endpoint).strip("[]")
    hosts = before.get("no_proxy") or before.get("NO_PROXY") or ""
    value = ",".join(dict.fromkeys([*filter(None, hosts.split(",")), "127.0.0.1", "localhost", host]))
    return {spelling: value for spelling in ("NO_PROXY", "no_proxy") if spelling == "NO_PROXY" or spelling in before}


def proxy_variables(endpoint: str, proxy: int, certificate: Path, before: Environment) -> dict[str, str]:
    """Return the additional variables for the HTTPS proxy on port `proxy`."""
    url = f"http://127.0.0.1:{proxy}"
    new = {name: url for name in ("HTTPS_PROXY", "https_proxy") if name == "HTTPS_PROXY" or name in before}
    new |= _no_proxy(endpoint, before)
    return new | dict.fromkeys(CERTIFICATES, str(certificate))


def warnings(service: ServiceInfo | None, before: Environment, proxy: bool) -> list[str]:
    """Return warnings about requests that the service or its proxy would refuse."""
    messages = []
    if service is not None and service.signatures and not has_credentials(before):
        messages.append("the service accepts only signed requests; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to "
                        "a key made by `luthier keys create`")  # fmt: skip
    if proxy and (other := before.get("https_proxy") or before.get("HTTPS_PROXY")):
        messages.append(f"HTTPS_PROXY was {other}; Luthier's proxy accepts only AWS host names and refuses others")
    return messages


def has_credentials(before: Environment) -> bool:
    """True if the user has credentials, in variables or in ~/.aws."""
    return any(before.get(name) for name in CREDENTIALS) or _profile_has(before, PROFILE_CREDENTIALS)


def _profile_has(before: Environment, names: tuple[str, ...]) -> bool:
    """True if the active profile sets any of `names` in ~/.aws/credentials or ~/.aws/config."""
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
            raise UserError(f"{file}: cannot read it: {' '.join(str(error).split())}") from None
        if any(parser.has_option(section, name) for name in names):
            return True
    return False


SHELLS: Mapping[str, tuple[Callable[[str, str], str], Callable[[str], str]]] = {
    "sh": (lambda name, value: f"export {name}={shlex.quote(value)}", lambda name: f"unset {name}"),
    "fish": (lambda name, value: f"set -gx {name} {_fish_quoted(value)}", lambda name: f"set -e {name}"),
}


def _fish_quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def shell_lines(
    new: Environment, before: Environment, current: Environment,
    shell: tuple[Callable[[str, str], str], Callable[[str], str]],
) -> list[str]:  # fmt: skip
    """Return shell lines that change the environment from `current` to `before` updated with `new`."""
    assign, remove = shell
    target = {**before, **new}
    changed = [*new, *(name for name in current if name not in new and current[name] != before.get(name))]
    return [assign(name, target[name]) if name in target else remove(name) for name in changed]
