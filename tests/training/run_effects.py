"""The effects of the hyperparameters of the run: how long, in what portions, in which precision."""

from __future__ import annotations

import math

import pytest
import torch
from training.training_harness import TOLERANCE, Effects, Lab, differ

from luthier.errors import SettingError

RUN_EFFECTS = Effects()


@RUN_EFFECTS.of("epoch")
def _(lab: Lab) -> None:
    assert lab.run().metrics["epochs"] == 2
    done = lab.run(epoch=3)
    assert (done.metrics["epochs"], done.metrics["steps"]) == (3, 15)
    assert done.losses[:10] == lab.run().losses


@RUN_EFFECTS.of("max_steps")
def _(lab: Lab) -> None:
    done = lab.run(max_steps=3)
    assert (done.metrics["steps"], done.metrics["stopped"]) == (3, "max_steps")
    assert done.losses == lab.run().losses[:3]
    assert lab.run(max_steps=12).metrics["steps"] == 12  # it goes beyond the epochs, too
    assert lab.run().metrics["stopped"] == "completed"


@RUN_EFFECTS.of("per_device_train_batch_size")
def _(lab: Lab) -> None:
    assert [len(batch.rows) for batch in lab.run().trained] == [4] * 10
    done = lab.run(per_device_train_batch_size=8)
    assert [len(batch.rows) for batch in done.trained] == [8, 8, 4] * 2


@RUN_EFFECTS.of("per_device_eval_batch_size")
def _(lab: Lab) -> None:
    one = lab.run(per_device_eval_batch_size=1)
    assert {len(batch.rows) for batch in one.scored} == {1}
    assert {len(batch.rows) for batch in lab.run().scored} == {5}
    for line, other in zip(one.validations, lab.run().validations, strict=True):
        assert line["eval_loss"] == pytest.approx(other["eval_loss"], abs=TOLERANCE)


@RUN_EFFECTS.of("gradient_accumulation_steps")
def _(lab: Lab) -> None:
    done, at_once = lab.run(gradient_accumulation_steps=2), lab.run(per_device_train_batch_size=8)
    assert [len(batch.rows) for batch in done.trained] == [4] * 10
    assert done.metrics["steps"] == at_once.metrics["steps"] == 6
    assert done.losses == pytest.approx(at_once.losses, abs=TOLERANCE)


@RUN_EFFECTS.of("global_train_batch_size")
def _(lab: Lab) -> None:
    done, asked = lab.run(global_train_batch_size=8), lab.run(gradient_accumulation_steps=2)
    assert [len(batch.rows) for batch in done.trained] == [4] * 10
    assert done.metrics["steps"] == 6
    assert done.losses == asked.losses
    assert not differ(done, asked)
    with pytest.raises(SettingError, match=r"global_train_batch_size=6: expected a multiple of 4 \(per_device_train"):
        lab.run(global_train_batch_size=6)


@RUN_EFFECTS.of("dataloader_drop_last")
def _(lab: Lab) -> None:
    done = lab.run(dataloader_drop_last=True, per_device_train_batch_size=8)
    assert [len(batch.rows) for batch in done.trained] == [8, 8] * 2
    assert (done.metrics["steps"], done.metrics["epochs"]) == (4, 2)
    first, second = ({row for batch in part for row in batch.rows} for part in (done.trained[:2], done.trained[2:]))
    assert first != second  # the rows that stay out are others each time
    assert not differ(lab.run(dataloader_drop_last=True), lab.run())  # 4 goes into 20
    with pytest.raises(SettingError, match=r"leaves no rows: the 20 training rows .* of at most 20, not 32"):
        lab.run(dataloader_drop_last=True, per_device_train_batch_size=32)


@RUN_EFFECTS.of("pad_to_max_length")
def _(lab: Lab) -> None:
    settings = {"packing": False, "max_input_length": 64}
    filled, usual = lab.run(**settings, pad_to_max_length=True), lab.run(**settings)
    assert {batch.input_ids_BT.shape[1] for batch in filled.trained} == {64}
    assert max(batch.input_ids_BT.shape[1] for batch in usual.trained) < 64
    assert filled.losses == pytest.approx(usual.losses, abs=TOLERANCE)
    packed = lab.run(pad_to_max_length=True)
    assert "pad_to_max_length=True has no effect: rows are packed" in packed.screen
    assert not differ(packed, lab.run())


