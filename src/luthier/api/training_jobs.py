"""Training jobs: create, describe, list, stop and delete.

What can be refused without looking at the data is refused by CreateTrainingJob; the supervisor does the work.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from luthier.api import base_model, channels, fields_without_effect
from luthier.api.description import drop_none, failure_reason, request_members
from luthier.api.paging import SortOrder, list_page
from luthier.api.service import Service
from luthier.api.tags import request_tags
from luthier.catalog.entry import Entry, check_kind, licence_record, parse_for
from luthier.errors import UserError
from luthier.jobs import automl
from luthier.jobs.progress import TrainingProgress, Transition
from luthier.jobs.resource import Resource
from luthier.jobs.states import AUTOML_JOB, TRAINING_JOB, IllegalMoveError
from luthier.jobs.store import NameInUseError
from luthier.jobspec import JobSpec
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

MAX_RUNTIME = 24 * 3600  # seconds; CreateTrainingJob's default of StoppingCondition
SORT_ORDER = SortOrder(descending=False)
QUEUE_COUNT_LIMIT = 500  # earlier jobs counted, which bounds the time of Describe
_WORDS = {TRAINING_JOB: "training job", AUTOML_JOB: "AutoML job"}


def create(call: Call, service: Service) -> dict[str, Any]:
    labels, owner, name = request_tags(call), call.creator, call.parameters["TrainingJobName"]
    spec = _resolve(call, labels)
    fields_without_effect.log_once(call, service)
    request = {member: value for member, value in call.parameters.items() if member != "Tags"}
    request["StoppingCondition"] = {"MaxRuntimeInSeconds": MAX_RUNTIME} | request.get("StoppingCondition", {})
    try:
        job = service.store.create(
            TRAINING_JOB,
            owner,
            name,
            request,
            secondary="Starting",
            spec=spec,
            progress=queued_progress(),
            labels=labels,
        )
    except NameInUseError:
        raise WireError(
            "ResourceInUse",
            "Training job names must be unique within an AWS account and region, and a training job with this name "
            f"already exists ({call.arn(TRAINING_JOB, name)})",
        ) from None
    return {"TrainingJobArn": job.arn}


def describe(call: Call, service: Service) -> dict[str, Any]:
    job = _job(call, service)
    progress = job.training
    return request_members(job, "DescribeTrainingJob") | drop_none({
        "TrainingJobName": job.name,
        "TrainingJobArn": job.arn,
        "TrainingJobStatus": job.status,
        "SecondaryStatus": job.secondary,
        "SecondaryStatusTransitions": _transitions(job, service),
        # As AWS does; the SDKs' attach reads KmsKeyId without checking that it exists.
        "OutputDataConfig": {"KmsKeyId": "", **job.request["OutputDataConfig"]},
        "ModelArtifacts": _model_artifacts(job),
        "CreationTime": job.created,
        "LastModifiedTime": job.modified,
        "TrainingStartTime": progress.started,
        "TrainingEndTime": progress.ended,
        "FailureReason": failure_reason(progress.failure),
        "FinalMetricDataList": list(progress.metrics) or None,
        "ProgressInfo": progress.step or None,
        "AutoMLJobArn": automl.automl_job_arn(job),
        **_durations(progress),
    })  # fmt: skip


def _model_artifacts(job: Resource) -> dict[str, str]:
    """Where the artifact is or will be. The member is required, so it is empty if a job ended without an artifact."""
    planned = "" if job.ended else job.job.artifact
    return {"S3ModelArtifacts": job.training.artifact or planned}


def list_(call: Call, service: Service) -> dict[str, Any]:
    request = call.parameters
    if "WarmPoolStatusEquals" in request or "TrainingPlanArnEquals" in request:
        return {"TrainingJobSummaries": []}  # no job has a warm pool or a training plan
    items, token = list_page(call, service, TRAINING_JOB, SORT_ORDER, _summary)
    return {"TrainingJobSummaries": items} | token


def stop(call: Call, service: Service) -> dict[str, Any]:
    request_stop(_job(call, service), service)
    return {}


def delete(call: Call, service: Service) -> dict[str, Any]:
    job = _job(call, service)
    if job.parent is not None:
        raise WireError(
            "ValidationException",
            f"Training job {job.arn} is part of {automl.automl_job_arn(job)} and is kept with it.",
        )
    if not job.ended:
        raise WireError(
            "ResourceInUse", f"Training job {job.arn} is in status {job.status}; stop it before it can be deleted."
        )
    service.store.delete(job.id)
    return {}


def request_stop(job: Resource, service: Service) -> None:
    """Request a job's stop; ValidationException when it has ended. A job that is stopping already is left alone."""
    if job.status == "Stopping":
        return
    try:
        service.store.request_stop(job.id)
    except IllegalMoveError:
        raise ended_error(service.store.get(job.id) or job) from None


def ended_error(job: Resource) -> WireError:
    """The error of a request to stop a job that has ended."""
    text = f"The request was rejected because the {_WORDS[job.kind]} {job.name} is in status {job.status}."
    return WireError("ValidationException", text)


def queued_progress() -> TrainingProgress:
    """The progress of a job that was just created."""
    return TrainingProgress(transitions=(Transition("Starting", time.time(), "Waiting for a device"),))


