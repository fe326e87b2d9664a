"""Draws the layers of a run under the roofs of a device, as SVG."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["roofline"]

_WIDTH, _HEIGHT = 760, 470
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 46, 56
_COLORS = {"temporal": "#1f77b4", "dense": "#d9730d"}


class _Axes:
    """Logarithmic axes with whole decades at their ends."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self.x = _decades(xs)
        self.y = _decades(ys)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return the point of a pair of values on the page."""
        at_x = (math.log10(x) - self.x[0]) / (self.x[1] - self.x[0])
        at_y = (math.log10(y) - self.y[0]) / (self.y[1] - self.y[0])
        left = _LEFT + at_x * (_WIDTH - _LEFT - _RIGHT)
        return round(left, 1), round(_HEIGHT - _BOTTOM - at_y * (_HEIGHT - _TOP - _BOTTOM), 1)


def roofline(runs: Sequence[Mapping[str, Any]]) -> str:
    """Draw the layers of some runs of one device.

    A full mark is what the array reaches, an empty one what is left with the link, which nothing
    overlaps with.

    Parameters
    ----------
    runs
        Results of :func:`ditto.host.bench.measure`, all of one model and configuration.
    """
    best = runs[0]["ideal"]
    roof, link = best["products_per_cycle"], best["link_bytes_per_cycle"]
    points = [
        (run["mode"], layer, *_point(layer))
        for run in runs
        for layer in run["layers"]
        if layer["products"]
    ]
    xs = [x for _, _, x, _, _ in points] + [roof / link]
    ys = [y for _, _, _, *both in points for y in both] + [roof]
    axes = _Axes(xs, ys)
    shapes = [*_grid(axes), *_roofs(axes, roof, link, best["weight_bytes_per_cycle"])]
    for mode, layer, x, array, whole in points:
        color = _COLORS.get(mode, "#555")
        title = f"<title>{escape(layer['name'])} ({mode}), bound by {layer['bound']}</title>"
        (left, high), (_, low) = axes.place(x, array), axes.place(x, whole)
        shapes += [
            f'<line x1="{left}" y1="{high}" x2="{left}" y2="{low}" stroke="{color}" '
            'stroke-opacity="0.3"/>',
            f'<circle cx="{left}" cy="{high}" r="4" fill="{color}">{title}</circle>',
            f'<circle cx="{left}" cy="{low}" r="4" fill="white" stroke="{color}">{title}</circle>',
        ]
    heading = f"{runs[0]['model']}: layers of {runs[0]['steps']} steps"
    shapes.append(_text(_LEFT, 22, heading, size=15))
    for number, mode in enumerate(dict.fromkeys(run["mode"] for run in runs)):
        left = _WIDTH - _RIGHT - 330 + 90 * number
        shapes.append(
            f'<circle cx="{left}" cy="18" r="4" fill="{_COLORS.get(mode, "#555")}"/>'
            + _text(left + 9, 22, mode)
        )
    shapes.append(_text(_WIDTH - _RIGHT, 22, "empty: with the link", anchor="end"))
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
    )


def _point(layer: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return products per byte, and products per cycle without and with the link."""
    products = layer["products"]
    return (
        products / max(layer["link_bytes_in"] + layer["link_bytes_out"], 1),
        products / max(layer["array_cycles"], 1),
        products / max(layer["array_cycles"] + layer["link_cycles"], 1),
    )


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _grid(axes: _Axes) -> list[str]:
    shapes = []
    for decade in range(axes.x[0], axes.x[1] + 1):
        left, low = axes.place(10**decade, 10 ** axes.y[0])
        _, high = axes.place(10**decade, 10 ** axes.y[1])
        shapes.append(_line(left, low, left, high))
        shapes.append(_text(left, low + 18, f"{10**decade:g}", anchor="middle"))
    for decade in range(axes.y[0], axes.y[1] + 1):
        left, high = axes.place(10 ** axes.x[0], 10**decade)
        right, _ = axes.place(10 ** axes.x[1], 10**decade)
        shapes.append(_line(left, high, right, high))
        shapes.append(_text(left - 8, high + 4, f"{10**decade:g}", anchor="end"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    shapes.append(_text(middle, _HEIGHT - 14, "products per byte of the link", anchor="middle"))
    shapes.append(
        f'<g transform="rotate(-90 18 {_HEIGHT / 2})">'
        + _text(18, _HEIGHT / 2, "products per cycle", anchor="middle")
        + "</g>"
    )
    return shapes


def _roofs(axes: _Axes, roof: float, link: float, weights: float) -> list[str]:
    """Draw the link's roof up to the multipliers', and that one from there on."""
    start = max(10 ** axes.x[0], 10 ** axes.y[0] / link)
    corners = [(start, start * link), (roof / link, roof), (10 ** axes.x[1], roof)]
    places = " ".join(f"{x},{y}" for x, y in (axes.place(*corner) for corner in corners))
    left, high = axes.place(10 ** axes.x[1], roof)
    label = f"{roof:g} multipliers, {weights:g} bytes of weights per cycle"
    (x1, y1), (x2, y2) = (axes.place(*corner) for corner in corners[:2])
    along = math.degrees(math.atan2(y2 - y1, x2 - x1))
    return [
        f'<polyline points="{places}" fill="none" stroke="#222" stroke-width="2"/>',
        _text(left - 4, high - 7, label, anchor="end"),
        # Under the upper end of the slope, where layers are rare.
        f'<g transform="rotate({along:.1f} {x2} {y2})">'
        + _text(x2 - 4, y2 + 16, f"link, {link:g} byte per cycle", anchor="end")
        + "</g>",
    ]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
