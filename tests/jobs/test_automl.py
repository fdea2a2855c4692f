"""The status of an AutoML job as a function of its training job and its endpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest

from luthier.jobs.automl import update_parent
from luthier.jobs.progress import AutoMLProgress, EndpointProgress, TrainingProgress
from luthier.jobs.resource import Resource, new_resource
from luthier.jobspec import JobSpec

OWNER = ("123456789012", "us-east-1")
NOW = 2e9
REQUEST = {"AutoMLJobName": "auto", "RoleArn": "arn:aws:iam::123456789012:role/tester"}


def automl_job(endpoint: str = "", status: str = "InProgress", secondary: str = "Starting") -> Resource:
    job = new_resource("automl-job", OWNER, "auto", REQUEST, progress=AutoMLProgress(endpoint=endpoint))
    return replace(job, status=status, secondary=secondary)


def training_job(parent: Resource, status: str, secondary: str, artifact: str = "", failure: str = "") -> Resource:
    progress = TrainingProgress(artifact=artifact, failure=failure)
    job = new_resource(
        "training-job", OWNER, "auto-tr-1", {}, spec=JobSpec(model="flan-t5-large"), progress=progress, parent=parent.id
    )
    return replace(job, status=status, secondary=secondary)


MODEL = "s3://bucket/model.tar.gz"


@pytest.mark.parametrize(
    ("endpoint", "before", "training", "artifact", "expected"),
    [
        ("", "InProgress", ("InProgress", "Starting"), "", ("InProgress", "Starting")),
        ("", "InProgress", ("InProgress", "Downloading"), "", ("InProgress", "PreTraining")),
        ("", "InProgress", ("InProgress", "Training"), "", ("InProgress", "TrainingModels")),
        ("", "InProgress", ("InProgress", "Uploading"), "", ("InProgress", "TrainingModels")),
        ("", "InProgress", ("Stopping", "Stopping"), "", ("Stopping", "Stopping")),
        ("", "InProgress", ("Completed", "Completed"), MODEL, ("Completed", "Completed")),
        ("mine", "InProgress", ("Completed", "Completed"), MODEL, ("InProgress", "DeployingModel")),
        ("mine", "Stopping", ("Completed", "Completed"), MODEL, ("Stopped", "Stopped")),
        ("mine", "Stopping", ("Stopped", "Stopped"), MODEL, ("Stopped", "Stopped")),
        ("", "InProgress", ("Failed", "Failed"), "", ("Failed", "Failed")),
        ("mine", "Stopping", ("Stopped", "MaxRuntimeExceeded"), "", ("Stopped", "MaxAutoMLJobRuntimeReached")),
        ("mine", "Stopping", ("Stopped", "MaxRuntimeExceeded"), MODEL, ("Completed", "MaxAutoMLJobRuntimeReached")),
    ],
)
def test_it_follows_its_training_job(
    endpoint: str, before: str, training: tuple[str, str], artifact: str, expected: tuple[str, str]
) -> None:
    parent = automl_job(endpoint, before)
    failure = "no rows" if training[0] == "Failed" else ""
    after = update_parent(parent, training_job(parent, *training, artifact=artifact, failure=failure), NOW)
    assert (after.status, after.secondary) == expected
    assert (after.automl.candidate is not None) == bool(artifact)
    assert after.automl.failure == failure
    assert (after.automl.ended == NOW) == after.ended


@pytest.mark.parametrize(
    ("status", "expected", "failure"),
    [
        ("Creating", ("InProgress", "DeployingModel"), ""),
        ("InService", ("Completed", "Completed"), ""),
        ("Failed", ("Completed", "ModelDeploymentError"), "endpoint mine: no memory"),
        ("Deleting", ("Completed", "ModelDeploymentError"), "endpoint mine: no memory"),
    ],
)
def test_it_follows_its_endpoint(status: str, expected: tuple[str, str], failure: str) -> None:
    parent = automl_job("mine", secondary="DeployingModel")
    progress = EndpointProgress(failure="no memory")
    endpoint = new_resource("endpoint", OWNER, "mine", {}, progress=progress, parent=parent.id)
    after = update_parent(parent, replace(endpoint, status=status), NOW)
    assert (after.status, after.secondary, after.automl.deploy_failure) == (*expected, failure)
    assert after.automl.deployed == (status == "InService")


def test_one_that_has_ended_follows_nothing() -> None:
    parent = automl_job("mine", "Completed", "Completed")
    endpoint = new_resource("endpoint", OWNER, "mine", {}, parent=parent.id)
    assert update_parent(parent, replace(endpoint, status="Failed"), NOW) is parent
    assert update_parent(parent, training_job(parent, "InProgress", "Training"), NOW) is parent
