"""The bench's table: medians of the steps, and each peer beside the Luthier that raced it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from bench.field.lockstep import Record

OWN = "luthier"


def summary(record: Record) -> dict[str, float]:
    """A contender's figures: medians over its steps, the largest memory."""
    steps = record.steps
    return {
        "steps": len(steps),
        "tokens_per_second": median(step.tokens / step.wall for step in steps),
        "completion_tokens_per_second": median(step.completion_tokens / step.wall for step in steps),
        "tokens_per_cpu_second": median(step.tokens / step.cpu for step in steps),
        "completion_tokens_per_cpu_second": median(step.completion_tokens / step.cpu for step in steps),
        "best_tokens_per_second": max(step.tokens / step.wall for step in steps),
        "rss": max(step.rss for step in steps),
        "tokens_per_step": median(step.tokens for step in steps),
        "loss": steps[-1].loss,
    }


def ratios(own: Mapping[str, float], peer: Mapping[str, float]) -> dict[str, float]:
    """Luthier's figures over those of a peer that raced with it; memory below 1 is less."""
    return {name: own[name] / peer[name] for name in RATIOS}


HEADS = ("", "tok/s", "compl. tok/s", "tok/CPU-s", "compl./CPU-s", "peak GB", "of bf16 peak",
         "Luthier x compl. tok/s", "x compl./CPU-s", "x tok/CPU-s", "x memory")  # fmt: skip
RATIOS = ("completion_tokens_per_second", "completion_tokens_per_cpu_second", "tokens_per_cpu_second", "rss")


def rows(groups: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table's lines: in each group Luthier, then the peers that raced it."""
    lines = [list(HEADS)]
    for group in groups:
        for name, found in group["contenders"].items():
            figures, share = found.get("figures"), found.get("share_of_bf16_peak")
            if figures is None:
                lines.append([name, f"left out: {found['reason']}", *[""] * (len(HEADS) - 2)])
                continue
            against = found.get("luthier_over_it", {})
            lines.append([
                name,
                f"{figures['tokens_per_second']:,.0f}", f"{figures['completion_tokens_per_second']:,.0f}",
                f"{figures['tokens_per_cpu_second']:,.0f}", f"{figures['completion_tokens_per_cpu_second']:,.0f}",
                f"{figures['rss'] / 1e9:.2f}", f"{share:.1%}" if share else "",
                *(f"{against[key]:.2f}x" if against else "" for key in RATIOS),
            ])  # fmt: skip
    return lines


def speeds(contenders: Mapping[str, Any], unit: str, digits: int = 0) -> list[list[str]]:
    """The lines of a bench that counts one thing, `unit` (rows, tokens), a contender a line."""
    keys = f"{unit}_per_second", f"{unit}_per_cpu_second"
    own = contenders.get(OWN, {})
    lines = [["", f"{unit}/s", f"{unit}/CPU-s", "tokens", "peak GB", "Luthier x wall", "x CPU-s"]]
    for name, found in contenders.items():
        if "reason" in found:
            lines.append([name, f"left out: {found['reason']}", *[""] * 5])
            continue
        compared = name != OWN and keys[0] in own
        lines.append([
            name, *(f"{found[key]:,.{digits}f}" for key in keys), f"{found['tokens']:,}", f"{found['rss'] / 1e9:.2f}",
            *(f"{own[key] / found[key]:.2f}x" if compared else "" for key in keys),
        ])  # fmt: skip
    return lines


def render(lines: Sequence[Sequence[str]]) -> str:
    """Lines in columns: the first to the left, figures to the right; a remark takes the room it needs."""
    whole = [line for line in lines if len([cell for cell in line if cell]) > 2 or line is lines[0]]
    widths = [max(len(line[place]) for line in whole) for place in range(len(lines[0]))]
    widths[0] = max(len(line[0]) for line in lines)
    text = []
    for line in lines:
        if line in whole:
            text.append(
                "  ".join(
                    cell.ljust(width) if place == 0 else cell.rjust(width)
                    for place, (cell, width) in enumerate(zip(line, widths, strict=True))
                ).rstrip()
            )
        else:
            text.append("  ".join([line[0].ljust(widths[0]), *filter(None, line[1:])]))
    return "\n".join(text)
