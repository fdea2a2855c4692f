"""An AutoML job, its one training job, and what it deploys. Pure functions; the store applies them.

    AutoML job NAME ──► training job NAME-tr-1 ──► candidate NAME-trial-1 ──► model, endpoint config, endpoint

The AutoML job's status is a function of its training job and, once that is done, of the endpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from luthier.catalog.entry import find, reads_pairs
from luthier.catalog.jumpstart import image_uri
from luthier.jobs.progress import EndpointProgress, ServedVariant
from luthier.jobs.resource import Resource, new_resource
from luthier.jobs.states import AUTOML_JOB, ENDPOINT, ENDPOINT_CONFIG, MODEL, TRAINING_JOB
from luthier.protocol.call import sagemaker_arn

INSTANCE_TYPE = "ml.g5.12xlarge"  # what AWS recommends; it has no effect here
VOLUME_GB = 30
MAX_RUNTIME = 72 * 3600  # seconds; the default of MaxRuntimePerTrainingJobInSeconds
VARIANT = "AllTraffic"
DEPLOYING = "DeployingModel"
_SUFFIX = "-tr-1"
# Secondary statuses of the training job that have another name for the AutoML job.
_SECONDARY: Mapping[str, str] = {
    "Downloading": "PreTraining",
    "Training": "TrainingModels",
    "Uploading": "TrainingModels",
    "MaxRuntimeExceeded": "MaxAutoMLJobRuntimeReached",
}


def training_job_name(name: str) -> str:
    """The name of the training job of the AutoML job `name`."""
    return name + _SUFFIX


def automl_job_name(training_job: Resource) -> str:
    return training_job.name.removesuffix(_SUFFIX)


def automl_job_arn(training_job: Resource) -> str | None:
    """The ARN of the AutoML job that a training job belongs to; None if there is none."""
    if training_job.parent is None:
        return None
    return sagemaker_arn(training_job.region, training_job.account, AUTOML_JOB, automl_job_name(training_job))


def candidate_name(name: str) -> str:
    """The name of the candidate of the AutoML job `name`, and of the model created from it."""
    return f"{name}-trial-1"


def training_request(request: Mapping[str, Any], region: str) -> dict[str, Any]:
    """The CreateTrainingJob request of a CreateAutoMLJobV2 request's training job."""
    name = request["AutoMLJobName"]
    config = request["AutoMLProblemTypeConfig"].get("TextGenerationJobConfig", {})
    runtime = config.get("CompletionCriteria", {}).get("MaxRuntimePerTrainingJobInSeconds", MAX_RUNTIME)
    output = f"{request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{name}/{candidate_name(name)}"
    return {
        "TrainingJobName": training_job_name(name),
        "RoleArn": request["RoleArn"],
        "HyperParameters": config.get("TextGenerationHyperParameters", {}),
        "AlgorithmSpecification": {"TrainingImage": image_uri("training", region), "TrainingInputMode": "File"},
        "InputDataConfig": [_channel(channel) for channel in request.get("AutoMLJobInputDataConfig", ())],
        "OutputDataConfig": {**request["OutputDataConfig"], "S3OutputPath": output},
        "ResourceConfig": {"InstanceType": INSTANCE_TYPE, "InstanceCount": 1, "VolumeSizeInGB": VOLUME_GB},
        "StoppingCondition": {"MaxRuntimeInSeconds": runtime},
    }


def _channel(channel: Mapping[str, Any]) -> dict[str, Any]:
    members = {name: channel[name] for name in ("ContentType", "CompressionType", "DataSource") if name in channel}
    return {"ChannelName": channel.get("ChannelType", "training"), **members}


def update_parent(parent: Resource, member: Resource, now: float) -> Resource:
    """The AutoML job `parent` after a change of `member`: its training job, or a resource that it deployed."""
    if parent.ended:
        return parent
    if member.kind == TRAINING_JOB:
        return _after_training(replace(parent, modified=now), member, now)
    if member.kind == ENDPOINT and parent.secondary == DEPLOYING:
        return _after_deployment(parent, member, now)
    return parent


