"""The output of `luthier inspect`: counts, token lengths, and examples with the trained tokens in colour."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from luthier.data.chat import ALL, ASSISTANT, LAST
from luthier.data.ledger import RowCounts
from luthier.data.prepare import Dataset
from luthier.data.rows import SPLITS, Array
from luthier.data.tokenize import Tokenizer

TRAINED = {ASSISTANT: "loss on assistant turns", LAST: "loss on the last turn", ALL: "loss on all turns"}
_BINS = 10
_BAR_WIDTH = 40  # characters
_BLOCKS = " ▏▎▍▌▋▊▉"
_EXAMPLES = 3
_MAX_CHARACTERS = 400  # shown of a piece of an example


def show(prepared: Dataset, tokenizer: Tokenizer, console: Console) -> None:
    """Print the whole preview."""
    console.print(_counts(prepared))
    console.print(_summary(prepared))
    console.print(Panel(histogram(prepared.tokens.lengths), title="tokens in a row", title_align="left", expand=False))
    console.print(_examples(prepared, tokenizer))
    for warning in prepared.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), warning))


def as_json(prepared: Dataset) -> dict[str, Any]:
    """Return the output of inspect --json."""
    counts = prepared.counts
    split = prepared.split
    return {
        "kind": prepared.kind,
        "rows": counts.rows,
        "kept": counts.kept,
        "truncated": counts.truncated,
        "dropped": counts.dropped,
        "tokens": counts.tokens,
        "completion_tokens": counts.completion_tokens,
        "problems": [],
        "warnings": prepared.warnings,
        "unread_keys": prepared.unread,
        "masked_turns": prepared.masked_turns,
        "examples": [
            {"source": example.source, "prompt": example.prompt, "completion": example.completion}
            for example in prepared.examples(split.train[:_EXAMPLES])
        ],
        "template": prepared.template.to_json() if prepared.template else None,
        "template_origin": prepared.template_origin,
        "train_on_turns": prepared.turns,
        "max_input_length": prepared.max_length,
        "split": {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
        "supplied": sorted(split.supplied),
        "fingerprint": prepared.fingerprint,
    }


def refusal_as_json(kind: str | None, problems: list[str]) -> dict[str, Any]:
    """Return the output of inspect --json when the rows are refused."""
    numbers = dict.fromkeys(("rows", "kept", "truncated", "dropped", "tokens", "completion_tokens"))
    return {"kind": kind, **numbers, "problems": problems, "warnings": [], "examples": []}


def _counts(prepared: Dataset) -> Table:
    table = Table(title=f"{prepared.kind} data", title_justify="left")
    table.add_column("channel")
    for name in ("rows", "kept", "truncated", "dropped", "tokens", "completion tokens"):
        table.add_column(name, justify="right")

    def add(name: str, counts: RowCounts) -> None:
        numbers = (counts.rows, counts.kept, counts.truncated, counts.dropped, counts.tokens, counts.completion_tokens)
        table.add_row(name, *(f"{number:,}" for number in numbers))

    for name, counts in prepared.counts.by_channel.items():
        add(name, counts)
    if len(prepared.counts.by_channel) > 1:
        table.add_section()
        add("all", prepared.counts)
    return table


def _summary(prepared: Dataset) -> Text:
    split = prepared.split
    unit = "blocks" if prepared.kind == "domain" else "rows"
    splits = ", ".join(
        f"{name} {len(rows):,}" + (" (supplied)" if name in split.supplied else "")
        for name, rows in zip(SPLITS, (split.train, split.validation, split.test), strict=True)
    )
    masked = f", {prepared.masked_turns:,} masked" if prepared.masked_turns else ""
    turns = f"\nturns      {TRAINED[prepared.turns]}{masked}" if prepared.turns else ""
    return Text(
        f"template   {prepared.template_origin}{turns}\nmax length {prepared.max_length:,} tokens\n"
        f"split      {splits} {unit}, seed {split.seed}"
    )


def histogram(lengths: Array) -> Text:
    """Draw a histogram of token lengths."""
    if not len(lengths):
        return Text("no rows")
    low, high = int(lengths.min()), int(lengths.max())
    edges = np.unique(np.linspace(low, high + 1, _BINS + 1).astype(np.int64))
    counts = np.histogram(lengths, edges)[0]
    lines = []
    for start, end, count in zip(edges[:-1], edges[1:], counts.tolist(), strict=True):
        eighths = round(count / counts.max() * _BAR_WIDTH * 8)
        bar = "█" * (eighths // 8) + _BLOCKS[eighths % 8].strip()
        lines.append(f"{start:>7,} - {end - 1:<7,} {bar or ('▏' if count else '')} {count:,}")
    return Text("\n".join(lines))


def _examples(prepared: Dataset, tokenizer: Tokenizer) -> RenderableType:
    rows = prepared.split.train[:_EXAMPLES]
    sources = [example.source for example in prepared.examples(rows)]
    panels = [
        Panel(Text.assemble(*coloured(prepared, tokenizer, int(row))), title=source, title_align="left")
        for row, source in zip(rows, sources, strict=True)
    ]
    return Group(
        Text.assemble("training examples: ", ("these tokens carry loss", "bold green"), ", the others do not"), *panels
    )


def coloured(prepared: Dataset, tokenizer: Tokenizer, row: int) -> Iterator[tuple[str, str]]:
    """Yield (text, style) of a stored row's trained and untrained spans, decoded from its tokens."""
    ids, trained = prepared.tokens.row(row)
    for is_trained, positions in itertools.groupby(range(len(ids)), key=lambda position: bool(trained[position])):
        text = tokenizer.show(ids[list(positions)]).replace("\x1b", "␛")  # rows must not control the terminal
        if len(text) > _MAX_CHARACTERS:
            hidden = len(text) - _MAX_CHARACTERS
            half = _MAX_CHARACTERS // 2
            text = f"{text[:half]} [... {hidden:,} characters not shown ...] {text[-half:]}"
        yield text, "bold green" if is_trained else "dim"
