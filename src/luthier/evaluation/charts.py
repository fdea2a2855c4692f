"""Small charts as inline SVG, coloured by CSS classes so that they follow the page's light and dark theme.

    line_chart()  several series of (x, y) points, with axes, hover titles and one marked point
    histogram()   bars over ranges of whole numbers
    dumbbell()    base and tuned value on one track, for a table cell

Every text put into a chart is escaped here. Knows nothing of runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart. `style`: CSS class; `dots`: draw each point with a hover title."""

    label: str
    style: str
    points: Points
    dots: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotArea:
    """Maps values to pixels: size and margins of the chart, and the range of values on each axis."""

    width: int
    height: int
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    left: int = 46
    right: int = 14
    top: int = 12
    bottom: int = 34

    def x(self, value: float) -> float:
        span = (self.x_high - self.x_low) or 1.0
        return round(self.left + (value - self.x_low) / span * (self.width - self.left - self.right), 2)

    def y(self, value: float) -> float:
        span = (self.y_high - self.y_low) or 1.0
        return round(
            self.height - self.bottom - (value - self.y_low) / span * (self.height - self.top - self.bottom), 2
        )


def axis_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round values between low and high."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / max(count, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def format_tick(value: float) -> str:
    """Format an axis value: short, with an exponent when very small or large."""
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def line_chart(
    series: Sequence[Series], width: int, height: int, *, mark: tuple[float, float, str] | None = None,
    x_label: str = "step", description: str = "",
) -> Markup:  # fmt: skip
    """Draw series on shared axes; `mark` circles the point (x, y) and labels it."""
    points = [point for line in series for point in line.points]
    if not points:
        return Markup("")
    values = [value for _, value in points]
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    floor = 0.0 if 0 <= low < 0.35 * high else low - margin
    steps = [step for step, _ in points]
    area = PlotArea(width=width, height=height, x_low=min(steps), x_high=max(steps), y_low=floor, y_high=high + margin)
    parts = [_axes(area, x_label)]
    for line in series:
        path = " ".join(f"{'L' if index else 'M'}{area.x(x)} {area.y(y)}" for index, (x, y) in enumerate(line.points))
        parts.append(f'<path class="line {escape(line.style)}" d="{path}"/>')
        if line.dots:
            parts += [_dot(area, line, x, y) for x, y in line.points]
    if mark:
        parts.append(_mark(area, *mark))
    return _svg(area.width, area.height, "".join(parts), description)


def histogram(
    bars: Sequence[tuple[float, float, int]], width: int, height: int, *, limit: float | None = None,
    x_label: str = "tokens", unit: str = "rows", description: str = "",
) -> Markup:  # fmt: skip
    """Draw bars of (start, end exclusive, count); `limit` draws a labelled vertical line at that x."""
    if not bars:
        return Markup("")
    end = max(bars[-1][1], limit or 0)
    tallest = max(count for _, _, count in bars)
    area = PlotArea(width=width, height=height, x_low=bars[0][0], x_high=end, y_low=0, y_high=tallest * 1.08 or 1)
    parts = [_axes(area, x_label)]
    for low, high, count in bars:
        left, right, top = area.x(low), area.x(high), area.y(count)
        if count:
            top = min(top, area.y(0) - 1.5)  # keep a single row visible
            title = f"{low:,.0f} to {high - 1:,.0f} {x_label}: {count:,} {unit}"
            parts.append(
                f'<rect class="bar" x="{left + 0.5:.2f}" y="{top:.2f}" width="{max(right - left - 1, 1):.2f}" '
                f'height="{area.y(0) - top:.2f}" rx="1.5"><title>{escape(title)}</title></rect>'
            )
    if limit is not None:
        x = area.x(limit)
        parts.append(f'<line class="limit" x1="{x}" x2="{x}" y1="{area.top}" y2="{area.y(0)}"/>')
        parts.append(f'<text class="note" x="{x - 6}" y="{area.top + 11}" text-anchor="end">limit {limit:,.0f}</text>')
    return _svg(width, height, "".join(parts), description)


def dumbbell(base: float, tuned: float, top: float, style: str, title: str) -> Markup:
    """Draw both values on a track from 0 to `top`: base hollow, tuned filled and coloured by CSS class `style`."""
    width, height, pad = 150, 18, 7
    x = [round(pad + min(max(value / (top or 1.0), 0), 1) * (width - 2 * pad), 2) for value in (base, tuned)]
    middle = height / 2
    content = (
        f"<title>{escape(title)}</title>"
        f'<line class="track" x1="{pad}" x2="{width - pad}" y1="{middle}" y2="{middle}"/>'
        f'<line class="change {escape(style)}" x1="{x[0]}" x2="{x[1]}" y1="{middle}" y2="{middle}"/>'
        f'<circle class="from" cx="{x[0]}" cy="{middle}" r="4.5"/>'
        f'<circle class="to {escape(style)}" cx="{x[1]}" cy="{middle}" r="5.5"/>'
    )
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return Markup(f'<svg class="dumbbell" {size} role="img">{content}</svg>')  # noqa: S704 - escaped above


def _svg(width: int, height: int, content: str, description: str) -> Markup:
    label = f' aria-label="{escape(description)}"' if description else ""
    return Markup(f'<svg class="chart" viewBox="0 0 {width} {height}" role="img"{label}>{content}</svg>')  # noqa: S704


def _axes(area: PlotArea, x_label: str) -> str:
    parts = []
    right, floor = area.width - area.right, area.height - area.bottom
    left = area.left - 8
    for value in axis_ticks(area.y_low, area.y_high, max(2, (floor - area.top) // 48)):
        y = area.y(value)
        parts.append(f'<line class="grid" x1="{area.left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{left}" y="{y + 4}" text-anchor="end">{format_tick(value)}</text>')
    for value in axis_ticks(area.x_low, area.x_high, max(2, area.width // 110)):
        if value == int(value):
            x = area.x(value)
            parts.append(
                f'<text class="tick" x="{x}" y="{floor + 17}" text-anchor="middle">{format_tick(value)}</text>'
            )
    parts.append(f'<line class="axis" x1="{area.left}" x2="{right}" y1="{floor}" y2="{floor}"/>')
    parts.append(f'<text class="tick" x="{right}" y="{area.height - 3}" text-anchor="end">{escape(x_label)}</text>')
    return "".join(parts)


def _dot(area: PlotArea, series: Series, x: float, y: float) -> str:
    title = escape(f"{series.label} at step {x:,.0f}: {y:.4g}")
    place = f'cx="{area.x(x)}" cy="{area.y(y)}"'
    return f'<circle class="dot {escape(series.style)}" {place} r="3.5"><title>{title}</title></circle>'


def _mark(area: PlotArea, x: float, y: float, text: str) -> str:
    place, level = area.x(x), area.y(y)
    anchor, shift = ("end", -2) if place > area.width * 0.6 else ("start", 2)
    above = level - 14 > area.top + 6
    return (
        f'<circle class="best" cx="{place}" cy="{level}" r="7.5"/>'
        f'<text class="note strong" x="{place + shift}" y="{level - 14 if above else level + 24}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
