"""An AutoML job under the supervisor: its training job, its candidate, its deployment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor.supervisor_harness import OWNER, ROLE, Harness, supervisor_harness

from luthier.api.automl_request import max_runtime
from luthier.jobs import automl
from luthier.jobs.progress import AutoMLProgress
from luthier.jobs.resource import Resource, new_resource
from luthier.jobspec import JobSpec


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    with supervisor_harness(tmp_path) as opened:
        yield opened


def create(harness: Harness, name: str, hyperparameters: dict[str, str] | None = None,
           criteria: dict[str, int] | None = None, **more: Any) -> Resource:  # fmt: skip
    """Queue a job as CreateAutoMLJobV2 does."""
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data/rows"}}
    request = {
        "AutoMLJobName": name,
        "RoleArn": ROLE,
        "AutoMLJobInputDataConfig": [{"ChannelType": "training", "DataSource": source}],
        "OutputDataConfig": {"S3OutputPath": "s3://results/auto"},
        "AutoMLProblemTypeConfig": {"TextGenerationJobConfig": {"CompletionCriteria": criteria or {}}},
        **more,
    }
    max_seconds, member = max_runtime(criteria or {})
    spec = JobSpec(
        model="falcon-7b-instruct", kind="autopilot", channels={"training": "s3://data/rows"}, max_rows=1000,
        max_truncated=0.6, max_seconds=max_seconds, max_seconds_member=member,
        hyperparameters={"validation_split_ratio": "0.2", "max_input_length": "1024", **(hyperparameters or {})},
        output=f"s3://results/auto/{name}/{name}-trial-1/output/",
    )  # fmt: skip
    deploy = more.get("ModelDeployConfig")
    progress = AutoMLProgress(endpoint=deploy.get("EndpointName", f"{name}-generated") if deploy else "")
    job = new_resource("automl-job", OWNER, name, request, secondary="Starting", progress=progress)
    training = automl.training_request(request, OWNER[1])
    training_job = new_resource(
        "training-job", OWNER, f"{name}-tr-1", training, secondary="Starting", spec=spec, parent=job.id
    )
    harness.store.insert(job, training_job)
    return job


def child(harness: Harness, job: Resource) -> Resource:
    found = harness.store.training_job_of(job)
    assert found is not None
    return found


def transitions(job: Resource) -> list[str]:
    return [transition.status for transition in job.training.transitions]


def test_a_job_ends_with_its_candidate(harness: Harness) -> None:
    (done,) = harness.run_to_end(create(harness, "auto"))
    assert (done.status, done.secondary) == ("Completed", "Completed"), done.automl.failure
    training_job = child(harness, done)
    assert transitions(training_job) == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    candidate = done.automl.candidate
    assert candidate is not None
    assert candidate["CandidateSteps"][0]["CandidateStepArn"] == training_job.arn
    assert (candidate["CandidateName"], candidate["CandidateStatus"]) == ("auto-trial-1", "Completed")
    (container,) = candidate["InferenceContainers"]
    assert container["ModelDataUrl"] == "s3://results/auto/auto/auto-trial-1/output/model.tar.gz"
    assert harness.objects.path(container["ModelDataUrl"]).exists()
    assert container["Environment"] == {"HF_TASK": "text-generation"}
    assert ".us-east-1." in container["Image"]
    found = {(one["StandardMetricName"], one["Set"]): one["Value"]
             for one in candidate["CandidateProperties"]["CandidateMetrics"]}  # fmt: skip
    assert found == {
        ("Rouge1", "Validation"): 0.4, ("Rouge2", "Validation"): 0.2, ("RougeL", "Validation"): 0.3,
        ("RougeLSum", "Validation"): 0.3, ("Perplexity", "Validation"): 1.65, ("ValidationLoss", "Validation"): 0.5,
        ("TrainingLoss", "Train"): pytest.approx(1 / 3),
    }  # fmt: skip


def test_autopilots_limits_are_in_the_job_folder(harness: Harness) -> None:
    job = create(harness, "auto")
    harness.run_to_end(job)
    stored = json.loads((harness.folder(child(harness, job)) / "input/config/job.json").read_text())
    assert (stored["kind"], stored["max_rows"], stored["max_truncated"]) == ("autopilot", 1000, 0.6)
    settings = json.loads((harness.folder(child(harness, job)) / "input/config/hyperparameters.json").read_text())
    assert settings == {"validation_split_ratio": "0.2", "max_input_length": "1024"}


def test_the_limit_of_run_time_ends_it_with_the_model_so_far(harness: Harness) -> None:
    job = create(harness, "slow", hyperparameters={"steps": "1000", "step_seconds": "0.05"},
                 criteria={"MaxAutoMLJobRuntimeInSeconds": 1}, ModelDeployConfig={"EndpointName": "never"})  # fmt: skip
    (stopped,) = harness.run_to_end(job)
    assert (stopped.status, stopped.secondary) == ("Completed", "MaxAutoMLJobRuntimeReached")
    assert stopped.automl.candidate is not None
    stopped_job = child(harness, stopped)
    assert (stopped_job.status, stopped_job.secondary) == ("Stopped", "MaxRuntimeExceeded")
    assert harness.store.find("endpoint", OWNER, "never") is None


@pytest.mark.parametrize("asked", [{"EndpointName": "mine"}, {"AutoGenerateEndpointName": True}])
def test_a_model_is_deployed(harness: Harness, asked: dict[str, Any]) -> None:
    (done,) = harness.run_to_end(create(harness, "auto", ModelDeployConfig=asked))
    assert (done.status, done.secondary) == ("Completed", "Completed"), done.automl
    assert done.automl.deployed
    name = done.automl.endpoint
    assert name == asked.get("EndpointName", name)
    endpoint = harness.store.find("endpoint", OWNER, name)
    assert endpoint is not None
    assert endpoint.status == "InService"
    config = harness.store.find("endpoint-config", OWNER, endpoint.request["EndpointConfigName"])
    assert config is not None
    (variant,) = config.request["ProductionVariants"]
    model = harness.store.find("model", OWNER, variant["ModelName"])
    assert model is not None
    assert done.automl.candidate is not None
    assert model.request["PrimaryContainer"] == done.automl.candidate["InferenceContainers"][0]
    assert len(name) <= 63


def test_a_deployment_that_fails_leaves_the_job_completed(harness: Harness) -> None:
    harness.store.create("endpoint", OWNER, "taken", {})
    (done,) = harness.run_to_end(create(harness, "auto", ModelDeployConfig={"EndpointName": "taken"}))
    assert (done.status, done.secondary) == ("Completed", "ModelDeploymentError")
    assert not done.automl.deployed
    assert "taken" in done.automl.deploy_failure
    assert done.automl.candidate
    assert harness.store.find("model", OWNER, "auto-trial-1") is None


def test_a_deployment_goes_on_after_a_restart(harness: Harness) -> None:
    job = create(harness, "auto", ModelDeployConfig={"EndpointName": "mine"})
    harness.run_until(lambda: harness.store.find("endpoint", OWNER, "mine"))
    for work in harness.supervisor._works.values():
        work.kill()
    harness.new_supervisor()
    harness.supervisor.recover()
    (done,) = harness.run_to_end(job)
    assert (done.secondary, done.automl.deployed, done.automl.endpoint) == ("Completed", True, "mine")
    assert harness.run_count(child(harness, job)) == 1


def test_an_endpoint_that_fails_is_a_deployment_that_failed(harness: Harness) -> None:
    job = create(harness, "auto", ModelDeployConfig={"EndpointName": "mine"})
    harness.run_until(lambda: harness.store.find("endpoint", OWNER, "mine"))
    endpoint = harness.store.find("endpoint", OWNER, "mine")
    assert endpoint is not None
    harness.store.update(endpoint.id, "Failed", progress={"failure": "out of memory"})
    done = harness.reload(job)
    assert (done.status, done.secondary) == ("Completed", "ModelDeploymentError")
    assert done.automl.deploy_failure == "endpoint mine: out of memory"
