"""The SageMaker SDK v2 against a live server: JumpStartEstimator, AutoMLV2, S3Uploader, with and without proxy."""

from __future__ import annotations

from pathlib import Path

from wire.driver import Driver
from wire.rows import autopilot_file, domain_file, instruction_folder

METRICS = {"Rouge1", "Rouge2", "RougeL", "RougeLSum", "Perplexity", "ValidationLoss", "TrainingLoss"}


def test_flan_t5_by_jumpstart_wholly_unmodified(driver: Driver, tmp_path: Path) -> None:
    seen = driver.script("sagemaker2", "v2_flan.py", instruction_folder(tmp_path / "rows"), proxy=True)
    assert seen["role"].startswith("arn:aws:iam::123456789012:role/")
    assert seen["account"] == "123456789012"
    assert seen["defaults"] == {"epochs": "1", "batch_size": "64", "learning_rate": "0.0001"}
    assert seen["job"]["TrainingJobStatus"] == "Completed", seen["job"]
    assert seen["job"]["HyperParameters"]["max_steps"] == '"2"'  # as v2 sends it, and as it was sent
    assert seen["artifact"].endswith("/output/model.tar.gz")
    assert "huggingface-text2text:train-loss" in seen["curve"]["metric_name"]
    assert all(value > 0 for value in seen["curve"]["value"])
    assert seen["endpoint"] == "InService"
    assert [list(item) for item in seen["answer"]] == [["generated_text"]]


def test_a_gated_llama_is_refused_without_its_eula(driver: Driver, tmp_path: Path) -> None:
    seen = driver.script("sagemaker2", "v2_gated.py", instruction_folder(tmp_path / "rows"))
    assert seen["bucket"]
    assert seen["refused"]["Code"] == "ValidationException"
    assert "accept_eula" in seen["refused"]["Message"]
    assert seen["unknown"]["Code"] == "ValidationException"
    assert "Could not find" in seen["unknown"]["Message"]


def test_domain_adaptation_and_files(driver: Driver, tmp_path: Path) -> None:
    seen = driver.script("sagemaker2", "v2_domain.py", domain_file(tmp_path / "text.txt"))
    assert seen["note"] == "said"
    assert {uri.rpartition("/")[2] for uri in seen["listed"]} == {"text.txt", "note.txt"}
    assert seen["job"]["TrainingJobStatus"] == "Completed", seen["job"]
    assert seen["logs"] > 0
    assert seen["downloaded"] == ["model.tar.gz"]
    assert seen["attached"].endswith("/output/model.tar.gz")


def test_automl_v2_on_a_gated_llama(driver: Driver, tmp_path: Path) -> None:
    seen = driver.script("sagemaker2", "v2_autopilot.py", autopilot_file(tmp_path / "train.csv"))
    assert seen["refused"]["Code"] == "ValidationException"
    assert "AcceptEula" in seen["refused"]["Message"]
    assert seen["job"]["AutoMLJobStatus"] == "Completed", seen["job"]
    assert set(seen["metrics"]) >= METRICS
    assert len(seen["candidates"]) == 1
    assert seen["attached"].startswith("v2tg")


def test_a_base_model_is_deployed_as_it_is(driver: Driver) -> None:
    model = "huggingface-text2text-flan-t5-base"
    facts = driver.script("sagemaker2", "v2_base.py", model, proxy=True)
    assert facts["listed"]
    assert [list(item) for item in facts["answer"]] == [["generated_text"]]
