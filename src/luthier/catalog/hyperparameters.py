"""A job's hyperparameters: parsed from strings against the table, a model family's defaults under them.

Names are JumpStart's; Autopilot's four stand for the ones they mean, within Autopilot's own ranges. What SageMaker's
SDK adds for itself is set aside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from luthier.catalog.hyperparameter import Hyperparameter, Value
from luthier.catalog.table import TABLE
from luthier.errors import SettingError, did_you_mean

__all__ = ["TABLE", "Hyperparameter", "Hyperparameters", "Value", "parse", "precision"]

# Autopilot's names for text generation: the hyperparameter each stands for, and the range it has there.
AUTOPILOT: dict[str, tuple[str, float, float]] = {
    "epochCount": ("epoch", 1, 10),
    "batchSize": ("per_device_train_batch_size", 1, 64),
    "learningRate": ("learning_rate", 0, 1),
    "learningRateWarmupSteps": ("warmup_steps", 0, 250),
}
RESERVED = "sagemaker_"  # SageMaker's own keys, which its SDK adds to every job
# SageMaker's limits: hyperparameters of a job, characters of a name and of a value.
MAX_HYPERPARAMETERS, MAX_NAME_LENGTH, MAX_VALUE_LENGTH = 100, 256, 2500
# Of each pair only one may be on; the one that the caller sets switches the family's default of the other off.
_EXCLUSIVE = (("instruction_tuned", "chat_dataset"), ("bf16", "fp16"))

Ranges = Mapping[str, Mapping[str, float]]


class Hyperparameters(Mapping[str, Value]):
    """Typed values of every hyperparameter.

    `given` holds the names that the caller set, `reserved` SageMaker's own keys, as they came.
    """

    def __init__(
        self, values: Mapping[str, Value], given: frozenset[str], reserved: Mapping[str, str] | None = None
    ) -> None:
        self._values = dict(values)
        self.explicit = given
        self.reserved = dict(reserved or {})

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def to_strings(self) -> dict[str, str]:
        """What the caller set, by canonical name, as a job stores it: every value a string."""
        return {name: str(self._values[name]) for name in TABLE if name in self.explicit}

    def __repr__(self) -> str:
        return f"Hyperparameters({self._values!r})"


def parse(
    raw: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, ranges: Ranges | None = None
) -> Hyperparameters:
    """Type and check `raw`; what it leaves out takes `defaults` (a model family's), then the table's.

    `ranges` are the model's own, by name: {"minimum": ..., "maximum": ...}, either may be absent; they narrow the
    table's. Raises SettingError for unknown names, bad values, a name given twice through an alias, pairs that
    exclude each other, and more or longer ones than SageMaker takes.
    """
    _check_sizes(raw)
    rows = _rows(ranges or {})
    reserved = {name: str(value) for name, value in raw.items() if name.startswith(RESERVED)}
    values: dict[str, Value] = {name: row.default for name, row in TABLE.items()}
    values |= _typed(defaults or {}, rows)
    given = _typed({name: value for name, value in raw.items() if name not in reserved}, rows)
    values |= given
    _settle(values, given)
    return Hyperparameters(values, frozenset(given), reserved)


def precision(values: Mapping[str, Any]) -> str:
    """The compute precision that bf16, fp16 and mixed_precision ask for together: auto, bf16, fp16 or fp32."""
    if not values["mixed_precision"]:
        return "fp32"
    if values["fp16"]:
        return "fp16"
    return {"auto": "auto", "True": "bf16", "False": "fp32"}[str(values["bf16"])]


def _check_sizes(raw: Mapping[str, Any]) -> None:
    if len(raw) > MAX_HYPERPARAMETERS:
        raise SettingError(f"{len(raw)} hyperparameters are given; SageMaker takes at most {MAX_HYPERPARAMETERS}")
    for name, value in raw.items():
        if len(name) > MAX_NAME_LENGTH:
            raise SettingError(
                f"hyperparameter {name[:40]!r}...: its name has {len(name)} characters, more than the "
                f"{MAX_NAME_LENGTH} that SageMaker takes"
            )
        if len(str(value)) > MAX_VALUE_LENGTH:
            raise SettingError(
                f"hyperparameter {name!r}: its value has {len(str(value)):,} characters, more than the "
                f"{MAX_VALUE_LENGTH:,} that SageMaker takes"
            )


def _rows(ranges: Ranges) -> dict[str, tuple[str, Hyperparameter]]:
    """By every name that may be given: the canonical name, and the row that its values are read by."""
    table = dict(TABLE)
    for name, bounds in ranges.items():
        if name not in table:
            raise SettingError(f"a range of {name!r}, which is no hyperparameter{did_you_mean(name, TABLE)}")
        table[name] = table[name].with_bounds(bounds, "the model's range")
    rows = {alias: (row.name, row) for row in table.values() for alias in (row.name, *row.aliases)}
    for name, (meant, low, high) in AUTOPILOT.items():
        row = table[meant].with_bounds({"minimum": low, "maximum": high}, "Autopilot's range")
        rows[name] = (meant, replace(row, name=name))
    return rows


def _typed(raw: Mapping[str, Any], rows: Mapping[str, tuple[str, Hyperparameter]]) -> dict[str, Value]:
    typed: dict[str, Value] = {}
    named: dict[str, str] = {}
    for name, text in raw.items():
        if name not in rows:
            raise SettingError(f"unknown hyperparameter {name!r}{did_you_mean(name, rows)}")
        meant, row = rows[name]
        value = row.parse(text)
        if meant in typed and typed[meant] != value:
            raise SettingError(f"{meant} is given twice with different values (as {named[meant]} and as {name})")
        typed[meant], named[meant] = value, name
    return typed


def _settle(values: dict[str, Value], given: Mapping[str, Value]) -> None:
    """Settle what hangs together, in place; SettingError for what cannot stand together."""
    for pair in _EXCLUSIVE:
        for name, other in (pair, pair[::-1]):
            if _on(given.get(name)) and other not in given:
                values[other] = TABLE[other].parse("False")
        if all(_on(values[name]) for name in pair):
            raise SettingError(f"{pair[0]}=True and {pair[1]}=True exclude each other; set one of them to False")
    if "bits" in given and "int8_quantization" not in given:
        values["int8_quantization"] = given["bits"] == 8
    if values["int8_quantization"]:
        if given.get("bits") == 4:
            raise SettingError("int8_quantization=True and bits=4 exclude each other; leave one of them out")
        values["bits"] = 8
    if float(str(values["validation_split_ratio"])) + float(str(values["test_split_ratio"])) > 1:
        raise SettingError("validation_split_ratio + test_split_ratio must not exceed 1")


def _on(value: Value) -> bool:
    return value in (True, "True")
