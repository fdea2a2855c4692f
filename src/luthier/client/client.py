"""The service's jobs and their logs, through the same API that anybody's boto3 speaks.

Credentials and region come from the environment as they do for every AWS client; without credentials the requests are
signed with a made-up key, which a service without keys takes. Knows no command line.
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

from luthier.errors import LuthierError, UserError

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
REGION = "us-west-2"
ENDED = frozenset({"Completed", "Failed", "Stopped"})
MISSING = frozenset({"ResourceNotFound", "ResourceNotFoundException", "ValidationException"})


class ServiceUnreachableError(LuthierError):
    """Nothing answers where the service was to be."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job as Describe or List tells it; times in seconds since 1970. `kind` is training-job or automl-job."""

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


@dataclass(frozen=True, slots=True)
class _Kind:
    """How SageMaker spells a kind of job: in members, in boto3's methods, and in the answer of its list."""

    member: str
    describe: str
    stop: str
    list: str
    listed: str


KINDS: Mapping[str, _Kind] = {
    "training-job": _Kind(
        "TrainingJob", "describe_training_job", "stop_training_job", "list_training_jobs", "TrainingJobSummaries"
    ),
    "automl-job": _Kind(
        "AutoMLJob", "describe_auto_ml_job_v2", "stop_auto_ml_job", "list_auto_ml_jobs", "AutoMLJobSummaries"
    ),
}


class Client:
    """The service at `endpoint`."""

    def __init__(self, endpoint: str, region: str | None = None) -> None:
        # 0.3 s to import, and only who asks the service pays for it.
        boto3 = importlib.import_module("boto3")
        self._faults = importlib.import_module("botocore.exceptions")
        config = importlib.import_module("botocore.config").Config(
            connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 2}, proxies={}
        )
        self.endpoint = endpoint
        core = importlib.import_module("botocore.session").Session()
        core.get_component("credential_provider").remove("iam-role")  # asks an address that only EC2 has, for seconds
        session = boto3.session.Session(botocore_session=core)
        region = region or os.environ.get("AWS_REGION") or session.region_name or REGION
        self.region = region
        key = None if session.get_credentials() else "luthier"
        session = boto3.session.Session(key, key, region_name=region) if key else session
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
    def _errors(self, about: str) -> Iterator[None]:
        try:
            yield
        except self._faults.ClientError as error:
            said = error.response.get("Error", {})
            raise UserError(f"{about}: {said.get('Code', 'error')}: {said.get('Message', error)}") from None
        except (self._faults.EndpointConnectionError, self._faults.ConnectTimeoutError):
            raise ServiceUnreachableError(f"nothing answers at {self.endpoint}; start it with: luthier serve") from None
        except self._faults.BotoCoreError as error:
            raise LuthierError(f"{about}: {' '.join(str(error).split())}") from None

    def jobs(self, status: str | None = None, limit: int = 100) -> list[Job]:
        """Training and AutoML jobs, the newest first, at most `limit` of each kind."""
        found: list[Job] = []
        narrowed = {"StatusEquals": status} if status else {}
        with self._errors("list"):
            for name, kind in KINDS.items():
                pages = self._sagemaker.get_paginator(kind.list).paginate(
                    SortBy="CreationTime", SortOrder="Descending", PaginationConfig={"MaxItems": limit}, **narrowed
                )  # fmt: skip
                found += [_job(name, summary) for page in pages for summary in page[kind.listed]]
        # An AutoML job's training job is no job of its own.
        parts = {f"{job.name}-tr-1" for job in found if job.kind == "automl-job"}
        return sorted((job for job in found if job.name not in parts), key=lambda job: -job.created)

    def job(self, name: str) -> Job:
        """The training job of that name, else the AutoML job; UserError when there is neither."""
        for kind, spelled in KINDS.items():
            with self._errors(name):
                try:
                    return _job(kind, getattr(self._sagemaker, spelled.describe)(**{f"{spelled.member}Name": name}))
                except self._faults.ClientError as error:
                    if error.response.get("Error", {}).get("Code") not in MISSING:
                        raise
        raise UserError(f"{name}: no such job at {self.endpoint} in {self.region} (see `luthier jobs list`)")

    def stop(self, name: str) -> Job:
        """Ask a job to stop; it is left alone when it has ended."""
        job = self.job(name)
        if not job.has_ended:
            with self._errors(name):
                kind = KINDS[job.kind]
                getattr(self._sagemaker, kind.stop)(**{f"{kind.member}Name": job.name})
        return self.job(name)

    def logs(self, job: Job, follow: bool = False, every: float = 1.0) -> Iterator[str]:
        """The lines that a job has written so far; with `follow` also those that come, until the job has ended."""
        stream, token = None, None
        while True:
            ended = self.job(job.name).has_ended if follow else True
            stream = stream or self._stream(job)
            while stream is not None:
                where = {"logGroupName": LOG_GROUP, "logStreamName": stream, "startFromHead": True}
                with self._errors(job.name):
                    page = self._logs.get_log_events(**where, **({"nextToken": token} if token else {}))
                yield from (event["message"] for event in page["events"])
                if page["nextForwardToken"] == token:
                    break
                token = page["nextForwardToken"]
            if ended:
                return
            time.sleep(every)

    def _stream(self, job: Job) -> str | None:
        """The job's log stream; None as long as it has written nothing."""
        with self._errors(job.name):
            try:
                page = self._logs.describe_log_streams(
                    logGroupName=LOG_GROUP, logStreamNamePrefix=f"{job.name}/", orderBy="LogStreamName", limit=1
                )
            except self._faults.ClientError as error:
                if error.response.get("Error", {}).get("Code") == "ResourceNotFoundException":
                    return None
                raise
        streams = page["logStreams"]
        return str(streams[0]["logStreamName"]) if streams else None


def _job(kind: str, said: Mapping[str, Any]) -> Job:
    member = KINDS[kind].member
    ended = said.get("TrainingEndTime") or said.get("EndTime")
    return Job(
        said[f"{member}Name"], kind, said[f"{member}Status"],
        said.get("SecondaryStatus") or said.get("AutoMLJobSecondaryStatus") or "",
        said["CreationTime"].timestamp(), ended.timestamp() if ended else None, said.get("FailureReason", ""), said,
    )  # fmt: skip
