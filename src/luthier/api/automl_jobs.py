"""AutoML jobs of text generation: create, describe, list, stop, and the candidates, of which there is one."""

from __future__ import annotations

from typing import Any

from luthier.api import automl_request, base_model, without_meaning
from luthier.api.description import described, present, reason
from luthier.api.paging import SortOrder, listed, sliced
from luthier.api.service import Service
from luthier.api.tags import given_tags
from luthier.api.training_jobs import ask_stop, engine_settings, first_facts
from luthier.catalog.entry import check_kind, check_tunable, licence_record
from luthier.errors import UserError
from luthier.jobs import trial
from luthier.jobs.store import Resource, TakenError
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

KIND = "automl-job"
ORDER = SortOrder(sort="Name")
MOST_CANDIDATES = 10
_PROBLEM = automl_request.PROBLEM


def create(call: Call, service: Service) -> dict[str, Any]:
    given = call.parameters
    facts, owner = _prepared(call), (call.account, call.region)
    without_meaning.note(call, service)
    part = given["AutoMLJobName"] + trial.SUFFIX
    if service.store.find("training-job", owner, part):
        raise WireError("ResourceInUse", f"The AutoML job's training job would be called {part}, as another one is")
    try:
        made = service.store.create(
            KIND, owner, given["AutoMLJobName"],
            {name: value for name, value in given.items() if name != "Tags"}, secondary="Starting", facts=facts,
            labels=given_tags(call),
        )  # fmt: skip
    except TakenError:
        raise WireError(
            "ResourceInUse",
            "AutoML job names must be unique within an AWS account and region, whatever their case, and an AutoML job "
            f"with this name already exists ({call.arn(KIND, given['AutoMLJobName'])})",
        ) from None
    return {"AutoMLJobArn": made.arn}


def describe(call: Call, service: Service) -> dict[str, Any]:
    job = _job(call, service)
    facts = job.facts
    undeployed = reason(facts.get("deploy_failure"))
    return described(job, "DescribeAutoMLJobV2") | present({
        "AutoMLJobName": job.name,
        "AutoMLJobArn": job.arn,
        "AutoMLProblemTypeConfigName": "TextGeneration",
        "AutoMLJobStatus": job.status,
        "AutoMLJobSecondaryStatus": job.secondary,
        "CreationTime": job.created,
        "LastModifiedTime": job.modified,
        "EndTime": facts.get("ended"),
        "FailureReason": reason(facts.get("failure")),
        "PartialFailureReasons": [{"PartialFailureMessage": undeployed}] if undeployed else None,
        "BestCandidate": facts.get("candidate"),
        "AutoMLJobArtifacts": {},
        "ResolvedAttributes": _resolved(job),
        "ModelDeployResult": {"EndpointName": facts["deployed"]} if facts.get("deployed") else None,
        "DataSplitConfig": {"ValidationFraction": facts["split"]["ValidationFraction"]} if facts.get("split") else None,
    })  # fmt: skip


def list_(call: Call, service: Service) -> dict[str, Any]:
    found, more = listed(call, service, KIND, ORDER, _summary)
    return {"AutoMLJobSummaries": found} | more


def stop(call: Call, service: Service) -> dict[str, Any]:
    ask_stop(_job(call, service), service)
    return {}


def list_candidates(call: Call, service: Service) -> dict[str, Any]:
    job, given = _job(call, service), call.parameters
    wanted = {"CandidateStatus": given.get("StatusEquals"), "CandidateName": given.get("CandidateNameEquals")}
    candidates = [
        candidate
        for candidate in [job.facts.get("candidate")]
        if candidate and all(value in (None, candidate[name]) for name, value in wanted.items())
    ]  # one at most, so that SortBy and SortOrder have nothing to do
    found, more = sliced(call, candidates, MOST_CANDIDATES)
    return {"Candidates": found} | more


def _prepared(call: Call) -> dict[str, Any]:
    given = call.parameters
    without_meaning.refuse_keys(call)
    found = automl_request.faults(given)
    if found:
        raise UserError("; ".join(found))
    config = given["AutoMLProblemTypeConfig"][_PROBLEM]
    entry = base_model.of_autopilot(config.get("BaseModelName") or base_model.AUTOPILOT_DEFAULT)
    check_tunable(entry)
    check_kind(entry, "autopilot")
    settings = engine_settings(entry, config.get("TextGenerationHyperParameters", {}))
    share = automl_request.fraction(given)
    if share is not None:
        settings["validation_split_ratio"] = str(share)
    facts = first_facts(entry.id, "autopilot", settings)
    facts["split"] = None if share is None else {"ValidationFraction": share}
    facts["eula"] = licence_record(
        entry, bool(config.get("ModelAccessConfig", {}).get("AcceptEula")), call.principal.arn,
        "set TextGenerationJobConfig.ModelAccessConfig.AcceptEula to true",
    )  # fmt: skip
    return facts


def _resolved(job: Resource) -> dict[str, Any]:
    """The defaults that stand in for what the request left out."""
    config = job.request["AutoMLProblemTypeConfig"][_PROBLEM]
    defaults = {"MaxCandidates": 1, "MaxRuntimePerTrainingJobInSeconds": trial.MAX_RUNTIME}
    name = config.get("BaseModelName") or base_model.AUTOPILOT_DEFAULT
    return {
        "CompletionCriteria": defaults | config.get("CompletionCriteria", {}),
        "AutoMLProblemTypeResolvedAttributes": {"TextGenerationResolvedAttributes": {"BaseModelName": name}},
    }


def _job(call: Call, service: Service) -> Resource:
    name = call.parameters["AutoMLJobName"]
    found = service.store.find(KIND, (call.account, call.region), name)
    if found is None:
        raise WireError("ResourceNotFound", f"Could not find AutoML job {call.arn(KIND, name)}.")
    return found


def _summary(job: Resource) -> dict[str, Any]:
    return present({
        "AutoMLJobName": job.name,
        "AutoMLJobArn": job.arn,
        "AutoMLJobStatus": job.status,
        "AutoMLJobSecondaryStatus": job.secondary,
        "CreationTime": job.created,
        "LastModifiedTime": job.modified,
        "EndTime": job.facts.get("ended"),
        "FailureReason": reason(job.facts.get("failure")),
    })  # fmt: skip


OPERATIONS = {
    "CreateAutoMLJobV2": create,
    "DescribeAutoMLJobV2": describe,
    "ListAutoMLJobs": list_,
    "StopAutoMLJob": stop,
    "ListCandidatesForAutoMLJob": list_candidates,
}
