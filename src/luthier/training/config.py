"""A training job's settings, typed and grouped by the part that uses them; read from the hyperparameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from luthier.catalog.hyperparameters import Hyperparameters
from luthier.errors import SettingError


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How long to train and in what portions."""

    epochs: int
    max_steps: int
    rows_per_batch: int
    eval_rows_per_batch: int
    accumulation: int
    packing: bool
    gradient_checkpointing: bool
    seed: int
    bf16: str
    from_scratch: bool


@dataclass(frozen=True, slots=True)
class MethodSettings:
    """Adapter or all weights."""

    lora: bool
    r: int
    alpha: int
    dropout: float
    targets: str


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW and the course of its learning rate."""

    learning_rate: float
    scheduler: str
    warmup_ratio: float
    warmup_steps: int
    weight_decay: float
    betas: tuple[float, float]
    epsilon: float
    max_grad_norm: float


@dataclass(frozen=True, slots=True)
class ValidationSettings:
    """When to validate, save, log and stop."""

    evaluate: str
    eval_steps: int
    save: str
    save_steps: int
    save_total_limit: int
    best_at_end: bool
    patience: int
    threshold: float
    logging_steps: int


@dataclass(frozen=True, slots=True)
class Settings:
    """All of them, and what of the given ones changes nothing (`idle`, in words)."""

    run: RunSettings
    method: MethodSettings
    optimizer: OptimizerSettings
    validation: ValidationSettings
    idle: tuple[str, ...]


def read_settings(values: Hyperparameters) -> Settings:
    """Group the hyperparameters; SettingError for pairs that contradict each other."""
    v = cast(dict[str, Any], dict(values))
    evaluate = _strategy(values, "evaluation_strategy", "eval_steps")
    save = _strategy(values, "save_strategy", "save_steps")
    if v["lr_scheduler_type"] == "constant" and values.given & {"warmup_steps", "warmup_ratio"}:
        raise SettingError("lr_scheduler_type=constant has no warm-up; use constant_with_warmup")
    if v["train_from_scratch"] and v["peft_type"] == "lora":
        raise SettingError(
            "train_from_scratch=True with peft_type=lora: the artifact would be an adapter on random weights that are "
            "not kept; add peft_type=none"
        )
    return Settings(
        RunSettings(
            v["epoch"], v["max_steps"], v["per_device_train_batch_size"], v["per_device_eval_batch_size"],
            v["gradient_accumulation_steps"], v["packing"], v["gradient_checkpointing"], v["seed"], v["bf16"],
            v["train_from_scratch"],
        ),
        MethodSettings(
            v["peft_type"] == "lora", v["lora_r"], v["lora_alpha"], v["lora_dropout"], v["lora_target_modules"]
        ),
        OptimizerSettings(
            v["learning_rate"], v["lr_scheduler_type"], v["warmup_ratio"], v["warmup_steps"], v["weight_decay"],
            (v["adam_beta1"], v["adam_beta2"]), v["adam_epsilon"], v["max_grad_norm"],
        ),
        ValidationSettings(
            evaluate, v["eval_steps"], save, v["save_steps"], v["save_total_limit"], v["load_best_model_at_end"],
            v["early_stopping_patience"], v["early_stopping_threshold"], v["logging_steps"],
        ),
        _idle(values, evaluate, save),
    )  # fmt: skip


def _strategy(values: Hyperparameters, strategy: str, interval: str) -> str:
    """The strategy asked for; naming an interval alone asks for steps."""
    implied = interval in values.given and strategy not in values.given
    return "steps" if implied else str(values[strategy])


def _idle(values: Hyperparameters, evaluate: str, save: str) -> tuple[str, ...]:
    """Given settings that change nothing beside the others, each with the reason."""
    adapter = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
    best_at_end, never_early = bool(values["load_best_model_at_end"]), values["early_stopping_patience"] == -1
    rules = [
        (adapter, values["peft_type"] == "none", "peft_type=none"),
        (("eval_steps",), evaluate != "steps", f"evaluation_strategy={evaluate}"),
        (("save_steps",), save != "steps", f"save_strategy={save}"),
        (("early_stopping_patience", "early_stopping_threshold"), evaluate == "no", "evaluation_strategy=no"),
        (("load_best_model_at_end",), evaluate == "no" and best_at_end, "evaluation_strategy=no"),
        (("early_stopping_threshold",), evaluate != "no" and never_early, "early_stopping_patience=-1"),
        (("warmup_ratio",), bool(values["warmup_steps"]), f"warmup_steps={values['warmup_steps']}"),
        (("epoch",), values["max_steps"] != -1 and "epoch" in values.given, f"max_steps={values['max_steps']}"),
    ]
    return tuple(
        f"{name} has no effect with {reason}"
        for names, applies, reason in rules
        for name in names
        if applies and name in values.given
    )
