"""Every hyperparameter does what it says: each is shown at work in whole jobs on a tiny random model.

A row of the table without an effect here fails the suite: an option that nothing reads must not exist.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training.data_effects import DATA_EFFECTS
from training.lab import Done, Effects, Lab

from luthier.catalog.hyperparameters import TABLE
from luthier.errors import SettingError

TOLERANCE = 2e-5
EFFECTS = Effects()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("effects"))


@pytest.mark.parametrize("name", TABLE)
def test_it_does_what_it_says(name: str, lab: Lab) -> None:
    effects = EFFECTS | DATA_EFFECTS
    assert name in effects, f"{name}: show its effect in a run (decorate a function with @EFFECTS.of({name!r}))"
    effects[name](lab)


def test_every_effect_is_of_a_hyperparameter() -> None:
    assert set(EFFECTS | DATA_EFFECTS) == set(TABLE)
    assert not set(EFFECTS) & set(DATA_EFFECTS)


def test_two_runs_differ_only_by_their_settings(lab: Lab) -> None:
    """The ground the others stand on: without a change, nothing changes."""
    one, other = lab.run(), lab.run(logging_steps="1")
    assert one.folder.root != other.folder.root
    assert one.losses == other.losses
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    assert len(one.losses) == 10


def differ(one: Done, other: Done) -> bool:
    """Whether two runs ended with other weights."""
    return any(not torch.equal(value, other.weights[name]) for name, value in one.weights.items())


# The run


@EFFECTS.of("epoch")
def _(lab: Lab) -> None:
    assert lab.run().metrics["epochs"] == 2
    done = lab.run(epoch=3)
    assert (done.metrics["epochs"], done.metrics["steps"]) == (3, 15)
    assert done.losses[:10] == lab.run().losses


@EFFECTS.of("max_steps")
def _(lab: Lab) -> None:
    done = lab.run(max_steps=3)
    assert (done.metrics["steps"], done.metrics["stopped"]) == (3, "max_steps")
    assert done.losses == lab.run().losses[:3]
    assert lab.run(max_steps=12).metrics["steps"] == 12  # it goes beyond the epochs, too
    assert lab.run().metrics["stopped"] == "completed"


@EFFECTS.of("per_device_train_batch_size")
def _(lab: Lab) -> None:
    assert [len(batch.rows) for batch in lab.run().trained] == [4] * 10
    done = lab.run(per_device_train_batch_size=8)
    assert [len(batch.rows) for batch in done.trained] == [8, 8, 4] * 2


@EFFECTS.of("per_device_eval_batch_size")
def _(lab: Lab) -> None:
    one = lab.run(per_device_eval_batch_size=1)
    assert {len(batch.rows) for batch in one.scored} == {1}
    assert {len(batch.rows) for batch in lab.run().scored} == {5}
    for line, other in zip(one.validations, lab.run().validations, strict=True):
        assert line["eval_loss"] == pytest.approx(other["eval_loss"], abs=TOLERANCE)


@EFFECTS.of("gradient_accumulation_steps")
def _(lab: Lab) -> None:
    done, at_once = lab.run(gradient_accumulation_steps=2), lab.run(per_device_train_batch_size=8)
    assert [len(batch.rows) for batch in done.trained] == [4] * 10
    assert done.metrics["steps"] == at_once.metrics["steps"] == 6
    assert done.losses == pytest.approx(at_once.losses, abs=TOLERANCE)


@EFFECTS.of("packing")
def _(lab: Lab) -> None:
    apart = lab.run(packing=False)
    assert all(batch.attention_mask_BT is None for batch in (*lab.run().trained, *lab.run().scored))
    assert all(batch.attention_mask_BT is not None for batch in (*apart.trained, *apart.scored))
    assert apart.losses == pytest.approx(lab.run().losses, abs=TOLERANCE)
    assert [batch.rows for batch in apart.trained] == [batch.rows for batch in lab.run().trained]


@EFFECTS.of("bf16")
def _(lab: Lab) -> None:
    assert lab.run().record["dtype"] == lab.run(bf16=False).record["dtype"] == "float32"  # auto, on a CPU
    done = lab.run(bf16=True)
    assert done.record["dtype"] == "bfloat16"
    assert done.losses != lab.run().losses
    assert done.losses == pytest.approx(lab.run().losses, abs=0.1)
    whole = lab.run(bf16=True, peft_type="none")
    assert {value.dtype for value in whole.weights.values()} == {torch.bfloat16}


@EFFECTS.of("gradient_checkpointing")
def _(lab: Lab) -> None:
    for settings in ({}, {"peft_type": "none"}):
        usual = lab.run(evaluation_strategy="no", **settings)
        done = lab.run(evaluation_strategy="no", gradient_checkpointing=True, **settings)
        assert done.losses == usual.losses
        assert not differ(done, usual)
        layers, rows = 2, sum(len(batch.rows) for batch in usual.trained)
        assert done.attention_calls - usual.attention_calls == layers * rows  # once more in the backward pass


@EFFECTS.of("seed")
def _(lab: Lab) -> None:
    other = lab.run(seed=11)
    assert [batch.rows for batch in other.trained] != [batch.rows for batch in lab.run().trained]
    assert other.split == lab.run().split
    start = [lab.run(seed=seed, max_steps=1, learning_rate=1e-9).weights for seed in (10, 11)]
    assert all(not torch.equal(value, start[1][name]) for name, value in start[0].items() if "lora_A" in name)
    dropped = [lab.run(seed=10, lora_dropout=0.5, max_train_samples=4, max_steps=2).losses for _ in range(2)]
    assert dropped[0] == dropped[1]


@EFFECTS.of("train_from_scratch")
def _(lab: Lab) -> None:
    tuned, fresh = lab.run(peft_type="none"), lab.run(peft_type="none", train_from_scratch=True)
    assert fresh.metrics["base"]["loss"] != pytest.approx(tuned.metrics["base"]["loss"], abs=1e-3)
    again = lab.run(peft_type="none", train_from_scratch=True, seed=11)
    assert again.metrics["base"]["loss"] != pytest.approx(fresh.metrics["base"]["loss"], abs=1e-3)
    with pytest.raises(SettingError, match="train_from_scratch=True with peft_type=lora"):
        lab.run(train_from_scratch=True)


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


@EFFECTS.of("int8_quantization", "enable_fsdp")
def _(lab: Lab) -> None:
    for name in ("int8_quantization", "enable_fsdp"):
        with pytest.raises(SettingError, match=f"{name}=True: .* not available in this version"):
            lab.run(**{name: True})
        assert not differ(lab.run(**{name: False}), lab.run())


# The optimizer


@EFFECTS.of("learning_rate")
def _(lab: Lab) -> None:
    slow = lab.run(learning_rate=0.001)
    assert slow.rates == [0.001] * 10
    assert lab.run().rates == [0.01] * 10
    assert slow.losses[0] == lab.run().losses[0]
    assert slow.size < lab.run().size / 4


@EFFECTS.of("lr_scheduler_type")
def _(lab: Lab) -> None:
    assert lab.run(lr_scheduler_type="linear").rates == [round(0.01 - 0.001 * step, 9) for step in range(10)]
    cosine = lab.run(lr_scheduler_type="cosine")
    assert cosine.rates[5] == pytest.approx(0.005)
    assert cosine.rates[9] == pytest.approx(0.000244717, abs=1e-8)
    assert differ(cosine, lab.run())


@EFFECTS.of("warmup_ratio")
def _(lab: Lab) -> None:
    done = lab.run(lr_scheduler_type="constant_with_warmup", warmup_ratio=0.4)
    assert done.rates == [0.0025, 0.005, 0.0075] + [0.01] * 7
    assert differ(done, lab.run())


@EFFECTS.of("warmup_steps")
def _(lab: Lab) -> None:
    done = lab.run(lr_scheduler_type="constant_with_warmup", warmup_steps=5, warmup_ratio=0.2)
    assert done.rates == [0.002, 0.004, 0.006, 0.008] + [0.01] * 6
    assert any("warmup_ratio has no effect with warmup_steps=5" in warning for warning in done.record["warnings"])


@EFFECTS.of("weight_decay")
def _(lab: Lab) -> None:
    usual, decayed = lab.run(peft_type="none", max_steps=4), lab.run(peft_type="none", max_steps=4, weight_decay=1.0)
    norms = {name for name, value in usual.weights.items() if value.ndim == 1}
    assert norms
    for name, value in usual.weights.items():
        if name not in norms:
            assert decayed.weights[name].norm() < value.norm()
    assert decayed.losses[0] == usual.losses[0]


@EFFECTS.of("adam_beta1", "adam_beta2")
def _(lab: Lab) -> None:
    """Of a first update nothing depends on the betas (bias correction); from the second on all does."""
    for name, value in (("adam_beta1", 0.5), ("adam_beta2", 0.9)):
        other = lab.run(**{name: value})
        assert other.losses[1] == pytest.approx(lab.run().losses[1], abs=TOLERANCE)
        assert other.losses[-1] != pytest.approx(lab.run().losses[-1], abs=TOLERANCE)


@EFFECTS.of("adam_epsilon")
def _(lab: Lab) -> None:
    assert lab.run(adam_epsilon=1.0).size < lab.run().size / 10


@EFFECTS.of("max_grad_norm")
def _(lab: Lab) -> None:
    """With an epsilon that outweighs the gradient, an update is as long as the clipped gradient."""
    runs = [lab.run(adam_epsilon=1.0, max_steps=1, max_grad_norm=norm) for norm in (0, 0.01, 0.001)]
    free, clipped, more = (done.size for done in runs)
    norms = [done.steps[0]["gradient_norm"] for done in runs]
    assert norms[0] == norms[1] == norms[2] > 0.1  # said before clipping
    assert clipped / more == pytest.approx(10, rel=0.02)
    assert clipped < free / 50
    assert lab.run(adam_epsilon=1.0, max_steps=1, max_grad_norm=100).size == free


# Validation and checkpoints


@EFFECTS.of("evaluation_strategy")
def _(lab: Lab) -> None:
    assert [line["step"] for line in lab.run().validations] == [5, 10]
    assert lab.run(evaluation_strategy="no").validations == []
    assert [line["step"] for line in lab.run(evaluation_strategy="steps", eval_steps=7).validations] == [7, 10]


@EFFECTS.of("eval_steps")
def _(lab: Lab) -> None:
    done = lab.run(eval_steps=3, early_stopping_patience=-1)  # alone, it asks for steps
    assert [line["step"] for line in done.validations] == [3, 6, 9, 10]


@EFFECTS.of("save_strategy")
def _(lab: Lab) -> None:
    many = {"evaluation_strategy": "no", "save_total_limit": 99}
    assert lab.run(**many).checkpoints == [5, 10]
    assert lab.run(**many, save_strategy="no").checkpoints == [10]
    assert lab.run(**many, save_strategy="steps", save_steps=4).checkpoints == [4, 8, 10]


@EFFECTS.of("save_steps")
def _(lab: Lab) -> None:
    done = lab.run(evaluation_strategy="no", save_total_limit=99, save_steps=3)  # alone, it asks for steps
    assert done.checkpoints == [3, 6, 9, 10]


@EFFECTS.of("save_total_limit")
def _(lab: Lab) -> None:
    for limit, kept in ((1, [10]), (3, [8, 9, 10])):
        done = lab.run(evaluation_strategy="no", save_steps=1, save_total_limit=limit)
        assert done.checkpoints == kept
    best = lab.run(save_steps=1, save_total_limit=1, **DIVERGING)
    assert best.checkpoints == [best.metrics["best"]["step"], best.metrics["steps"]]


DIVERGING = {"learning_rate": 0.05, "epoch": 8, "early_stopping_patience": -1}  # learns the rows, not the task


@EFFECTS.of("load_best_model_at_end")
def _(lab: Lab) -> None:
    best, last = lab.run(**DIVERGING), lab.run(**DIVERGING, load_best_model_at_end=False)
    seen = [line["eval_loss"] for line in best.validations]
    assert min(seen) < seen[-1]
    assert best.metrics["tuned"]["loss"] == pytest.approx(min(seen), abs=TOLERANCE)
    assert last.metrics["tuned"]["loss"] == pytest.approx(seen[-1], abs=TOLERANCE)


@EFFECTS.of("early_stopping_patience")
def _(lab: Lab) -> None:
    seen = [line["eval_loss"] for line in lab.run(**DIVERGING).validations]
    for patience in (1, 2):
        done = lab.run(**DIVERGING | {"early_stopping_patience": patience})
        assert done.metrics["stopped"] == "early_stopping"
        assert [line["eval_loss"] for line in done.validations] == seen[: _stop(seen, patience)]
    assert lab.run(**DIVERGING).metrics["stopped"] == "completed"


def _stop(losses: list[float], patience: int) -> int:
    """Validations until `patience` of them in a row were no better than the best before them."""
    stale = 0
    for place, loss in enumerate(losses):
        stale = 0 if loss < min(losses[:place], default=float("inf")) else stale + 1
        if stale == patience:
            return place + 1
    raise AssertionError(f"no {patience} validations in a row without improvement: {losses}")


@EFFECTS.of("early_stopping_threshold")
def _(lab: Lab) -> None:
    done = lab.run(epoch=8, early_stopping_patience=2, early_stopping_threshold=100)
    assert len(done.validations) == 3  # the first one counts, the next two are no improvement worth the name
    assert done.metrics["stopped"] == "early_stopping"
    losses = [line["eval_loss"] for line in done.validations]
    assert done.metrics["best"]["eval_loss"] == min(losses)  # the best is the best all the same


@EFFECTS.of("logging_steps")
def _(lab: Lab) -> None:
    done = lab.run(logging_steps=4)
    assert [line["step"] for line in done.steps] == [1, 4, 8, 10]
    assert [line["step"] for line in lab.run().steps] == list(range(1, 11))
