"""From hyperparameters to settings: what is grouped, implied, refused, and said to change nothing."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from luthier.catalog.hyperparameters import parse
from luthier.errors import SettingError
from luthier.training.config import TrainingSettings, ineffective_for, read_settings


def settings_of(**raw: Any) -> TrainingSettings:
    return read_settings(parse({name: str(value) for name, value in raw.items()}))


def refusal(**raw: Any) -> str:
    with pytest.raises(SettingError) as caught:
        settings_of(**raw)
    return str(caught.value)


def test_each_value_lands_in_its_place() -> None:
    """Every hyperparameter here differs from every other, so that two swapped ones would show."""
    raw = {
        "epoch": 11, "max_steps": 12, "per_device_train_batch_size": 13, "per_device_eval_batch_size": 14,
        "gradient_accumulation_steps": 15, "packing": False, "gradient_checkpointing": True, "seed": 16, "bf16": "True",
        "train_from_scratch": False, "enable_fsdp": True, "global_train_batch_size": 26, "auto_find_batch_size": False,
        "dataloader_drop_last": True, "pad_to_max_length": False, "lora_r": 17, "lora_alpha": 18, "lora_dropout": 0.19,
        "lora_target_modules": "all-linear", "use_rslora": True, "use_dora": False, "bits": 4, "quant_type": "fp4",
        "double_quant": False, "learning_rate": 0.2, "lr_scheduler_type": "cosine", "warmup_ratio": 0.21,
        "warmup_steps": 22, "weight_decay": 0.23, "adam_beta1": 0.24, "adam_beta2": 0.25, "adam_epsilon": 0.26,
        "max_grad_norm": 0.27, "min_learning_rate": 0.05, "constant_steps": 6, "label_smoothing_factor": 0.07,
        "evaluation_strategy": "steps", "eval_steps": 28, "save_strategy": "no", "save_steps": 29,
        "save_total_limit": 30, "load_best_model_at_end": False, "early_stopping_patience": 31,
        "early_stopping_threshold": 0.32, "logging_strategy": "epoch", "logging_steps": 33, "logging_first_step": True,
    }  # fmt: skip
    found = settings_of(**raw)
    groups: list[Any] = [found.run, found.method, found.optimizer, found.validation]
    values = [{item.name: getattr(group, item.name) for item in fields(group)} for group in groups]
    assert values == [
        {"epochs": 11, "max_steps": 12, "train_batch_size": 13, "eval_batch_size": 14,
         "gradient_accumulation_steps": 15, "packing": False, "gradient_checkpointing": True, "seed": 16,
         "precision": "bf16", "from_scratch": False, "fsdp": True, "global_batch_size": 26,
         "auto_find_batch_size": False, "drop_last": True, "pad_to_max_length": False},
        {"lora": True, "merge_first": False,
         "r": 17, "alpha": 18, "dropout": 0.19, "targets": "all-linear", "rslora": True, "dora": False,
         "bits": 4, "quant_type": "fp4", "double_quant": False},
        {"learning_rate": 0.2, "scheduler": "cosine", "warmup_ratio": 0.21, "warmup_steps": 22, "weight_decay": 0.23,
         "betas": (0.24, 0.25), "epsilon": 0.26, "max_grad_norm": 0.27, "min_learning_rate": 0.05, "constant_steps": 6,
         "label_smoothing": 0.07, "in_bf16": False},
        {"eval_strategy": "steps", "eval_steps": 28, "save_strategy": "no", "save_steps": 29, "save_total_limit": 30,
         "load_best_at_end": False, "patience": 31, "threshold": 0.32, "logging_strategy": "epoch", "logging_steps": 33,
         "logging_first_step": True},
    ]  # fmt: skip
    assert settings_of(auto_find_batch_size=True).run.auto_find_batch_size
    assert settings_of(pad_to_max_length=True).run.pad_to_max_length
    assert settings_of(use_dora=True).method.dora
    assert settings_of(optim="adamw_bf16", peft_type="none").optimizer.in_bf16


@pytest.mark.parametrize(
    ("raw", "bits"), [({}, 16), ({"bits": 8}, 8), ({"int8_quantization": True}, 8), ({"bits": 4}, 4),
                      ({"bits": 4, "peft_type": "none"}, 16)],
)  # fmt: skip
def test_the_bits_are_those_of_the_weights_under_an_adapter(raw: dict[str, Any], bits: int) -> None:
    assert settings_of(**raw).method.bits == bits


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 12), (2, 6), (3, 4), (4, 3), (12, 1)])
def test_the_rows_of_a_step_are_shared_out(ranks: int, accumulation: int) -> None:
    run = settings_of(global_train_batch_size=24, per_device_train_batch_size=2).run
    assert run.accumulation_steps(ranks) == accumulation
    assert accumulation * ranks * 2 == 24
    assert settings_of(gradient_accumulation_steps=5).run.accumulation_steps(ranks) == 5


def test_rows_that_cannot_be_shared_out_are_refused() -> None:
    assert refusal(global_train_batch_size=10, per_device_train_batch_size=4) == (
        "global_train_batch_size=10: expected a multiple of 4 (per_device_train_batch_size=4)"
    )
    run = settings_of(global_train_batch_size=24, per_device_train_batch_size=2).run
    with pytest.raises(SettingError, match=r"=24: expected a multiple of 10 \(5 ranks of per_device_train_batch_size="):
        run.accumulation_steps(5)


def test_leaving_out_the_last_must_leave_something() -> None:
    run = settings_of(dataloader_drop_last=True).run
    run.check_drop_last(4)
    with pytest.raises(SettingError, match="the 3 training rows do not fill one micro-batch"):
        run.check_drop_last(3)
    settings_of().run.check_drop_last(1)


@pytest.mark.parametrize(
    ("raw", "evaluate", "save"),
    [
        ({}, "epoch", "epoch"),
        ({"eval_steps": 5}, "steps", "epoch"),
        ({"save_steps": 5}, "epoch", "steps"),
        ({"eval_steps": 5, "evaluation_strategy": "no"}, "no", "epoch"),
        ({"save_steps": 5, "save_strategy": "epoch"}, "epoch", "epoch"),
        ({"evaluation_strategy": "steps"}, "steps", "epoch"),
        ({"eval_strategy": "no", "eval_steps": 5}, "no", "epoch"),
    ],
)
def test_an_interval_alone_asks_for_steps(raw: dict[str, Any], evaluate: str, save: str) -> None:
    found = settings_of(**raw).validation
    assert (found.eval_strategy, found.save_strategy) == (evaluate, save)


def test_a_logging_interval_asks_for_steps_too() -> None:
    assert settings_of(logging_steps=3).validation.logging_strategy == "steps"
    assert (
        read_settings(parse({"logging_steps": "3"}, {"logging_strategy": "no"})).validation.logging_strategy == "steps"
    )
    assert settings_of(logging_steps=3, logging_strategy="no").validation.logging_strategy == "no"


def test_a_familys_own_interval_asks_for_nothing() -> None:
    """Only what the user sets implies a strategy."""
    assert read_settings(parse({}, {"eval_steps": 5})).validation.eval_strategy == "epoch"


@pytest.mark.parametrize("name", ["warmup_steps", "warmup_ratio"])
def test_a_constant_rate_has_no_warm_up(name: str) -> None:
    assert "constant has no warm-up; use constant_with_warmup" in refusal(lr_scheduler_type="constant", **{name: 1})
    assert settings_of(lr_scheduler_type="constant_with_warmup", **{name: 1}).ineffective == ()
    assert read_settings(parse({"lr_scheduler_type": "constant"}, {name: "1"}))  # the family's is set aside
    assert settings_of(lr_scheduler_type="constant", **{name: 0}).ineffective == ()


def test_the_course_must_go_down() -> None:
    assert refusal(min_learning_rate=0.1, learning_rate=0.01) == (
        "min_learning_rate=0.1 is above learning_rate=0.01; expected at most learning_rate"
    )
    assert "constant_steps=3 with min_learning_rate=0" in refusal(constant_steps=3)
    for scheduler in ("linear", "cosine", "CosineAnnealing"):
        settings = {"constant_steps": 3, "min_learning_rate": 1e-5, "lr_scheduler_type": scheduler}
        assert settings_of(**settings).ineffective == ()


def test_eight_bits_cannot_be_trained_themselves() -> None:
    assert "set peft_type=lora" in refusal(int8_quantization=True, peft_type="none")
    assert read_settings(parse({"peft_type": "none"}, {"int8_quantization": True})).method.bits == 16


def test_weights_in_bf16_are_for_all_weights_on_bf16_compute() -> None:
    assert (
        refusal(optim="adamw_bf16")
        == refusal(optim="adamw_bf16", bf16=True)
        == (
            "optim=adamw_bf16 with peft_type=lora: an adapter is small and trains in float32; set peft_type=none, or "
            "leave optim=adamw"
        )
    )
    whole = {"optim": "adamw_bf16", "peft_type": "none"}
    for settings, dtype in (({"fp16": True}, "float16"), ({"bf16": False}, "float32"), ({"mixed_precision": False,
                            "bf16": True}, "float32")):  # fmt: skip
        assert refusal(**whole, **settings) == (
            f"optim=adamw_bf16 with {dtype} compute: it requires bfloat16; set bf16=True, or leave optim=adamw"
        )
    for precision in ({}, {"bf16": True}):
        assert settings_of(**whole, **precision).ineffective == ()


def test_an_adapter_on_weights_that_are_not_kept_is_refused() -> None:
    assert "set peft_type=none" in refusal(train_from_scratch=True)
    assert settings_of(train_from_scratch=True, peft_type="none").run.from_scratch


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"peft_type": "none", "lora_r": 4}, ["lora_r has no effect with peft_type=none"]),
        ({"peft_type": "none", "lora_alpha": 4, "lora_dropout": 0.1, "use_dora": True, "bits": 4},
         ["lora_alpha, lora_dropout, use_dora and bits have no effect with peft_type=none"]),
        ({"quant_type": "fp4", "double_quant": False}, ["quant_type and double_quant have no effect with bits=16"]),
        ({"quant_type": "fp4", "bits": 8}, ["quant_type has no effect with bits=8"]),
        ({"evaluation_strategy": "epoch", "eval_steps": 3},
         ["eval_steps has no effect with evaluation_strategy=epoch"]),
        ({"save_strategy": "no", "save_steps": 3}, ["save_steps has no effect with save_strategy=no"]),
        ({"evaluation_strategy": "no", "early_stopping_patience": 2, "early_stopping_threshold": 0.1},
         ["early_stopping_patience and early_stopping_threshold have no effect with evaluation_strategy=no"]),
        ({"logging_steps": 5, "logging_strategy": "no"}, ["logging_steps has no effect with logging_strategy=no"]),
        ({"logging_first_step": True}, ["logging_first_step has no effect with logging_steps=1"]),
        ({"min_learning_rate": 1e-6, "constant_steps": 2, "lr_scheduler_type": "constant_with_warmup"},
         ["min_learning_rate and constant_steps have no effect with lr_scheduler_type=constant_with_warmup"]),
        ({"gradient_accumulation_steps": 2, "global_train_batch_size": 8},
         ["gradient_accumulation_steps has no effect with global_train_batch_size=8"]),
        ({"bf16": True, "mixed_precision": False}, ["bf16 has no effect with mixed_precision=False"]),
        ({"fp16": True, "mixed_precision": False}, ["fp16 has no effect with mixed_precision=False"]),
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, ["warmup_ratio has no effect with warmup_steps=5"]),
        ({"epoch": 2, "max_steps": 5}, ["epoch has no effect with max_steps=5"]),
        ({"load_best_model_at_end": True, "evaluation_strategy": "no"},
         ["load_best_model_at_end has no effect with evaluation_strategy=no"]),
        ({"early_stopping_threshold": 0.1, "early_stopping_patience": -1},
         ["early_stopping_threshold has no effect with early_stopping_patience=-1"]),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_said(raw: dict[str, Any], said: list[str]) -> None:
    assert list(settings_of(**raw).ineffective) == said


@pytest.mark.parametrize(
    "raw", [{}, {"peft_type": "none"}, {"evaluation_strategy": "no"}, {"max_steps": 5}, {"eval_steps": 3},
            {"warmup_ratio": 0.1}, {"warmup_ratio": 0.1, "warmup_steps": 0}, {"save_steps": 3, "lora_r": 3},
            {"load_best_model_at_end": False, "evaluation_strategy": "no"}, {"early_stopping_patience": -1},
            {"use_dora": False, "bits": 16, "peft_type": "none"}, {"quant_type": "fp4", "bits": 4},
            {"logging_first_step": True, "logging_steps": 2}, {"logging_first_step": True, "logging_strategy": "no"},
            {"constant_steps": 0, "min_learning_rate": 0, "lr_scheduler_type": "constant"},
            {"mixed_precision": False, "bf16": "False", "fp16": False}],
)  # fmt: skip
def test_what_has_an_effect_or_was_not_set_is_not_mentioned(raw: dict[str, Any]) -> None:
    assert settings_of(**raw).ineffective == ()


@pytest.mark.parametrize(
    ("raw", "kind", "pairs", "said"),
    [
        ({"append_eod": False}, "instruction", False, ["append_eod has no effect with instruction data"]),
        ({"append_eod": False}, "domain", False, []),
        ({"train_on_turns": "all"}, "domain", False, ["train_on_turns has no effect with domain data"]),
        ({"train_on_turns": "all"}, "chat", False, []),
        ({"max_output_length": 64}, "instruction", True, []),
        ({"max_output_length": 64}, "instruction", False,
         ["max_output_length has no effect with a causal model: max_input_length limits the whole row"]),
        ({}, "instruction", False, []),
    ],
)  # fmt: skip
def test_what_changes_nothing_for_these_data_or_this_model_is_said(
    raw: dict[str, Any], kind: str, pairs: bool, said: list[str]
) -> None:
    values = parse({name: str(value) for name, value in raw.items()})
    assert list(ineffective_for(values, kind, pairs)) == said
