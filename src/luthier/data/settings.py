"""Settings of data preparation, taken from the hyperparameters."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from luthier.catalog.entry import Entry
from luthier.data.chat import ASSISTANT
from luthier.data.template import Template
from luthier.data.template_forms import REFUSE
from luthier.errors import SettingError

DEFAULT_MAX_LENGTH = 1024  # tokens; JumpStart's maximum where max_input_length is -1


SAMPLE_NAMES = ("max_train_samples", "max_val_samples", "max_test_samples")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Settings of `prepare`. `max_input_length` -1: the smallest of 1024, the tokenizer's limit and the context.

    `max_samples`: the values of SAMPLE_NAMES, maximum numbers of rows; -1: all.
    `explicit` names the hyperparameters the caller set, for warnings about those without effect. `template` overrides
    every other template, to render rows as a finished run did. `scoring`: all rows belong to one split.
    """

    kind: str = "auto"
    max_input_length: int = -1
    max_output_length: int = 128
    validation_split_ratio: float = 0.2
    test_split_ratio: float = 0.0
    split_seed: int = 0
    max_samples: tuple[int, int, int] = (-1, -1, -1)
    append_eod: bool = True
    demarcation: bool = True
    completion_only: bool = True
    train_on_turns: str = ASSISTANT
    reasoning: str = REFUSE
    group_near_duplicates: bool = False
    control_tokens: bool = False
    default_template: tuple[str, str] | None = None
    context_length: int = 0
    explicit: frozenset[str] = frozenset()
    template: Template | None = None
    scoring: bool = False

    def __post_init__(self) -> None:
        for name in ("validation_split_ratio", "test_split_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"{name}={getattr(self, name)}: expected a fraction from 0 to 1")
        if self.validation_split_ratio + self.test_split_ratio > 1:
            raise SettingError("validation_split_ratio + test_split_ratio must not exceed 1")

    @classmethod
    def from_hyperparameters(
        cls,
        kind: str,
        values: Mapping[str, Any],
        explicit: Collection[str],
        entry: Entry | None,
        context_length: int,
    ) -> DataSettings:
        """Make the settings from parsed hyperparameters; `entry` has the family's default template."""
        family = entry.default_template if entry else None
        return cls(
            kind=kind,
            max_input_length=values["max_input_length"],
            max_output_length=values["max_output_length"],
            validation_split_ratio=values["validation_split_ratio"],
            test_split_ratio=values["test_split_ratio"],
            split_seed=values["train_data_split_seed"],
            max_samples=(values[SAMPLE_NAMES[0]], values[SAMPLE_NAMES[1]], values[SAMPLE_NAMES[2]]),
            append_eod=values["append_eod"],
            demarcation=values["add_input_output_demarcation_key"],
            completion_only=values["completion_only_loss"],
            train_on_turns=values["train_on_turns"],
            reasoning=values["reasoning"],
            group_near_duplicates=values["group_near_duplicates"],
            control_tokens=values["parse_special_tokens"],
            default_template=(family["prompt"], family["completion"]) if family else None,
            context_length=context_length,
            explicit=frozenset(explicit),
        )

    def scoring_only(self, template: Template | None) -> DataSettings:
        """Return the settings for scoring: no row is held out or sampled, and `template` (a run's own) renders them."""
        return replace(
            self, validation_split_ratio=0.0, test_split_ratio=0.0, max_samples=(-1, -1, -1), template=template,
            scoring=True,
        )  # fmt: skip

    def resolve_max_length(self, tokenizer_limit: int) -> tuple[int, str]:
        """Return the maximum tokens of a row, and a warning (or "") when that is less than max_input_length."""
        limits = {"the tokenizer's limit": tokenizer_limit, "the model's context": self.context_length}
        known = {name: limit for name, limit in limits.items() if limit > 0}
        requested = DEFAULT_MAX_LENGTH if self.max_input_length == -1 else self.max_input_length
        if requested < 2:
            raise SettingError(f"max_input_length={requested}: expected at least 2, or -1")
        name, limit = min(known.items(), key=lambda item: item[1], default=("", requested))
        if self.max_input_length > limit:
            return limit, f"max_input_length={requested} is above {name}; using {limit}"
        return min(requested, limit), ""
