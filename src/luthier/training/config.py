"""A training job's settings, typed and grouped by the part that uses them; read from the hyperparameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from luthier.catalog.hyperparameters import TABLE, Hyperparameters, precision
from luthier.catalog.tuned_adapter import MERGED
from luthier.errors import SettingError
from luthier.weights.quantize import Quantization


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How long to train and with which batches.

    `precision` is auto, bf16, fp16 or fp32. `global_batch_size`, the rows of one step over all ranks, overrides
    `gradient_accumulation_steps`; `accumulation_steps` returns the number that applies.
    """

    epochs: int
    max_steps: int
    train_batch_size: int
    eval_batch_size: int
    gradient_accumulation_steps: int
    packing: bool
    gradient_checkpointing: bool
    seed: int
    precision: str
    from_scratch: bool
    fsdp: bool
    global_batch_size: int | None
    auto_find_batch_size: bool
    drop_last: bool
    pad_to_max_length: bool

    def accumulation_steps(self, world_size: int = 1) -> int:
        """Micro-batches of each rank in one step; SettingError when the global batch size does not divide evenly."""
        if self.global_batch_size is None:
            return self.gradient_accumulation_steps
        rows = world_size * self.train_batch_size
        if self.global_batch_size % rows:
            on_ranks = f"{world_size} ranks of " if world_size > 1 else ""
            raise SettingError(
                f"global_train_batch_size={self.global_batch_size}: expected a multiple of {rows} ({on_ranks}"
                f"per_device_train_batch_size={self.train_batch_size})"
            )
        return self.global_batch_size // rows

    def check_drop_last(self, train_rows: int) -> None:
        """SettingError when dropping the last micro-batch would drop all training rows."""
        if self.drop_last and train_rows < self.train_batch_size:
            raise SettingError(
                f"dataloader_drop_last=True leaves no rows: the {train_rows} training rows do not fill one "
                f"micro-batch; expected per_device_train_batch_size of at most {train_rows}, not "
                f"{self.train_batch_size}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSettings:
    """Adapter or all weights; `bits` of the base weights under the adapter, 16 when they are not quantized.

    `merge_first`: an adapter that is the model to tune is merged into its base before training.
    """

    lora: bool
    merge_first: bool
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
        """The quantization of the base weights; None at 16 bits."""
        return Quantization(self.bits, self.quant_type, self.double_quant) if self.bits < 16 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """AdamW, the learning-rate schedule, and label smoothing.

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
    min_learning_rate: float
    constant_steps: int
    label_smoothing: float
    in_bf16: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationSettings:
    """When to validate, save, log and stop early. A strategy is no, steps or epoch."""

    eval_strategy: str
    eval_steps: int
    save_strategy: str
    save_steps: int
    save_total_limit: int
    load_best_at_end: bool
    patience: int
    threshold: float
    logging_strategy: str
    logging_steps: int
    logging_first_step: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """All settings; `ineffective` describes which of the given ones have no effect."""

    run: RunSettings
    method: MethodSettings
    optimizer: OptimizerSettings
    validation: ValidationSettings
    ineffective: tuple[str, ...]


def read_settings(values: Hyperparameters) -> TrainingSettings:
    """Group the hyperparameters; SettingError for combinations that contradict each other."""
    _check_combinations(values)
    v = cast(dict[str, Any], dict(values))
    v |= {strategy: _strategy(values, strategy, interval) for strategy, interval in _INTERVALS.items()}
    run = _run_settings(v)
    run.accumulation_steps()  # a size that one rank cannot divide evenly fails for any world size
    return TrainingSettings(
        run=run, method=_method_settings(v), optimizer=_optimizer_settings(v), validation=_validation_settings(v),
        ineffective=_ineffective(values, v),
    )  # fmt: skip


def _run_settings(v: dict[str, Any]) -> RunSettings:
    return RunSettings(
        epochs=v["epoch"], max_steps=v["max_steps"], train_batch_size=v["per_device_train_batch_size"],
        eval_batch_size=v["per_device_eval_batch_size"], gradient_accumulation_steps=v["gradient_accumulation_steps"],
        packing=v["packing"], gradient_checkpointing=v["gradient_checkpointing"], seed=v["seed"],
        precision=precision(v), from_scratch=v["train_from_scratch"], fsdp=v["enable_fsdp"],
        global_batch_size=v["global_train_batch_size"], auto_find_batch_size=v["auto_find_batch_size"],
        drop_last=v["dataloader_drop_last"], pad_to_max_length=v["pad_to_max_length"],
    )  # fmt: skip


def _method_settings(v: dict[str, Any]) -> MethodSettings:
    lora = v["peft_type"] == "lora"
    return MethodSettings(
        lora=lora, merge_first=v["continue_as"] == MERGED, r=v["lora_r"], alpha=v["lora_alpha"],
        dropout=v["lora_dropout"], targets=v["lora_target_modules"], rslora=v["use_rslora"], dora=v["use_dora"],
        bits=v["bits"] if lora else 16, quant_type=v["quant_type"], double_quant=v["double_quant"],
    )  # fmt: skip


def _optimizer_settings(v: dict[str, Any]) -> OptimizerSettings:
    return OptimizerSettings(
        learning_rate=v["learning_rate"], scheduler=v["lr_scheduler_type"], warmup_ratio=v["warmup_ratio"],
        warmup_steps=v["warmup_steps"], weight_decay=v["weight_decay"], betas=(v["adam_beta1"], v["adam_beta2"]),
        epsilon=v["adam_epsilon"], max_grad_norm=v["max_grad_norm"], min_learning_rate=v["min_learning_rate"],
        constant_steps=v["constant_steps"], label_smoothing=v["label_smoothing_factor"],
        in_bf16=v["optim"] == BF16_OPTIMIZER,
    )  # fmt: skip


def _validation_settings(v: dict[str, Any]) -> ValidationSettings:
    return ValidationSettings(
        eval_strategy=v["evaluation_strategy"], eval_steps=v["eval_steps"], save_strategy=v["save_strategy"],
        save_steps=v["save_steps"], save_total_limit=v["save_total_limit"],
        load_best_at_end=v["load_best_model_at_end"], patience=v["early_stopping_patience"],
        threshold=v["early_stopping_threshold"], logging_strategy=v["logging_strategy"],
        logging_steps=v["logging_steps"], logging_first_step=v["logging_first_step"],
    )  # fmt: skip


_INTERVALS = {
    "evaluation_strategy": "eval_steps", "save_strategy": "save_steps", "logging_strategy": "logging_steps"
}  # fmt: skip
BF16_OPTIMIZER = "adamw_bf16"
NoEffectRule = tuple[tuple[str, ...], bool, str]
"""Names of settings, whether they have no effect, and because of which other setting."""
_DECAYING = ("linear", "cosine", "CosineAnnealing")  # schedules that decay to min_learning_rate


def _check_combinations(values: Hyperparameters) -> None:
    v = cast(dict[str, Any], dict(values))
    scheduler, explicit = v["lr_scheduler_type"], values.explicit
    if scheduler == "constant" and any(v[name] for name in explicit & {"warmup_steps", "warmup_ratio"}):
        raise SettingError("lr_scheduler_type=constant has no warm-up; use constant_with_warmup")
    if v["min_learning_rate"] > v["learning_rate"]:
        raise SettingError(
            f"min_learning_rate={v['min_learning_rate']:g} is above learning_rate={v['learning_rate']:g}; expected at "
            "most learning_rate"
        )
    if v["constant_steps"] and scheduler in _DECAYING and not v["min_learning_rate"]:
        raise SettingError(
            f"constant_steps={v['constant_steps']} with min_learning_rate=0: nothing would be learned in these steps; "
            "set min_learning_rate"
        )
    if v["train_from_scratch"] and v["peft_type"] == "lora":
        raise SettingError(
            "train_from_scratch=True with peft_type=lora: the artifact would be an adapter for random weights that are "
            "not saved; set peft_type=none"
        )
    if v["peft_type"] == "none" and v["int8_quantization"] and "int8_quantization" in explicit:
        raise SettingError(
            "int8_quantization=True with peft_type=none: 8-bit weights cannot be trained directly; set peft_type=lora"
        )
    if v["continue_as"] == MERGED and v["peft_type"] == "lora":
        for setting, applies in ((f"bits={v['bits']}", v["bits"] < 16), ("enable_fsdp=True", v["enable_fsdp"])):
            if applies:
                raise SettingError(f"continue_as=merged with {setting}: the result, a whole model, cannot be merged "
                                   "from such weights; leave one of the two out")  # fmt: skip
    if v["optim"] == BF16_OPTIMIZER and v["peft_type"] == "lora":
        raise SettingError(
            f"optim={BF16_OPTIMIZER} with peft_type=lora: an adapter is small and trains in float32; set "
            "peft_type=none, or leave optim=adamw"
        )
    if v["optim"] == BF16_OPTIMIZER and precision(v) in ("fp16", "fp32"):
        raise SettingError(needs_bf16_message({"fp16": "float16", "fp32": "float32"}[precision(v)]))


def needs_bf16_message(dtype: str) -> str:
    """The error when the bf16 optimizer is combined with another compute dtype."""
    return f"optim={BF16_OPTIMIZER} with {dtype} compute: it requires bfloat16; set bf16=True, or leave optim=adamw"


def _strategy(values: Hyperparameters, strategy: str, interval: str) -> str:
    """The strategy that applies; an interval given alone implies steps."""
    implied = interval in values.explicit and strategy not in values.explicit
    return "steps" if implied else str(values[strategy])


def _ineffective(values: Hyperparameters, v: dict[str, Any]) -> tuple[str, ...]:
    """Given settings that have no effect with the others, with the reason; `v`: the values that apply."""
    adapter = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "use_dora", "bits",
               "quant_type", "double_quant")  # fmt: skip
    scheduler, full = v["lr_scheduler_type"], v["peft_type"] == "none"
    evaluate, save, logging = v["evaluation_strategy"], v["save_strategy"], v["logging_strategy"]
    every_step = logging == "steps" and v["logging_steps"] == 1
    not_decaying = scheduler not in _DECAYING
    rules: list[NoEffectRule] = [
        (adapter, full, "peft_type=none"),
        (("quant_type", "double_quant"), not full and v["bits"] != 4, f"bits={v['bits']}"),
        (("eval_steps",), evaluate != "steps", f"evaluation_strategy={evaluate}"),
        (("save_steps",), save != "steps", f"save_strategy={save}"),
        (("logging_steps",), logging != "steps", f"logging_strategy={logging}"),
        (("logging_first_step",), every_step, "logging_steps=1"),
        (("early_stopping_patience", "early_stopping_threshold"), evaluate == "no", "evaluation_strategy=no"),
        (("load_best_model_at_end",), evaluate == "no" and v["load_best_model_at_end"], "evaluation_strategy=no"),
        (("early_stopping_threshold",), evaluate != "no" and v["early_stopping_patience"] == -1,
         "early_stopping_patience=-1"),
        (("warmup_ratio",), bool(v["warmup_steps"]), f"warmup_steps={v['warmup_steps']}"),
        (("min_learning_rate", "constant_steps"), not_decaying, f"lr_scheduler_type={scheduler}"),
        (("epoch",), v["max_steps"] != -1, f"max_steps={v['max_steps']}"),
        (("gradient_accumulation_steps",), v["global_train_batch_size"] is not None,
         f"global_train_batch_size={v['global_train_batch_size']}"),
        (("bf16", "fp16"), not v["mixed_precision"], "mixed_precision=False"),
    ]  # fmt: skip
    return _describe(rules, values)


def ineffective_for(values: Hyperparameters, kind: str, is_encoder_decoder: bool) -> tuple[str, ...]:
    """Given settings that have no effect for this kind of data and this architecture, with the reason."""
    # train_on_turns=last has an effect even where every token carries loss: it selects the turn that is scored.
    all_tokens = not values["completion_only_loss"] and values["train_on_turns"] != "last"
    return _describe(
        [
            (("append_eod",), kind != "domain", f"{kind} data"),
            (("train_on_turns",), kind != "chat", f"{kind} data"),
            (("reasoning",), kind != "chat", f"{kind} data"),
            (("train_on_turns",), kind == "chat" and all_tokens, "completion_only_loss=False"),
            (
                ("max_output_length",),
                not is_encoder_decoder,
                "a causal model: max_input_length limits the whole row",
            ),
        ],
        values,
    )


def _describe(rules: list[NoEffectRule], values: Hyperparameters) -> tuple[str, ...]:
    applied = ((_enabled(names, values), reason) for names, applies, reason in rules if applies)
    return tuple(f"{_subject(names)} no effect with {reason}" for names, reason in applied if names)


def _enabled(names: tuple[str, ...], values: Hyperparameters) -> list[str]:
    """Those of `names` that were given, except to switch off what is off by default."""
    off = (False, "False", "auto", None)
    explicit = [name for name in names if name in values.explicit and (name, values[name]) != ("bits", 16)]
    return [name for name in explicit if values[name] not in off or TABLE[name].default is True]


def _subject(names: list[str]) -> str:
    return f"{names[0]} has" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} have"
