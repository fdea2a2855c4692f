"""boto3 against a live server: Autopilot with both ways to an endpoint, training jobs, stops and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from wire.driver import Driver
from wire.rows import autopilot_file, instruction_folder

METRICS = {"Rouge1", "Rouge2", "RougeL", "RougeLSum", "Perplexity", "ValidationLoss", "TrainingLoss"}


def test_autopilot_from_rows_to_two_endpoints(driver: Driver, tmp_path: Path) -> None:
    seen = driver.script("sagemaker3", "boto3_autopilot.py", autopilot_file(tmp_path / "train.csv"))
    assert seen["arn"] == "arn:aws:sagemaker:us-west-2:123456789012:automl-job/boto3-one"
    assert seen["again"] == "ResourceInUse"
    assert seen["job"]["AutoMLJobStatus"] == "Completed", seen["job"]
    assert seen["stopped"] == "Stopped"
    assert seen["base_model"] == {"TextGenerationResolvedAttributes": {"BaseModelName": "FlanT5L"}}
    metrics = seen["candidate"]["CandidateProperties"]["CandidateMetrics"]
    assert {item["StandardMetricName"] for item in metrics} >= METRICS
    assert seen["candidate"]["InferenceContainers"][0]["ModelDataUrl"].startswith("s3://wire-boto3/out/boto3-one/")
    artifact = seen["candidate"]["InferenceContainers"][0]["ModelDataUrl"]
    assert seen["trained"] == ["Completed", artifact, seen["arn"]]
    assert seen["candidates"] == [seen["candidate"]["CandidateName"]]
    assert sorted(name for page in seen["pages"] for name in page) == ["boto3-one", "boto3-two"]
    assert all(len(page) == 1 for page in seen["pages"][:2])
    assert [list(item) for item in seen["answer"]] == [["generated_text"]]
    assert seen["answer_by_hand"] == seen["answer"]
    assert seen["variant"] == "AllTraffic"
    assert seen["stream_parts"] > 1
    assert "generated_text" in seen["streamed"]
    assert seen["after"]["Code"] == "ValidationError"
    assert seen["left"] == []


def test_training_jobs_are_run_stopped_and_refused(driver: Driver, tmp_path: Path) -> None:
    seen = driver.script("sagemaker3", "boto3_training.py", instruction_folder(tmp_path / "rows"))
    assert seen["transitions"] == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert seen["stopped"][-2:] == ["Stopping", "Stopped"]
    assert "adapter_model.safetensors" in {Path(name).name for name in seen["stopped_artifact"]}
    assert seen["tags"] == [{"Key": "team", "Value": "wire"}]
    assert seen["hyperparameters"] == {"instruction_tuned": "True", "max_steps": "2"}
    assert seen["metrics"]
    assert {"template.json", "adapter_config.json"} <= {Path(name).name for name in seen["artifact"]}
    # A job that goes on from this artifact starts where it ended.
    assert seen["further"]["luthier:base:loss"] == pytest.approx(seen["metrics"]["luthier:tuned:loss"], rel=1e-5)
    assert len(seen["streams"]) == 1
    assert seen["log"]
    assert seen["listed"] == ["boto3-long"]
    refusals = seen["refusals"]
    assert "no-such-model" in refusals["boto3-unknown"]
    assert refusals["boto3-epoch"].startswith("ValidationException: ")
    assert "epoch" in refusals["boto3-epoch"]
    assert "accept" in refusals["boto3-gated"]
    assert refusals["boto3-short"].startswith("ResourceInUse: ")
