"""AutoML jobs of text generation: create, describe, list, stop, and their one candidate."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from luthier.api import automl_request, base_model, fields_without_effect
from luthier.api.description import drop_none, failure_reason, request_members
from luthier.api.paging import SortOrder, list_page, slice_page
from luthier.api.service import Service
from luthier.api.tags import request_tags
from luthier.api.training_jobs import ended_error, engine_hyperparameters, queued_progress, request_stop
from luthier.catalog.entry import check_kind, check_tunable, licence_record, reads_pairs
from luthier.catalog.hyperparameters import AUTOPILOT_MAX_TRUNCATED
from luthier.errors import UserError
from luthier.jobs import automl
from luthier.jobs.progress import AutoMLProgress
from luthier.jobs.resource import Resource, new_resource
from luthier.jobs.states import AUTOML_JOB, TRAINING_JOB, IllegalMoveError
from luthier.jobs.store import NameInUseError
from luthier.jobspec import JobSpec
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

SORT_ORDER = SortOrder(sort="Name")
PAGE_SIZE = 10
_PROBLEM = automl_request.PROBLEM


def create(call: Call, service: Service) -> dict[str, Any]:
    """Create the AutoML job and its training job, both or neither."""
    owner, labels, name = call.creator, request_tags(call), call.parameters["AutoMLJobName"]
    spec = _resolve(call)
    fields_without_effect.log_once(call, service)
    request = {member: value for member, value in call.parameters.items() if member != "Tags"}
    job = new_resource(AUTOML_JOB, owner, name, request, secondary="Starting")
    job = replace(job, progress=AutoMLProgress(endpoint=_endpoint_name(job)))
    training_job = new_resource(
        TRAINING_JOB, owner, automl.training_job_name(name), automl.training_request(request, call.region),
        secondary="Starting", spec=spec, progress=queued_progress(), parent=job.id,
    )  # fmt: skip
    try:
        service.store.insert(job, replace(training_job, created=job.created), labels=labels)
    except NameInUseError as error:
        if error.kind == TRAINING_JOB:
            raise WireError(
                "ResourceInUse",
                f"The AutoML job's training job would be called {training_job.name}, as another one is",
            ) from None
        raise WireError(
            "ResourceInUse",
            "AutoML job names must be unique within an AWS account and region, whatever their case, and an AutoML job "
            f"with this name already exists ({call.arn(AUTOML_JOB, name)})",
        ) from None
    return {"AutoMLJobArn": job.arn}


def describe(call: Call, service: Service) -> dict[str, Any]:
    job = _job(call, service)
    progress, fraction = job.automl, automl_request.fraction(job.request)
    deploy_failure = failure_reason(progress.deploy_failure)
    return request_members(job, "DescribeAutoMLJobV2") | drop_none({
        "AutoMLJobName": job.name,
        "AutoMLJobArn": job.arn,
        "AutoMLProblemTypeConfigName": "TextGeneration",
        "AutoMLJobStatus": job.status,
        "AutoMLJobSecondaryStatus": job.secondary,
        "CreationTime": job.created,
        "LastModifiedTime": job.modified,
        "EndTime": progress.ended,
        "FailureReason": failure_reason(progress.failure),
        "PartialFailureReasons": [{"PartialFailureMessage": deploy_failure}] if deploy_failure else None,
        "BestCandidate": progress.candidate,
        "AutoMLJobArtifacts": {},
        "ResolvedAttributes": _resolved(job),
        "ModelDeployResult": {"EndpointName": progress.endpoint} if progress.deployed else None,
        "DataSplitConfig": {"ValidationFraction": fraction} if fraction is not None else None,
    })  # fmt: skip


def list_(call: Call, service: Service) -> dict[str, Any]:
    items, token = list_page(call, service, AUTOML_JOB, SORT_ORDER, _summary)
    return {"AutoMLJobSummaries": items} | token


def stop(call: Call, service: Service) -> dict[str, Any]:
    """Stop the training job, and with it the AutoML job; after training, only a deployment can be stopped."""
    job = _job(call, service)
    training_job = service.store.training_job_of(job)
    if job.ended:
        raise ended_error(job)
    if training_job is not None and not training_job.ended:
        request_stop(training_job, service)
        return {}
    try:
        service.store.update(job.id, "Stopped", secondary="Stopped", progress={"ended": time.time()})
    except IllegalMoveError:
        raise ended_error(service.store.get(job.id) or job) from None
    return {}


def list_candidates(call: Call, service: Service) -> dict[str, Any]:
    job, request = _job(call, service), call.parameters
    filters = {"CandidateStatus": request.get("StatusEquals"), "CandidateName": request.get("CandidateNameEquals")}
    candidates = [
        candidate
        for candidate in [job.automl.candidate]
        if candidate and all(value in (None, candidate[name]) for name, value in filters.items())
    ]  # at most one, so SortBy and SortOrder have no effect
    items, token = slice_page(call, candidates, PAGE_SIZE)
    return {"Candidates": items} | token


def _resolve(call: Call) -> JobSpec:
    """The spec of the one training job; UserError for every fault of the request at once."""
    request = call.parameters
    fields_without_effect.refuse_encryption_keys(call)
    faults = automl_request.faults(request)
    if faults:
        raise UserError("; ".join(faults))
    config = request["AutoMLProblemTypeConfig"][_PROBLEM]
    entry = base_model.for_autopilot(config.get("BaseModelName") or base_model.AUTOPILOT_DEFAULT)
    check_tunable(entry)
    check_kind(entry, "autopilot")
    hyperparameters = engine_hyperparameters(entry, config.get("TextGenerationHyperParameters", {}))
    fraction = automl_request.fraction(request)
    if fraction is not None:
        hyperparameters["validation_split_ratio"] = str(fraction)
    if entry.autopilot:
        lengths = ("max_input_length", "max_output_length") if reads_pairs(entry) else ("max_input_length",)
        hyperparameters |= dict.fromkeys(lengths, str(entry.autopilot.tokens))
    max_seconds, member = automl_request.max_runtime(config.get("CompletionCriteria", {}))
    training = automl.training_request(request, call.region)
    return JobSpec(
        model=entry.id,
        kind="autopilot",
        channels=automl_request.addresses(request),
        hyperparameters=hyperparameters,
        max_rows=entry.autopilot.rows if entry.autopilot else None,
        max_truncated=AUTOPILOT_MAX_TRUNCATED,
        max_seconds=max_seconds,
        max_seconds_member=member,
        output=f"{training['OutputDataConfig']['S3OutputPath']}/output/",
        eula=licence_record(
            entry, bool(config.get("ModelAccessConfig", {}).get("AcceptEula")), call.principal.arn,
            "set TextGenerationJobConfig.ModelAccessConfig.AcceptEula to true",
        ),
        command=("CreateAutoMLJobV2", request["AutoMLJobName"]),
    )  # fmt: skip


def _endpoint_name(job: Resource) -> str:
    """The endpoint to deploy to: as requested, or a name that no other job has; empty without ModelDeployConfig."""
    config = job.request.get("ModelDeployConfig")
    return str(config.get("EndpointName") or f"{job.name}-{job.id[:8]}") if config else ""


def _resolved(job: Resource) -> dict[str, Any]:
    """The defaults of members that are not in the request."""
    config = job.request["AutoMLProblemTypeConfig"][_PROBLEM]
    defaults = {"MaxCandidates": 1, "MaxRuntimePerTrainingJobInSeconds": automl.MAX_RUNTIME}
    name = config.get("BaseModelName") or base_model.AUTOPILOT_DEFAULT
    return {
        "CompletionCriteria": defaults | config.get("CompletionCriteria", {}),
        "AutoMLProblemTypeResolvedAttributes": {"TextGenerationResolvedAttributes": {"BaseModelName": name}},
    }


def _job(call: Call, service: Service) -> Resource:
    name = call.parameters["AutoMLJobName"]
    found = service.store.find(AUTOML_JOB, (call.account, call.region), name)
    if found is None:
        raise WireError("ResourceNotFound", f"Could not find AutoML job {call.arn(AUTOML_JOB, name)}.")
    return found


def _summary(job: Resource) -> dict[str, Any]:
    return drop_none({
        "AutoMLJobName": job.name,
        "AutoMLJobArn": job.arn,
        "AutoMLJobStatus": job.status,
        "AutoMLJobSecondaryStatus": job.secondary,
        "CreationTime": job.created,
        "LastModifiedTime": job.modified,
        "EndTime": job.automl.ended,
        "FailureReason": failure_reason(job.automl.failure),
    })  # fmt: skip


OPERATIONS = {
    "CreateAutoMLJobV2": create,
    "DescribeAutoMLJobV2": describe,
    "ListAutoMLJobs": list_,
    "StopAutoMLJob": stop,
    "ListCandidatesForAutoMLJob": list_candidates,
}
