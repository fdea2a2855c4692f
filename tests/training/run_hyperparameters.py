"""The effects of the hyperparameters of the run: how long, in what portions, in which precision."""

from __future__ import annotations

import math

import pytest
import torch
from training.training_harness import TOLERANCE, HyperparameterChecks, TrainingHarness, differ

from luthier.errors import SettingError

RUN_CHECKS = HyperparameterChecks()


@RUN_CHECKS.of("epoch")
def _(harness: TrainingHarness) -> None:
    assert harness.run().metrics["epochs"] == 2
    done = harness.run(epoch=3)
    assert (done.metrics["epochs"], done.metrics["steps"]) == (3, 15)
    assert done.losses[:10] == harness.run().losses


@RUN_CHECKS.of("max_steps")
def _(harness: TrainingHarness) -> None:
    done = harness.run(max_steps=3)
    assert (done.metrics["steps"], done.metrics["stopped"]) == (3, "max_steps")
    assert done.losses == harness.run().losses[:3]
    assert harness.run(max_steps=12).metrics["steps"] == 12  # it goes beyond the epochs, too
    assert harness.run().metrics["stopped"] == "completed"


@RUN_CHECKS.of("per_device_train_batch_size")
def _(harness: TrainingHarness) -> None:
    assert [len(batch.rows) for batch in harness.run().trained] == [4] * 10
    done = harness.run(per_device_train_batch_size=8)
    assert [len(batch.rows) for batch in done.trained] == [8, 8, 4] * 2


@RUN_CHECKS.of("per_device_eval_batch_size")
def _(harness: TrainingHarness) -> None:
    one = harness.run(per_device_eval_batch_size=1)
    assert {len(batch.rows) for batch in one.scored} == {1}
    assert {len(batch.rows) for batch in harness.run().scored} == {5}
    for line, other in zip(one.validations, harness.run().validations, strict=True):
        assert line["eval_loss"] == pytest.approx(other["eval_loss"], abs=TOLERANCE)


@RUN_CHECKS.of("gradient_accumulation_steps")
def _(harness: TrainingHarness) -> None:
    done, at_once = harness.run(gradient_accumulation_steps=2), harness.run(per_device_train_batch_size=8)
    assert [len(batch.rows) for batch in done.trained] == [4] * 10
    assert done.metrics["steps"] == at_once.metrics["steps"] == 6
    assert done.losses == pytest.approx(at_once.losses, abs=TOLERANCE)


@RUN_CHECKS.of("global_train_batch_size")
def _(harness: TrainingHarness) -> None:
    done, asked = harness.run(global_train_batch_size=8), harness.run(gradient_accumulation_steps=2)
    assert [len(batch.rows) for batch in done.trained] == [4] * 10
    assert done.metrics["steps"] == 6
    assert done.losses == asked.losses
    assert not differ(done, asked)
    with pytest.raises(SettingError, match=r"global_train_batch_size=6: expected a multiple of 4 \(per_device_train"):
        harness.run(global_train_batch_size=6)


@RUN_CHECKS.of("dataloader_drop_last")
def _(harness: TrainingHarness) -> None:
    done = harness.run(dataloader_drop_last=True, per_device_train_batch_size=8)
    assert [len(batch.rows) for batch in done.trained] == [8, 8] * 2
    assert (done.metrics["steps"], done.metrics["epochs"]) == (4, 2)
    first, second = ({row for batch in part for row in batch.rows} for part in (done.trained[:2], done.trained[2:]))
    assert first != second  # the rows that stay out are others each time
    assert not differ(harness.run(dataloader_drop_last=True), harness.run())  # 4 goes into 20
    with pytest.raises(SettingError, match=r"leaves no rows: the 20 training rows .* of at most 20, not 32"):
        harness.run(dataloader_drop_last=True, per_device_train_batch_size=32)


@RUN_CHECKS.of("pad_to_max_length")
def _(harness: TrainingHarness) -> None:
    settings = {"packing": False, "max_input_length": 64}
    filled, usual = harness.run(**settings, pad_to_max_length=True), harness.run(**settings)
    assert {batch.input_ids_BT.shape[1] for batch in filled.trained} == {64}
    assert max(batch.input_ids_BT.shape[1] for batch in usual.trained) < 64
    assert filled.losses == pytest.approx(usual.losses, abs=TOLERANCE)
    packed = harness.run(pad_to_max_length=True)
    assert "pad_to_max_length=True has no effect: rows are packed" in packed.screen
    assert not differ(packed, harness.run())


