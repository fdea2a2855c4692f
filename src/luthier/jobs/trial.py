"""The one training job of an AutoML job, seen as a training job. It has no row of its own that could say otherwise.

    AutoML job NAME ──► candidate NAME-trial-1, whose one step is training job NAME-tr-1

It is there from the moment that somebody works on the AutoML job. Knows requests and facts, nothing of the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from luthier.catalog.jumpstart import image_uri
from luthier.jobs.store import Resource, Store

SUFFIX = "-tr-1"
INSTANCE_TYPE = "ml.g5.12xlarge"  # what AWS recommends; it means nothing here
VOLUME_GB = 30
MAX_RUNTIME = 72 * 3600  # seconds; the default of MaxRuntimePerTrainingJobInSeconds
# Secondary statuses of AutoML jobs whose name is another for training jobs.
STATIONS: Mapping[str, str] = {
    "PreTraining": "Downloading",
    "TrainingModels": "Training",
    "DeployingModel": "Uploading",
    "ModelDeploymentError": "Completed",
    "MaxAutoMLJobRuntimeReached": "MaxRuntimeExceeded",
}


def find(store: Store, owner: tuple[str, str], name: str) -> Resource | None:
    """The AutoML job whose training job is called `name`, as that training job; None where there is none yet."""
    if not name.lower().endswith(SUFFIX):
        return None
    found = store.find("automl-job", owner, name[: -len(SUFFIX)])
    return training_job(found) if found is not None and "started" in found.facts else None


def training_job(job: Resource) -> Resource:
    """The training job of an AutoML job: what was asked of the one in the words of the other."""
    facts = job.facts
    stations = [{**one, "Status": STATIONS.get(one["Status"], one["Status"])} for one in facts.get("transitions", ())]
    return replace(
        job, kind="training-job", name=job.name + SUFFIX, request=_request(job),
        secondary=STATIONS.get(job.secondary, job.secondary),
        facts={"artifact": f"{_output(job)}/output/model.tar.gz", **facts, "transitions": stations,
               "automl_job": job.arn},
    )  # fmt: skip


def candidate_name(job: Resource) -> str:
    """The one candidate of an AutoML job; also the name of the model that is made of it."""
    return f"{job.name}-trial-1"


def _output(job: Resource) -> str:
    return f"{job.request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{job.name}/{candidate_name(job)}"


def _request(job: Resource) -> dict[str, Any]:
    """What a CreateTrainingJob would have said."""
    given = job.request
    config = given["AutoMLProblemTypeConfig"].get("TextGenerationJobConfig", {})
    runtime = config.get("CompletionCriteria", {}).get("MaxRuntimePerTrainingJobInSeconds", MAX_RUNTIME)
    return {
        "TrainingJobName": job.name + SUFFIX,
        "RoleArn": given["RoleArn"],
        "HyperParameters": config.get("TextGenerationHyperParameters", {}),
        "AlgorithmSpecification": {"TrainingImage": image_uri("training", job.region), "TrainingInputMode": "File"},
        "InputDataConfig": [_channel(channel) for channel in given.get("AutoMLJobInputDataConfig", ())],
        "OutputDataConfig": {**given["OutputDataConfig"], "S3OutputPath": _output(job)},
        "ResourceConfig": {"InstanceType": INSTANCE_TYPE, "InstanceCount": 1, "VolumeSizeInGB": VOLUME_GB},
        "StoppingCondition": {"MaxRuntimeInSeconds": runtime},
    }


def _channel(channel: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: channel[name] for name in ("ContentType", "CompressionType", "DataSource") if name in channel}
    return {"ChannelName": channel.get("ChannelType", "training"), **kept}
