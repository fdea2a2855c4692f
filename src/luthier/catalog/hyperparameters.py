"""The hyperparameters a job may set: one table of names, types, ranges and defaults, and their parsing from strings.

Names are JumpStart's (fine-tuning notes of the Llama, Gemma and Mistral families); Luthier's own carry none of theirs.
Values arrive as strings (SageMaker's wire, `--set name=value`) or as YAML scalars, and leave typed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from luthier.errors import SettingError, did_you_mean

Value = bool | int | float | str | None
Kind = Literal["int", "float", "bool", "choice", "text", "optional_int"]


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """One row of the table. Bounds are inclusive unless `exclusive`; `sentinel` is a value allowed outside of them."""

    name: str
    type: Kind
    default: Value
    group: str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    exclusive: bool = False
    sentinel: int | None = None
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.type == "bool":
            return "True or False"
        if self.type == "choice":
            return "one of " + ", ".join(self.choices)
        if self.type == "text":
            return "text"
        words = "a whole number" if self.type in ("int", "optional_int") else "a number"
        if self.minimum is not None:
            words += f" {'above' if self.exclusive else 'of at least'} {_plain(self.minimum)}"
        if self.maximum is not None:
            words += f"{' and' if self.minimum is not None else ''} {'below' if self.exclusive else 'at most'} "
            words += _plain(self.maximum)
        if self.sentinel is not None:
            words += f", or {self.sentinel}"
        return words + (", or None" if self.type == "optional_int" else "")

    def parse(self, raw: Any) -> Value:
        """Return the typed value; SettingError names the hyperparameter and what was expected."""
        text = _unquoted(raw)
        value: Value | object = _PARSERS[self.type](self, text)
        if value is _BAD or not self._in_range(value):
            shown = text if text.isprintable() else repr(text)
            raise SettingError(f"{self.name}={shown}: expected {self.expected}")
        return cast(Value, value)

    def _in_range(self, value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or value == self.sentinel:
            return True
        if not math.isfinite(value):
            return False
        if self.exclusive:
            return (self.minimum is None or value > self.minimum) and (self.maximum is None or value < self.maximum)
        return (self.minimum is None or value >= self.minimum) and (self.maximum is None or value <= self.maximum)


def _plain(number: float) -> str:
    return f"{number:g}"


def _unquoted(raw: Any) -> str:
    """Text of a value; the SageMaker SDK v2 sends each value JSON-encoded once more (`"\\"5\\""`)."""
    text = str(raw).strip() if not isinstance(raw, list | tuple) else ",".join(map(str, raw))
    if len(text) >= 2 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except json.JSONDecodeError:
            return text
    return text


_BAD = object()


def _whole(row: Hyperparameter, text: str) -> Any:
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else _BAD


def _optional_whole(row: Hyperparameter, text: str) -> Any:
    return None if text in ("None", "none", "null") else _whole(row, text)


def _number(row: Hyperparameter, text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return _BAD


def _flag(row: Hyperparameter, text: str) -> Any:
    return {"true": True, "false": False}.get(text.lower(), _BAD)


def _choice(row: Hyperparameter, text: str) -> Any:
    return next((choice for choice in row.choices if choice.lower() == text.lower()), _BAD)


def _text(row: Hyperparameter, text: str) -> Any:
    return text or _BAD


_PARSERS = {
    "int": _whole,
    "optional_int": _optional_whole,
    "float": _number,
    "bool": _flag,
    "choice": _choice,
    "text": _text,
}

_H = Hyperparameter
_ROWS = [
    # The data
    _H("instruction_tuned", "bool", False, "data", "train on prompt/completion rows; unset: as the data are"),
    _H("chat_dataset", "bool", False, "data", "train on conversations; unset: as the data are"),
    _H("max_input_length", "int", -1, "data", "tokens kept of a row; -1: the smaller of 1024 and the model's limit",
       minimum=1, sentinel=-1),
    _H("validation_split_ratio", "float", 0.2, "data", "share of the training rows held out to choose the checkpoint",
       minimum=0, maximum=1),
    _H("test_split_ratio", "float", 0.0, "data", "share of the training rows held out for the final score only",
       minimum=0, maximum=1),
    _H("train_data_split_seed", "int", 0, "data", "seed of the split", minimum=0),
    _H("max_train_samples", "int", -1, "data", "training rows used; -1: all", minimum=1, sentinel=-1),
    _H("max_val_samples", "int", -1, "data", "validation rows used; -1: all", minimum=1, sentinel=-1,
       aliases=("max_eval_samples",)),
    _H("add_input_output_demarcation_key", "bool", True, "data",
       "put '\\n\\n### Response:\\n' between prompt and completion, as JumpStart does"),
    _H("completion_only_loss", "bool", True, "data", "loss on completion tokens only; False: on the prompt too"),
    _H("group_near_duplicates", "bool", False, "data", "keep near-duplicate rows on one side of the split"),
    _H("parse_special_tokens", "bool", False, "data",
       "special-token strings in the rows become control tokens (trusted text only); False: they stay text"),
    _H("preprocessing_num_workers", "optional_int", None, "data", "tokenizer threads; None: all cores", minimum=1),
    # The run
    _H("epoch", "int", 3, "run", "passes over the training rows", minimum=1, maximum=1000,
       aliases=("epochs", "num_train_epochs")),
    _H("max_steps", "int", -1, "run", "stop after this many steps; -1: epochs decide", minimum=1, sentinel=-1),
    _H("per_device_train_batch_size", "int", 4, "run", "rows in a micro-batch, packed or not", minimum=1, maximum=1024,
       aliases=("batch_size",)),
    _H("per_device_eval_batch_size", "int", 8, "run", "rows scored at once", minimum=1, maximum=1024),
    _H("gradient_accumulation_steps", "int", 1, "run", "micro-batches in one optimizer step", minimum=1, maximum=65536),
    _H("packing", "bool", True, "run", "rows side by side without padding where the architecture keeps them apart"),
    _H("bf16", "choice", "auto", "run", "bfloat16 compute; auto: on GPUs that have it",
       choices=("auto", "True", "False")),
    _H("gradient_checkpointing", "bool", False, "run", "recompute activations in the backward pass to save memory"),
    _H("seed", "int", 10, "run", "seed of row order, dropout and new weights", minimum=0, maximum=2**31 - 1),
    _H("train_from_scratch", "bool", False, "run", "ignore the base model's weights and start from random ones"),
    # The method
    _H("peft_type", "choice", "lora", "method", "lora: train an adapter; none: train all weights",
       choices=("lora", "none")),
    _H("lora_r", "int", 8, "method", "rank of the adapter", minimum=1, maximum=1000),
    _H("lora_alpha", "int", 32, "method", "scale of the adapter (alpha / r)", minimum=1, maximum=100000),
    _H("lora_dropout", "float", 0.05, "method", "dropout before the adapter", minimum=0, maximum=0.99),
    _H("lora_target_modules", "text", "default", "method",
       "names of linear layers, comma separated, or all-linear; default: the model family's"),
    _H("int8_quantization", "bool", False, "method", "not available yet: only False is accepted"),
    _H("enable_fsdp", "bool", False, "method", "not available yet: only False is accepted"),
    # The optimizer
    _H("learning_rate", "float", 1e-4, "optimizer", "peak learning rate of AdamW", minimum=0, maximum=1),
    _H("lr_scheduler_type", "choice", "linear", "optimizer", "course of the learning rate after warm-up",
       choices=("linear", "cosine", "constant", "constant_with_warmup")),
    _H("warmup_ratio", "float", 0.0, "optimizer", "share of the steps that warm up", minimum=0, maximum=1),
    _H("warmup_steps", "int", 0, "optimizer", "steps that warm up; above 0 it overrides warmup_ratio", minimum=0),
    _H("weight_decay", "float", 0.0, "optimizer", "decoupled weight decay of matrices", minimum=0, maximum=1),
    _H("adam_beta1", "float", 0.9, "optimizer", "AdamW's first decay", minimum=0, maximum=0.999999),
    _H("adam_beta2", "float", 0.999, "optimizer", "AdamW's second decay", minimum=0, maximum=0.999999),
    _H("adam_epsilon", "float", 1e-8, "optimizer", "AdamW's epsilon", minimum=0, maximum=1),
    _H("max_grad_norm", "float", 1.0, "optimizer", "gradient norm above which the gradient is scaled down; 0: never",
       minimum=0),
    # Validation and checkpoints
    _H("evaluation_strategy", "choice", "epoch", "validation", "when the validation rows are scored",
       choices=("epoch", "steps", "no"), aliases=("evalaution_strategy", "eval_strategy")),
    _H("eval_steps", "int", 20, "validation", "steps between validations; setting it asks for steps", minimum=1),
    _H("save_strategy", "choice", "epoch", "validation", "when a checkpoint is written, besides each best one",
       choices=("epoch", "steps", "no")),
    _H("save_steps", "int", 500, "validation", "steps between checkpoints; setting it asks for steps", minimum=1),
    _H("save_total_limit", "int", 2, "validation", "checkpoints kept; the best one is kept besides", minimum=1),
    _H("load_best_model_at_end", "bool", True, "validation", "the artifact is the best checkpoint by validation loss; "
       "False: the last"),
    _H("early_stopping_patience", "int", 3, "validation", "validations without improvement before stopping; -1: never",
       minimum=1, sentinel=-1),
    _H("early_stopping_threshold", "float", 0.0, "validation", "loss must fall by more than this to count", minimum=0),
    _H("logging_steps", "int", 1, "validation", "steps between lines of metrics.jsonl", minimum=1),
]

TABLE: dict[str, Hyperparameter] = {row.name: row for row in _ROWS}
_BY_ANY_NAME = {alias: row for row in _ROWS for alias in (row.name, *row.aliases)}
_NOT_YET = {
    "int8_quantization": "8-bit base weights are not available in this version; leave it False",
    "enable_fsdp": "sharded training is not available in this version; leave it False",
}


class Hyperparameters(Mapping[str, Value]):
    """Typed values of every hyperparameter; `given` holds the names that the caller set."""

    def __init__(self, values: Mapping[str, Value], given: frozenset[str]) -> None:
        self._values = dict(values)
        self.given = given

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Hyperparameters({self._values!r})"


def parse(raw: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Hyperparameters:
    """Type and check `raw`; what it leaves out takes `defaults` (a model family's), then the table's.

    Raises SettingError for unknown names, bad values, a name given twice through an alias, and pairs that exclude
    each other.
    """
    values: dict[str, Value] = {name: row.default for name, row in TABLE.items()}
    values |= _typed(defaults or {})
    given = _typed(raw)
    values |= given
    _check_together(values, given)
    return Hyperparameters(values, frozenset(given))


def _typed(raw: Mapping[str, Any]) -> dict[str, Value]:
    typed: dict[str, Value] = {}
    for name, text in raw.items():
        row = _BY_ANY_NAME.get(name)
        if row is None:
            raise SettingError(f"unknown hyperparameter {name!r}{did_you_mean(name, _BY_ANY_NAME)}")
        value = row.parse(text)
        if row.name in typed and typed[row.name] != value:
            raise SettingError(f"{row.name} is given twice with different values ({name} is another name of it)")
        typed[row.name] = value
    return typed


def _check_together(values: dict[str, Value], given: dict[str, Value]) -> None:
    if given.get("instruction_tuned") and given.get("chat_dataset"):
        raise SettingError("instruction_tuned=True and chat_dataset=True exclude each other; set one of them to False")
    for name, other in (("instruction_tuned", "chat_dataset"), ("chat_dataset", "instruction_tuned")):
        if given.get(name):
            values[other] = False
    for name, reason in _NOT_YET.items():
        if values[name]:
            raise SettingError(f"{name}=True: {reason}")
    held_out = float(values["validation_split_ratio"] or 0) + float(values["test_split_ratio"] or 0)
    if held_out > 1:
        raise SettingError("validation_split_ratio + test_split_ratio must not exceed 1")
    if values["learning_rate"] == 0:
        raise SettingError("learning_rate=0: nothing would be learned; expected a number above 0")
