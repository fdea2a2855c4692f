"""The report page: complete, safe with untrusted rows, and explicit about missing data."""

from __future__ import annotations

import json
import re
import shutil
import tracemalloc
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fake_run import RUN, build_run, ledger_lines, score_rows, write_lines

from luthier.evaluation.report import format_bytes, format_count, format_duration, format_setting, write_report
from luthier.evaluation.report_charts import MAX_BARS, length_bars
from luthier.jobfolder import JobFolder
from luthier.jobspec import JobSpec

HOSTILE = (
    '<script>alert("x")</script><img src=http://evil.example/a.png onerror=alert(1)>{{ 7*7 }}{% raw %}</pre></style>'
)


class Page(HTMLParser):
    """Collects tags, the attributes that can load or run something, and the text."""

    VOID = frozenset({"meta", "br", "img", "input", "link", "hr"})
    SHAPES = frozenset({"path", "line", "circle", "rect"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loads: list[tuple[str, str]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            loads = name in ("src", "href", "srcset", "action", "data", "poster") or name.startswith("on")
            if loads or (name == "style" and "url(" in (value or "")):
                self.loads.append((name, value or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"unexpected </{tag}>"
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def render(job: JobFolder) -> tuple[str, Page]:
    assert write_report(job) == job.report
    source = job.report.read_text("utf-8")
    return source, Page(source)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    return build_run(tmp_path_factory.mktemp("runs") / "finished", rows=60, ledger_rows=800, steps=80)


@pytest.fixture
def job(finished: JobFolder, tmp_path: Path) -> JobFolder:
    """A copy of a finished run, to take things away from."""
    shutil.copytree(finished.root, tmp_path / "run")
    return JobFolder(tmp_path / "run")


def assert_harmless(source: str, page: Page) -> None:
    assert not set(page.tags) & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "video", "audio"}
    assert all(name == "href" and value.startswith("#") for name, value in page.loads), page.loads
    style = re.findall(r"<style>(.*?)</style>", source, re.S)
    assert len(style) == 1
    assert "url(" not in style[0]
    assert "@import" not in style[0]
    assert "default-src 'none'" in source


def test_a_finished_run_has_it_all(job: JobFolder) -> None:
    source, page = render(job)
    metrics = json.loads(job.metrics.read_text())
    assert "Measurably better" in page.text
    assert f"{metrics['base']['loss']:.3f}" in page.text
    assert f"{metrics['tuned']['exact_match']:.3f}" in page.text
    for words in (
        "95 % interval",
        "F1 (macro)",
        "best: ",
        "Learning rate",
        "Most improved",
        "Got worse",
        "Random",
        "the completion is empty",
        "dropped rows",
        "Row length in tokens",
        "3 rows of the test split nearly",
        "luthier tune examples/reviews --set epoch=3",
        "9c9c9c",
        "4f4f4f",
        "a1a1a1",
        "2.13.0+cpu",
        "869.8 MiB",
        "1,530",
        "2 min 21 s",
        "test_split_ratio",
        "Review: {review}",
        "validation rows, which chose",
    ):
        assert words in page.text, words
    assert "no test split" not in page.text
    assert source.count('<svg class="chart"') == 5
    assert_harmless(source, page)


def test_given_settings_come_first(job: JobFolder) -> None:
    text = render(job)[1].text
    assert (
        text.index("Set for this run")
        < text.index("0.1", text.index("Set for this run"))
        < text.index("early_stopping_patience")
    )
    assert "10 settings with default values" in text


def test_scoring_the_validation_split_is_said(tmp_path: Path) -> None:
    _, page = render(build_run(tmp_path / "run", rows=30, ledger_rows=10, steps=16, split="validation"))
    assert "which also chose the checkpoint" in page.text


def test_hostile_text_is_only_text(job: JobFolder) -> None:
    write_lines(
        job.scores / "base.test.jsonl",
        [
            row | {"prompt": HOSTILE, "row": HOSTILE + row["row"], "reference": HOSTILE, "prediction": HOSTILE}
            for row in score_rows(1, 0.5, 1, 30)
        ],
    )
    write_lines(
        job.scores / "tuned.test.jsonl",
        [
            row
            | {
                "prompt": HOSTILE,
                "row": HOSTILE + row["row"],
                "reference": HOSTILE,
                "prediction": "\u202e" + HOSTILE * 20,
            }
            for row in score_rows(1, 0.5, 1, 30)
        ],
    )
    write_lines(
        job.ledger,
        [
            line | {"row": HOSTILE, "reason": HOSTILE, "side": HOSTILE, "cut_side": HOSTILE, "fate": fate}
            for line in ledger_lines(9)
            for fate in ("kept", "truncated", "dropped")
        ],
    )
    run = RUN | {
        "template": {HOSTILE: HOSTILE},
        "template_origin": HOSTILE,
        "command": ["luthier", HOSTILE],
        "kind": HOSTILE,
        "model": {"name": HOSTILE},
        "warnings": [HOSTILE],
        "settings": {HOSTILE: HOSTILE},
        "given": [HOSTILE],
        "versions": {HOSTILE: HOSTILE},
        "device": HOSTILE,
        "started": HOSTILE,
        "data": {"fingerprint": HOSTILE, "files": {HOSTILE: HOSTILE}},
    }
    (job.root / "run.json").write_text(json.dumps(run))
    metrics = json.loads(job.metrics.read_text())
    job.metrics.write_text(json.dumps(metrics | {"split": "test", "notes": [HOSTILE], "stopped": HOSTILE}))
    job.output.mkdir()
    job.failure.write_text(HOSTILE)
    source, page = render(job)
    assert HOSTILE not in source
    assert page.text.count(HOSTILE) > 15
    assert "{{ 7*7 }}" in page.text
    assert_harmless(source, page)


def test_a_lone_surrogate_does_not_cost_the_report(job: JobFolder) -> None:
    for model in ("base", "tuned"):
        row = json.dumps(score_rows(1, 0.5, 1, 1)[0] | {"prediction": "half a \ud83d pair", "reference": "\ud83d"})
        (job.scores / f"{model}.test.jsonl").write_text(row + "\n")
    assert "half a ? pair" in render(job)[1].text


def test_what_the_run_says_of_its_split_is_said_once(job: JobFolder) -> None:
    metrics = json.loads(job.metrics.read_text())
    note = "the scored rows are the validation rows, which also chose the checkpoint"
    job.metrics.write_text(json.dumps(metrics | {"split": "validation", "notes": [note], "validation": None}))
    assert render(job)[1].text.count("chose the checkpoint") == 1


def test_a_run_that_only_began(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "run")
    job.create(JobSpec(model="luthier/tiny", command=["luthier", "tune", "my data"]), {})
    source, page = render(job)
    for words in (
        "Not finished",
        "No training step has been logged",
        "No curves",
        "No samples",
        "No ledger",
        "No costs",
        "No settings",
        "luthier tune 'my data'",
    ):
        assert words in page.text, words
    assert_harmless(source, page)


def test_an_interrupted_run_shows_its_curves(job: JobFolder) -> None:
    job.metrics.unlink()
    shutil.rmtree(job.scores)
    with open(job.metrics_lines, "a") as handle:
        handle.write('{"step": 81, "lo')
    _, page = render(job)
    assert "The last logged step is 80" in page.text
    assert "1 lines of metrics.jsonl are incomplete" in page.text
    assert "No before/after table" in page.text
    assert "training, smoothed" in page.text


def test_a_failed_run_says_why(job: JobFolder) -> None:
    job.metrics.unlink()
    job.output.mkdir()
    job.failure.write_text("out of memory at step 3")
    assert "out of memory at step 3" in render(job)[1].text


def test_no_validation_and_no_generation(job: JobFolder) -> None:
    lines = [line for line in job.metrics_lines.read_text().splitlines() if "eval_loss" not in line]
    job.metrics_lines.write_text("\n".join(lines) + "\n")
    for model in ("base", "tuned"):
        write_lines(
            job.scores / f"{model}.test.jsonl", [row | {"prediction": None} for row in score_rows(1, 0.5, 1, 30)]
        )
    metrics = json.loads(job.metrics.read_text())
    for block in ("base", "tuned", "difference"):
        metrics[block] |= dict.fromkeys(["rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match", "f1"])
    job.metrics.write_text(
        json.dumps(metrics | {"scored_by_generation": 0, "best": None, "validation": None, "cost": {}})
    )
    _, page = render(job)
    for words in (
        "No evaluation loss",
        "none of them by generation",
        "No texts were generated",
        "not generated",
        "No costs",
    ):
        assert words in page.text, words
    assert "ROUGE-1" not in page.text


def test_torn_files_are_named(job: JobFolder) -> None:
    (job.root / "run.json").write_text('{"model": ')
    job.scores.joinpath("base.test.jsonl").write_text("{torn\n")
    text = render(job)[1].text
    assert "run.json cannot be read" in text
    assert "base.test.jsonl:1: invalid scores row" in text


def test_huge_rows_and_ledgers_stay_bounded(job: JobFolder) -> None:
    for model in ("base", "tuned"):
        rows = [row | {"prompt": "word " * 50_000} for row in score_rows(1, 0.5, 1, 20)]
        write_lines(job.scores / f"{model}.test.jsonl", rows)
    write_lines(job.ledger, ledger_lines(20_000))
    tracemalloc.start()
    source, page = render(job)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "more characters not shown" in page.text
    assert len(source) < 400_000
    assert peak < 20e6


def test_bars_cover_every_row() -> None:
    lengths = np.zeros(70_000, dtype=np.int64)
    lengths[[3, 999, 1000, 65_536]] = 2
    bars = length_bars(lengths)
    assert sum(count for _, _, count in bars) == 8
    assert len(bars) <= MAX_BARS + 1
    assert all(high == following for (_, high, _), (following, _, _) in pairwise(bars))
    one = np.zeros(10, dtype=np.int64)
    one[4] = 1
    assert length_bars(one) == [(4, 5, 1)]


def test_numbers_for_people() -> None:
    assert [format_count(value) for value in (None, 1234567, 1529.7)] == ["–", "1,234,567", "1,530"]
    assert [format_duration(value) for value in (None, 8.16, 59.97, 185, 7900.0)] == [
        "–",
        "8.2 s",
        "1 min 0 s",
        "3 min 5 s",
        "2 h 11 min",
    ]
    assert [format_bytes(value) for value in (None, 12, 2048, 3 * 2**40)] == ["–", "12 B", "2.0 KiB", "3.0 TiB"]
    assert [format_setting(value) for value in ("a", None, True, 0.1)] == ["a", "null", "true", "0.1"]
