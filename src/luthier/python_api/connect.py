"""`luthier.connect`: a boto3 session whose clients call a running service."""

from __future__ import annotations

from typing import Any

import boto3

from luthier.client.endpoint import fetch_service_info, find_endpoint
from luthier.defaults import DEFAULT_REGION, DUMMY_KEY
from luthier.errors import UserError


class ServiceSession(boto3.Session):  # type: ignore[misc]  # boto3 is untyped
    """A boto3 session whose clients and resources use `endpoint_url` unless they are given another."""

    def __init__(self, endpoint_url: str, **options: Any) -> None:
        super().__init__(**options)
        self.endpoint_url = endpoint_url

    def client(self, *arguments: Any, endpoint_url: str | None = None, **options: Any) -> Any:
        """As boto3.Session.client."""
        return super().client(*arguments, endpoint_url=endpoint_url or self.endpoint_url, **options)

    def resource(self, *arguments: Any, endpoint_url: str | None = None, **options: Any) -> Any:
        """As boto3.Session.resource."""
        return super().resource(*arguments, endpoint_url=endpoint_url or self.endpoint_url, **options)


def connect(host: str | None = None, port: int | None = None, *, region: str | None = None) -> ServiceSession:
    """A boto3 session for the service of `luthier serve`; UserError where none answers.

    Without `host` and `port`: where the variables of `luthier env` point, else the default address. Credentials are
    your own as boto3 finds them; without any, a dummy key, which a service without authentication accepts.
    """
    endpoint = find_endpoint(host, port)
    service = fetch_service_info(endpoint)
    if service is None:
        raise UserError(f"{endpoint}: no service answers; start it with: luthier serve")
    session = ServiceSession(endpoint, region_name=region)
    if session.get_credentials() is None:
        if service.signatures:
            raise UserError(
                f"{endpoint}: the service accepts signed requests only; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY to a key of `luthier keys create`"
            )
        session = ServiceSession(
            endpoint,
            aws_access_key_id=DUMMY_KEY,
            aws_secret_access_key=DUMMY_KEY,
            region_name=session.region_name or DEFAULT_REGION,
        )
    return session if session.region_name else ServiceSession(endpoint, region_name=DEFAULT_REGION)
