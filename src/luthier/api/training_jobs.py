"""Training jobs: create, describe, list, stop and delete.

What can be refused without looking at the data is refused by CreateTrainingJob; the supervisor does the work.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from luthier.api import base_model, channels, without_meaning
from luthier.api.description import described, present, reason
from luthier.api.paging import SortOrder, listed
from luthier.api.service import Service
from luthier.api.tags import given_tags
from luthier.api.waiting import waiting
from luthier.catalog.entry import Entry, check_kind, licence_record, parse_for
from luthier.catalog.hyperparameters import TABLE
from luthier.errors import UserError
from luthier.jobs import trial
from luthier.jobs.states import IllegalMoveError
from luthier.jobs.store import Resource, TakenError
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

KIND = "training-job"
DEFAULT_RUNTIME = 24 * 3600  # seconds; CreateTrainingJob's default of StoppingCondition
ORDER = SortOrder(descending=False)
# The training jobs of AutoML jobs are listed among the others.
TRIALS = {"kind": "automl-job", "suffix": trial.SUFFIX, "begun": True}
_WORDS = {KIND: "training job", "automl-job": "AutoML job"}


def create(call: Call, service: Service) -> dict[str, Any]:
    given = call.parameters
    labels, owner = given_tags(call), (call.account, call.region)
    facts = _prepared(call, labels)
    without_meaning.note(call, service)
    request = {name: value for name, value in given.items() if name != "Tags"}
    request["StoppingCondition"] = {"MaxRuntimeInSeconds": DEFAULT_RUNTIME} | given.get("StoppingCondition", {})
    try:
        if trial.find(service.store, owner, given["TrainingJobName"]):
            raise TakenError(given["TrainingJobName"])
        made = service.store.create(
            KIND, owner, given["TrainingJobName"], request, secondary="Starting", facts=facts, labels=labels
        )
    except TakenError:
        raise WireError(
            "ResourceInUse",
            "Training job names must be unique within an AWS account and region, and a training job with this name "
            f"already exists ({call.arn(KIND, given['TrainingJobName'])})",
        ) from None
    return {"TrainingJobArn": made.arn}


def describe(call: Call, service: Service) -> dict[str, Any]:
    job = _job(call, service)
    facts = job.facts
    return described(job, "DescribeTrainingJob") | present({
        "TrainingJobName": job.name,
        "TrainingJobArn": job.arn,
        "TrainingJobStatus": job.status,
        "SecondaryStatus": job.secondary,
        "SecondaryStatusTransitions": _transitions(job, service),
        # As AWS answers it; the SDKs' attach reads KmsKeyId without asking whether it is there.
        "OutputDataConfig": {"KmsKeyId": "", **job.request["OutputDataConfig"]},
        "ModelArtifacts": {"S3ModelArtifacts": facts.get("artifact") or artifact_uri(job)},
        "CreationTime": job.created,
        "LastModifiedTime": job.modified,
        "TrainingStartTime": facts.get("started"),
        "TrainingEndTime": facts.get("ended"),
        "FailureReason": reason(facts.get("failure")),
        "FinalMetricDataList": facts.get("metrics"),
        "ProgressInfo": facts.get("progress"),
        "AutoMLJobArn": facts.get("automl_job"),
        **_durations(facts),
    })  # fmt: skip


def list_(call: Call, service: Service) -> dict[str, Any]:
    given = call.parameters
    if "WarmPoolStatusEquals" in given or "TrainingPlanArnEquals" in given:
        return {"TrainingJobSummaries": []}  # there are no warm pools and no training plans, so no job has one
    found, more = listed(call, service, KIND, ORDER, _summary, TRIALS)
    return {"TrainingJobSummaries": found} | more


def stop(call: Call, service: Service) -> dict[str, Any]:
    ask_stop(_job(call, service), service)
    return {}


def delete(call: Call, service: Service) -> dict[str, Any]:
    job = _job(call, service)
    if job.facts.get("automl_job"):
        raise WireError(
            "ValidationException", f"Training job {job.arn} is part of {job.facts['automl_job']} and is kept with it."
        )
    if not job.ended:
        raise WireError(
            "ResourceInUse", f"Training job {job.arn} is in status {job.status}; stop it before it can be deleted."
        )
    service.store.delete(job.id)
    return {}


def ask_stop(job: Resource, service: Service) -> None:
    """Ask for a job to be stopped; ValidationException when it ended. One that is being stopped already is not."""
    if job.status == "Stopping":
        return
    try:
        service.store.ask_stop(job.id)
    except IllegalMoveError:
        now = service.store.get(job.id) or job
        raise WireError(
            "ValidationException",
            f"The request was rejected because the {_WORDS[job.kind]} {job.name} is in status {now.status}.",
        ) from None


def artifact_uri(job: Resource) -> str:
    """Where the job's model.tar.gz is put."""
    return f"{job.request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{job.name}/output/model.tar.gz"


