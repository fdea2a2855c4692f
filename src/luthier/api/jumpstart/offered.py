"""The hyperparameters that JumpStart's lists offer for an entry: its own names, types, ranges and defaults.

SDK v2 sends the default of every listed hyperparameter with each job, so training uses these defaults. Jobs may set
other hyperparameters, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from luthier.catalog.entry import Entry
from luthier.catalog.hyperparameters import TABLE, Hyperparameter
from luthier.catalog.jumpstart import slug

# Hyperparameters of every family, as AWS documents them for text generation.
_DOCUMENTED = (
    "epoch", "learning_rate", "instruction_tuned", "chat_dataset", "per_device_train_batch_size",
    "per_device_eval_batch_size", "max_train_samples", "max_val_samples", "max_input_length", "validation_split_ratio",
    "train_data_split_seed", "preprocessing_num_workers", "peft_type", "lora_r", "lora_alpha", "lora_dropout",
    "int8_quantization", "enable_fsdp", "add_input_output_demarcation_key", "seed",
)  # fmt: skip
# Additional names of the families whose scripts use transformers' Trainer, recognised by this default.
_TRAINER_MARKER = "evaluation_strategy"
_TRAINER = (
    "max_steps", "warmup_ratio", "warmup_steps", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "label_smoothing_factor", "load_best_model_at_end", "early_stopping_threshold",
)  # fmt: skip
# An encoder-decoder model has its scripts' own names, and its rows are of one kind.
_PAIRS = "T5ForConditionalGeneration"
_PAIR_NAMES = {"epoch": "epochs", "per_device_train_batch_size": "batch_size", "max_val_samples": "max_eval_samples"}
_NOT_OF_PAIRS = ("instruction_tuned", "chat_dataset", "enable_fsdp", "add_input_output_demarcation_key")
# The default kind of rows of models whose default is not plain text.
_KINDS: tuple[tuple[str, Mapping[str, str]], ...] = (
    (r"huggingface-llm-mistral-7b.*", {"instruction_tuned": "True"}),
    (r"huggingface-llm-gemma-.*", {"chat_dataset": "True"}),
    (r"meta-textgeneration-llama-2-.*-f", {"chat_dataset": "True"}),
    (r"(?!huggingface-|meta-|model-).*", {"instruction_tuned": "True"}),  # those that only Luthier lists
)
_TYPES = {"int": "int", "float": "float"}


def is_pairs(entry: Entry) -> bool:
    return entry.architecture == _PAIRS


def hyperparameters(entry: Entry, identity: str) -> list[dict[str, Any]]:
    """The entry's hyperparameters as SDK v2 reads them: name, type, default, scope, bounds or options."""
    return [_to_json(entry, identity, row) for row in _rows(entry)]


def _rows(entry: Entry) -> Iterator[Hyperparameter]:
    """Yield the entry's hyperparameters in the table's order, with the entry's ranges."""
    names = {*_DOCUMENTED, *entry.default_hyperparameters, *entry.hyperparameter_ranges}
    if _TRAINER_MARKER in entry.default_hyperparameters:
        names.update(_TRAINER)
    if is_pairs(entry):
        names -= set(_NOT_OF_PAIRS)
        names.add("max_output_length")
    for name, row in TABLE.items():
        if name in names:
            yield row.with_bounds(entry.hyperparameter_ranges.get(name, {}), "")


def _to_json(entry: Entry, identity: str, row: Hyperparameter) -> dict[str, Any]:
    default = entry.default_hyperparameters.get(row.name, row.default)
    shown = _PAIR_NAMES.get(row.name, row.name) if is_pairs(entry) else row.name
    row_json: dict[str, Any] = {"name": shown, "type": _TYPES.get(row.type, "text"), "scope": "algorithm"}
    if row.type in _TYPES:
        return row_json | {"default": default} | _bounds(row)
    kinds = (kinds for form, kinds in _KINDS if re.fullmatch(form, identity))
    text = next((known[row.name] for known in kinds if row.name in known), str(default))
    options = ("True", "False") if row.type == "bool" else row.choices
    return row_json | {"default": text} | ({"options": list(options)} if options else {})


def _bounds(row: Hyperparameter) -> dict[str, float]:
    low, high = row.minimum, row.maximum
    bounds: dict[str, float] = {}
    if row.sentinel is not None:
        low = row.sentinel if low is None else min(low, row.sentinel)  # the job refuses the values in between
    if low is not None:
        bounds["exclusive_min" if row.exclusive_minimum else "min"] = low
    if high is not None:
        bounds["exclusive_max" if row.exclusive_maximum else "max"] = high
    return bounds


def metrics(entry: Entry) -> list[dict[str, str]]:
    """JumpStart's metric definitions. The supervisor reads their values by name from the engine's metrics."""
    task = "huggingface-text2text" if is_pairs(entry) else "huggingface-textgeneration"
    return [
        {"Name": f"{task}:eval-loss", "Regex": r"'eval_loss': ([0-9\.]+)"},
        {"Name": f"{task}:train-loss", "Regex": r"'loss': ([0-9\.]+)"},
        *([] if is_pairs(entry) else [{"Name": f"{task}:eval-ppl", "Regex": r"'eval_ppl': ([0-9\.]+)"}]),
    ]


def name_base(entry: Entry) -> str:
    """The prefix of the SDK's job names."""
    return slug(entry)[:30].rstrip("-")
