"""CloudWatch Logs operations on the logs of jobs and endpoints, which jobs/logs.py reads."""

from __future__ import annotations

from typing import Any

from luthier.api.description import drop_none
from luthier.api.paging import slice_page
from luthier.api.service import Service
from luthier.jobs.logs import MAX_EVENTS, LogGroup, Logs, LogStream, Window
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

PAGE_SIZE = 50  # groups or streams
_PAGE = ("nextToken", "limit")


def describe_groups(call: Call, service: Service) -> dict[str, Any]:
    request = call.parameters
    pattern = request.get("logGroupNamePattern", "").lower()
    groups = [
        group
        for group in _logs(service).groups(_owner(call), request.get("logGroupNamePrefix", ""))
        if pattern in group.name.lower() and _is_selected(group, request.get("logGroupIdentifiers"))
    ]
    items, token = slice_page(call, groups, PAGE_SIZE, _PAGE)
    return {"logGroups": [_describe_group(call, group) for group in items]} | token


def describe_streams(call: Call, service: Service) -> dict[str, Any]:
    request = call.parameters
    name, prefix = _group_name(call), request.get("logStreamNamePrefix", "")
    by_time = request.get("orderBy") == "LastEventTime"
    if by_time and prefix:
        raise WireError("InvalidParameterException", "Cannot order by LastEventTime with a logStreamNamePrefix.")
    streams = sorted(
        _logs(service).streams(_owner(call), name, prefix),
        key=lambda stream: (stream.last or 0 if by_time else 0, stream.name),
        reverse=request.get("descending", False),
    )
    items, token = slice_page(call, streams, PAGE_SIZE, _PAGE)
    return {"logStreams": [_describe_stream(call, stream) for stream in items]} | token


def get_events(call: Call, service: Service) -> dict[str, Any]:
    request, logs = call.parameters, _logs(service)
    stream = logs.stream(_owner(call), _group_name(call), request["logStreamName"])
    page = logs.events(stream, _window(request), request.get("nextToken"), request.get("startFromHead", False))
    return {
        "events": [
            {"timestamp": event.timestamp, "message": event.message, "ingestionTime": event.timestamp}
            for event in page.events
        ],
        "nextForwardToken": page.forward,
        "nextBackwardToken": page.backward,
    }


def filter_events(call: Call, service: Service) -> dict[str, Any]:
    request, logs = call.parameters, _logs(service)
    names, prefix = request.get("logStreamNames"), request.get("logStreamNamePrefix", "")
    if names and prefix:
        raise WireError("InvalidParameterException", "logStreamNames and logStreamNamePrefix exclude each other.")
    owner, group = _owner(call), _group_name(call)
    streams = [logs.stream(owner, group, name) for name in names] if names else logs.streams(owner, group, prefix)
    page = logs.filter(streams, _window(request), request.get("filterPattern", ""), request.get("nextToken"))
    return drop_none({
        "events": [
            {"logStreamName": event.stream, "timestamp": event.timestamp, "message": event.message,
             "ingestionTime": event.timestamp, "eventId": event.id}
            for event in page.events
        ],
        "searchedLogStreams": [{"logStreamName": name, "searchedCompletely": True} for name in page.searched],
        "nextToken": page.token,
    })  # fmt: skip


def _logs(service: Service) -> Logs:
    return Logs(service.settings, service.store)


def _owner(call: Call) -> tuple[str, str]:
    return call.account, call.region


def _window(request: dict[str, Any]) -> Window:
    return Window(request.get("startTime"), request.get("endTime"), request.get("limit", MAX_EVENTS))


def _group_name(call: Call) -> str:
    """The group's name, which the request gives as a name or an ARN."""
    request = call.parameters
    if ("logGroupName" in request) == ("logGroupIdentifier" in request):
        raise WireError("InvalidParameterException", "Expected one of logGroupName and logGroupIdentifier.")
    name: str = request.get("logGroupName") or request["logGroupIdentifier"]
    return name.removeprefix(f"arn:aws:logs:{call.region}:{call.account}:log-group:").removesuffix(":*")


def _is_selected(group: LogGroup, identifiers: list[str] | None) -> bool:
    return identifiers is None or any(name.endswith(group.name) for name in identifiers)


def _describe_group(call: Call, group: LogGroup) -> dict[str, Any]:
    arn = group_arn(call, group.name)
    return {
        "logGroupName": group.name, "creationTime": group.created, "arn": f"{arn}:*", "logGroupArn": arn,
        "metricFilterCount": 0, "storedBytes": group.size, "logGroupClass": "STANDARD",
    }  # fmt: skip


def group_arn(call: Call, name: str) -> str:
    """The ARN of the caller's log group."""
    return f"arn:aws:logs:{call.region}:{call.account}:log-group:{name}"


def _describe_stream(call: Call, stream: LogStream) -> dict[str, Any]:
    return drop_none({
        "logStreamName": stream.name,
        "creationTime": stream.created,
        "firstEventTimestamp": stream.first,
        "lastEventTimestamp": stream.last,
        "lastIngestionTime": stream.last,
        "arn": f"{group_arn(call, stream.group)}:log-stream:{stream.name}",
        "storedBytes": stream.size,
    })  # fmt: skip


OPERATIONS = {
    "DescribeLogGroups": describe_groups,
    "DescribeLogStreams": describe_streams,
    "GetLogEvents": get_events,
    "FilterLogEvents": filter_events,
}
