"""The logs of jobs and endpoints as CloudWatch Logs shows them: groups, streams, events in pages.

    /aws/sagemaker/TrainingJobs             <job>/algo-1-<seconds>          training jobs and AutoML jobs
    /aws/sagemaker/Endpoints/<endpoint>     <variant>/i-<id>                each variant of an endpoint

The supervisor writes the events (events.jsonl: one JSON line each, in order of time). Tokens are offsets in that file
(lines.py), so a page is read without those before it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.jobs import automl
from luthier.jobs.lines import Lines
from luthier.jobs.resource import Owner, Resource
from luthier.jobs.settings import ServiceSettings
from luthier.jobs.states import AUTOML_JOB, ENDPOINT, TRAINING_JOB
from luthier.jobs.store import Listing, Store
from luthier.protocol.errors import WireError

TRAINING = "/aws/sagemaker/TrainingJobs"
ENDPOINTS = "/aws/sagemaker/Endpoints/"
MAX_EVENTS = 10_000
MAX_BYTES = 1 << 20  # of a page's events
MAX_READ = 16 << 20  # bytes that one call of `filter` searches
_TOKEN = re.compile(r"([fb])/(\d{1,20})")


@dataclass(frozen=True, slots=True)
class LogGroup:
    """A log group; times in milliseconds since 1970, `size` in bytes."""

    name: str
    created: int
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogStream:
    """A log stream and the file of its events; `first` and `last` are the times of its events, None without any."""

    group: str
    name: str
    path: Path
    created: int
    first: int | None = None
    last: int | None = None
    size: int = 0


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One line of a log. `id` is unique, and grows with time within its stream."""

    timestamp: int
    message: str
    id: str = ""
    stream: str = ""


@dataclass(frozen=True, slots=True)
class Window:
    """The requested part of a log: `start` <= time < `end` (ms, None: no bound), at most `limit` events."""

    start: int | None = None
    end: int | None = None
    limit: int = MAX_EVENTS


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events, oldest first, and the tokens of the next and previous page; at an end, the request's own token."""

    events: list[LogEvent]
    forward: str
    backward: str


@dataclass(frozen=True, slots=True)
class FilteredPage:
    """Matching events, the names of the streams that were searched, and the next page's token; None at the end."""

    events: list[LogEvent]
    searched: list[str]
    token: str | None


