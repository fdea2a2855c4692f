"""InvokeEndpoint and InvokeEndpointWithResponseStream: a request is handed to what serves the endpoint.

An answer that is none is told as SageMaker tells it: ModelError with what the model said, ModelNotReadyException while
it is being loaded, ServiceUnavailable while it cannot take more.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from luthier.api import invocation
from luthier.api.hosting import ENDPOINT
from luthier.api.invocation import ATTRIBUTES, Answer, UnreachableError
from luthier.api.logs import group_arn
from luthier.api.service import Service
from luthier.jobs.store import Resource
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

SERVING = ("InService", "Updating", "SystemUpdating")  # statuses in which an endpoint answers
NOT_HERE = ("TargetModel", "TargetContainerHostname", "InferenceComponentName", "SessionId", "EnableExplanations")
_PATHS = {"InvokeEndpoint": "/invocations", "InvokeEndpointWithResponseStream": "/invocations-response-stream"}
_dice = random.SystemRandom()


def invoke(call: Call, service: Service) -> dict[str, Any]:
    variant, answer = _asked(call, service)
    try:
        body = answer.body
    except UnreachableError as error:
        raise _unreachable(call, error) from None
    return {"Body": body, **_answered(answer, variant)}


def invoke_stream(call: Call, service: Service) -> dict[str, Any]:
    variant, answer = _asked(call, service)
    return {"Body": _parts(answer), **_answered(answer, variant)}


def _asked(call: Call, service: Service) -> tuple[str, Answer]:
    """The name of the variant that was asked, and its answer, which is a good one; WireError for any other."""
    given = call.parameters
    for name in NOT_HERE:
        if given.get(name):
            raise _invalid(f"{name} is not supported: an endpoint's variant serves one model, and keeps no session")
    endpoint = _endpoint(call, service)
    variant = _variant(endpoint, given.get("TargetVariant"))
    address = variant.get("address") or endpoint.facts.get("address")
    if not address:
        raise _not_ready(call)
    headers = {
        "Content-Type": given.get("ContentType") or "application/json",
        "Accept": given.get("Accept") or "*/*",
        **({ATTRIBUTES: given["CustomAttributes"]} if given.get("CustomAttributes") else {}),
    }
    try:
        answer = invocation.ask(address, _PATHS[call.operation], given.get("Body", b""), headers)
        if answer.status >= 300:
            raise _model_error(call, answer.status, *invocation.error_of(answer.body))
    except UnreachableError as error:
        raise _unreachable(call, error) from None
    return variant["VariantName"], answer


def _endpoint(call: Call, service: Service) -> Resource:
    name = call.parameters["EndpointName"]
    found = service.store.find(ENDPOINT, (call.account, call.region), name)
    if found is None:
        raise _invalid(f"Endpoint {name} of account {call.account} not found.")
    if found.status not in SERVING:
        raise _invalid(f"Endpoint {name} of account {call.account} is in status {found.status}; it must be InService.")
    return found


def _variant(endpoint: Resource, target: str | None) -> Mapping[str, Any]:
    """The variant that is named, else one by the weights."""
    variants = endpoint.facts["variants"]
    if target:
        for variant in variants:
            if variant["VariantName"] == target:
                return variant  # type: ignore[no-any-return]
        raise _invalid(f"Variant {target} not found in endpoint {endpoint.name}.")
    chosen: Mapping[str, Any] = _dice.choices(variants, [variant["Weight"] for variant in variants])[0]
    return chosen


def _answered(answer: Answer, variant: str) -> dict[str, str]:
    attributes = answer.headers.get(ATTRIBUTES.lower())
    return {
        "ContentType": answer.headers.get("content-type", "application/json"),
        "InvokedProductionVariant": variant,
        **({"CustomAttributes": attributes} if attributes else {}),
    }


def _parts(answer: Answer) -> Iterator[dict[str, Any]]:
    """The chunks of an answer as they come; ModelStreamError when they break off."""
    chunks = answer.chunks
    try:
        for chunk in chunks:
            yield {"PayloadPart": {"Bytes": chunk}}
    except UnreachableError as error:
        why = "ModelInvocationTimeExceeded" if error.timed_out else "StreamBroken"
        text = f"The stream of the model broke off: {error}"
        raise WireError("ModelStreamError", text, 424, {"ErrorCode": why}) from None
    finally:
        chunks.close()  # type: ignore[attr-defined]


def _model_error(call: Call, status: int, text: str, kind: str) -> WireError:
    if kind == "loading":
        return _not_ready(call)
    if kind == "overloaded":
        return WireError("ServiceUnavailable", f"Endpoint {call.parameters['EndpointName']}: {text}", 503)
    group = f"/aws/sagemaker/Endpoints/{call.parameters['EndpointName']}"
    side = "client" if status < 500 else "server"
    return WireError(
        "ModelError",
        f'Received {side} error ({status}) from model with message "{text}". See the log group {group} in account '
        f"{call.account} for more information.",
        424,
        {"OriginalStatusCode": status, "OriginalMessage": text, "LogStreamArn": group_arn(call, group)},
    )


def _unreachable(call: Call, error: UnreachableError) -> WireError:
    if error.timed_out:
        return _model_error(call, 504, "the model did not answer in time", "")
    return WireError("ServiceUnavailable", f"Endpoint {call.parameters['EndpointName']}: {error}", 503)


def _not_ready(call: Call) -> WireError:
    name = call.parameters["EndpointName"]
    return WireError("ModelNotReadyException", f"The model of endpoint {name} is still being loaded; ask again.", 429)


def _invalid(message: str) -> WireError:
    return WireError("ValidationError", message)


OPERATIONS = {"InvokeEndpoint": invoke, "InvokeEndpointWithResponseStream": invoke_stream}
