"""What a run tells the terminal: the order, the data, the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from luthier.data.prepare import Dataset
from luthier.evaluation.table import before_after_table
from luthier.jobfolder import JobFolder
from luthier.training.resolved_job import ResolvedJob


def print_job(console: Console, order: ResolvedJob, ranks: int) -> None:
    """Model, method and device, and how several ranks share them."""
    method = order.settings.method
    name = ("rs" if method.rslora else "") + ("DoRA" if method.dora else "LoRA")
    how = f"{name} r={method.r} alpha={method.alpha}" if method.lora else "all weights"
    if order.settings.optimizer.in_bf16:
        how += " in bfloat16, rounded stochastically"
    dtype = str(order.dtype).removeprefix("torch.")
    device = order.device.type if ranks > 1 else order.device
    console.print(f"[bold]{order.location.name}[/]  {how}  {dtype} on {device}", highlight=False)
    if ranks > 1:
        shared = "each tensor sharded over them" if order.settings.run.fsdp else "each with a copy of the model"
        console.print(f"{ranks} ranks, {shared}", highlight=False)


def print_data(console: Console, prepared: Dataset, warnings: Sequence[str]) -> None:
    """Where every row went, and what deserves a second look."""
    counts, split = prepared.counts, prepared.split
    origin = f", {prepared.template_origin}" if prepared.template_origin else ""
    console.print(f"{counts.rows:,} rows of {prepared.kind} data{origin}", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    columns = ("kept", "truncated", "dropped", "train", "validation", "test", "tokens", "completion tokens")
    values = (
        counts.kept, counts.truncated, counts.dropped, len(split.train), len(split.validation), len(split.test),
        counts.tokens, counts.completion_tokens,
    )  # fmt: skip
    for name in columns:
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:,}" for value in values))
    console.print(table)
    for warning in warnings:
        console.print(f"[yellow]warning:[/] {warning}", highlight=False)


def print_result(console: Console, folder: JobFolder, metrics: Mapping[str, Any]) -> None:
    """The before/after table, and where things are."""
    if metrics["split"]:
        console.print(before_after_table(metrics))
    for note in metrics["notes"]:
        console.print(f"[yellow]note:[/] {note}", highlight=False)
    cost = metrics["cost"]
    console.print(
        f"trained {metrics['steps']:,} steps in {cost['train_seconds']:.0f} s "
        f"({cost['tokens_per_second'] or 0:,.0f} tokens/s), {cost['total_seconds']:.0f} s in all, peak memory "
        f"{cost['peak_memory_bytes'] / 1e9:.1f} GB" + (" a rank" if cost["ranks"] > 1 else ""),
        highlight=False,
    )
    for label, path in (("report", folder.report), ("artifact", folder.artifact), ("ledger", folder.ledger)):
        console.print(f"{label:9}{shown(path)}", highlight=False, markup=False, soft_wrap=True)


def shown(path: Path) -> str:
    """A path as a person in the current folder would write it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
