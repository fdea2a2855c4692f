"""Lists, stops and reads the logs of the service's jobs, through SageMaker's and CloudWatch Logs' API with boto3.

Credentials and region come from the environment, as for every AWS client. Without credentials, requests are signed
with a dummy key, which a service without keys accepts.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from luthier.defaults import DEFAULT_REGION, DUMMY_KEY
from luthier.errors import LuthierError, UserError

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
ENDED = frozenset({"Completed", "Failed", "Stopped"})
MISSING = frozenset({"ResourceNotFound", "ResourceNotFoundException", "ValidationException"})


class ServiceUnreachableError(LuthierError):
    """No service answers at the endpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    """A job as Describe or List answers it; times in seconds since 1970. `kind` is training-job or automl-job."""

    name: str
    kind: str
    status: str
    secondary: str
    created: float
    ended: float | None = None
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class _JobKind:
    """SageMaker's names for a kind of job: prefix of its fields, boto3's methods, and the list in List's response."""

    prefix: str
    describe: str
    stop: str
    list: str
    summaries: str


KINDS: Mapping[str, _JobKind] = {
    "training-job": _JobKind(
        prefix="TrainingJob", describe="describe_training_job", stop="stop_training_job",
        list="list_training_jobs", summaries="TrainingJobSummaries",
    ),
    "automl-job": _JobKind(
        prefix="AutoMLJob", describe="describe_auto_ml_job_v2", stop="stop_auto_ml_job",
        list="list_auto_ml_jobs", summaries="AutoMLJobSummaries",
    ),
}  # fmt: skip


class Client:
    """The service at `endpoint`."""

    def __init__(self, endpoint: str, region: str | None = None) -> None:
        # Takes 0.3 s to import; commands that do not call the service do without it.
        boto3 = importlib.import_module("boto3")
        self._exceptions = importlib.import_module("botocore.exceptions")
        config = importlib.import_module("botocore.config").Config(
            connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 2}, proxies={}
        )
        self.endpoint = endpoint
        core = importlib.import_module("botocore.session").Session()
        core.get_component("credential_provider").remove("iam-role")  # waits seconds for an address that only EC2 has
        session = boto3.session.Session(botocore_session=core)
        region = region or os.environ.get("AWS_REGION") or session.region_name or DEFAULT_REGION
        self.region = region
        if not session.get_credentials():
            session = boto3.session.Session(DUMMY_KEY, DUMMY_KEY, region_name=region)
        self._client = partial(session.client, endpoint_url=endpoint, region_name=region, config=config)

    @cached_property
    def _sagemaker(self) -> Any:
        return self._client("sagemaker")

    @cached_property
    def _logs(self) -> Any:
        return self._client("logs")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        for name in ("_sagemaker", "_logs"):
            if name in vars(self):
                getattr(self, name).close()

    @contextmanager
    def _translated_errors(self, subject: str) -> Iterator[None]:
        try:
            yield
        except self._exceptions.ClientError as error:
            details = error.response.get("Error", {})
            raise UserError(f"{subject}: {details.get('Code', 'error')}: {details.get('Message', error)}") from None
        except (self._exceptions.EndpointConnectionError, self._exceptions.ConnectTimeoutError):
            raise ServiceUnreachableError(f"nothing answers at {self.endpoint}; start it with: luthier serve") from None
        except self._exceptions.BotoCoreError as error:
            raise LuthierError(f"{subject}: {' '.join(str(error).split())}") from None

    def jobs(self, status: str | None = None, limit: int = 100) -> list[JobSummary]:
        """Return training and AutoML jobs, newest first, at most `limit` of each kind."""
        jobs: list[JobSummary] = []
        status_filter = {"StatusEquals": status} if status else {}
        with self._translated_errors("list"):
            for name, kind in KINDS.items():
                pages = self._sagemaker.get_paginator(kind.list).paginate(
                    SortBy="CreationTime", SortOrder="Descending", PaginationConfig={"MaxItems": limit}, **status_filter
                )  # fmt: skip
                jobs += [_summary(name, item) for page in pages for item in page[kind.summaries]]
        # The training job of an AutoML job is listed as the AutoML job only.
        children = {f"{job.name}-tr-1" for job in jobs if job.kind == "automl-job"}
        return sorted((job for job in jobs if job.name not in children), key=lambda job: -job.created)

    def job(self, name: str) -> JobSummary:
        """Return the training job or else the AutoML job named `name`; UserError if there is neither."""
        for name_of_kind, kind in KINDS.items():
            with self._translated_errors(name):
                try:
                    describe = getattr(self._sagemaker, kind.describe)
                    return _summary(name_of_kind, describe(**{f"{kind.prefix}Name": name}))
                except self._exceptions.ClientError as error:
                    if error.response.get("Error", {}).get("Code") not in MISSING:
                        raise
        raise UserError(
            f"job {name!r} not found at {self.endpoint} in {self.region}; `luthier jobs list` lists the jobs"
        )

    def stop(self, name: str) -> JobSummary:
        """Stop a job that has not ended; return its new state."""
        job = self.job(name)
        if not job.has_ended:
            with self._translated_errors(name):
                kind = KINDS[job.kind]
                getattr(self._sagemaker, kind.stop)(**{f"{kind.prefix}Name": job.name})
        return self.job(name)

    def logs(self, job: JobSummary, follow: bool = False, every: float = 1.0) -> Iterator[str]:
        """Yield the lines of a job's log; with `follow` also new ones, until the job has ended."""
        stream, token = None, None
        while True:
            is_last_pass = self.job(job.name).has_ended if follow else True
            stream = stream or self._stream(job)
            while stream is not None:
                arguments = {"logGroupName": LOG_GROUP, "logStreamName": stream, "startFromHead": True}
                with self._translated_errors(job.name):
                    page = self._logs.get_log_events(**arguments, **({"nextToken": token} if token else {}))
                yield from (event["message"] for event in page["events"])
                if page["nextForwardToken"] == token:
                    break
                token = page["nextForwardToken"]
            if is_last_pass:
                return
            time.sleep(every)

    def _stream(self, job: JobSummary) -> str | None:
        """Return the name of the job's log stream; None while it has written nothing."""
        with self._translated_errors(job.name):
            try:
                page = self._logs.describe_log_streams(
                    logGroupName=LOG_GROUP, logStreamNamePrefix=f"{job.name}/", orderBy="LogStreamName", limit=1
                )
            except self._exceptions.ClientError as error:
                if error.response.get("Error", {}).get("Code") == "ResourceNotFoundException":
                    return None
                raise
        streams = page["logStreams"]
        return str(streams[0]["logStreamName"]) if streams else None


def _summary(kind: str, response: Mapping[str, Any]) -> JobSummary:
    prefix = KINDS[kind].prefix
    ended = response.get("TrainingEndTime") or response.get("EndTime")
    return JobSummary(
        name=response[f"{prefix}Name"], kind=kind, status=response[f"{prefix}Status"],
        secondary=response.get("SecondaryStatus") or response.get("AutoMLJobSecondaryStatus") or "",
        created=response["CreationTime"].timestamp(), ended=ended.timestamp() if ended else None,
        message=response.get("FailureReason", ""), details=response,
    )  # fmt: skip
