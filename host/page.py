"""The report of an analysis: one HTML page that needs nothing else."""

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditto.host import png
from ditto.host.analysis import CLASSES, Analysis

__all__ = ["render"]

Facts = Mapping[str, Any]

_SHOWN = 16  # images of a grid
_WORDS = {
    "activation": "activations",
    "temporal": "temporal differences",
    "spatial": "spatial differences",
}
_RANGES = {"zero": "0", "narrow": "−8…7", "wide": "−128…127", "over": "over 8 bits"}
# From light to dark, also without color: white, sand, orange, red, violet, night.
_RAMP = [
    (255, 255, 255),
    (253, 231, 186),
    (251, 178, 96),
    (221, 81, 58),
    (131, 38, 94),
    (28, 16, 68),
]


def render(analysis: Analysis) -> str:
    """Return the page of an analysis, whose facts also hold ``threshold`` and ``advice``."""
    facts = analysis.facts
    runs = facts["runs"]
    parts = [
        _head(facts),
        _summary(facts),
        _advice(facts["advice"]),
        _thresholds(facts["threshold"]),
        _images(analysis),
        *(_run(index, run, facts) for index, run in enumerate(runs)),
        _method(facts),
    ]
    data = [
        {"layers": [e["name"] for e in run["layers"]], "maps": dict(_maps(run))} for run in runs
    ]
    own = files("ditto.host")
    style, script = (own.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    ramp = ",".join(f"rgb{color}" for color in _RAMP)
    style = f":root{{--ramp:{ramp}}}\n{style}"
    # No tag can end a script: "<" is written otherwise.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Temporal differences of {escape(_short(facts))}</title>\n"
        f"<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + f'\n</main>\n<script type="application/json" id="data">{text}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _short(facts: Facts) -> str:
    return str(facts["model"]).replace("\\", "/").rsplit("/", 1)[-1]


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}"


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _uri(pixels: NDArray[np.uint8]) -> str:
    return "data:image/png;base64," + base64.b64encode(png.encode(pixels)).decode()


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, sortable: bool = False) -> str:
    """Make a table; cells are HTML, and the first one of a row names it."""
    button = '<button type="button">{}</button>' if sortable else "{}"
    head = "".join(f'<th scope="col">{button.format(text)}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td>{cell}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _bar(shares: Mapping[str, float]) -> str:
    """Draw shares of the classes as a bar."""
    text = " / ".join(_percent(shares[name]) for name in CLASSES)
    spans = "".join(
        f'<i class="{name}" style="width:{100 * shares[name]:.2f}%"></i>' for name in CLASSES
    )
    return (
        f'<span class="bar" role="img" aria-label="{text}">{spans}</span>'
        f'<span class="figures">{text}</span>'
    )


def _legend() -> str:
    items = "".join(f'<span><i class="{n}"></i>{n} ({_RANGES[n]})</span>' for n in CLASSES)
    return f'<p class="legend">{items}</p>'


def _rule(facts: Facts) -> str:
    """Say which scales the figures are for."""
    return f'<p class="rule">scales: {escape(facts["scales"])}</p>'


def _title(run: Facts) -> str:
    return run["sampler"] + (f", tau {run['tau']}" if run["tau"] else "")


def _head(facts: Facts) -> str:
    first = facts["runs"][0]
    macs = sum(layer["macs"] for layer in first["layers"])
    return (
        f"<header><h1>Temporal differences of {escape(_short(facts))}</h1>"
        f"<p>{len(first['layers'])} quantized layers, {macs / 1e6:,.2f} million multiplications a "
        f"step, {first['state']['weights']:,} weights. Scales: <b>{escape(facts['scales'])}</b>. "
        f"{facts['samples']} samples, seed {facts['seed']}.</p></header>"
    )


def _summary(facts: Facts) -> str:
    blocks = []
    runs = facts["runs"]
    for run in [run for run in runs if not run["tau"]] or runs:
        means, bits, cycles = run["means"], run["means"]["bit_operations"], run["cycles"]
        compared = run["quality"].get("float") or run["quality"].get("lossless")
        against = "float" if "float" in run["quality"] else "no threshold"
        tiles = [
            (f"{_percent(bits['temporal'])} %", "bit operations against a dense 8-bit array"),
            (f"{_percent(bits['activation'])} %", "the same for activations without their zeros"),
            (
                f"{cycles['ratio']:.2f}×" if cycles else "–",
                "cycles of dense runs against temporal ones",
            ),
            (
                f"{means['cosine']['temporal']:.4f}",
                f"cosine of steps that follow each other; {means['cosine']['spatial']:.4f} of "
                "neighbours in a row",
            ),
        ]
        if compared:
            tiles.append(
                (
                    f"{_number(compared['psnr'])} dB" if compared["psnr"] is not None else "equal",
                    f"PSNR against {against}; SSIM {compared['ssim']:.4f}",
                )
            )
        bars = "".join(
            f"<dt>{_WORDS[kind]}</dt><dd>{_bar(means[kind])}</dd>"
            for kind in ("temporal", "spatial", "activation")
        )
        blocks.append(
            f'<section class="card"><h3>{_title(run)}</h3>'
            f'{_rule(facts)}<div class="tiles">'
            + "".join(f"<div><b>{value}</b><span>{text}</span></div>" for value, text in tiles)
            + f"</div><dl>{bars}</dl></section>"
        )
    return (
        '<section id="summary"><h2>In short</h2>'
        "<p>Shares of values in %, weighted by multiplications.</p>"
        f'{_legend()}<div class="cards">{"".join(blocks)}</div>'
        f"{_runs(facts) if len(runs) > 1 else ''}</section>"
    )


def _runs(facts: Facts) -> str:
    """Make a table of all runs."""
    heads = ["run", "zero %", "narrow %", "wide %", "over %"]
    heads += ["bit operations %", "best mode of each layer %", "cycles ratio", "PSNR, dB", "SSIM"]
    rows = []
    for run in facts["runs"]:
        means, compared = run["means"], run["quality"].get(facts["against"])
        bits = means["bit_operations"]
        rows.append(
            [
                _title(run),
                *(_percent(means["temporal"][name]) for name in CLASSES[:3]),
                _percent(means["temporal"]["over"], 3),
                _percent(bits["temporal"]),
                _percent(bits["best"]),
                _number(run["cycles"] and run["cycles"]["ratio"], 2),
                _number(compared and compared["psnr"]),
                _number(compared and compared["ssim"], 4),
            ]
        )
    return (
        f"<h3>All runs, temporal differences</h3>{_rule(facts)}{_table(heads, rows, sortable=True)}"
    )


def _advice(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<section id="next"><h2>What to do next</h2><ol>{items}</ol></section>'


def _thresholds(entries: Sequence[Facts]) -> str:
    if not entries:
        return ""
    blocks = []
    for entry in entries:
        against = "float" if entry["against"] == "float" else "no threshold"
        rows = [
            [
                f"{p['tau']}" + (" ★" if p["tau"] == entry["suggested"] else ""),
                _percent(p["zero"]),
                _percent(p["bit_operations"]),
                _number(p["cycles"], 0),
                "equal" if p["psnr"] is None else _number(p["psnr"]),
                _number(p["ssim"], 4),
            ]
            for p in entry["curve"]
        ]
        heads = [
            "tau",
            "zero %",
            "bit operations %",
            "cycles a step",
            f"PSNR against {against}, dB",
            "SSIM",
        ]
        blocks.append(f"<h3>{entry['sampler']}</h3>{_curve(entry)}{_table(heads, rows)}")
    return (
        '<section id="threshold"><h2>Threshold</h2><p>Differences of at most tau stay in the '
        "residual. They are carried on, so the error of a value never exceeds tau. ★: the largest "
        f"within {entries[0]['min_psnr']:g} dB.</p>{''.join(blocks)}</section>"
    )


def _curve(entry: Facts) -> str:
    """Draw quality over cost."""
    points = [p for p in entry["curve"] if p["psnr"] is not None]
    if len(points) < 2:
        return ""
    costs = [100 * p["bit_operations"] for p in points]
    ratios = [p["psnr"] for p in points]
    left, right = 0.0, math.ceil(max(costs) / 10) * 10.0
    low = math.floor(min([*ratios, entry["min_psnr"]]) / 5) * 5.0
    high = math.ceil(max([*ratios, entry["min_psnr"]]) / 5) * 5.0 or 5.0
    high = max(high, low + 5)

    def at(cost: float, ratio: float) -> tuple[float, float]:
        return 40 + 270 * (cost - left) / (right - left), 150 - 130 * (ratio - low) / (high - low)

    places = [at(c, r) for c, r in zip(costs, ratios, strict=True)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
        f'<text x="{x + 6:.1f}" y="{y - 5:.1f}">tau {p["tau"]}</text>'
        for (x, y), p in zip(places, points, strict=True)
    )
    bound = at(0, entry["min_psnr"])[1]
    return (
        '<svg class="plot" viewBox="0 0 340 185" role="img" aria-label="quality over cost">'
        f'<path class="axis" d="M40 20V150H310"/><path class="bound" d="M40 {bound:.1f}H310"/>'
        f'<polyline points="{line}"/>{marks}'
        f'<text x="36" y="24" class="end">{high:g}</text>'
        f'<text x="36" y="153" class="end">{low:g} dB</text>'
        f'<text x="40" y="165">{left:g}</text><text x="310" y="165" class="end">{right:g} %</text>'
        '<text x="175" y="180" class="middle">bit operations against dense 8-bit</text></svg>'
    )


def _pixels(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return images of -1..1 as gray or color values, without a channel axis for gray.

    Of latents, which have more channels and any range, the first channel from -3 to 3.
    """
    if images.shape[1] not in (1, 3):
        images = images[:, :1] / np.float32(3)
    values = np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)
    if images.shape[1] == 3:
        return values.transpose(0, 2, 3, 1)
    return values[:, 0]


def _grid(images: NDArray[np.float32], caption: str) -> str:
    pixels = png.grid(_pixels(images[:_SHOWN]), zoom=1, gap=1)
    height, width = pixels.shape[:2]
    return (
        f'<figure><img class="pixels" width="{width}" height="{height}" alt="{caption}" '
        f'src="{_uri(pixels)}"><figcaption>{caption}</figcaption></figure>'
    )


def _black(images: NDArray[np.float32]) -> np.float32:
    return np.float32(1 if images.shape[1] in (1, 3) else 3)


def _images(analysis: Analysis) -> str:
    blocks = []
    for key in dict.fromkeys(setting._replace(tau=0) for setting in analysis.images):
        rows = []
        exact = analysis.exact.get(key)
        for setting, images in analysis.images.items():
            if setting._replace(tau=0) != key:
                continue
            suffix = f", tau {setting.tau}" if setting.tau else ""
            figures = [_grid(images, f"B: int8{suffix}")]
            if exact is not None:
                figures.insert(0, _grid(exact, "A: float"))
                # Black is no difference, for latents too.
                figures.append(_grid(np.abs(images - exact) - _black(images), f"|A − B|{suffix}"))
            rows.append(f'<div class="grids">{"".join(figures)}</div>')
        blocks.append(f"<h3>{key.sampler}</h3>{''.join(rows)}")
    latents = next(iter(analysis.images.values())).shape[1] not in (1, 3)
    what = " Latents: their first channel, −3…3." if latents else ""
    return (
        f'<section id="images"><h2>Images</h2><p>Each from the same noise.{what}</p>'
        f"{''.join(blocks)}</section>"
    )


def _maps(run: Facts) -> Iterable[tuple[str, list[list[float]]]]:
    """Yield the heat maps of a run: name, and rows in % by layer and step."""
    layers = [layer["by_step"] for layer in run["layers"]]
    yield "zero", [[round(100 * v, 1) for v in layer["temporal"]["zero"]] for layer in layers]
    yield (
        "bits",
        [[round(100 * v, 1) for v in layer["bit_operations"]["temporal"]] for layer in layers],
    )


_MAPS = {
    "zero": "Temporal differences that are zero, % (dense steps have none)",
    "bits": "Bit operations of temporal differences against dense 8-bit, %",
}


def _heat(index: int, name: str, rows: list[list[float]], run: Facts) -> str:
    values = np.clip(np.array(rows) / 100, 0, 1)
    stops = np.linspace(0, 1, len(_RAMP))
    colors = np.stack([np.interp(values, stops, c) for c in np.array(_RAMP, float).T], axis=-1)
    height = max(4, min(15, 1200 // len(rows)))
    labels = "".join(f"<span>{escape(layer['name'])}</span>" for layer in run["layers"])
    steps = run["by_step"]
    return (
        f'<figure class="heat" style="--row:{height}px"><figcaption>{_MAPS[name]}</figcaption>'
        f'<div class="map"><div class="labels{" tiny" if height < 9 else ""}">{labels}</div>'
        f'<img alt="{_MAPS[name]}, layer by step" data-run="{index}" data-map="{name}" '
        f'style="height:{height * len(rows)}px" src="{_uri(np.rint(colors).astype(np.uint8))}">'
        f'<div class="ticks"><span>step 0 (timestep {steps[0]["timestep"]})</span>'
        f"<span>step {len(steps) - 1} (timestep {steps[-1]['timestep']})</span></div></div>"
        '<p class="scale"><span>0</span><i></i><span>100</span><output></output></p></figure>'
    )


def _steps(run: Facts) -> str:
    """Draw the classes of temporal differences over the steps, and the bit operations."""
    steps = run["by_step"][1:]
    if len(steps) < 2:
        return ""
    width, height = 480, 150

    def x(i: int) -> float:
        return 40 + (width - 50) * i / (len(steps) - 1)

    below = np.zeros(len(steps))
    areas = []
    for name in CLASSES:
        above = below + [step["temporal"][name] for step in steps]
        edge = [f"{x(i):.1f},{10 + height * (1 - v):.1f}" for i, v in enumerate(above)]
        back = [f"{x(i):.1f},{10 + height * (1 - v):.1f}" for i, v in enumerate(below)]
        areas.append(f'<polygon class="{name}" points="{" ".join([*edge, *back[::-1]])}"/>')
        below = above
    line = " ".join(
        f"{x(i):.1f},{10 + height * (1 - min(s['bit_operations']['temporal'], 1)):.1f}"
        for i, s in enumerate(steps)
    )
    return (
        "<figure><figcaption>Temporal differences by step: shares of the classes (none where a "
        "step is dense); line: bit operations against dense 8-bit</figcaption>"
        '<svg class="plot wide-plot" '
        f'viewBox="0 0 {width} {height + 35}" role="img" aria-label="classes by step">'
        + "".join(areas)
        + f'<polyline points="{line}"/><text x="36" y="18" class="end">100 %</text>'
        f'<text x="36" y="{height + 10}" class="end">0</text>'
        f'<text x="40" y="{height + 27}">step 1</text>'
        f'<text x="{width - 10}" y="{height + 27}" class="end">step {len(steps)}</text>'
        "</svg></figure>"
    )


def _spark(histogram: Facts) -> str:
    """Draw the histogram of -16..16, by the square root of the counts."""
    counts = np.zeros(33)
    for i, count in enumerate(histogram["counts"]):
        if -16 <= histogram["first"] + i <= 16:
            counts[histogram["first"] + i + 16] += count
    heights = 18 * np.sqrt(counts / max(counts.max(), 1))
    path = "".join(f"M{2 * i + 1} 18v{-h:.1f}" for i, h in enumerate(heights) if h >= 0.05)
    return (
        '<svg class="spark" viewBox="0 0 66 18" role="img" aria-label="histogram">'
        f'<path d="{path}"/></svg>'
    )


def _layers(run: Facts) -> str:
    heads = ["layer", "kind", "sizes", "MACs %", "zero %", "narrow %", "wide %", "over %"]
    heads += ["differences −16…16", "bit operations %", "best", "cosine"]
    heads += ["cycles temporal", "cycles dense", "ratio"]
    rows = []
    for layer in run["layers"]:
        temporal, cycles = layer["temporal"], layer["cycles"]
        rows.append(
            [
                _name(layer),
                layer["kind"],
                layer["sizes"],
                _percent(layer["share"]),
                *(_percent(temporal[name]) for name in CLASSES[:3]),
                _percent(temporal["over"], 3),
                _spark(temporal["histogram"]),
                _percent(layer["bit_operations"]["temporal"]),
                layer["best"],
                f"{layer['cosine']['temporal']:.4f}",
                _number(cycles and cycles["temporal"], 0),
                _number(cycles and cycles["dense"], 0),
                _number(cycles and cycles["dense"] / max(cycles["temporal"], 1), 2),
            ]
        )
    return _table(heads, rows, sortable=True)


def _name(layer: Facts) -> str:
    return escape(layer["name"]) + ("" if layer["counted"] else " °")


def _values(run: Facts) -> str:
    """Make a table of the values of every layer: themselves, and both kinds of differences."""
    heads = ["layer", "values", "zero %", "narrow %", "wide %", "over %"]
    heads += ["histogram −16…16", "range", "cosine", "bit operations %"]
    rows = [
        [
            _name(layer),
            _WORDS[kind],
            *(_percent(layer[kind][name]) for name in CLASSES[:3]),
            _percent(layer[kind]["over"], 3),
            _spark(layer[kind]["histogram"]),
            f"{layer[kind]['min']}…{layer[kind]['max']}",
            f"{layer['cosine'][kind]:.4f}" if kind in layer["cosine"] else "–",
            _percent(layer["bit_operations"][kind]),
        ]
        for layer in run["layers"]
        for kind in _WORDS
    ]
    return _table(heads, rows, sortable=True)


def _traffic(run: Facts) -> str:
    traffic, state = run["traffic"], run["state"]
    rows = [
        [
            unit,
            _number(part["plain"], 0),
            _number(part["naive"], 0),
            f"{part['naive_ratio']:.2f}",
            f"{part['naive_ratio_without_weights']:.2f}",
            f"{part['best_ratio']:.2f}",
        ]
        for unit, part in traffic.items()
    ]
    heads = ["a step of an image", "plain", "naive differences", "ratio", "ratio without weights"]
    heads += ["ratio, best mode of each layer"]
    parts = ["layer", "inputs", "weights", "outputs", "plain", "naive", "ratio", "state"]
    own = []
    for layer in run["layers"]:
        moved = layer["traffic"]
        kept = moved["inputs"] + moved["outputs"]
        plain, naive = kept + moved["weights"], sum(moved.values())
        sizes = [moved["inputs"], moved["weights"], moved["outputs"], plain, naive]
        figures = [*(f"{n:,}" for n in sizes), f"{naive / plain:.2f}", f"{kept:,}"]
        own.append([_name(layer), *figures])
    return (
        f"{_table(heads, rows)}<h4>By layer, in elements</h4>{_table(parts, own, sortable=True)}"
        f"<p>State between steps: {state['inputs']:,} previous inputs and "
        f"{state['outputs']:,} accumulators, {state['bytes'] / 1024:,.1f} KiB for an image.</p>"
    )


def _run(index: int, run: Facts, facts: Facts) -> str:
    heat = "".join(_heat(index, name, rows, run) for name, rows in _maps(run))
    return (
        f'<details id="run{index}"{" open" if index == 0 else ""}><summary><h2>{_title(run)}: by '
        f"layer and step</h2></summary>{_rule(facts)}{_legend()}{_steps(run)}{heat}"
        f"<h3>Layers</h3><p>Select a column's head to sort. °: does not depend on the sample, and "
        f"is left out of the means.</p>{_layers(run)}"
        f"<details><summary><h3>Values of each layer</h3></summary>{_values(run)}</details>"
        f"<details><summary><h3>Memory traffic and state</h3></summary>{_traffic(run)}</details>"
        "</details>"
    )


def _method(facts: Facts) -> str:
    compared = [run["quality"].get("float") for run in facts["runs"]]
    net = facts["frechet"]
    if any(c and c["frechet"] is not None for c in compared):
        frechet = "; ".join(
            f"{_title(run)}: {c['frechet']:.2e}"
            for run, c in zip(facts["runs"], compared, strict=True)
            if c and c["frechet"] is not None
        )
        frechet += f" ({net['features']} features " + (
            "of a fixed random convolution; not comparable with other feature networks)"
            if net["net"] == "random"
            else "of the network that was given)"
        )
    elif any(compared):
        frechet = (
            f"not enough images ({net['images_needed']} are needed for {net['features']} features)"
        )
    else:
        frechet = "no float model to compare with"
    peaks = {c["peak"] for run in facts["runs"] for c in run["quality"].values()} or {2.0}
    peak = ", ".join(f"{value:.3g}" for value in sorted(peaks))
    config = facts["device"]["configuration"]
    array = f"{config['clusters']} clusters × {config['lanes']} lanes × {config['columns']} columns"
    cycles = next((run["cycles"] for run in facts["runs"] if run["cycles"]), None)
    covered = (
        f" {_percent(cycles['counted'])} % of the multiplications are in layers that were placed."
        if cycles
        else ""
    )
    items = [
        f"Scales: {escape(facts['scales'])}. Rates depend on them: compare only with equal rules.",
        f"Classes: {', '.join(f'{name} {_RANGES[name]}' for name in CLASSES)}. Of activations the "
        "zero point is subtracted.",
        "Temporal: minus the same tensor one step earlier. The first step has none and is dense"
        + (
            f", and so is each that begins a window with scales of its own (timesteps "
            f"{', '.join(map(str, facts['windows']))}). "
            if len(facts["windows"]) > 1
            else ". "
        )
        + "Spatial: minus the pixel to the left or the token before; the first differs from zero.",
        "Products of two activations: the classes are the mean of both operands; temporal bit "
        "operations are the sum of two runs.",
        "Bit operations: zero 0, narrow ½, wide 1, over 1½ of a dense 8×8-bit multiplication.",
        f"Cycles: the cycle model, exact for these tensors, of {array}; "
        f"{escape(facts['device']['stands_for'])}.{covered} Spatial cycles are those of the "
        "differences alone.",
        "Traffic: plain execution reads inputs and weights and writes outputs; naive differences "
        "also read the previous inputs and outputs and write both back. Accumulators have "
        f"{config['accumulator_bits']} bits.",
        f"PSNR: of the mean squared error over all images, peak {peak}. SSIM: windows of 7×7. "
        f"Fréchet distance: {frechet}.",
        f"Evaluated by {escape(facts['evaluated_by'])} from the int8 file itself.",
    ]
    return (
        '<section id="method"><h2>How this was measured</h2><ul>'
        + "".join(f"<li>{item}</li>" for item in items)
        + "</ul></section>"
    )
