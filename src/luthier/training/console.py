"""Prints the job, its data and its result."""

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


def print_job(console: Console, job: ResolvedJob, world_size: int) -> None:
    """Print model, method and device, and what each of several ranks holds."""
    method = job.settings.method
    name = ("rs" if method.rslora else "") + ("DoRA" if method.dora else "LoRA")
    trained = f"{name} r={method.r} alpha={method.alpha}" if method.lora else "all weights"
    if job.settings.optimizer.in_bf16:
        trained += " in bfloat16, rounded stochastically"
    device = job.device.type if world_size > 1 else job.device
    console.print(f"[bold]{job.location.name}[/]  {trained}  {job.dtype_name} on {device}", highlight=False)
    if world_size > 1:
        placement = "each tensor sharded over them" if job.settings.run.fsdp else "each with a copy of the model"
        console.print(f"{world_size} ranks, {placement}", highlight=False)


def print_data(console: Console, dataset: Dataset, warnings: Sequence[str]) -> None:
    """Print the row counts of each split, and the warnings."""
    counts, split = dataset.counts, dataset.split
    origin = f", {dataset.template_origin}" if dataset.template_origin else ""
    console.print(f"{counts.rows:,} rows of {dataset.kind} data{origin}", highlight=False)
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
    """Print the before/after table, the cost, and the paths of the results."""
    if metrics["split"]:
        console.print(before_after_table(metrics))
    for note in metrics["notes"]:
        console.print(f"[yellow]note:[/] {note}", highlight=False)
    for line in metrics["next_steps"]:
        console.print(f"[yellow]next:[/] {line}", highlight=False)
    cost = metrics["cost"]
    layers = f"LoRA on {metrics['adapted_layers']}; " if metrics["adapted_layers"] else ""
    console.print(
        f"{layers}trained {metrics['steps']:,} steps in {cost['train_seconds']:.0f} s "
        f"({cost['tokens_per_second'] or 0:,.0f} tokens/s), {cost['total_seconds']:.0f} s in total, peak memory "
        f"{cost['peak_memory_bytes'] / 1e9:.1f} GB" + (" per rank" if cost["ranks"] > 1 else ""),
        highlight=False,
    )
    for label, path in (("report", folder.report), ("artifact", folder.artifact), ("ledger", folder.ledger)):
        console.print(f"{label:9}{relative_path(path)}", highlight=False, markup=False, soft_wrap=True)


def relative_path(path: Path) -> str:
    """The path relative to the current folder, if it is inside of it."""
    current = Path.cwd()
    return str(path.relative_to(current)) if path.is_relative_to(current) else str(path)
