"""The effects of the hyperparameters of the optimizer: the update, the course of its rate, the targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training.training_harness import TOLERANCE, HyperparameterChecks, TrainingHarness, differ
from transformers import AutoModelForCausalLM
from transformers.trainer_pt_utils import LabelSmoother

from luthier.errors import SettingError

OPTIMIZER_CHECKS = HyperparameterChecks()


@OPTIMIZER_CHECKS.of("optim")
def _(harness: TrainingHarness) -> None:
    """Weights and moments are stored in bf16, half the bytes; what is learned is the same but for the rounding."""
    settings = {"peft_type": "none", "bf16": True}
    usual, done = harness.run(**settings), harness.run(**settings, optim="adamw_bf16")
    for run, dtype in ((usual, torch.float32), (done, torch.bfloat16)):
        checkpoint = run.folder.checkpoints / f"step-{run.checkpoints[-1]:06d}"
        stored = [load_file(checkpoint / f"{name}.safetensors") for name in ("weights", "optimizer")]
        assert {value.dtype for part in stored for value in part.values() if value.ndim} == {dtype}
        assert any(name.endswith("/exp_avg_sq") for name in stored[1])
    assert "all weights in bfloat16, rounded stochastically" in done.screen
    assert done.losses == pytest.approx(usual.losses, rel=0.01)
    assert differ(done, usual)
    assert differ(harness.run(**settings, optim="adamw_bf16", max_steps=1, seed=11, max_train_samples=4),
                  harness.run(**settings, optim="adamw_bf16", max_steps=1, max_train_samples=4))  # fmt: skip
    for refused, reason in (({"bf16": True}, "peft_type=lora"), ({"peft_type": "none"}, "float32 compute")):
        with pytest.raises(SettingError, match=f"optim=adamw_bf16 with {reason}"):  # bf16=auto is float32 on a CPU
            harness.run(**refused, optim="adamw_bf16")


@OPTIMIZER_CHECKS.of("learning_rate")
def _(harness: TrainingHarness) -> None:
    slow = harness.run(learning_rate=0.001)
    assert slow.rates == [0.001] * 10
    assert harness.run().rates == [0.01] * 10
    assert slow.losses[0] == harness.run().losses[0]
    assert slow.size < harness.run().size / 4


@OPTIMIZER_CHECKS.of("lr_scheduler_type")
def _(harness: TrainingHarness) -> None:
    assert harness.run(lr_scheduler_type="linear").rates == [round(0.01 - 0.001 * step, 9) for step in range(10)]
    cosine = harness.run(lr_scheduler_type="cosine")
    assert cosine.rates[5] == pytest.approx(0.005)
    assert cosine.rates[9] == pytest.approx(0.000244717, abs=1e-8)
    assert differ(cosine, harness.run())
    assert not differ(harness.run(lr_scheduler_type="CosineAnnealing"), cosine)  # NeMo's name of it
    assert harness.run(lr_scheduler_type="constant_with_warmup").rates == harness.run().rates == [0.01] * 10


@OPTIMIZER_CHECKS.of("min_learning_rate")
def _(harness: TrainingHarness) -> None:
    line = harness.run(lr_scheduler_type="linear", min_learning_rate=0.005)
    assert line.rates == [round(0.01 - 0.0005 * step, 9) for step in range(10)]
    cosine = harness.run(lr_scheduler_type="CosineAnnealing", min_learning_rate=0.004)
    assert cosine.rates[0] == 0.01
    assert cosine.rates[5] == pytest.approx(0.007)
    assert cosine.rates[9] == pytest.approx(0.004 + 0.6 * 0.000244717, abs=1e-8)
    assert differ(cosine, harness.run(lr_scheduler_type="CosineAnnealing"))


@OPTIMIZER_CHECKS.of("constant_steps")
def _(harness: TrainingHarness) -> None:
    done = harness.run(lr_scheduler_type="CosineAnnealing", min_learning_rate=0.002, constant_steps=4)
    assert done.rates[6:] == [0.002] * 4
    assert done.rates[3] == pytest.approx(0.006)  # half of the way down
    assert harness.run(lr_scheduler_type="CosineAnnealing", min_learning_rate=0.002).rates[6] > 0.002


@OPTIMIZER_CHECKS.of("label_smoothing_factor")
def _(harness: TrainingHarness) -> None:
    """The loss that is optimized is transformers' own smoothed loss; the validation loss is not smoothed."""
    at_rest: dict[str, Any] = {"learning_rate": 1e-9, "packing": False, "max_steps": 1}
    usual, smoothed = harness.run(**at_rest), harness.run(**at_rest, label_smoothing_factor=0.3)
    batch = smoothed.trained[0]
    network = AutoModelForCausalLM.from_pretrained(harness.model)
    with torch.no_grad():
        logits = network(batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False).logits
    labels = torch.full(batch.input_ids_BT.shape, -100)
    labels.view(-1)[batch.positions_N + 1] = batch.labels_N
    expected = LabelSmoother(0.3)({"logits": logits}, labels, shift_labels=True).item()
    assert smoothed.losses[0] == pytest.approx(expected, abs=TOLERANCE)
    assert abs(smoothed.losses[0] - usual.losses[0]) > 100 * TOLERANCE
    assert smoothed.validations[0]["eval_loss"] == pytest.approx(usual.validations[0]["eval_loss"], abs=TOLERANCE)
    assert differ(harness.run(label_smoothing_factor=0.3), harness.run())


