"""A run's base and tuned scores as a table, for terminals, notebooks and pandas."""

from __future__ import annotations

import html
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COLUMNS = ("base", "tuned", "change", "low", "high")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row of COLUMNS for each metric; `low` and `high` bound the change's 95 % interval (None: not measured)."""

    rows: Mapping[str, Mapping[str, float | None]]
    caption: str

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> Comparison:
        """The comparison of a metrics.json."""
        base, tuned = metrics.get("base") or {}, metrics.get("tuned") or {}
        changes = metrics.get("difference") or {}
        rows = {name: _row(base.get(name), tuned.get(name), changes.get(name) or {}) for name in base}
        split = metrics.get("split")
        caption = f"{metrics['rows']:,} held-out rows ({split})" if split else "no held-out rows were scored"
        return cls(rows, caption)

    def to_frame(self) -> Any:
        """A pandas DataFrame, a row for each metric; ImportError without pandas."""
        pandas = importlib.import_module("pandas")
        return pandas.DataFrame.from_dict(self.rows, orient="index", columns=list(COLUMNS))

    def __str__(self) -> str:
        lines = [f"{'':16}" + "".join(f"{column:>10}" for column in COLUMNS)]
        lines += [f"{name:16}" + "".join(f"{_text(row[c]):>10}" for c in COLUMNS) for name, row in self.rows.items()]
        return "\n".join([*lines, self.caption])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{column}</th>" for column in ("", *COLUMNS))
        body = "".join(
            f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{_text(row[c])}</td>' for c in COLUMNS)}</tr>"
            for name, row in self.rows.items()
        )
        return f"<table><caption>{html.escape(self.caption)}</caption><tr>{head}</tr>{body}</table>"


def _row(base: float | None, tuned: float | None, change: Mapping[str, float]) -> dict[str, float | None]:
    interval = {"change": change.get("value"), "low": change.get("low"), "high": change.get("high")}
    return {"base": base, "tuned": tuned, **interval}


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