def _after_training(parent: Resource, job: Resource, now: float) -> Resource:
    secondary = _SECONDARY.get(job.secondary, job.secondary)
    if not job.ended:
        return replace(parent, status=job.status, secondary=secondary)
    progress, training, status = parent.automl, job.training, job.status
    if training.artifact:
        progress = replace(progress, candidate=_candidate(parent, job, now))
    if status == "Completed" and progress.endpoint:
        if parent.status == "InProgress":
            return replace(parent, secondary=DEPLOYING, progress=progress)
        status = secondary = "Stopped"  # stopped after the training, before the deployment
    elif secondary == "MaxAutoMLJobRuntimeReached" and training.artifact:
        status = "Completed"
    return replace(
        parent, status=status, secondary=secondary, progress=replace(progress, ended=now, failure=training.failure)
    )


def _after_deployment(parent: Resource, endpoint: Resource, now: float) -> Resource:
    if endpoint.status == "InService":
        progress = replace(parent.automl, ended=now, deployed=True)
        return replace(parent, status="Completed", secondary="Completed", progress=progress, modified=now)
    if endpoint.status in ("Failed", "Deleting"):
        return fail_deployment(parent, f"endpoint {endpoint.name}: {endpoint.endpoint.failure or 'it failed'}", now)
    return parent


def fail_deployment(parent: Resource, failure: str, now: float) -> Resource:
    """The AutoML job, completed without an endpoint."""
    progress = replace(parent.automl, ended=now, deploy_failure=failure)
    return replace(parent, status="Completed", secondary="ModelDeploymentError", progress=progress, modified=now)


def deployment(parent: Resource, training_job: Resource) -> list[Resource]:
    """The model, endpoint config and endpoint that ModelDeployConfig requests, as new resources."""
    owner = (parent.account, parent.region, parent.creator)
    model, endpoint = candidate_name(parent.name), parent.automl.endpoint
    container = inference_container(training_job)
    variant = {
        "VariantName": VARIANT,
        "ModelName": model,
        "InitialInstanceCount": 1,
        "InstanceType": INSTANCE_TYPE,
        "InitialVariantWeight": 1.0,
    }
    served = ServedVariant(
        name=VARIANT,
        model=model,
        image=container["Image"],
        artifact=container["ModelDataUrl"],
        environment=container["Environment"],
    )
    requests: list[tuple[str, str, dict[str, Any]]] = [
        (MODEL, model, {"ModelName": model, "PrimaryContainer": container,
                        "ExecutionRoleArn": parent.request["RoleArn"]}),
        (ENDPOINT_CONFIG, endpoint, {"EndpointConfigName": endpoint, "ProductionVariants": [variant]}),
        (ENDPOINT, endpoint, {"EndpointName": endpoint, "EndpointConfigName": endpoint}),
    ]  # fmt: skip
    return [
        new_resource(
            kind, owner, name, request, parent=parent.id,
            progress=EndpointProgress(variants=(served,)) if kind == ENDPOINT else None,
        )
        for kind, name, request in requests
    ]  # fmt: skip


def inference_container(training_job: Resource) -> dict[str, Any]:
    """What CreateModel needs to serve the job's model."""
    task = "text2text-generation" if reads_pairs(find(training_job.job.model)) else "text-generation"
    return {
        "Image": image_uri("inference", training_job.region),
        "ModelDataUrl": training_job.training.artifact,
        "Environment": {"HF_TASK": task},
    }


def _candidate(parent: Resource, job: Resource, now: float) -> dict[str, Any]:
    """The AutoML job's one candidate, as BestCandidate and ListCandidatesForAutoMLJob show it."""
    container = inference_container(job)
    return {
        "CandidateName": candidate_name(parent.name),
        "ObjectiveStatus": "Succeeded",
        "CandidateSteps": [
            {
                "CandidateStepType": "AWS::SageMaker::TrainingJob",
                "CandidateStepArn": job.arn,
                "CandidateStepName": job.name,
            }
        ],
        "CandidateStatus": "Completed",
        "CreationTime": parent.created,
        "EndTime": now,
        "LastModifiedTime": now,
        "InferenceContainers": [container],
        "InferenceContainerDefinitions": {"GPU": [container]},
        "CandidateProperties": {"CandidateMetrics": list(job.training.candidate_metrics)},
    }
