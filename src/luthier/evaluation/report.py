"""report.html: a self-contained page about one run, without scripts or network access.

Reads only the run folder's files. Any of them may be missing (interrupted run, no held-out rows, not scored); the page
then says so. Files that grow with the data are streamed. Row texts are untrusted: the template engine escapes
everything, and a content security policy forbids loading anything.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
from collections.abc import Mapping
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from luthier.errors import LuthierError
from luthier.evaluation.curves import Curves, read_curves
from luthier.evaluation.ledger_summary import OUTCOMES, SPLITS, LedgerSummary, summarize_ledger
from luthier.evaluation.report_charts import learning_rate_chart, length_charts, loss_charts, metric_changes
from luthier.evaluation.run_summary import summarize_run
from luthier.evaluation.samples import SampleRows, choose_sample_rows
from luthier.jobfolder import JobFolder

MAX_FILES = 20
"""Data files whose hashes are listed individually."""


@functools.cache
def _page_template() -> jinja2.Template:
    template = resources.files("luthier.evaluation").joinpath("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=format_count, duration=format_duration, bytes=format_bytes, setting=format_setting
    )
    return environment.from_string(template)


def write_report(job: JobFolder) -> Path:
    """Write report.html from the run folder's files and return its path."""
    page = _page_template().render(**_context(job))
    temporary = job.report.with_name(f".{job.report.name}.{os.getpid()}")
    temporary.write_text(page, "utf-8", errors="replace")  # a row may hold a lone surrogate
    os.replace(temporary, job.report)
    return job.report


def _context(job: JobFolder) -> dict[str, Any]:
    unreadable: list[str] = []
    run, metrics = _read(job.root / "run.json", unreadable), _read(job.metrics, unreadable)
    request = _read(job.config / "job.json", unreadable)
    curves, ledger = read_curves(job.metrics_lines), summarize_ledger(job.ledger)
    limit = run.get("settings", {}).get("max_input_length")
    samples, samples_missing = _samples(job, metrics)
    return {
        "name": job.root.name,
        "run": run,
        "metrics": metrics,
        "summary": summarize_run(
            run, metrics, request, curves, _failure(job), ledger.training_rows if ledger else None
        ),
        "changes": metric_changes(metrics),
        "validation_changes": metric_changes(metrics.get("validation") or {}),
        "curves": curves,
        "loss_charts": loss_charts(curves, metrics.get("best") or {}),
        "learning_rate_chart": learning_rate_chart(curves),
        "ledger": ledger,
        "outcomes": OUTCOMES,
        "splits": _rows_by_split(ledger),
        "length_charts": length_charts(ledger, limit if isinstance(limit, int) else None),
        "samples": samples,
        "samples_missing": samples_missing,
        "warnings": unreadable + _warnings(run, metrics, curves, ledger),
        "settings": _settings(run),
        "files": _files(run),
        "command": shlex.join(str(word) for word in run.get("command") or request.get("command") or []),
        "artifact_bytes": job.artifact.stat().st_size if job.artifact.is_file() else None,
        "started": _format_date(run.get("started")),
    }


def _read(path: Path, unreadable: list[str]) -> dict[str, Any]:
    """Read a JSON object; empty if the file does not exist. Appends a line to `unreadable` if it cannot be parsed."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        unreadable.append(f"{path.name} cannot be read ({error}); its contents are missing from this page.")
        return {}
    return content if isinstance(content, dict) else {}


def _failure(job: JobFolder) -> str:
    try:
        return job.failure.read_text("utf-8", errors="replace")[:4000].strip()
    except OSError:
        return ""


def _samples(job: JobFolder, metrics: Mapping[str, Any]) -> tuple[SampleRows | None, str]:
    """Return the sample rows of the scored split, or the reason why there are none."""
    for split in (str(metrics.get("split") or ""), "test", "validation"):
        base, tuned = job.scores / f"base.{split}.jsonl", job.scores / f"tuned.{split}.jsonl"
        if split and base.is_file() and tuned.is_file():
            try:
                samples = choose_sample_rows(base, tuned)
            except LuthierError as error:
                return None, str(error)
            return (samples, "") if samples.rows else (None, f"the {split} split has no rows")
    return None, "there are no per-row scores of both models"


def _rows_by_split(ledger: LedgerSummary | None) -> list[tuple[str, dict[str, int]]]:
    """Rows per split and outcome, known splits first."""
    if ledger is None:
        return []
    known = [split for split in SPLITS if split in ledger.by_split]
    others = sorted(set(ledger.by_split) - set(SPLITS))
    return [(split or "none", dict(ledger.by_split[split])) for split in known + others]


def _warnings(
    run: Mapping[str, Any], metrics: Mapping[str, Any], curves: Curves, ledger: LedgerSummary | None
) -> list[str]:
    """Reasons to read the numbers with care."""
    lines = [str(line) for line in [*(run.get("warnings") or []), *(metrics.get("notes") or [])]]
    if metrics.get("split") == "validation" and not any("chose the checkpoint" in line for line in lines):
        lines.append(
            "There is no test split: these are the scores of the validation rows, which also chose the checkpoint, so "
            "they are optimistic. Set test_split_ratio or pass --test for an independent test split."
        )
    if curves.not_finite:
        lines.append(f"{curves.not_finite:,} logged values are NaN or infinite and not drawn: training diverged.")
    if curves.skipped:
        lines.append(f"{curves.skipped:,} lines of metrics.jsonl are incomplete and were skipped.")
    if ledger and ledger.invalid_lines:
        lines.append(f"{ledger.invalid_lines:,} lines of ledger.jsonl are incomplete and were skipped.")
    return list(dict.fromkeys(lines))


def _settings(run: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
    """(name, value, whether the user set it), those set by the user first."""
    user_set = set(run.get("given") or [])
    rows = [(str(name), value, name in user_set) for name, value in (run.get("settings") or {}).items()]
    return sorted(rows, key=lambda row: (not row[2], row[0]))


def _files(run: Mapping[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """The first data files with their hashes, and the number of files left out."""
    files = [(str(name), str(digest)) for name, digest in ((run.get("data") or {}).get("files") or {}).items()]
    return files[:MAX_FILES], max(0, len(files) - MAX_FILES)


def _format_date(text: Any) -> str:
    try:
        return datetime.fromisoformat(str(text)).strftime("%-d %B %Y, %H:%M %Z").strip()
    except ValueError:
        return ""


def format_count(value: Any) -> str:
    """Format a count with thousands separators; a dash for None."""
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.0f}"


def format_duration(value: float | None) -> str:
    """Format seconds: 8.2 s, 3 min 5 s, 2 h 10 min."""
    if value is None:
        return "–"
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def format_bytes(value: float | None) -> str:
    """Format bytes in powers of 1024."""
    if value is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def format_setting(value: Any) -> str:
    """Format a setting as in YAML."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
