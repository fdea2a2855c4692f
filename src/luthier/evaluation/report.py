"""report.html: one run on one page that needs nothing else, no network, no script.

Reads only the run folder's files, any of which may be missing (a run that was interrupted, has no held-out rows or
was not scored): the page then says so. Files that grow with the data are streamed. Row texts are hostile input:
everything is escaped by the template engine, and a content security policy forbids loading anything.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from luthier.catalog.metrics import METRICS
from luthier.errors import LuthierError
from luthier.evaluation.curves import Curves, read_curves
from luthier.evaluation.fates import FATES, SPLITS, Fates, read_fates
from luthier.evaluation.headline import headline
from luthier.evaluation.pictures import changes, length_picture, loss_picture, rate_picture
from luthier.evaluation.samples import Samples, choose_samples
from luthier.jobfolder import JobFolder

MOST_FILES = 20
"""Data files whose hashes are listed one by one."""


def write_report(job: JobFolder) -> Path:
    """Write report.html from what the run folder holds, and return its path. Never loads a model."""
    template = resources.files("luthier.evaluation").joinpath("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(grouped=grouped, seconds=shown_seconds, size=shown_size, value=shown_value)
    page = environment.from_string(template).render(**_contents(job))
    temporary = job.report.with_name(f".{job.report.name}.{os.getpid()}")
    temporary.write_text(page, "utf-8", errors="replace")  # a lone surrogate must not cost the report
    os.replace(temporary, job.report)
    return job.report


def _contents(job: JobFolder) -> dict[str, Any]:
    torn: list[str] = []
    run, metrics = _read(job.root / "run.json", torn), _read(job.metrics, torn)
    order = _read(job.config / "job.json", torn)
    curves, fates = read_curves(job.metrics_lines), read_fates(job.ledger)
    limit = run.get("settings", {}).get("max_input_length")
    samples, samples_missing = _samples(job, metrics)
    return {
        "name": job.root.name,
        "run": run,
        "metrics": metrics,
        "headline": headline(run, metrics, order, curves, _failure(job), fates.trained if fates else None),
        "changes": changes(metrics),
        "validation_changes": changes(metrics.get("validation") or {}),
        "all_metrics": METRICS,
        "curves": curves,
        "loss_pictures": loss_picture(curves, metrics.get("best") or {}),
        "rate_picture": rate_picture(curves),
        "fates": fates,
        "fate_names": FATES,
        "splits": _splits(fates),
        "length_pictures": length_picture(fates, limit if isinstance(limit, int) else None),
        "samples": samples,
        "samples_missing": samples_missing,
        "warnings": torn + _warnings(run, metrics, curves, fates),
        "settings": _settings(run),
        "files": _files(run),
        "command": shlex.join(str(word) for word in run.get("command") or order.get("command") or []),
        "artifact_bytes": job.artifact.stat().st_size if job.artifact.is_file() else None,
        "started": _day(run.get("started")),
    }


def _read(path: Path, torn: list[str]) -> dict[str, Any]:
    """A JSON object of the run folder; empty where there is none, with a line in `torn` where it cannot be read."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        torn.append(f"{path.name} cannot be read ({error}); what it holds is missing here.")
        return {}
    return content if isinstance(content, dict) else {}


def _failure(job: JobFolder) -> str:
    try:
        return job.failure.read_text("utf-8", errors="replace")[:4000].strip()
    except OSError:
        return ""


def _samples(job: JobFolder, metrics: Mapping[str, Any]) -> tuple[Samples | None, str]:
    """The sample rows of the scored split, or why there are none."""
    splits = [str(metrics.get("split") or ""), "test", "validation"]
    for split in splits:
        base, tuned = job.scores / f"base.{split}.jsonl", job.scores / f"tuned.{split}.jsonl"
        if split and base.is_file() and tuned.is_file():
            try:
                samples = choose_samples(base, tuned)
            except LuthierError as error:
                return None, str(error)
            return (samples, "") if samples.rows else (None, f"the {split} split has no rows")
    return None, "base and tuned model were not both scored row by row"


def _splits(fates: Fates | None) -> list[tuple[str, dict[str, int]]]:
    """Rows per split and fate, the known splits first."""
    if fates is None:
        return []
    known = [split for split in SPLITS if split in fates.by_split]
    others = sorted(set(fates.by_split) - set(SPLITS))
    return [(split or "no split", dict(fates.by_split[split])) for split in known + others]


def _warnings(run: Mapping[str, Any], metrics: Mapping[str, Any], curves: Curves, fates: Fates | None) -> list[str]:
    """What a reader must know before believing the numbers."""
    lines = [str(line) for line in [*(run.get("warnings") or []), *(metrics.get("notes") or [])]]
    if metrics.get("split") == "validation" and not any("chose the checkpoint" in line for line in lines):
        lines.append(
            "There is no test split: the rows scored here are the validation rows, which also chose the checkpoint, so "
            "the numbers lean to the good side. Set test_split_ratio, or give --test, for an untouched split."
        )
    if curves.not_finite:
        lines.append(f"{curves.not_finite:,} logged values are not finite and are not drawn: training diverged there.")
    if curves.skipped:
        lines.append(f"{curves.skipped:,} lines of metrics.jsonl are torn and were skipped.")
    if fates and fates.unreadable:
        lines.append(f"{fates.unreadable:,} lines of ledger.jsonl are torn and were skipped.")
    return list(dict.fromkeys(lines))


def _settings(run: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
    """(name, value, whether the user gave it), the given ones first."""
    given = set(run.get("given") or [])
    rows = [(str(name), value, name in given) for name, value in (run.get("settings") or {}).items()]
    return sorted(rows, key=lambda row: (not row[2], row[0]))


def _files(run: Mapping[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """The first data files with their hashes, and how many more there are."""
    files = [(str(name), str(digest)) for name, digest in ((run.get("data") or {}).get("files") or {}).items()]
    return files[:MOST_FILES], max(0, len(files) - MOST_FILES)


def _day(text: Any) -> str:
    try:
        return datetime.fromisoformat(str(text)).strftime("%-d %B %Y, %H:%M %Z").strip()
    except ValueError:
        return ""


def grouped(value: Any) -> str:
    """A count for people; a dash where there is none."""
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.0f}"


def shown_seconds(value: float | None) -> str:
    """Seconds for people: 8.2 s, 3 min 5 s, 2 h 10 min."""
    if value is None:
        return "–"
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def shown_size(value: float | None) -> str:
    """Bytes for people, in powers of 1024."""
    if value is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def shown_value(value: Any) -> str:
    """A setting as one would write it in YAML."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