@OPTIMIZER_CHECKS.of("warmup_ratio")
def _(harness: TrainingHarness) -> None:
    done = harness.run(lr_scheduler_type="constant_with_warmup", warmup_ratio=0.4)
    assert done.rates == [0.0025, 0.005, 0.0075] + [0.01] * 7
    assert differ(done, harness.run())


@OPTIMIZER_CHECKS.of("warmup_steps")
def _(harness: TrainingHarness) -> None:
    done = harness.run(lr_scheduler_type="constant_with_warmup", warmup_steps=5, warmup_ratio=0.2)
    assert done.rates == [0.002, 0.004, 0.006, 0.008] + [0.01] * 6
    assert any("warmup_ratio has no effect with warmup_steps=5" in warning for warning in done.record["warnings"])


@OPTIMIZER_CHECKS.of("weight_decay")
def _(harness: TrainingHarness) -> None:
    usual, decayed = (
        harness.run(peft_type="none", max_steps=4),
        harness.run(peft_type="none", max_steps=4, weight_decay=1.0),
    )
    norms = {name for name, value in usual.weights.items() if value.ndim == 1}
    assert norms
    for name, value in usual.weights.items():
        if name not in norms:
            assert decayed.weights[name].norm() < value.norm()
    assert decayed.losses[0] == usual.losses[0]


@OPTIMIZER_CHECKS.of("adam_beta1", "adam_beta2")
def _(harness: TrainingHarness) -> None:
    """Of a first update nothing depends on the betas (bias correction); from the second on all does."""
    for name, value in (("adam_beta1", 0.5), ("adam_beta2", 0.9)):
        other = harness.run(**{name: value})
        assert other.losses[1] == pytest.approx(harness.run().losses[1], abs=TOLERANCE)
        assert other.losses[-1] != pytest.approx(harness.run().losses[-1], abs=TOLERANCE)


@OPTIMIZER_CHECKS.of("adam_epsilon")
def _(harness: TrainingHarness) -> None:
    assert harness.run(adam_epsilon=1.0).size < harness.run().size / 10


@OPTIMIZER_CHECKS.of("max_grad_norm")
def _(harness: TrainingHarness) -> None:
    """With an epsilon that outweighs the gradient, an update is as long as the clipped gradient."""
    runs = [harness.run(adam_epsilon=1.0, max_steps=1, max_grad_norm=norm) for norm in (0, 0.01, 0.001)]
    free, clipped, more = (done.size for done in runs)
    norms = [done.steps[0]["gradient_norm"] for done in runs]
    assert norms[0] == norms[1] == norms[2] > 0.1  # said before clipping
    assert clipped / more == pytest.approx(10, rel=0.02)
    assert clipped < free / 50
    assert harness.run(adam_epsilon=1.0, max_steps=1, max_grad_norm=100).size == free
