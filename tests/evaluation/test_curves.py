"""Reading metrics.jsonl, smoothing and thinning."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.evaluation.curves import read_curves, smoothed, thinned


def test_reads_both_kinds_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": 3.0, "learning_rate": 0.1}\n'
        '{"step": 2, "loss": 2.0, "learning_rate": 0.2}\n'
        '{"step": 2, "eval_loss": 2.5, "eval_token_accuracy": 0.5}\n'
        '{"step": 2, "loss": 1.5}\n'
        '{"step": 3, "loss": NaN}\n'
        '{"loss": 1}\n'
        '{"step": 4, "lo'
    )
    curves = read_curves(path)
    assert curves.loss == [(1, 3.0), (2, 1.5)]
    assert curves.learning_rate == [(1, 0.1), (2, 0.2)]
    assert curves.eval_loss == [(2, 2.5)]
    assert curves.eval_token_accuracy == [(2, 0.5)]
    assert (curves.skipped, curves.not_finite) == (2, 1)


def test_a_missing_file_is_empty(tmp_path: Path) -> None:
    assert read_curves(tmp_path / "none").loss == []


def test_smoothing_keeps_a_line_straight() -> None:
    line = [(float(step), 2.0 * step) for step in range(101)]
    assert [value for _, value in smoothed(line, 0.1)] == pytest.approx([value for _, value in line])


def test_smoothing_averages() -> None:
    assert smoothed([(1, 0.0), (2, 3.0), (3, 0.0)]) == [(1, 0.0), (2, 1.0), (3, 0.0)]
    assert smoothed([]) == []


def test_thinning() -> None:
    points = [(float(step), float(step % 2)) for step in range(1000)]
    thin = thinned(points, 100)
    assert len(thin) == 100
    assert thin[0] == (4.5, 0.5)
    assert thinned(points[:7], 100) == points[:7]
