"""Writes the page of a bench: the figures of its JSON, and nothing else."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from ditto.host.bench import BOUNDS

__all__ = ["array_of", "page", "speed_of"]


def array_of(configuration: Mapping[str, Any]) -> str:
    """Return the sizes of an array: clusters x lanes x columns, and what its multipliers are."""
    sizes = " × ".join(str(configuration[name]) for name in ("clusters", "lanes", "columns"))
    return f"{sizes} {configuration['multiplier']}"


def speed_of(build: Mapping[str, Any]) -> str:
    """Return a build's clock frequency: lowest, median and highest over the seeds."""
    found = sorted(build["fmax_mhz"].values())
    if not found:
        return "–"
    return f"{found[0]:.1f} / {median(found):.1f} / {found[-1]:.1f}"


def page(facts: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """Return the page, in Markdown.

    Parameters
    ----------
    facts
        What ``ditto bench`` writes as JSON.
    pictures
        Addresses of the rooflines.
    """
    runs, builds = facts["runs"], facts["builds"]
    parts = [
        "# Performance",
        f"Written by `{facts['command']}`; everything on this page comes from it.",
        "Cycles are those of the array, exact: the golden model's, which the tests hold to the "
        "RTL. *Ideal* is products of nonzero digits over multipliers.",
        _runs(runs),
        "The speedup at equal bits is over: "
        + "; ".join(dict.fromkeys(run["baseline"] for run in runs))
        + ". Two multipliers of a nibble stand for one of 8 × 8 bits. At equal resources, as many "
        "copies of both arrays work as a part has room for, at their clock frequencies.",
        _ideals(runs),
    ]
    parts += [f"![Layers under the roofs of the device]({picture})" for picture in pictures]
    parts.append("## Size and speed")
    if builds:
        parts.append(_builds(builds))
        parts += [f"Not routed: {build['error']}." for build in builds if "error" in build]
        parts.append("The slowest path of every group, and the ends of the slowest of all seeds:")
        parts.append(_delays(builds))
    else:
        parts.append("Nothing was built.")
    parts.append("## What bounds each layer")
    parts.append(
        "Shares of the multiplier cycles in percent: "
        + ", ".join(f"*{name}*: {text}" for name, text in BOUNDS.items())
        + ". *Link*: cycles of the link for one of the array; a byte a cycle at best, its frames "
        "not counted. *Bound* is what takes most."
    )
    for run in runs:
        parts += [f"### {run['model']}, {run['mode']}", _layers(run)]
    parts.append("## Versions")
    parts.append(_table(["what", "version"], [[k, v] for k, v in facts["versions"].items()]))
    return "\n\n".join(parts) + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    heads = ["model", "array", "sampler", "mode", "products", "cycles", "ideal", "used %"]
    heads += ["speedup, equal bits", "speedup, equal resources"]
    rows = [
        [
            run["model"],
            array_of(run["configuration"]),
            f"{run['sampler']}, {run['steps']} steps",
            run["mode"],
            f"{run['products']:,}",
            f"{run['array_cycles']:,}",
            f"{run['ideal_cycles']:,}",
            f"{100 * run['utilization']:.1f}",
            _ratio(run["speedup_equal_bits"]),
            _ratio(run["speedup_equal_resources"]),
        ]
        for run in runs
    ]
    return _table(heads, rows)


def _ideals(runs: Sequence[Mapping[str, Any]]) -> str:
    found = {array_of(run["configuration"]): run["ideal"] for run in runs}
    heads = ["array, in a cycle at best", "products", "bytes of weights", "bytes of the link"]
    rows = [
        [
            array,
            *(
                f"{best[f'{name}_per_cycle']:g}"
                for name in ("products", "weight_bytes", "link_bytes")
            ),
        ]
        for array, best in found.items()
    ]
    return _table(heads, rows)


def _builds(builds: Sequence[Mapping[str, Any]]) -> str:
    heads = ["array", "part", "LUT4", "carries", "comb", "FF", "DSP", "BRAM"]
    heads += ["MHz (lowest / median / highest)", "seeds"]
    rows = []
    for build in builds:
        available = build["available"]
        rows.append(
            [
                array_of(build["configuration"]),
                f"{build['device']}-{build['speed']}",
                f"{build['luts']:,}",
                f"{build['carries']:,}",
                f"{build['comb']:,} of {available['TRELLIS_COMB']:,}",
                f"{build['ffs']:,}",
                f"{build['dsps']} of {available['MULT18X18D']}",
                f"{build['brams']} of {available['DP16KD']}",
                speed_of(build),
                ", ".join(build["fmax_mhz"]),
            ]
        )
    return _table(heads, rows)


def _delays(builds: Sequence[Mapping[str, Any]]) -> str:
    heads = ["array", "path group", "ns (each seed)", "from", "to"]
    rows = []
    for build in builds:
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for delays in build["delays"].values():
            for delay in delays:
                groups.setdefault(f"{delay['source']} → {delay['target']}", []).append(delay)
        for group, found in groups.items():
            worst = max(found, key=lambda delay: delay["nanoseconds"])
            times = ", ".join(f"{delay['nanoseconds']:.1f}" for delay in found)
            ends = [f"`{worst['first']}`", f"`{worst['last']}`"]
            rows.append([array_of(build["configuration"]), group, times, *ends])
    return _table(heads, rows)


def _layers(run: Mapping[str, Any]) -> str:
    heads = ["layer", "kind", "sizes", "cycles", *BOUNDS, "link", "bound"]
    rows = [
        [
            layer["name"],
            layer["kind"],
            layer["sizes"],
            f"{layer['array_cycles']:,}",
            *(f"{100 * layer['shares'][cause]:.1f}" for cause in BOUNDS),
            f"{layer['link_cycles'] / max(layer['array_cycles'], 1):.2f}",
            layer["bound"],
        ]
        for layer in run["layers"]
    ]
    return _table(heads, rows)
