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
from training.data_effects import DATA_EFFECTS
from training.job_folders import lines, run
from training.method_effects import METHOD_EFFECTS
from training.optimizer_effects import OPTIMIZER_EFFECTS
from training.rank_effects import RANK_EFFECTS
from training.run_effects import RUN_EFFECTS
from training.safety_effects import SAFETY_EFFECTS
from training.seq2seq_effects import SEQ2SEQ_EFFECTS
from training.training_harness import Effects, Lab, differ
from training.validation_effects import VALIDATION_EFFECTS

from luthier.catalog.hyperparameters import TABLE
from luthier.errors import SettingError
from luthier.jobfolder import JobFolder
from luthier.jobspec import JobSpec

EFFECTS = Effects()
REGISTRIES = (
    EFFECTS, DATA_EFFECTS, RUN_EFFECTS, OPTIMIZER_EFFECTS, VALIDATION_EFFECTS, METHOD_EFFECTS, RANK_EFFECTS,
    SAFETY_EFFECTS, SEQ2SEQ_EFFECTS,
)  # fmt: skip


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("effects"))


@pytest.mark.parametrize("name", TABLE)
def test_it_does_what_it_says(name: str, lab: Lab) -> None:
    found = [registry[name] for registry in REGISTRIES if name in registry]
    assert found, f"{name}: show its effect in a run (decorate a function with @EFFECTS.of({name!r}))"
    found[0](lab)


def test_every_effect_is_of_a_hyperparameter() -> None:
    shown = Counter(name for registry in REGISTRIES for name in registry)
    assert set(shown) == set(TABLE)
    assert set(shown.values()) == {1}


def test_two_runs_differ_only_by_their_settings(lab: Lab) -> None:
    """The ground the others stand on: without a change, nothing changes."""
    one, other = lab.run(), lab.run(logging_steps="1")
    assert one.folder.root != other.folder.root
    assert one.losses == other.losses
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    assert len(one.losses) == 10


# The method


@EFFECTS.of("peft_type")
def _(lab: Lab) -> None:
    whole, adapter = lab.run(peft_type="none"), lab.run()
    assert (adapter.folder.model / "adapter_config.json").exists()
    assert not (whole.folder.model / "adapter_config.json").exists()
    assert whole.metrics["cost"]["trainable_parameters"] == whole.metrics["cost"]["parameters"]
    assert adapter.metrics["cost"]["trainable_parameters"] < adapter.metrics["cost"]["parameters"] / 2
    before = load_file(lab.model / "model.safetensors")
    assert all(not torch.equal(value, before[name]) for name, value in whole.weights.items())


@EFFECTS.of("lora_r")
def _(lab: Lab) -> None:
    for rank in (8, 3):
        weights = lab.run(lora_r=rank).weights
        assert {min(value.shape) for value in weights.values()} == {rank}


@EFFECTS.of("lora_alpha")
def _(lab: Lab) -> None:
    other = lab.run(lora_alpha=64)
    assert json.loads((other.folder.model / "adapter_config.json").read_text())["lora_alpha"] == 64
    assert other.losses[0] == lab.run().losses[0]  # B is zero: no scale shows yet
    assert other.losses[2] != lab.run().losses[2]
    assert other.steps[0]["gradient_norm"] == pytest.approx(2 * lab.run().steps[0]["gradient_norm"], rel=1e-4)


@EFFECTS.of("lora_dropout")
def _(lab: Lab) -> None:
    dropping = lab.run(lora_dropout=0.5)
    assert dropping.losses[0] == lab.run().losses[0]  # B is zero: what reaches it does not matter yet
    assert dropping.losses[2] != lab.run().losses[2]
    assert dropping.metrics["base"] == lab.run().metrics["base"]
    last, tuned = dropping.validations[-1]["eval_loss"], dropping.metrics["tuned"]["loss"]
    assert tuned == pytest.approx(min(last, dropping.metrics["best"]["eval_loss"]), abs=1e-9)  # none in scoring


@EFFECTS.of("lora_target_modules")
def _(lab: Lab) -> None:
    def targets(**settings: Any) -> set[str]:
        return {name.split(".")[-3] for name in lab.run(**settings).weights}

    assert targets() == {"q_proj", "v_proj"}
    assert targets(lora_target_modules="o_proj, up_proj") == {"o_proj", "up_proj"}
    everything = targets(lora_target_modules="all-linear")
    assert everything == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    with pytest.raises(SettingError, match="did you mean 'q_proj'"):
        lab.run(lora_target_modules="q_porj")


# What means nothing here


@EFFECTS.of(
    "logging_nan_inf_filter",
    "dataloader_num_workers",
    "eval_accumulation_steps",
    "deepspeed",
    "layer_norm_epilson",
    "tensor_parallel_degree",
    "pipeline_parallel_degree",
)
def _(lab: Lab) -> None:
    """The values that SageMaker's clients send are taken and change nothing; others are refused with the reason."""
    fixed = {name: row for name, row in TABLE.items() if row.type == "fixed"}
    sent = lab.run(**{name: row.choices[-1] for name, row in fixed.items()})
    assert sent.losses == lab.run().losses
    assert not differ(sent, lab.run())
    assert sent.record["settings"] == lab.run().record["settings"]
    for name, row in fixed.items():
        with pytest.raises(SettingError) as caught:
            lab.run(**{name: "2"})
        assert str(caught.value) == f"{name}=2: {row.help}; leave it at {row.default}"


SPECS = json.loads(
    (Path(__file__).resolve().parent.parent / "samples" / "jumpstart" / "defaults.json").read_text("utf-8")
)
ANY = {"prompt": "{text}", "completion": " {context}"}


@pytest.mark.parametrize("model", SPECS)
def test_a_job_runs_with_what_the_sdk_sends_for_a_model(model: str, lab: Lab, tmp_path: Path) -> None:
    """Every default of the model's JumpStart spec, JSON-encoded, and SageMaker's own keys besides."""
    turns = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "dog"}]
    lab.write("any kind", [{"text": f"the cat {row}", "context": "b", "messages": turns} for row in range(8)], ANY)
    sent = {name: json.dumps(str(value)) for name, value in SPECS[model].items()}
    short = {"max_steps": '"2"'} if "neuron" in model else {}
    own = {"sagemaker_region": '"here"', "sagemaker_job_name": '"name"'}
    base = write_model(tmp_path / "t5", "t5") if "t5" in model else lab.model
    folder = JobFolder(tmp_path / "run")
    spec = JobSpec(model=str(base), score_rows=0, hyperparameters=sent | short | own)
    folder.create(spec, {"training": lab.rows_folder("any kind")})
    run(folder)
    assert folder.artifact.exists()
    assert any("loss" in line for line in lines(folder))
    record = json.loads((folder.root / "run.json").read_text("utf-8"))
    assert record["reserved"] == own
    assert len(record["given"]) == len(sent)
