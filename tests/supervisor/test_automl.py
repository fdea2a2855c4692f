"""An AutoML job under the supervisor: Autopilot's rules as settings, its stations, its candidate, its deployment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor.supervisor_harness import OWNER, ROLE, Harness, supervisor_harness

from luthier.jobs.store import Resource
from luthier.supervisor import order


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    with supervisor_harness(tmp_path) as opened:
        yield opened


def create(harness: Harness, name: str, base: str = "falcon-7b-instruct", splits: tuple[str, ...] = ("training",),
           hyperparameters: dict[str, str] | None = None, criteria: dict[str, int] | None = None,
           **more: Any) -> Resource:  # fmt: skip
    """Queue a job as CreateAutoMLJobV2 does."""
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data/rows"}}
    request = {
        "AutoMLJobName": name,
        "RoleArn": ROLE,
        "AutoMLJobInputDataConfig": [{"ChannelType": split, "DataSource": source} for split in splits],
        "OutputDataConfig": {"S3OutputPath": "s3://results/auto"},
        "AutoMLProblemTypeConfig": {"TextGenerationJobConfig": {"CompletionCriteria": criteria or {}}},
        **more,
    }
    facts = {"base_model": base, "kind": "autopilot", "eula": None, "hyperparameters": hyperparameters or {}}
    return harness.store.create("automl-job", OWNER, name, request, secondary="Starting", facts=facts)


def stations(job: Resource) -> list[str]:
    return [station["Status"] for station in job.facts["transitions"]]


def test_a_job_ends_with_its_candidate(harness: Harness) -> None:
    (done,) = harness.run_to_end(create(harness, "auto"))
    assert (done.status, done.secondary) == ("Completed", "Completed"), done.facts.get("failure")
    assert stations(done) == ["Starting", "PreTraining", "TrainingModels", "Completed"]
    candidate = done.facts["candidate"]
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


def test_autopilots_limits_are_in_the_order(harness: Harness) -> None:
    job = create(harness, "auto", base="falcon-7b-instruct")
    harness.run_to_end(job)
    stored = json.loads((harness.folder(job) / "input/config/job.json").read_text())
    assert (stored["kind"], stored["max_rows"], stored["max_truncated"]) == ("autopilot", 1000, 0.6)
    settings = json.loads((harness.folder(job) / "input/config/hyperparameters.json").read_text())
    assert settings == {"validation_split_ratio": "0.2", "max_input_length": "1024"}


def test_settings_follow_splits_share_and_family(harness: Harness) -> None:
    split = create(harness, "split", DataSplitConfig={"ValidationFraction": 0.3})
    assert order.hyperparameters(split, {"training": 1})["validation_split_ratio"] == "0.3"
    both = create(harness, "both", splits=("training", "validation"))
    assert "validation_split_ratio" not in order.hyperparameters(both, {"training": 1, "validation": 1})
    pairs = create(harness, "pairs", base="flan-t5-large", hyperparameters={"epoch": "3"})
    assert order.hyperparameters(pairs, {"training": 1}) == {
        "validation_split_ratio": "0.2", "max_input_length": "1024", "max_output_length": "1024", "epoch": "3",
    }  # fmt: skip


def test_the_limit_of_run_time_ends_it_without_a_model(harness: Harness) -> None:
    job = create(harness, "slow", hyperparameters={"steps": "1000", "step_seconds": "0.05"},
                 criteria={"MaxAutoMLJobRuntimeInSeconds": 1}, ModelDeployConfig={"EndpointName": "never"})  # fmt: skip
    (stopped,) = harness.run_to_end(job)
    assert (stopped.status, stopped.secondary) == ("Stopped", "MaxAutoMLJobRuntimeReached")
    assert "candidate" not in stopped.facts
    assert harness.store.find("endpoint", OWNER, "never") is None


@pytest.mark.parametrize(
    ("criteria", "seconds", "member"),
    [
        ({}, 259_200, "CompletionCriteria.MaxRuntimePerTrainingJobInSeconds"),
        ({"MaxAutoMLJobRuntimeInSeconds": 60}, 60, "CompletionCriteria.MaxAutoMLJobRuntimeInSeconds"),
        ({"MaxAutoMLJobRuntimeInSeconds": 60, "MaxRuntimePerTrainingJobInSeconds": 30}, 30,
         "CompletionCriteria.MaxRuntimePerTrainingJobInSeconds"),
    ],
)  # fmt: skip
def test_the_least_limit_counts(harness: Harness, criteria: dict[str, int], seconds: float, member: str) -> None:
    limit = order.limit(create(harness, "limited", criteria=criteria))
    assert (limit.seconds, limit.member) == (seconds, member)


@pytest.mark.parametrize("asked", [{"EndpointName": "mine"}, {"AutoGenerateEndpointName": True}])
def test_a_model_is_deployed(harness: Harness, asked: dict[str, Any]) -> None:
    (done,) = harness.run_to_end(create(harness, "auto", ModelDeployConfig=asked))
    assert (done.status, done.secondary) == ("Completed", "Completed"), done.facts
    assert stations(done) == ["Starting", "PreTraining", "TrainingModels", "DeployingModel", "Completed"]
    name = done.facts["deployed"]
    assert name == asked.get("EndpointName", name)
    endpoint = harness.store.find("endpoint", OWNER, name)
    assert endpoint is not None
    assert endpoint.status == "InService"
    config = harness.store.find("endpoint-config", OWNER, endpoint.request["EndpointConfigName"])
    assert config is not None
    (variant,) = config.request["ProductionVariants"]
    model = harness.store.find("model", OWNER, variant["ModelName"])
    assert model is not None
    assert model.request["PrimaryContainer"] == done.facts["candidate"]["InferenceContainers"][0]
    assert len(name) <= 63


def test_a_deployment_that_fails_leaves_the_job_completed(harness: Harness) -> None:
    harness.store.create("endpoint", OWNER, "taken", {}, facts={"variants": []})
    (done,) = harness.run_to_end(create(harness, "auto", ModelDeployConfig={"EndpointName": "taken"}))
    assert (done.status, done.secondary) == ("Completed", "ModelDeploymentError")
    assert "deployed" not in done.facts
    assert "taken" in done.facts["deploy_failure"]
    assert done.facts["candidate"]


def test_a_deployment_goes_on_after_a_restart(harness: Harness) -> None:
    job = create(harness, "auto", ModelDeployConfig={"EndpointName": "mine"})
    harness.run_until(lambda: harness.store.find("endpoint", OWNER, "mine"))
    for work in harness.supervisor._works.values():
        work.kill()
    harness.new_supervisor()
    harness.supervisor.recover()
    (done,) = harness.run_to_end(job)
    assert (done.secondary, done.facts["deployed"]) == ("Completed", "mine")
    assert harness.run_count(job) == 1
