"""Writes the page of a bench: the figures of its JSON, and nothing else."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from ditto.hdl.config import Config
from ditto.host.bench import BOUNDS

__all__ = ["array_of", "page", "speed_of"]


def array_of(configuration: Mapping[str, Any]) -> str:
    """Return the sizes of an array: clusters x lanes x columns, and what its multipliers are."""
    sizes = " × ".join(str(configuration[name]) for name in ("clusters", "lanes", "columns"))
    kind = configuration["multiplier"]
    return f"{sizes} {kind}" if configuration["skip"] else f"{sizes} {kind}, dense"


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
        f"Written by `{facts['command']}`, which measures everything on this page.",
        f"The array is {array_of(facts['configuration'])}: clusters × lanes × columns = "
        f"{Config(**facts['configuration']).multipliers} multipliers of "
        f"{facts['configuration']['digit_bits']} × {facts['configuration']['weight_bits']} bits. "
        "Cycles are those of the array, exact: the golden model's, which the tests hold to the "
        "RTL. *Ideal* is products of nonzero digits over multipliers; *used* is products over "
        "multipliers × cycles. The first step of a temporal run is dense.",
        _runs(runs),
        "Times faster than: "
        + "; ".join(dict.fromkeys(run["baseline"] for run in runs))
        + " (no skip, multipliers of whole deltas), on the same activations. *Equal bits*: with as "
        "many multiplier bits, so that two of our multipliers stand for one of 8 × 8 bits. *Equal "
        "LUT, DSP*: as many copies of both arrays as a part has room for, by the scarcer of "
        "lookup tables and multiplier blocks. *End to end*: that, each with its own clock.",
        _ideals(runs),
        _needs(runs),
    ]
    parts += [f"![Layers under the roofs of the device]({picture})" for picture in pictures]
    parts.append("## Size and speed")
    if builds:
        parts.append(_builds(builds))
        parts += [
            f"Not routed with every seed: {build['error']}." for build in builds if "error" in build
        ]
        parts.append(
            f"All with {_depths(builds[0]['configuration'])}. Without MHz: neither placed nor "
            "routed. *Comb* are the places for LUTs, which carry cells and distributed memories "
            "take, too."
        )
        parts.append(
            "The array and the dense one at equal resources of the part. *Dense GMAC/s*: "
            "multiply-accumulates that the model has, zeros included, in a second; on one array, "
            "and on as many as the part has room for."
        )
        parts.append(_against(runs))
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
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    heads = ["model", "scales", "sampler", "mode", "products", "cycles", "ideal", "used %"]
    heads += ["equal bits", "equal LUT, DSP", "end to end"]
    rows = [
        [
            run["model"],
            run["scales"] or "–",
            f"{run['sampler']}, {run['steps']} steps",
            run["mode"],
            f"{run['products']:,}",
            f"{run['array_cycles']:,}",
            f"{run['ideal_cycles']:,}",
            f"{100 * run['utilization']:.1f}",
            _ratio(run["speedup_equal_bits"]),
            _ratio(run["speedup_equal_resources"]),
            _ratio(run["speedup_end_to_end"]),
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


def _needs(runs: Sequence[Mapping[str, Any]]) -> str:
    """Say which models take more memory than the part has."""
    found = {
        run["model"]: f"{run['model']} {run['brams_needed']}"
        for run in runs
        if run["brams_needed"] > run["brams_available"]
    }
    if not found:
        return ""
    available = runs[0]["brams_available"]
    return (
        "Weights are held once for each share of the output positions, so that the block memories "
        f"of the part ({available}) do not hold every model on this array. Its cycles are counted "
        f"with the memories that it needs: {', '.join(found.values())} blocks."
    )


def _depths(configuration: Mapping[str, Any]) -> str:
    names = ("weight_rows", "accumulator_rows", "item_depth", "positions", "channels", "layers")
    return ", ".join(f"{name} {configuration[name]}" for name in names)


def _against(runs: Sequence[Mapping[str, Any]]) -> str:
    """Compare the array with the dense one, for each kind of multipliers."""
    heads = ["model", "mode", "multipliers", "share of the part", "dense array's"]
    heads += ["equal LUT, DSP", "end to end", "dense GMAC/s", "dense array's", "part full of them"]
    rows = []
    for run in runs:
        for kind, built in run["built"].items():
            ours, theirs = built["array"], built["baseline"]
            rows.append(
                [
                    run["model"],
                    run["mode"],
                    kind,
                    f"{100 * ours['share']:.1f} %",
                    f"{100 * theirs['share']:.1f} %",
                    _ratio(built["speedup_equal_resources"]),
                    _ratio(built["speedup_end_to_end"]),
                    _ratio(ours["gmacs"]),
                    _ratio(theirs["gmacs"]),
                    f"{_ratio(ours['part_gmacs'])} : {_ratio(theirs['part_gmacs'])}",
                ]
            )
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
    heads = ["layer", "kind", "sizes", "cycles", *BOUNDS, "link", "bound", "without the link"]
    rows = [
        [
            layer["name"],
            layer["kind"],
            layer["sizes"],
            f"{layer['array_cycles']:,}",
            *(f"{100 * layer['shares'][cause]:.1f}" for cause in BOUNDS),
            f"{layer['link_cycles'] / max(layer['array_cycles'], 1):.2f}",
            layer["bound"],
            layer["array_bound"],
        ]
        for layer in run["layers"]
    ]
    return _table(heads, rows)