@RUN_CHECKS.of("packing")
def _(harness: TrainingHarness) -> None:
    apart = harness.run(packing=False)
    assert all(batch.attention_mask_BT is None for batch in (*harness.run().trained, *harness.run().scored))
    assert all(batch.attention_mask_BT is not None for batch in (*apart.trained, *apart.scored))
    assert apart.losses == pytest.approx(harness.run().losses, abs=TOLERANCE)
    assert [batch.rows for batch in apart.trained] == [batch.rows for batch in harness.run().trained]


@RUN_CHECKS.of("bf16")
def _(harness: TrainingHarness) -> None:
    assert harness.run().record["dtype"] == harness.run(bf16=False).record["dtype"] == "float32"  # auto, on a CPU
    done = harness.run(bf16=True)
    assert done.record["dtype"] == "bfloat16"
    assert done.losses != harness.run().losses
    assert done.losses == pytest.approx(harness.run().losses, abs=0.1)
    whole = harness.run(bf16=True, peft_type="none")
    assert {value.dtype for value in whole.weights.values()} == {torch.bfloat16}


@RUN_CHECKS.of("fp16")
def _(harness: TrainingHarness) -> None:
    for settings in ({}, {"peft_type": "none", "max_steps": 4}):
        done, usual = harness.run(fp16=True, **settings), harness.run(**settings)
        assert done.record["dtype"] == "float16"
        assert done.losses != usual.losses
        assert done.losses == pytest.approx(usual.losses, abs=0.05)
        assert {math.log2(line["loss_scale"]) for line in done.steps} <= set(range(17))
        assert any("float16 is slow on a CPU" in warning for warning in done.record["warnings"])
        assert not any("loss_scale" in line for line in usual.steps)
    assert {value.dtype for value in done.weights.values()} == {torch.float16}
    with pytest.raises(SettingError, match="bf16=True and fp16=True exclude each other"):
        harness.run(fp16=True, bf16=True)


@RUN_CHECKS.of("mixed_precision")
def _(harness: TrainingHarness) -> None:
    for settings in ({"bf16": True}, {"fp16": True}):
        assert harness.run(**settings).record["dtype"] != "float32"
        done = harness.run(**settings, mixed_precision=False)
        assert done.record["dtype"] == "float32"
        assert not differ(done, harness.run())
        assert any("no effect with mixed_precision=False" in warning for warning in done.record["warnings"])


@RUN_CHECKS.of("gradient_checkpointing")
def _(harness: TrainingHarness) -> None:
    for settings in ({}, {"peft_type": "none"}):
        usual = harness.run(evaluation_strategy="no", **settings)
        done = harness.run(evaluation_strategy="no", gradient_checkpointing=True, **settings)
        assert done.losses == usual.losses
        assert not differ(done, usual)
        layers, rows = 2, sum(len(batch.rows) for batch in usual.trained)
        assert done.attention_calls - usual.attention_calls == layers * rows  # once more in the backward pass


@RUN_CHECKS.of("seed")
def _(harness: TrainingHarness) -> None:
    other = harness.run(seed=11)
    assert [batch.rows for batch in other.trained] != [batch.rows for batch in harness.run().trained]
    assert other.split == harness.run().split
    start = [harness.run(seed=seed, max_steps=1, learning_rate=1e-9).weights for seed in (10, 11)]
    assert all(not torch.equal(value, start[1][name]) for name, value in start[0].items() if "lora_A" in name)
    dropped = [harness.run(seed=10, lora_dropout=0.5, max_train_samples=4, max_steps=2).losses for _ in range(2)]
    assert dropped[0] == dropped[1]


@RUN_CHECKS.of("train_from_scratch")
def _(harness: TrainingHarness) -> None:
    tuned, fresh = harness.run(peft_type="none"), harness.run(peft_type="none", train_from_scratch=True)
    assert fresh.metrics["base"]["loss"] != pytest.approx(tuned.metrics["base"]["loss"], abs=1e-3)
    again = harness.run(peft_type="none", train_from_scratch=True, seed=11)
    assert again.metrics["base"]["loss"] != pytest.approx(fresh.metrics["base"]["loss"], abs=1e-3)
    with pytest.raises(SettingError, match="train_from_scratch=True with peft_type=lora"):
        harness.run(train_from_scratch=True)
