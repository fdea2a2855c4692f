"""The policy table: what each operation needs of the rights of the key that signs it, and what it may see of lists.

Operations that are not named here follow from their parameters: the names of resources, the addresses of objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from luthier.catalog.jumpstart import is_cache_uri
from luthier.objects.errors import s3_error
from luthier.objects.names import parse_copy_source
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError
from luthier.rights import Rights
from luthier.service import sdk_defaults

Kind = Literal["object", "bucket", "name"]
READING = ("Describe", "Filter", "Get", "Head", "List", "Simulate")  # verbs; all other operations change something
# Members that hold names of resources, in the request or below these members of it.
NAMES = ("TrainingJobName", "AutoMLJobName", "ModelName", "EndpointName", "EndpointConfigName")
NAMED_BELOW = ("ProductionVariants", "ModelDeployConfig")
# Members that hold s3:// addresses, and whether the resource writes there.
ADDRESSES: Mapping[str, bool] = {
    "InputDataConfig": False,
    "AutoMLJobInputDataConfig": False,
    "PrimaryContainer": False,
    "Containers": False,
    "OutputDataConfig": True,
    "CheckpointConfig": True,
}
PREFIX_LISTS = ("ListObjects", "ListObjectsV2", "ListObjectVersions", "ListMultipartUploads")
_ENDPOINT_LOGS = "/aws/sagemaker/Endpoints/"
# The lists in answers that hold others' resources too: the list's member, and the member of an item with its name.
LISTS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "ListTrainingJobs": (("TrainingJobSummaries", "TrainingJobName"),),
    "ListAutoMLJobs": (("AutoMLJobSummaries", "AutoMLJobName"),),
    "ListModels": (("Models", "ModelName"),),
    "ListEndpointConfigs": (("EndpointConfigs", "EndpointConfigName"),),
    "ListEndpoints": (("Endpoints", "EndpointName"),),
    "DescribeLogStreams": (("logStreams", "logStreamName"),),
    "FilterLogEvents": (("events", "logStreamName"), ("searchedLogStreams", "logStreamName")),
}


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that an operation reads or writes: an object "BUCKET/KEY" or prefix, a bucket, or a resource's name."""

    kind: Kind
    resource: str
    write: bool

    def is_allowed(self, rights: Rights) -> bool:
        if self.write and rights.reads_only:
            return False
        if self.kind == "name":
            return rights.allows_name(self.resource)
        bucket, _, key = self.resource.partition("/")
        if not self.write and (is_cache_uri(f"s3://{bucket}/x") or bucket == sdk_defaults.BUCKET):
            return True  # the same for everyone
        return rights.allows_bucket(bucket) if self.kind == "bucket" else rights.allows_object(bucket, key)

    def __str__(self) -> str:
        return self.resource if self.kind == "name" else f"s3://{self.resource}"


def check(call: Call, rights: Rights) -> None:
    """WireError AccessDenied if the caller's rights lack one that the call needs."""
    if not rights.words:
        return
    if rights.reads_only and not call.operation.startswith(READING):
        raise _denied(call, rights, "a key for reading may not change anything or invoke endpoints")
    for need in needs(call):
        if not need.is_allowed(rights):
            raise _denied(call, rights, f"this key may not {'write' if need.write else 'read'} {need}")


def filter_answer(call: Call, answer: dict[str, Any], rights: Rights) -> dict[str, Any]:
    """The answer without the items of lists that the caller may not see; a page may be shorter then."""
    if not rights.words:
        return answer
    lists = LISTS.get(call.operation, ())
    if call.service == "logs" and _log_group(call).startswith(_ENDPOINT_LOGS):
        lists = ()  # the group's name was checked; its streams have other names
    kept = {
        member: [item for item in answer[member] if rights.allows_name(item[name].partition("/")[0])]
        for member, name in lists
        if member in answer
    }
    if call.operation == "ListBuckets":
        kept["Buckets"] = [bucket for bucket in answer["Buckets"] if rights.allows_bucket(bucket["Name"])]
    if call.operation == "DescribeLogGroups":
        kept["logGroups"] = [group for group in answer["logGroups"] if _may_see_group(group["logGroupName"], rights)]
    return {**answer, **kept}