@dataclass(frozen=True, slots=True)
class Logs:
    """All logs of one home."""

    settings: ServiceSettings
    store: Store

    def groups(self, owner: Owner, prefix: str = "") -> list[LogGroup]:
        """The log groups of an account and region whose names begin with `prefix`, by name."""
        groups = []
        if TRAINING.startswith(prefix):
            groups += [
                LogGroup(TRAINING, int(oldest.created * 1000))
                for oldest in self._list_all(owner, TRAINING_JOB, "", 1, descending=False)
            ]
        name_prefix = prefix[len(ENDPOINTS) :] if prefix.startswith(ENDPOINTS) else ""
        if prefix.startswith(ENDPOINTS) or ENDPOINTS.startswith(prefix):
            for endpoint in self._list_all(owner, ENDPOINT, name_prefix):
                if endpoint.name.startswith(name_prefix):
                    groups.append(LogGroup(ENDPOINTS + endpoint.name, int(endpoint.created * 1000)))
        return sorted(groups, key=lambda group: group.name)

    def streams(self, owner: Owner, group: str, prefix: str = "") -> list[LogStream]:
        """The streams of a group whose names begin with `prefix`, by name. WireError for an unknown group."""
        if group == TRAINING:
            streams = [stream for name, job in self._jobs(owner, prefix) for stream in self._of_job(name, job)]
        else:
            streams = self._of_endpoint(self._endpoint(owner, group))
        return sorted((stream for stream in streams if stream.name.startswith(prefix)), key=lambda stream: stream.name)

    def stream(self, owner: Owner, group: str, name: str) -> LogStream:
        """One stream; WireError for an unknown name."""
        for stream in self.streams(owner, group, name):
            if stream.name == name:
                return stream
        raise WireError("ResourceNotFoundException", "The specified log stream does not exist.")

    def events(self, stream: LogStream, window: Window, token: str | None = None, from_head: bool = False) -> EventPage:
        """A page of a stream: the newest events, the oldest (`from_head`), or those at the `token` of another page."""
        lines = Lines(stream.path, MAX_BYTES)
        low, high = lines.bounds(window.start, window.end)
        backwards, offset = not from_head, high if not from_head else low
        if token is not None:
            match = _TOKEN.fullmatch(token)
            if match is None:
                raise WireError("InvalidParameterException", "The specified nextToken is invalid.")
            backwards, offset = match[1] == "b", int(match[2])
        offset = min(max(offset, low), max(low, high))
        limit = min(window.limit, MAX_EVENTS)
        page = list(lines.before(offset, low, limit) if backwards else lines.after(offset, high, limit))
        first, last = (page[0][0], page[-1][1]) if page else (offset, offset)
        events = [_event(stream, start, text) for start, _, text in page]
        return EventPage(events, f"f/{last:020d}", f"b/{first:020d}")

    def filter(
        self, streams: Sequence[LogStream], window: Window, pattern: str = "", token: str | None = None
    ) -> FilteredPage:
        """Events of several streams that match `pattern`, stream by stream, by time within each.

        A page with a token may hold few events or none, because one call searches at most MAX_READ bytes.
        """
        match = Pattern(pattern)
        name, offset = _filter_token(token)
        matches: list[LogEvent] = []
        searched: list[str] = []
        read = size = 0
        for stream in sorted(streams, key=lambda stream: stream.name):
            if name is not None and stream.name < name:
                continue
            lines = Lines(stream.path)
            low, high = lines.bounds(window.start, window.end)
            start = max(low, offset) if stream.name == name else low
            for begin, end, text in lines.after(start, high):
                read += end - begin
                event = _event(stream, begin, text)
                if match(event.message):
                    matches.append(event)
                    size += len(text)
                if len(matches) >= min(window.limit, MAX_EVENTS) or size >= MAX_BYTES or read >= MAX_READ:
                    return FilteredPage(matches, searched, f"{end}/{stream.name}")
            searched.append(stream.name)
        return FilteredPage(matches, searched, None)

    def _jobs(self, owner: Owner, prefix: str) -> Iterator[tuple[str, Resource]]:
        """Training jobs whose streams may begin with `prefix`, each with the name of its stream.

        Lists show the training job of an AutoML job once, under the AutoML job's name; streams of both names exist.
        """
        name, slash, _ = prefix.partition("/")
        if not slash:
            for job in self._list_all(owner, TRAINING_JOB, prefix):
                yield automl.automl_job_name(job) if job.parent else job.name, job
            return
        training_job = self.store.find(TRAINING_JOB, owner, name)
        automl_job = self.store.find(AUTOML_JOB, owner, name)
        if training_job is not None:
            yield training_job.name, training_job
        if automl_job is not None and (child := self.store.training_job_of(automl_job)) is not None:
            yield automl_job.name, child

    def _list_all(
        self, owner: Owner, kind: str, contains: str, limit: int | None = None, descending: bool = True
    ) -> list[Resource]:
        items: list[Resource] = []
        listing = Listing(
            kind=kind, account=owner[0], region=owner[1], name_contains=contains, descending=descending,
            limit=limit or 100,
        )  # fmt: skip
        while True:
            page = self.store.list(listing)
            items += page.items
            if page.after is None or limit is not None:
                return items
            listing = replace(listing, limit=1000, after=page.after)

    def _of_job(self, name: str, job: Resource) -> Iterator[LogStream]:
        path = self.settings.jobs / job.id / "logs" / "events.jsonl"
        yield from self._stream(TRAINING, f"{name}/algo-1-{int(job.created)}", path, job.created)

    def _endpoint(self, owner: Owner, group: str) -> Resource:
        endpoint = self.store.find(ENDPOINT, owner, group[len(ENDPOINTS) :]) if group.startswith(ENDPOINTS) else None
        if endpoint is None:
            raise WireError("ResourceNotFoundException", "The specified log group does not exist.")
        return endpoint

    def _of_endpoint(self, endpoint: Resource) -> list[LogStream]:
        streams: list[LogStream] = []
        progress = endpoint.endpoint
        for variant in (*progress.variants, *(progress.pending.variants if progress.pending else ())):
            number = variant.folder.partition(".")[2]
            path = self.settings.endpoints / endpoint.id / (variant.folder or variant.name) / "logs" / "events.jsonl"
            name = f"{variant.name}/i-{endpoint.id[: 17 - len(number)]}{number}"
            streams += self._stream(ENDPOINTS + endpoint.name, name, path, endpoint.created)
        return streams

    def _stream(self, group: str, name: str, path: Path, created: float) -> Iterator[LogStream]:
        """Yield the stream of a file, if it has events."""
        size = path.stat().st_size if path.is_file() else 0
        low, high = Lines(path).bounds() if size else (0, 0)
        first = next(Lines(path).after(low, high, 1), None) if size else None
        last = next(iter(Lines(path).before(high, low, 1)), None) if first else None
        if first and last:
            times = (json.loads(first[2])["timestamp"], json.loads(last[2])["timestamp"])
            yield LogStream(
                group=group, name=name, path=path, created=int(created * 1000), first=times[0], last=times[1], size=size
            )  # fmt: skip


class Pattern:
    """A filter pattern: `term` must be in the message, `-term` must not, and of `?term`s one must.

    "Words in quotes" are one term. CloudWatch's patterns of JSON and of columns are refused.
    """

    def __init__(self, text: str) -> None:
        if text.strip()[:1] in ("{", "[", "%"):
            raise WireError(
                "InvalidParameterException",
                "Invalid filter pattern: only terms are supported, such as: \"validation loss\" -warning ?error",
            )  # fmt: skip
        try:
            terms = [term for term in _terms(text) if term.strip("-?")]
        except ValueError:
            raise WireError("InvalidParameterException", "Invalid filter pattern: a quote is not closed") from None
        self._without = [term[1:] for term in terms if term.startswith("-")]
        self._any = [term[1:] for term in terms if term.startswith("?")]
        self._all = [term for term in terms if term[0] not in "-?"]

    def __call__(self, message: str) -> bool:
        return (
            all(term in message for term in self._all)
            and not any(term in message for term in self._without)
            and (not self._any or bool(self._all) or any(term in message for term in self._any))
        )


def _terms(text: str) -> list[str]:
    reader = shlex.shlex(text, posix=True, punctuation_chars=False)
    reader.whitespace_split, reader.commenters, reader.quotes, reader.escape = True, "", '"', "\\"
    return list(reader)


def _event(stream: LogStream, start: int, text: bytes) -> LogEvent:
    stored = json.loads(text)
    return LogEvent(stored["timestamp"], stored["message"], f"{stored['timestamp']:020d}{start:020d}", stream.name)


def _filter_token(token: str | None) -> tuple[str | None, int]:
    if token is None:
        return None, 0
    offset, slash, name = token.partition("/")
    if not slash or not offset.isdigit() or len(offset) > 20:
        raise WireError("InvalidParameterException", "The specified nextToken is invalid.")
    return name, int(offset)
