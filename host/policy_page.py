"""The tables of ``ditto policies``, in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["page"]

_SHOWN = ("temporal", "spatial", "defo", "defo+", "adaptive", "table", "oracle")
_CHOOSING = ("defo", "defo+", "adaptive", "table")


def page(facts: Mapping[str, Any]) -> str:
    """Return the page.

    Parameters
    ----------
    facts
        What ``ditto policies`` writes as JSON.
    """
    count = facts["samples"]
    lines = [
        "# Policies compared",
        "",
        f"`{facts['command']}`",
        "",
        f"Means over {count} image{'s' * (count > 1)}. Cycles are those of the array + waits for "
        "the memory, in % of all cycles of dense runs. Then, for each policy that chooses: its "
        "cycles as ratio to those of the oracle, and the share of runs after the first step in the "
        "mode that the oracle gives them. `spatial` is spatial wherever a layer can be, and dense "
        "elsewhere; `table` is the rule of the device's table of decisions, which compares digits.",
        "",
    ]
    for memory in facts["memories"]:
        runs = [run for run in facts["runs"] if run["memory"] == memory["name"]]
        lines += [f"## Memory {memory['name']}", "", _described(memory), ""]
        lines += [*_cycles(runs), "", *_summary(runs), ""]
    lines += ["## Traffic", "", "Bytes of a step, as ratio to dense runs.", ""]
    lines += _traffic(facts["runs"], [memory["name"] for memory in facts["memories"]])
    lines += ["", "## Static pass", ""]
    lines += _static(facts["models"])
    return "\n".join(lines) + "\n"


def _described(memory: Mapping[str, Any]) -> str:
    if not memory["holds"]:
        return "Everything on chip: nothing waits."
    what = "Everything" if "weights" in memory["holds"] else "Previous inputs and accumulators"
    return (
        f"{what} behind one channel of {memory['bandwidth']:g} bytes a cycle, "
        f"{memory['latency']} cycles before each burst of {memory['burst']} bytes."
    )


def _table(head: Sequence[str], rows: Iterator[Sequence[str]], texts: int = 2) -> list[str]:
    rule = ["---"] * texts + ["---:"] * (len(head) - texts)
    return ["| " + " | ".join(row) + " |" for row in [head, rule, *rows]]


def _there(names: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the policies that were compared in all of the runs."""
    return [name for name in names if all(name in run["policies"] for run in runs)]


def _cycles(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return cycles of array + waits for the memory, in % of those of dense runs."""
    shown, choosing = _there(_SHOWN, runs), _there(_CHOOSING, runs)

    def rows() -> Iterator[Sequence[str]]:
        for run in runs:
            policies = run["policies"]
            dense = policies["dense"]["cycles"] + policies["dense"]["stall_memory"]
            cells = []
            for name in shown:
                own = policies[name]
                array, wait = (100 * own[part] / dense for part in ("cycles", "stall_memory"))
                cells.append(
                    f"{array:.1f} + {wait:.1f}" if run["memory"] != "chip" else f"{array:.1f}"
                )
            for name in choosing:
                own = policies[name]
                cells.append(f"{own['to_oracle']:.3f}, {100 * own['agreement']:.0f} %")
            yield [run["model"], run["sampler"], f"{dense:,.0f}", *cells]

    heads = [f"{name} %" for name in shown]
    heads += [f"{name} : oracle, same mode" for name in choosing]
    return _table(["model", "sampler", "dense, cycles", *heads], rows())


def _summary(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    def worst(policy: str, against: str) -> str:
        return f"{max(run['policies'][policy][against] for run in runs):.3f}"

    lines = [
        f"{name} takes at most {worst(name, 'to_oracle')} times the cycles of the oracle, and at "
        f"most {worst(name, 'to_fixed')} times those of the best fixed mode."
        for name in _there(_CHOOSING, runs)
    ]
    stochastic = [run["policies"] for run in runs if run["eta"] == 1]
    for name in ("defo", "defo+") if stochastic else ():
        gains = [p[name]["to_oracle"] / p["adaptive"]["to_oracle"] for p in stochastic]
        lines.append(
            f"With fresh noise (eta 1), {name} takes {min(gains):.3f} to {max(gains):.3f} times "
            "the cycles of adaptive."
        )
    return lines


def _traffic(runs: Sequence[Mapping[str, Any]], memories: Sequence[str]) -> list[str]:
    choosing = _there(_CHOOSING, runs)

    def rows() -> Iterator[Sequence[str]]:
        for first in (run for run in runs if run["memory"] == memories[0]):
            same = [r for r in runs if (r["model"], r["sampler"]) == _key(first)]
            cells = [f"{first['policies']['temporal']['traffic_ratio']:.2f}"]
            for name in choosing:
                ratios = [run["policies"][name]["traffic_ratio"] for run in same]
                cells.append(" / ".join(f"{ratio:.2f}" for ratio in ratios))
            yield [*_key(first), *cells]

    head = [f"{name}: {' / '.join(memories)}" for name in choosing]
    return _table(["model", "sampler", "temporal", *head], rows())


def _key(run: Mapping[str, Any]) -> tuple[str, str]:
    return run["model"], run["sampler"]


def _static(models: Sequence[Mapping[str, Any]]) -> list[str]:
    def rows() -> Iterator[Sequence[str]]:
        for model in models:
            tensors, traffic = model["tensors"], model["traffic"]
            yield [
                model["model"],
                str(model["layers"]),
                *(str(tensors[name]) for name in tensors),
                str(model["unsummed"]),
                *(f"{traffic[name]:.2f}" for name in ("naive", "exact", "forwarded")),
            ]

    heads = ["layers", "tensors", "shared", "moved", "recomputed", "forwarded", "unsummed"]
    heads += ["naive traffic", "exact", "as published"]
    return _table(["model", *heads], rows(), texts=1)
