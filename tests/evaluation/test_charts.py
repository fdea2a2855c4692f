"""Charts are well-formed, to scale, and escape what they are given."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from luthier.evaluation.charts import Series, axis_ticks, dumbbell, format_tick, histogram, line_chart

HOSTILE = "</svg><script>alert(1)</script>\"'"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.1, 0.5, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (3, 3, [3]),
        (0, 2e-4, [0, 5e-5, 1e-4, 1.5e-4, 2e-4]),
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert axis_ticks(low, high, 5) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.25, "0.25"), (2e-4, "2e-4"), (1500, "1,500"), (2.5e7, "2.5e7")]
)
def test_tick_text(value: float, text: str) -> None:
    assert format_tick(value) == text


def test_lines_are_to_scale() -> None:
    svg = ElementTree.fromstring(line_chart([Series("a", "train", [(0, 0.0), (5, 1.0), (10, 2.0)])], 460, 246))
    path = svg.find("path")
    assert path is not None
    points = [tuple(map(float, point[1:].split())) for point in path.attrib["d"].replace(" L", "|L").split("|")]
    assert [x for x, _ in points] == [46, 246, 446]
    assert points[0][1] - points[1][1] == pytest.approx(points[1][1] - points[2][1], abs=0.02)
    assert points[0][1] == 246 - 34


def test_one_point_and_no_points() -> None:
    ElementTree.fromstring(line_chart([Series("a", "train", [(1, 1.0)])], 460, 246))
    assert line_chart([Series("a", "train", [])], 460, 246) == ""
    assert histogram([], 460, 246) == ""


def test_dots_have_titles_and_the_best_is_marked() -> None:
    svg = line_chart([Series("eval", "eval", [(1, 1.0), (2, 0.5)], dots=True)], 460, 246, mark=(2, 0.5, "best"))
    assert "<title>eval at step 2: 0.5</title>" in svg
    assert 'class="best"' in svg


def test_everything_is_escaped() -> None:
    drawn = [
        line_chart(
            [Series(HOSTILE, HOSTILE, [(1, 1.0)], dots=True)],
            460,
            246,
            mark=(1, 1, HOSTILE),
            x_label=HOSTILE,
            description=HOSTILE,
        ),
        histogram([(0, 5, 1)], 460, 246, limit=3, x_label=HOSTILE, unit=HOSTILE, description=HOSTILE),
        dumbbell(0.1, 0.2, 1, HOSTILE, HOSTILE),
    ]
    for svg in drawn:
        assert "<script" not in svg
        ElementTree.fromstring(svg)


def test_histogram_bars_are_to_scale() -> None:
    svg = ElementTree.fromstring(histogram([(0, 10, 5), (10, 20, 10), (20, 30, 0)], 460, 246))
    heights = [float(bar.attrib["height"]) for bar in svg.findall("rect")]
    assert len(heights) == 2
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.05)


def test_dumbbell_places_values() -> None:
    svg = ElementTree.fromstring(dumbbell(0.0, 5.0, 1.0, "better", "t"))
    assert [float(circle.attrib["cx"]) for circle in svg.findall("circle")] == [7, 143]