@RUN_EFFECTS.of("packing")
def _(lab: Lab) -> None:
    apart = lab.run(packing=False)
    assert all(batch.attention_mask_BT is None for batch in (*lab.run().trained, *lab.run().scored))
    assert all(batch.attention_mask_BT is not None for batch in (*apart.trained, *apart.scored))
    assert apart.losses == pytest.approx(lab.run().losses, abs=TOLERANCE)
    assert [batch.rows for batch in apart.trained] == [batch.rows for batch in lab.run().trained]


@RUN_EFFECTS.of("bf16")
def _(lab: Lab) -> None:
    assert lab.run().record["dtype"] == lab.run(bf16=False).record["dtype"] == "float32"  # auto, on a CPU
    done = lab.run(bf16=True)
    assert done.record["dtype"] == "bfloat16"
    assert done.losses != lab.run().losses
    assert done.losses == pytest.approx(lab.run().losses, abs=0.1)
    whole = lab.run(bf16=True, peft_type="none")
    assert {value.dtype for value in whole.weights.values()} == {torch.bfloat16}


@RUN_EFFECTS.of("fp16")
def _(lab: Lab) -> None:
    for settings in ({}, {"peft_type": "none", "max_steps": 4}):
        done, usual = lab.run(fp16=True, **settings), lab.run(**settings)
        assert done.record["dtype"] == "float16"
        assert done.losses != usual.losses
        assert done.losses == pytest.approx(usual.losses, abs=0.05)
        assert {math.log2(line["loss_scale"]) for line in done.steps} <= set(range(17))
        assert any("float16 is slow on a CPU" in warning for warning in done.record["warnings"])
        assert not any("loss_scale" in line for line in usual.steps)
    assert {value.dtype for value in done.weights.values()} == {torch.float16}
    with pytest.raises(SettingError, match="bf16=True and fp16=True exclude each other"):
        lab.run(fp16=True, bf16=True)


@RUN_EFFECTS.of("mixed_precision")
def _(lab: Lab) -> None:
    for settings in ({"bf16": True}, {"fp16": True}):
        assert lab.run(**settings).record["dtype"] != "float32"
        done = lab.run(**settings, mixed_precision=False)
        assert done.record["dtype"] == "float32"
        assert not differ(done, lab.run())
        assert any("no effect with mixed_precision=False" in warning for warning in done.record["warnings"])


@RUN_EFFECTS.of("gradient_checkpointing")
def _(lab: Lab) -> None:
    for settings in ({}, {"peft_type": "none"}):
        usual = lab.run(evaluation_strategy="no", **settings)
        done = lab.run(evaluation_strategy="no", gradient_checkpointing=True, **settings)
        assert done.losses == usual.losses
        assert not differ(done, usual)
        layers, rows = 2, sum(len(batch.rows) for batch in usual.trained)
        assert done.attention_calls - usual.attention_calls == layers * rows  # once more in the backward pass


@RUN_EFFECTS.of("seed")
def _(lab: Lab) -> None:
    other = lab.run(seed=11)
    assert [batch.rows for batch in other.trained] != [batch.rows for batch in lab.run().trained]
    assert other.split == lab.run().split
    start = [lab.run(seed=seed, max_steps=1, learning_rate=1e-9).weights for seed in (10, 11)]
    assert all(not torch.equal(value, start[1][name]) for name, value in start[0].items() if "lora_A" in name)
    dropped = [lab.run(seed=10, lora_dropout=0.5, max_train_samples=4, max_steps=2).losses for _ in range(2)]
    assert dropped[0] == dropped[1]


@RUN_EFFECTS.of("train_from_scratch")
def _(lab: Lab) -> None:
    tuned, fresh = lab.run(peft_type="none"), lab.run(peft_type="none", train_from_scratch=True)
    assert fresh.metrics["base"]["loss"] != pytest.approx(tuned.metrics["base"]["loss"], abs=1e-3)
    again = lab.run(peft_type="none", train_from_scratch=True, seed=11)
    assert again.metrics["base"]["loss"] != pytest.approx(fresh.metrics["base"]["loss"], abs=1e-3)
    with pytest.raises(SettingError, match="train_from_scratch=True with peft_type=lora"):
        lab.run(train_from_scratch=True)
