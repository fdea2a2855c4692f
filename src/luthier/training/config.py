"""A training job's settings, typed and grouped by the part that uses them; read from the hyperparameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from luthier.catalog.hyperparameters import TABLE, Hyperparameters, precision
from luthier.errors import SettingError
from luthier.weights.quantize import Quantization


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How long to train and in what portions.

    `precision` is auto, bf16, fp16 or fp32. `accumulation` is as asked for; `accumulation_of` is what counts, for
    `global_rows`, the rows of one step over all ranks, decide where they are asked for.
    """

    epochs: int
    max_steps: int
    rows_per_batch: int
    eval_rows_per_batch: int
    accumulation: int
    packing: bool
    gradient_checkpointing: bool
    seed: int
    precision: str
    from_scratch: bool
    fsdp: bool
    global_rows: int | None
    find_batch: bool
    drop_last: bool
    pad_to_max: bool

    def accumulation_of(self, ranks: int = 1) -> int:
        """Micro-batches that a rank takes in one step; SettingError when the rows asked for are no whole number."""
        if self.global_rows is None:
            return self.accumulation
        at_once = ranks * self.rows_per_batch
        if self.global_rows % at_once:
            on_ranks = f"{ranks} ranks of " if ranks > 1 else ""
            raise SettingError(
                f"global_train_batch_size={self.global_rows}: expected a multiple of {at_once} ({on_ranks}"
                f"per_device_train_batch_size={self.rows_per_batch})"
            )
        return self.global_rows // at_once

    def check_rows(self, count: int) -> None:
        """SettingError when leaving out the last micro-batch would leave nothing of `count` training rows."""
        if self.drop_last and count < self.rows_per_batch:
            raise SettingError(
                f"dataloader_drop_last=True leaves nothing: the {count} training rows do not fill one micro-batch; "
                f"expected per_device_train_batch_size of at most {count}, not {self.rows_per_batch}"
            )