def engine_hyperparameters(entry: Entry | None, hyperparameters: Mapping[str, str]) -> dict[str, str]:
    """A request's hyperparameters, checked, for the engine; SettingError, UserError."""
    values = parse_for(entry, hyperparameters)
    for name, kind in (("chat_dataset", "chat"), ("instruction_tuned", "instruction")):
        if name in values.explicit and values[name]:
            check_kind(entry, kind)
    return values.to_strings()


def _resolve(call: Call, labels: Mapping[str, str]) -> JobSpec:
    """The spec of a CreateTrainingJob; UserError, EulaError or ValidationException for an invalid request."""
    request = call.parameters
    fields_without_effect.refuse_encryption_keys(call)
    if "ServerlessJobConfig" in request:
        raise UserError(
            "ServerlessJobConfig is not supported: name the base model and the training channel of a plain training job"
        )
    output = request["OutputDataConfig"]
    if not output["S3OutputPath"].startswith("s3://"):
        raise UserError(f"OutputDataConfig.S3OutputPath {output['S3OutputPath']}: expected s3://BUCKET/PREFIX")
    _check_waiting_time(request)
    hyperparameters = request.get("HyperParameters", {})
    addresses = channels.resolve(request.get("InputDataConfig", []), hyperparameters)
    base = base_model.for_training_job(request, labels)
    engine = engine_hyperparameters(base.entry, hyperparameters)
    eula = licence_record(
        base.entry, base_model.eula_accepted(request), call.principal.arn,
        "set ModelAccessConfig.AcceptEula to true on the channel model (SageMaker SDK: "
        'environment={"accept_eula": "true"})',
    )  # fmt: skip
    return JobSpec(
        model=base.name,
        channels=addresses,
        hyperparameters=engine,
        max_seconds=float(request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", MAX_RUNTIME)),
        max_seconds_member="StoppingCondition.MaxRuntimeInSeconds",
        output=f"{output['S3OutputPath'].rstrip('/')}/{request['TrainingJobName']}/output/",
        compressed=output.get("CompressionType") != "NONE",
        checkpoints=_checkpoint_address(request),
        eula=eula,
        command=("CreateTrainingJob", request["TrainingJobName"]),
    )


def _checkpoint_address(request: Mapping[str, Any]) -> str:
    uri: str = request.get("CheckpointConfig", {}).get("S3Uri", "")
    if uri and not uri.startswith("s3://"):
        raise UserError(f"CheckpointConfig.S3Uri {uri}: expected s3://BUCKET/PREFIX")
    return uri


def _check_waiting_time(request: Mapping[str, Any]) -> None:
    """UserError for a spot job whose time to wait and run is shorter than its time to run, as on AWS."""
    limits = request.get("StoppingCondition", {})
    wait, run = limits.get("MaxWaitTimeInSeconds"), limits.get("MaxRuntimeInSeconds", MAX_RUNTIME)
    if wait is not None and wait < run:
        raise UserError(
            f"StoppingCondition: MaxWaitTimeInSeconds {wait} is below MaxRuntimeInSeconds {run}; expected at least that"
        )


def _job(call: Call, service: Service) -> Resource:
    job = service.store.find(TRAINING_JOB, (call.account, call.region), call.parameters["TrainingJobName"])
    if job is None:
        raise WireError("ValidationException", "Requested resource not found.")
    return job


def _transitions(job: Resource, service: Service) -> list[dict[str, Any]]:
    transitions = [
        drop_none(
            {"Status": step.status, "StartTime": step.started, "EndTime": step.ended, "StatusMessage": step.message}
        )
        for step in job.training.transitions
    ]
    message = _queue_position(job, service)
    if message and transitions:
        transitions[-1]["StatusMessage"] = message
    return transitions


def _queue_position(job: Resource, service: Service) -> str:
    """The queue position of a job that no supervisor holds yet; "" for other jobs."""
    if not job.open or job.owner is not None or job.status != "InProgress" or job.training.started:
        return ""
    older = service.store.position(job, QUEUE_COUNT_LIMIT)
    among = " of this access key's jobs" if job.creator else ""
    place = f"place {older + 1}{among}" if older < QUEUE_COUNT_LIMIT else f"{QUEUE_COUNT_LIMIT} jobs or more before it"
    return f"Waiting for a device: {place} in the queue"


def _durations(progress: TrainingProgress) -> dict[str, int]:
    """Seconds of training and of billing; clients read both."""
    if not progress.started:
        return {}
    duration = max(1, round((progress.ended or time.time()) - progress.started))
    return {"TrainingTimeInSeconds": duration, "BillableTimeInSeconds": duration}


def _summary(job: Resource) -> dict[str, Any]:
    return drop_none({
        "TrainingJobName": job.name,
        "TrainingJobArn": job.arn,
        "CreationTime": job.created,
        "LastModifiedTime": job.modified,
        "TrainingEndTime": job.training.ended,
        "TrainingJobStatus": job.status,
        "SecondaryStatus": job.secondary,
    })  # fmt: skip


OPERATIONS = {
    "CreateTrainingJob": create,
    "DescribeTrainingJob": describe,
    "ListTrainingJobs": list_,
    "StopTrainingJob": stop,
    "DeleteTrainingJob": delete,
}
