"""Every hyperparameter does what it says: each is shown at work in whole jobs on a tiny random model.

A row of the table without an effect here fails the suite: an option that nothing reads must not exist. The effects lie
in files by what they are of; this one runs them all.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import write_model
from training.batch_hyperparameters import BATCH_CHECKS
from training.data_hyperparameters import DATA_CHECKS
from training.job_folders import lines, run
from training.method_hyperparameters import METHOD_CHECKS
from training.optimizer_hyperparameters import OPTIMIZER_CHECKS
from training.rank_hyperparameters import RANK_CHECKS
from training.run_hyperparameters import RUN_CHECKS
from training.seq2seq_hyperparameters import SEQ2SEQ_CHECKS
from training.training_harness import HyperparameterChecks, TrainingHarness, differ
from training.validation_hyperparameters import VALIDATION_CHECKS

from luthier.catalog.hyperparameters import TABLE
from luthier.errors import SettingError
from luthier.jobfolder import JobFolder
from luthier.jobspec import JobSpec

CHECKS = HyperparameterChecks()
REGISTRIES = (
    CHECKS, DATA_CHECKS, RUN_CHECKS, OPTIMIZER_CHECKS, VALIDATION_CHECKS, METHOD_CHECKS, RANK_CHECKS,
    BATCH_CHECKS, SEQ2SEQ_CHECKS,
)  # fmt: skip


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> TrainingHarness:
    return TrainingHarness(tmp_path_factory.mktemp("effects"))


@pytest.mark.parametrize("name", TABLE)
def test_hyperparameter_has_its_effect(name: str, harness: TrainingHarness) -> None:
    found = [registry[name] for registry in REGISTRIES if name in registry]
    assert found, f"{name}: show its effect in a run (decorate a function with @CHECKS.of({name!r}))"
    found[0](harness)


def test_every_check_is_of_a_hyperparameter() -> None:
    shown = Counter(name for registry in REGISTRIES for name in registry)
    assert set(shown) == set(TABLE)
    assert set(shown.values()) == {1}


def test_two_runs_differ_only_by_their_settings(harness: TrainingHarness) -> None:
    """The ground the others stand on: without a change, nothing changes."""
    one, other = harness.run(), harness.run(logging_steps="1")
    assert one.folder.root != other.folder.root
    assert one.losses == other.losses
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    assert len(one.losses) == 10


# The method


@CHECKS.of("peft_type")
def _(harness: TrainingHarness) -> None:
    whole, adapter = harness.run(peft_type="none"), harness.run()
    assert (adapter.folder.model / "adapter_config.json").exists()
    assert not (whole.folder.model / "adapter_config.json").exists()
    assert whole.metrics["cost"]["trainable_parameters"] == whole.metrics["cost"]["parameters"]
    assert adapter.metrics["cost"]["trainable_parameters"] < adapter.metrics["cost"]["parameters"] / 2
    before = load_file(harness.model / "model.safetensors")
    assert all(not torch.equal(value, before[name]) for name, value in whole.weights.items())


@CHECKS.of("lora_r")
def _(harness: TrainingHarness) -> None:
    for rank in (8, 3):
        weights = harness.run(lora_r=rank).weights
        assert {min(value.shape) for value in weights.values()} == {rank}


@CHECKS.of("lora_alpha")
def _(harness: TrainingHarness) -> None:
    other = harness.run(lora_alpha=64)
    assert json.loads((other.folder.model / "adapter_config.json").read_text())["lora_alpha"] == 64
    assert other.losses[0] == harness.run().losses[0]  # B is zero: no scale shows yet
    assert other.losses[2] != harness.run().losses[2]
    assert other.steps[0]["gradient_norm"] == pytest.approx(2 * harness.run().steps[0]["gradient_norm"], rel=1e-4)


@CHECKS.of("lora_dropout")
def _(harness: TrainingHarness) -> None:
    dropping = harness.run(lora_dropout=0.5)
    assert dropping.losses[0] == harness.run().losses[0]  # B is zero: what reaches it does not matter yet
    assert dropping.losses[2] != harness.run().losses[2]
    assert dropping.metrics["base"] == harness.run().metrics["base"]
    last, tuned = dropping.validations[-1]["eval_loss"], dropping.metrics["tuned"]["loss"]
    assert tuned == pytest.approx(min(last, dropping.metrics["best"]["eval_loss"]), abs=1e-9)  # none in scoring


@CHECKS.of("lora_target_modules")
def _(harness: TrainingHarness) -> None:
    def targets(**settings: Any) -> set[str]:
        return {name.split(".")[-3] for name in harness.run(**settings).weights}

    assert targets(lora_target_modules="o_proj, up_proj") == {"o_proj", "up_proj"}
    everything = targets(lora_target_modules="all-linear")
    assert everything == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert targets() == everything  # a folder outside the catalogue
    with pytest.raises(SettingError, match="did you mean 'q_proj'"):
        harness.run(lora_target_modules="q_porj")


# What means nothing here


@CHECKS.of(
    "logging_nan_inf_filter",
    "dataloader_num_workers",
    "eval_accumulation_steps",
    "deepspeed",
    "layer_norm_epilson",
    "tensor_parallel_degree",
    "pipeline_parallel_degree",
)
def _(harness: TrainingHarness) -> None:
    """The values that SageMaker's clients send are taken and change nothing; others are refused with the reason."""
    fixed = {name: row for name, row in TABLE.items() if row.type == "fixed"}
    sent = harness.run(**{name: row.choices[-1] for name, row in fixed.items()})
    assert sent.losses == harness.run().losses
    assert not differ(sent, harness.run())
    assert sent.record["settings"] == harness.run().record["settings"]
    for name, row in fixed.items():
        with pytest.raises(SettingError) as caught:
            harness.run(**{name: "2"})
        assert str(caught.value) == f"{name}=2: {row.help}; leave it at {row.default}"


SPECS = json.loads(
    (Path(__file__).resolve().parent.parent / "samples" / "jumpstart" / "defaults.json").read_text("utf-8")
)
ANY = {"prompt": "{text}", "completion": " {context}"}


@pytest.mark.parametrize("model", SPECS)
def test_a_job_runs_with_what_the_sdk_sends_for_a_model(model: str, harness: TrainingHarness, tmp_path: Path) -> None:
    """Every default of the model's JumpStart spec, JSON-encoded, and SageMaker's own keys besides."""
    turns = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "dog"}]
    harness.write("any kind", [{"text": f"the cat {row}", "context": "b", "messages": turns} for row in range(8)], ANY)
    sent = {name: json.dumps(str(value)) for name, value in SPECS[model].items()}
    short = {"max_steps": '"2"'} if "neuron" in model else {}
    own = {"sagemaker_region": '"here"', "sagemaker_job_name": '"name"'}
    base = write_model(tmp_path / "t5", "t5") if "t5" in model else harness.model
    folder = JobFolder(tmp_path / "run")
    spec = JobSpec(model=str(base), score_rows=0, hyperparameters=sent | short | own)
    folder.create(spec, {"training": harness.rows_folder("any kind")})
    run(folder)
    assert folder.artifact.exists()
    assert any("loss" in line for line in lines(folder))
    record = json.loads((folder.root / "run.json").read_text("utf-8"))
    assert record["reserved"] == own
    assert len(record["given"]) == len(sent)
