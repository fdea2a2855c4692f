"""InvokeEndpoint and InvokeEndpointWithResponseStream: forward a request to the process that serves the endpoint.

Errors are SageMaker's: ModelError with the model's message, ModelNotReadyException while it is loading,
ServiceUnavailable while it is overloaded.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from luthier.api.logs import group_arn
from luthier.api.service import Service
from luthier.endpoint_connection import EndpointConnections, EndpointResponse, EndpointUnreachableError
from luthier.jobs.progress import ServedVariant
from luthier.jobs.resource import Resource
from luthier.jobs.states import ENDPOINT
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

SERVING = ("InService", "Updating", "SystemUpdating")  # statuses in which an endpoint answers
UNSUPPORTED = ("TargetModel", "TargetContainerHostname", "InferenceComponentName", "SessionId", "EnableExplanations")
_PATHS = {"InvokeEndpoint": "/invocations", "InvokeEndpointWithResponseStream": "/invocations-response-stream"}
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
_connections = EndpointConnections()
_random = random.SystemRandom()


def invoke(call: Call, service: Service) -> dict[str, Any]:
    variant, response = _forward(call, service)
    try:
        body = response.read()
    except EndpointUnreachableError as error:
        raise _unreachable(call, error) from None
    return {"Body": body, **_output(response, variant)}


def invoke_stream(call: Call, service: Service) -> dict[str, Any]:
    variant, response = _forward(call, service)
    return {"Body": _stream(response), **_output(response, variant)}


def _forward(call: Call, service: Service) -> tuple[str, EndpointResponse]:
    """The name of the variant chosen, and its successful response; WireError for any other response."""
    parameters = call.parameters
    for name in UNSUPPORTED:
        if parameters.get(name):
            raise _invalid(f"{name} is not supported: an endpoint's variant serves one model, and keeps no session")
    endpoint = _endpoint(call, service)
    variant = _variant(endpoint, parameters.get("TargetVariant"))
    if not variant.address:
        raise _not_ready(call)
    headers = {
        "Content-Type": parameters.get("ContentType") or "application/json",
        "Accept": parameters.get("Accept") or "*/*",
        **({ATTRIBUTES: parameters["CustomAttributes"]} if parameters.get("CustomAttributes") else {}),
    }
    try:
        body = parameters.get("Body", b"")
        response = _connections.request(variant.address, "POST", _PATHS[call.operation], body, headers)
        if response.status >= 300:
            raise _model_error(call, response.status, *_parse_error(response.read()))
    except EndpointUnreachableError as error:
        raise _unreachable(call, error) from None
    return variant.name, response


def _parse_error(body: bytes) -> tuple[str, str]:
    """Text and type of an error response; the type is "" where the body is not Luthier's own JSON."""
    text = body.decode("utf-8", "replace").strip()
    try:
        error = json.loads(text)
        return str(error["error"]), str(error.get("error_type", ""))
    except (ValueError, TypeError, KeyError, RecursionError):
        return text, ""


def _endpoint(call: Call, service: Service) -> Resource:
    name = call.parameters["EndpointName"]
    endpoint = service.store.find(ENDPOINT, (call.account, call.region), name)
    if endpoint is None:
        raise _invalid(f"Endpoint {name} of account {call.account} not found.")
    if endpoint.status not in SERVING:
        raise _invalid(
            f"Endpoint {name} of account {call.account} is in status {endpoint.status}; it must be InService."
        )
    return endpoint


def _variant(endpoint: Resource, target: str | None) -> ServedVariant:
    """The target variant if named, else one drawn by weight."""
    variants = endpoint.endpoint.variants
    if target:
        for variant in variants:
            if variant.name == target:
                return variant
        raise _invalid(f"Variant {target} not found in endpoint {endpoint.name}.")
    return _random.choices(variants, [variant.weight for variant in variants])[0]


def _output(response: EndpointResponse, variant: str) -> dict[str, str]:
    attributes = response.headers.get(ATTRIBUTES.lower())
    return {
        "ContentType": response.headers.get("content-type", "application/json"),
        "InvokedProductionVariant": variant,
        **({"CustomAttributes": attributes} if attributes else {}),
    }


def _stream(response: EndpointResponse) -> Iterator[dict[str, Any]]:
    """The chunks of a response as they arrive; ModelStreamError when it breaks off."""
    try:
        for chunk in response:
            yield {"PayloadPart": {"Bytes": chunk}}
    except EndpointUnreachableError as error:
        why = "ModelInvocationTimeExceeded" if error.timed_out else "StreamBroken"
        text = f"The stream of the model broke off: {error}"
        raise WireError("ModelStreamError", text, 424, {"ErrorCode": why}) from None
    finally:
        response.close()


def _model_error(call: Call, status: int, text: str, kind: str) -> WireError:
    if kind == "loading":
        return _not_ready(call)
    if kind == "overloaded":
        return WireError("ServiceUnavailable", f"Endpoint {call.parameters['EndpointName']}: {text}", 503)
    group = f"/aws/sagemaker/Endpoints/{call.parameters['EndpointName']}"
    origin = "client" if status < 500 else "server"
    return WireError(
        "ModelError",
        f'Received {origin} error ({status}) from model with message "{text}". See the log group {group} in account '
        f"{call.account} for more information.",
        424,
        {"OriginalStatusCode": status, "OriginalMessage": text, "LogStreamArn": group_arn(call, group)},
    )


def _unreachable(call: Call, error: EndpointUnreachableError) -> WireError:
    if error.timed_out:
        return _model_error(call, 504, "the model did not answer in time", "")
    return WireError("ServiceUnavailable", f"Endpoint {call.parameters['EndpointName']}: {error}", 503)


def _not_ready(call: Call) -> WireError:
    name = call.parameters["EndpointName"]
    return WireError("ModelNotReadyException", f"The model of endpoint {name} is still loading; retry later.", 429)


def _invalid(message: str) -> WireError:
    return WireError("ValidationError", message)


OPERATIONS = {"InvokeEndpoint": invoke, "InvokeEndpointWithResponseStream": invoke_stream}
