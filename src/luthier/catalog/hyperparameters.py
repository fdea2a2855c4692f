"""A job's hyperparameters: parsed from strings by the table, over the defaults of a model family.

Names are JumpStart's; Autopilot's four names are aliases with Autopilot's ranges. SageMaker's own keys are kept apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from luthier.catalog.hyperparameter import Hyperparameter, Value
from luthier.catalog.table import TABLE
from luthier.errors import SettingError, did_you_mean

__all__ = ["TABLE", "Hyperparameter", "Hyperparameters", "Value", "parse", "precision"]

# Autopilot's names for text generation: (hyperparameter, minimum, maximum).
AUTOPILOT: dict[str, tuple[str, float, float]] = {
    "epochCount": ("epoch", 1, 10),
    "batchSize": ("per_device_train_batch_size", 1, 64),
    "learningRate": ("learning_rate", 0, 1),
    "learningRateWarmupSteps": ("warmup_steps", 0, 250),
}
AUTOPILOT_MAX_TRUNCATED = 0.6  # share of truncated rows above which Autopilot fails, as AWS documents
RESERVED = "sagemaker_"  # SageMaker's own keys, which its SDK adds to every job
# SageMaker's limits: hyperparameters of a job, characters of a name and of a value.
MAX_HYPERPARAMETERS, MAX_NAME_LENGTH, MAX_VALUE_LENGTH = 100, 256, 2500
# Only one of each pair may be on; if the caller sets one, the family's default of the other is turned off.
_EXCLUSIVE = (("instruction_tuned", "chat_dataset"), ("bf16", "fp16"))

Ranges = Mapping[str, Mapping[str, float]]


class Hyperparameters(Mapping[str, Value]):
    """Typed values of every hyperparameter.

    `explicit` holds the names that the caller set, `reserved` SageMaker's own keys, unchanged.
    """

    def __init__(
        self, values: Mapping[str, Value], explicit: frozenset[str], reserved: Mapping[str, str] | None = None
    ) -> None:
        self._values = dict(values)
        self.explicit = explicit
        self.reserved = dict(reserved or {})

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def to_strings(self) -> dict[str, str]:
        """Return what the caller set by canonical name, as a job stores it: every value a string."""
        return {name: str(self._values[name]) for name in TABLE if name in self.explicit}

    def __repr__(self) -> str:
        return f"Hyperparameters({self._values!r})"


def parse(
    raw: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, ranges: Ranges | None = None
) -> Hyperparameters:
    """Parse and check `raw` over `defaults` (of a model family) and the table's defaults.

    `ranges` of the model narrow the table's: {NAME: {"minimum": ..., "maximum": ...}}, either may be absent. Raises
    SettingError for unknown names, bad values, two values for one name, combinations that exclude each other, and
    more or longer ones than SageMaker allows.
    """
    _check_sizes(raw)
    rows = _rows(ranges or {})
    reserved = {name: str(value) for name, value in raw.items() if name.startswith(RESERVED)}
    values: dict[str, Value] = {name: row.default for name, row in TABLE.items()}
    values |= _parse_rows(defaults or {}, rows)
    explicit = _parse_rows({name: value for name, value in raw.items() if name not in reserved}, rows)
    values |= explicit
    _apply_dependencies(values, explicit)
    return Hyperparameters(values, frozenset(explicit), reserved)


def precision(values: Mapping[str, Any]) -> str:
    """Return the compute precision that bf16, fp16 and mixed_precision imply: auto, bf16, fp16 or fp32."""
    if not values["mixed_precision"]:
        return "fp32"
    if values["fp16"]:
        return "fp16"
    return {"auto": "auto", "True": "bf16", "False": "fp32"}[str(values["bf16"])]


def _check_sizes(raw: Mapping[str, Any]) -> None:
    if len(raw) > MAX_HYPERPARAMETERS:
        raise SettingError(f"{len(raw)} hyperparameters; SageMaker allows at most {MAX_HYPERPARAMETERS}")
    for name, value in raw.items():
        if len(name) > MAX_NAME_LENGTH:
            raise SettingError(
                f"hyperparameter {name[:40]!r}...: the name has {len(name)} characters; SageMaker allows "
                f"at most {MAX_NAME_LENGTH}"
            )
        if len(str(value)) > MAX_VALUE_LENGTH:
            raise SettingError(
                f"hyperparameter {name!r}: the value has {len(str(value)):,} characters; SageMaker allows "
                f"at most {MAX_VALUE_LENGTH:,}"
            )


def _rows(ranges: Ranges) -> dict[str, tuple[str, Hyperparameter]]:
    """Map every name and alias to (canonical name, row that parses its values)."""
    table = dict(TABLE)
    for name, bounds in ranges.items():
        if name not in table:
            raise SettingError(f"range of an unknown hyperparameter {name!r}{did_you_mean(name, TABLE)}")
        table[name] = table[name].with_bounds(bounds, "the model's range")
    rows = {alias: (row.name, row) for row in table.values() for alias in (row.name, *row.aliases)}
    for name, (target, low, high) in AUTOPILOT.items():
        row = table[target].with_bounds({"minimum": low, "maximum": high}, "Autopilot's range")
        rows[name] = (target, replace(row, name=name))
    return rows


def _parse_rows(raw: Mapping[str, Any], rows: Mapping[str, tuple[str, Hyperparameter]]) -> dict[str, Value]:
    typed: dict[str, Value] = {}
    named: dict[str, str] = {}
    for name, text in raw.items():
        if name not in rows:
            raise SettingError(f"unknown hyperparameter {name!r}{did_you_mean(name, rows)}")
        target, row = rows[name]
        value = row.parse(text)
        if target in typed and typed[target] != value:
            raise SettingError(f"{target} is set twice with different values (as {named[target]} and as {name})")
        typed[target], named[target] = value, name
    return typed


def _apply_dependencies(values: dict[str, Value], explicit: Mapping[str, Value]) -> None:
    """Set in place what other values imply; SettingError for combinations that exclude each other."""
    for pair in _EXCLUSIVE:
        for name, other in (pair, pair[::-1]):
            if _is_on(explicit.get(name)) and other not in explicit:
                values[other] = TABLE[other].parse("False")
        if all(_is_on(values[name]) for name in pair):
            raise SettingError(f"{pair[0]}=True and {pair[1]}=True exclude each other; set one of them to False")
    if "bits" in explicit and "int8_quantization" not in explicit:
        values["int8_quantization"] = explicit["bits"] == 8
    if values["int8_quantization"]:
        if explicit.get("bits") == 4:
            raise SettingError("int8_quantization=True and bits=4 exclude each other; leave one of them out")
        values["bits"] = 8
    if float(str(values["validation_split_ratio"])) + float(str(values["test_split_ratio"])) > 1:
        raise SettingError("validation_split_ratio + test_split_ratio must not exceed 1")


def _is_on(value: Value) -> bool:
    return value in (True, "True")
