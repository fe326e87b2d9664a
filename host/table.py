"""An analysis as a table: a row for each run, layer and step."""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from ditto.host.analysis import CLASSES, KINDS

__all__ = ["write_csv"]

_PARTS = (*CLASSES, "min", "max")
_MODES = ("dense", "temporal", "spatial")


def write_csv(facts: Mapping[str, Any]) -> str:
    """Return the figures of an analysis as comma-separated values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["scales", "steps", "eta", "tau", "layer", "kind", "macs", "counted", "step", "timestep"]
        + [f"{kind} {part}" for kind in KINDS for part in _PARTS]
        + [f"{kind} bit operations" for kind in KINDS]
        + ["cosine", *(f"{mode} cycles" for mode in _MODES)]
    )
    writer.writerows(_rows(facts))
    return text.getvalue()


def _rows(facts: Mapping[str, Any]) -> Iterator[list[Any]]:
    for run in facts["runs"]:
        for layer in run["layers"]:
            by_step = layer["by_step"]
            cycles = by_step.get("cycles")
            for at in run["by_step"]:
                step = at["step"]
                yield [
                    facts["scales"],
                    *(run[name] for name in ("steps", "eta", "tau")),
                    *(layer[name] for name in ("name", "kind", "macs")),
                    int(layer["counted"]),
                    step,
                    at["timestep"],
                    *(by_step[kind][part][step] for kind in KINDS for part in _PARTS),
                    *(by_step["bit_operations"][kind][step] for kind in KINDS),
                    by_step["cosine"][step],
                    *(cycles[mode][step] if cycles else "" for mode in _MODES),
                ]