def needs(call: Call) -> Iterator[Need]:
    """Everything that the call reads or writes."""
    write = not call.operation.startswith(READING)
    yield from _EXTRACTORS.get(call.service, _no_needs)(call, write)


def audited_resource(call: Call) -> str:
    """The resource of a call, for the audit log: the first thing that it needs; empty for none."""
    first = next(needs(call), None)
    return "" if first is None else str(first)


def _s3_needs(call: Call, write: bool) -> Iterator[Need]:
    request = call.parameters
    bucket = request.get("Bucket", "")
    deleted = request.get("Delete", {}).get("Objects", ())
    if "Key" in request:
        yield Need("object", f"{bucket}/{request['Key']}", write)
    elif deleted:
        yield from (Need("object", f"{bucket}/{item['Key']}", write=True) for item in deleted)
    elif call.operation in PREFIX_LISTS:
        yield Need("object", f"{bucket}/{request.get('Prefix') or ''}", write=False)
    elif bucket:
        yield Need("object", f"{bucket}/", write=True) if write else Need("bucket", bucket, write=False)
    if request.get("CopySource"):
        source, key = parse_copy_source(request["CopySource"])
        yield Need("object", f"{source}/{key}", write=False)


def _sagemaker_needs(call: Call, write: bool) -> Iterator[Need]:
    request = call.parameters
    yield from (Need("name", request[name], write) for name in NAMES if name in request)
    for member in NAMED_BELOW:
        for part in _mappings(request.get(member)):
            yield from (Need("name", part[name], write) for name in NAMES if part.get(name))
    if "ResourceArn" in request:
        yield Need("name", request["ResourceArn"].rpartition("/")[2], write)
    if call.operation.startswith("Create"):
        for member, writes in ADDRESSES.items():
            for uri in _addresses(request.get(member)):
                # The results are written below the output's address, whether or not it ends with a slash.
                slash = "/" if member == "OutputDataConfig" and not uri.endswith("/") else ""
                yield Need("object", uri.partition("://")[2] + slash, writes)


def _logs_needs(call: Call, write: bool) -> Iterator[Need]:
    group, request = _log_group(call), call.parameters
    if group.startswith(_ENDPOINT_LOGS):
        yield Need("name", group.removeprefix(_ENDPOINT_LOGS), write)
        return
    streams = [request["logStreamName"]] if "logStreamName" in request else request.get("logStreamNames") or ()
    yield from (Need("name", stream.partition("/")[0], write) for stream in streams)


def _metrics_needs(call: Call, write: bool) -> Iterator[Need]:
    for dimension in call.parameters.get("Dimensions", ()):
        if dimension["Name"] in NAMES:
            yield Need("name", dimension["Value"], write)


def _no_needs(call: Call, write: bool) -> Iterator[Need]:
    yield from ()


_EXTRACTORS: Mapping[str, Callable[[Call, bool], Iterator[Need]]] = {
    "s3": _s3_needs,
    "sagemaker": _sagemaker_needs,
    "sagemaker-runtime": _sagemaker_needs,
    "logs": _logs_needs,
    "cloudwatch": _metrics_needs,
}


def _log_group(call: Call) -> str:
    name = str(call.parameters.get("logGroupName") or call.parameters.get("logGroupIdentifier") or "")
    return name.removesuffix(":*").rpartition(":")[2]


def _may_see_group(group: str, rights: Rights) -> bool:
    return not group.startswith(_ENDPOINT_LOGS) or rights.allows_name(group.removeprefix(_ENDPOINT_LOGS))


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [value] if isinstance(value, Mapping) else list(value or ())


def _addresses(value: Any) -> Iterator[str]:
    """Every s3:// address in a parameter."""
    if isinstance(value, str):
        if value.lower().startswith("s3://"):
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _addresses(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _addresses(part)


def _denied(call: Call, rights: Rights, reason: str) -> WireError:
    message = f"Access Denied: {call.operation}: {reason} ({rights})"
    return (
        s3_error("AccessDenied", message) if call.service == "s3" else WireError("AccessDeniedException", message, 403)
    )