@dataclass(frozen=True, slots=True)
class MethodSettings:
    """Adapter or all weights; `bits` of the base weights under the adapter, 16 when they are not quantized."""

    lora: bool
    r: int
    alpha: int
    dropout: float
    targets: str
    rslora: bool
    dora: bool
    bits: int
    quant_type: str
    double_quant: bool

    @property
    def quantization(self) -> Quantization | None:
        """How the base weights under the adapter are held, when in fewer than 16 bits."""
        return Quantization(self.bits, self.quant_type, self.double_quant) if self.bits < 16 else None


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW, the course of its learning rate, and the smoothing of the targets.

    `in_bf16`: weights, gradients and moments are bf16, rounded stochastically.
    """

    learning_rate: float
    scheduler: str
    warmup_ratio: float
    warmup_steps: int
    weight_decay: float
    betas: tuple[float, float]
    epsilon: float
    max_grad_norm: float
    min_rate: float
    constant_steps: int
    smoothing: float
    in_bf16: bool = False


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
    logging: str
    logging_steps: int
    log_first: bool


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """All of them, and what of the given ones changes nothing (`idle`, in words)."""

    run: RunSettings
    method: MethodSettings
    optimizer: OptimizerSettings
    validation: ValidationSettings
    idle: tuple[str, ...]


def read_settings(values: Hyperparameters) -> TrainingSettings:
    """Group the hyperparameters; SettingError for pairs that contradict each other."""
    _check_together(values)
    v = cast(dict[str, Any], dict(values))
    adapter = v["peft_type"] == "lora"
    strategies = {strategy: _strategy(values, strategy, interval) for strategy, interval in _INTERVALS.items()}
    run = RunSettings(
        v["epoch"], v["max_steps"], v["per_device_train_batch_size"], v["per_device_eval_batch_size"],
        v["gradient_accumulation_steps"], v["packing"], v["gradient_checkpointing"], v["seed"], precision(v),
        v["train_from_scratch"], v["enable_fsdp"], v["global_train_batch_size"], v["auto_find_batch_size"],
        v["dataloader_drop_last"], v["pad_to_max_length"],
    )  # fmt: skip
    run.accumulation_of()  # what one rank cannot divide, no number of them can
    return TrainingSettings(
        run,
        MethodSettings(
            adapter, v["lora_r"], v["lora_alpha"], v["lora_dropout"], v["lora_target_modules"], v["use_rslora"],
            v["use_dora"], v["bits"] if adapter else 16, v["quant_type"], v["double_quant"],
        ),
        OptimizerSettings(
            v["learning_rate"], v["lr_scheduler_type"], v["warmup_ratio"], v["warmup_steps"], v["weight_decay"],
            (v["adam_beta1"], v["adam_beta2"]), v["adam_epsilon"], v["max_grad_norm"],
            v["min_learning_rate"], v["constant_steps"], v["label_smoothing_factor"],
            v["optim"] == IN_BF16,
        ),
        ValidationSettings(
            strategies["evaluation_strategy"], v["eval_steps"], strategies["save_strategy"], v["save_steps"],
            v["save_total_limit"], v["load_best_model_at_end"], v["early_stopping_patience"],
            v["early_stopping_threshold"], strategies["logging_strategy"], v["logging_steps"], v["logging_first_step"],
        ),
        _idle(values, v | strategies),
    )  # fmt: skip


_INTERVALS = {
    "evaluation_strategy": "eval_steps", "save_strategy": "save_steps", "logging_strategy": "logging_steps"
}  # fmt: skip
IN_BF16 = "adamw_bf16"
Rule = tuple[tuple[str, ...], bool, str]
"""Names, whether they are without effect, and beside what."""
_DECAYING = ("linear", "cosine", "CosineAnnealing")  # schedulers that go down to min_learning_rate


def _check_together(values: Hyperparameters) -> None:
    v = cast(dict[str, Any], dict(values))
    scheduler, given = v["lr_scheduler_type"], values.explicit
    if scheduler == "constant" and any(v[name] for name in given & {"warmup_steps", "warmup_ratio"}):
        raise SettingError("lr_scheduler_type=constant has no warm-up; use constant_with_warmup")
    if v["min_learning_rate"] > v["learning_rate"]:
        raise SettingError(
            f"min_learning_rate={v['min_learning_rate']:g} is above learning_rate={v['learning_rate']:g}; expected at "
            "most that"
        )
    if v["constant_steps"] and scheduler in _DECAYING and not v["min_learning_rate"]:
        raise SettingError(
            f"constant_steps={v['constant_steps']} with min_learning_rate=0: nothing would be learned in them; set "
            "min_learning_rate"
        )
    if v["train_from_scratch"] and v["peft_type"] == "lora":
        raise SettingError(
            "train_from_scratch=True with peft_type=lora: the artifact would be an adapter on random weights that are "
            "not kept; add peft_type=none"
        )
    if v["peft_type"] == "none" and v["int8_quantization"] and "int8_quantization" in given:
        raise SettingError(
            "int8_quantization=True with peft_type=none: 8-bit weights cannot be trained themselves; set peft_type=lora"
        )
    if v["optim"] == IN_BF16 and v["peft_type"] == "lora":
        raise SettingError(
            f"optim={IN_BF16} with peft_type=lora: an adapter is small and trains in float32; set peft_type=none, or "
            "leave optim=adamw"
        )
    if v["optim"] == IN_BF16 and precision(v) in ("fp16", "fp32"):
        raise SettingError(without_bf16({"fp16": "float16", "fp32": "float32"}[precision(v)]))


def without_bf16(dtype: str) -> str:
    """Why weights in bf16 are refused where products are computed in another type."""
    return f"optim={IN_BF16} with {dtype} compute: it is for bfloat16; set bf16=True, or leave optim=adamw"


def _strategy(values: Hyperparameters, strategy: str, interval: str) -> str:
    """The strategy asked for; naming an interval alone asks for steps."""
    implied = interval in values.explicit and strategy not in values.explicit
    return "steps" if implied else str(values[strategy])


def _idle(values: Hyperparameters, v: dict[str, Any]) -> tuple[str, ...]:
    """Given settings that change nothing beside the others, each rule's with the reason; `v`: values as they apply."""
    adapter = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "use_dora", "bits",
               "quant_type", "double_quant")  # fmt: skip
    scheduler, none = v["lr_scheduler_type"], v["peft_type"] == "none"
    evaluate, save, logging = v["evaluation_strategy"], v["save_strategy"], v["logging_strategy"]
    every_step = logging == "steps" and v["logging_steps"] == 1
    unrated = scheduler not in _DECAYING
    rules: list[Rule] = [
        (adapter, none, "peft_type=none"),
        (("quant_type", "double_quant"), not none and v["bits"] != 4, f"bits={v['bits']}"),
        (("eval_steps",), evaluate != "steps", f"evaluation_strategy={evaluate}"),
        (("save_steps",), save != "steps", f"save_strategy={save}"),
        (("logging_steps",), logging != "steps", f"logging_strategy={logging}"),
        (("logging_first_step",), every_step, "logging_steps=1"),
        (("early_stopping_patience", "early_stopping_threshold"), evaluate == "no", "evaluation_strategy=no"),
        (("load_best_model_at_end",), evaluate == "no" and v["load_best_model_at_end"], "evaluation_strategy=no"),
        (("early_stopping_threshold",), evaluate != "no" and v["early_stopping_patience"] == -1,
         "early_stopping_patience=-1"),
        (("warmup_ratio",), bool(v["warmup_steps"]), f"warmup_steps={v['warmup_steps']}"),
        (("min_learning_rate", "constant_steps"), unrated, f"lr_scheduler_type={scheduler}"),
        (("epoch",), v["max_steps"] != -1, f"max_steps={v['max_steps']}"),
        (("gradient_accumulation_steps",), v["global_train_batch_size"] is not None,
         f"global_train_batch_size={v['global_train_batch_size']}"),
        (("bf16", "fp16"), not v["mixed_precision"], "mixed_precision=False"),
    ]  # fmt: skip
    return _said(rules, values)


def idle_on(values: Hyperparameters, kind: str, encoder_decoder: bool) -> tuple[str, ...]:
    """Given settings that change nothing for this kind of data and this architecture, each with the reason."""
    # Where every token carries loss, the last turn is still the one that is scored.
    everything = not values["completion_only_loss"] and values["train_on_turns"] != "last"
    return _said(
        [
            (("append_eod",), kind != "domain", f"{kind} data"),
            (("train_on_turns",), kind != "chat", f"{kind} data"),
            (("train_on_turns",), kind == "chat" and everything, "completion_only_loss=False"),
            (("max_output_length",), not encoder_decoder, "a causal model: max_input_length holds for the whole row"),
        ],
        values,
    )


def _said(rules: list[Rule], values: Hyperparameters) -> tuple[str, ...]:
    found = ((_asking(names, values), reason) for names, applies, reason in rules if applies)
    return tuple(f"{_listed(names)} no effect with {reason}" for names, reason in found if names)


def _asking(names: tuple[str, ...], values: Hyperparameters) -> list[str]:
    """Those of `names` that were given, and not just to leave off what is off anyway."""
    off = (False, "False", "auto", None)
    given = [name for name in names if name in values.explicit and (name, values[name]) != ("bits", 16)]
    return [name for name in given if values[name] not in off or TABLE[name].default is True]


def _listed(names: list[str]) -> str:
    return f"{names[0]} has" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} have"
