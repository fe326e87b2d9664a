"""An analysis as a table: a row for each run, layer and step."""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from ditto.host.analysis import CLASSES, KINDS, WIDTHS

__all__ = ["write_csv"]

_PARTS = (*CLASSES, "min", "max")
_MODES = ("dense", "temporal", "spatial")
_TRAFFIC = (
    "inputs",
    "weights",
    "outputs",
    "previous_inputs_read",
    "previous_inputs_written",
    "previous_outputs_read",
    "previous_outputs_written",
)


def write_csv(facts: Mapping[str, Any]) -> str:
    """Return the figures of an analysis as comma-separated values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["scales", "sampler", "steps", "eta", "tau", "layer", "kind", "macs", "counted", "step"]
        + ["timestep", "dense"]
        + [f"{kind} {part}" for kind in KINDS for part in _PARTS]
        + [f"{kind} {bits} bits" for kind in KINDS for bits in range(WIDTHS)]
        + [f"{kind} bit operations" for kind in KINDS]
        + [f"{kind} cosine" for kind in KINDS[1:]]
        + [f"{mode} cycles" for mode in _MODES]
        + [name.replace("_", " ") for name in _TRAFFIC]
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
                    *(run[name] for name in ("kind", "steps", "eta", "tau")),
                    *(layer[name] for name in ("name", "kind", "macs")),
                    int(layer["counted"]),
                    step,
                    at["timestep"],
                    int(at["dense"]),
                    *(by_step[kind][part][step] for kind in KINDS for part in _PARTS),
                    *(share for kind in KINDS for share in by_step[kind]["widths"][step]),
                    *(by_step["bit_operations"][kind][step] for kind in KINDS),
                    *(by_step["cosine"][kind][step] for kind in KINDS[1:]),
                    *(cycles[mode][step] if cycles else "" for mode in _MODES),
                    *(layer["traffic"][name] for name in _TRAFFIC),
                ]