def engine_settings(entry: Entry | None, given: Mapping[str, str]) -> dict[str, str]:
    """Hyperparameters as the engine takes them: checked, by their own names, without SageMaker's; SettingError."""
    settings = parse_for(entry, given)
    for name, kind in (("chat_dataset", "chat"), ("instruction_tuned", "instruction")):
        if name in settings.explicit and settings[name]:
            check_kind(entry, kind)
    return {name: str(settings[name]) for name in TABLE if name in settings.explicit}


def first_facts(chosen: str, kind: str, hyperparameters: Mapping[str, str]) -> dict[str, Any]:
    """What is known of a job before a supervisor has it."""
    return {
        "base_model": chosen,
        "kind": kind,
        "hyperparameters": dict(hyperparameters),
        "eula": None,
        "transitions": [{"Status": "Starting", "StartTime": time.time(), "StatusMessage": "Waiting for a device"}],
    }


def _prepared(call: Call, labels: Mapping[str, str]) -> dict[str, Any]:
    given = call.parameters
    without_meaning.refuse_keys(call)
    if "ServerlessJobConfig" in given:
        raise UserError(
            "ServerlessJobConfig is not supported: name the base model and the training channel of a plain training job"
        )
    if not given["OutputDataConfig"]["S3OutputPath"].startswith("s3://"):
        raise UserError(
            f"OutputDataConfig.S3OutputPath {given['OutputDataConfig']['S3OutputPath']}: expected s3://BUCKET/PREFIX"
        )
    raw = given.get("HyperParameters", {})
    channels.check(given.get("InputDataConfig", []), raw)
    chosen = base_model.of_training_job(given, labels)
    facts = first_facts(chosen.name, "auto", engine_settings(chosen.entry, raw))
    facts["eula"] = licence_record(
        chosen.entry, base_model.eula_accepted(given), call.principal.arn,
        "set ModelAccessConfig.AcceptEula to true on the channel model (SageMaker SDK: "
        'environment={"accept_eula": "true"})',
    )  # fmt: skip
    return facts


def _job(call: Call, service: Service) -> Resource:
    name, owner = call.parameters["TrainingJobName"], (call.account, call.region)
    found = service.store.find(KIND, owner, name) or trial.find(service.store, owner, name)
    if found is None:
        raise WireError("ValidationException", "Requested resource not found.")
    return found


def _transitions(job: Resource, service: Service) -> list[dict[str, Any]]:
    transitions = [dict(transition) for transition in job.facts.get("transitions", [])]
    message = waiting(job, service)
    if message and transitions:
        transitions[-1]["StatusMessage"] = message
    return transitions


def _durations(facts: Mapping[str, Any]) -> dict[str, int]:
    """Seconds of training, which nobody is billed for and clients read."""
    if not facts.get("started"):
        return {}
    spent = max(1, round((facts.get("ended") or time.time()) - facts["started"]))
    return {"TrainingTimeInSeconds": spent, "BillableTimeInSeconds": spent}


def _summary(found: Resource) -> dict[str, Any]:
    job = found if found.kind == KIND else trial.training_job(found)
    return present({
        "TrainingJobName": job.name,
        "TrainingJobArn": job.arn,
        "CreationTime": job.created,
        "LastModifiedTime": job.modified,
        "TrainingEndTime": job.facts.get("ended"),
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
