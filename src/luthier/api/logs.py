"""CloudWatch Logs, as far as it shows the logs of jobs and endpoints. Where they lie is for service/logs.py to know."""

from __future__ import annotations

from typing import Any

from luthier.api.description import present
from luthier.api.paging import sliced
from luthier.api.service import Service
from luthier.jobs.logs import MOST_EVENTS, Group, Logs, Stream, Window
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

MOST = 50  # groups or streams of a page
_PAGE = ("nextToken", "limit")


def describe_groups(call: Call, service: Service) -> dict[str, Any]:
    given = call.parameters
    pattern = given.get("logGroupNamePattern", "").lower()
    groups = [
        group
        for group in _logs(service).groups(_owner(call), given.get("logGroupNamePrefix", ""))
        if pattern in group.name.lower() and _wanted(group, given.get("logGroupIdentifiers"))
    ]
    found, more = sliced(call, groups, MOST, _PAGE)
    return {"logGroups": [_group(call, group) for group in found]} | more


def describe_streams(call: Call, service: Service) -> dict[str, Any]:
    given = call.parameters
    name, prefix = _group_name(call), given.get("logStreamNamePrefix", "")
    by_time = given.get("orderBy") == "LastEventTime"
    if by_time and prefix:
        raise WireError("InvalidParameterException", "Cannot order by LastEventTime with a logStreamNamePrefix.")
    streams = sorted(
        _logs(service).streams(_owner(call), name, prefix),
        key=lambda stream: (stream.last or 0 if by_time else 0, stream.name),
        reverse=given.get("descending", False),
    )
    found, more = sliced(call, streams, MOST, _PAGE)
    return {"logStreams": [_stream(call, stream) for stream in found]} | more


def get_events(call: Call, service: Service) -> dict[str, Any]:
    given, logs = call.parameters, _logs(service)
    stream = logs.stream(_owner(call), _group_name(call), given["logStreamName"])
    page = logs.events(stream, _window(given), given.get("nextToken"), given.get("startFromHead", False))
    return {
        "events": [
            {"timestamp": event.timestamp, "message": event.message, "ingestionTime": event.timestamp}
            for event in page.events
        ],
        "nextForwardToken": page.forward,
        "nextBackwardToken": page.backward,
    }


def filter_events(call: Call, service: Service) -> dict[str, Any]:
    given, logs = call.parameters, _logs(service)
    names, prefix = given.get("logStreamNames"), given.get("logStreamNamePrefix", "")
    if names and prefix:
        raise WireError("InvalidParameterException", "logStreamNames and logStreamNamePrefix exclude each other.")
    owner, group = _owner(call), _group_name(call)
    streams = [logs.stream(owner, group, name) for name in names] if names else logs.streams(owner, group, prefix)
    page = logs.filter(streams, _window(given), given.get("filterPattern", ""), given.get("nextToken"))
    return present({
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


def _window(given: dict[str, Any]) -> Window:
    return Window(given.get("startTime"), given.get("endTime"), given.get("limit", MOST_EVENTS))


def _group_name(call: Call) -> str:
    """The group that is named, by its name or by its ARN."""
    given = call.parameters
    if ("logGroupName" in given) == ("logGroupIdentifier" in given):
        raise WireError("InvalidParameterException", "Expected one of logGroupName and logGroupIdentifier.")
    name: str = given.get("logGroupName") or given["logGroupIdentifier"]
    return name.removeprefix(f"arn:aws:logs:{call.region}:{call.account}:log-group:").removesuffix(":*")


def _wanted(group: Group, identifiers: list[str] | None) -> bool:
    return identifiers is None or any(one.endswith(group.name) for one in identifiers)


def _group(call: Call, group: Group) -> dict[str, Any]:
    arn = group_arn(call, group.name)
    return {
        "logGroupName": group.name, "creationTime": group.created, "arn": f"{arn}:*", "logGroupArn": arn,
        "metricFilterCount": 0, "storedBytes": group.size, "logGroupClass": "STANDARD",
    }  # fmt: skip


def group_arn(call: Call, name: str) -> str:
    """The ARN of a log group of the caller's."""
    return f"arn:aws:logs:{call.region}:{call.account}:log-group:{name}"


def _stream(call: Call, stream: Stream) -> dict[str, Any]:
    return present({
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
