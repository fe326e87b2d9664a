"""Functional coverage of the engine's runs: kind of layer, mode and edge case, and each with each.

A run is of every kind of layer that its entry is of, and has every edge case that it has. Modes are
those of tiles of deltas and, where the device has a reference buffer, of tiles of inputs.
"""

from collections.abc import Callable

import numpy as np
from cocotb_coverage.coverage import (  # pyright: ignore[reportMissingImports]
    CoverCross,
    CoverPoint,
    coverage_db,
)
from gateware import CONFIG, FIELDS, WARM_UP

from ditto.hdl.protocol import CommandError, Mode
from ditto.sim.golden import Golden, items, taps

__all__ = [
    "CASES",
    "LAYERS",
    "MODES",
    "REFUSED",
    "deltas_for",
    "inputs_for",
    "report",
    "sample",
]

Entry = dict[str, int]

LAYERS: dict[str, Callable[[Entry], bool]] = {
    "linear": lambda e: e["in_height"] == e["kernel_height"] == e["kernel_width"] == 1,
    "pointwise": lambda e: e["in_height"] > 1 and e["kernel_height"] == e["kernel_width"] == 1,
    "convolution": lambda e: e["kernel_height"] * e["kernel_width"] > 1,
    "strided": lambda e: max(e["stride_y"], e["stride_x"]) > 1,
    "dilated": lambda e: (
        (e["dilation_y"] > 1 and e["kernel_height"] > 1)
        or (e["dilation_x"] > 1 and e["kernel_width"] > 1)
    ),
    "padded": lambda e: max(e["pad_top"], e["pad_left"]) > 0,
    "tiled": lambda e: e["tiles"] > 1,
    "shared": lambda e: e["split"] > 1,
}
"""Kinds of layers."""

CASES: dict[str, Callable[[Entry, np.ndarray], bool]] = {
    "no item": lambda e, d: not d.any(),
    "a position without items": lambda e, d: bool(d.any() and (~d.any(axis=1)).any()),
    "a row without taps": lambda e, d: bool((taps(e) < 0).all(axis=1).any()),
    "every delta has an item": lambda e, d: bool(d.all()),
    "low items only": lambda e, d: bool(d.any() and not items(d, CONFIG)[1].any()),
    "high items only": lambda e, d: bool(d.any() and not items(d, CONFIG)[0].any()),
    "smallest and largest delta": lambda e, d: (
        (d.min(), d.max()) == (-CONFIG.max_delta, CONFIG.max_delta)
    ),
    "one output": lambda e, d: e["out_height"] * e["out_width"] * e["tiles"] == 1,
    "as many channels as fit": lambda e, d: e["channels"] == CONFIG.channels,
}
"""Edge cases."""


def takes(mode: Mode) -> bool:
    """Tell whether a device runs inputs in a mode."""
    golden = Golden(CONFIG)
    fields = dict.fromkeys(FIELDS, 0)
    golden.write_layers(0, [fields | WARM_UP.entry | {"spatial": 1}])
    inputs = np.zeros((1, WARM_UP.entry["channels"]), int)
    try:
        golden.write_inputs(0, inputs, Mode.DENSE)
        golden.run(0, Mode.DENSE)
        golden.write_inputs(0, inputs, mode)
        golden.run(0, mode)
    except CommandError:
        return False
    return True


_MODES = (Mode.DENSE, Mode.TEMPORAL, Mode.SPATIAL)
MODES: dict[str, Mode] = {f"deltas, {mode.name}": mode for mode in _MODES}
"""How a run gets its deltas, and its mode."""
REFUSED: list[str] = []
"""Those that the golden model refuses, and the engine has to refuse."""
if CONFIG.reference_depth:
    for _mode in _MODES:
        if takes(_mode):
            MODES[f"inputs, {_mode.name}"] = _mode
        else:
            REFUSED.append(f"inputs, {_mode.name}")


def is_possible(layer: str, mode: str, case: str) -> bool:
    """Tell whether a device has such runs."""
    if mode == "inputs, DENSE" and case == "smallest and largest delta":
        # They are further apart than the smallest and the largest input.
        return False
    kernels = CONFIG.list_depth > 2
    if layer in ("convolution", "dilated") and not kernels:
        return False
    if layer == "shared" and CONFIG.clusters == 1:
        return False
    if case in ("low items only", "high items only") and CONFIG.shifts == 1:
        return False
    # A pad without a kernel makes an output beside the image, and tiles make one each.
    return case != "one output" or not (layer == "tiled" or (layer == "padded" and not kernels))


_IMPOSSIBLE = [
    (layer, mode, case)
    for layer in LAYERS
    for mode in MODES
    for case in CASES
    if not is_possible(layer, mode, case)
]


@CoverPoint(
    "run.layer",
    xf=lambda entry, mode, deltas: [name for name, is_so in LAYERS.items() if is_so(entry)],
    bins=list(LAYERS),
    rel=lambda names, name: name in names,
    inj=False,
)
@CoverPoint("run.mode", xf=lambda entry, mode, deltas: mode, bins=list(MODES))
@CoverPoint(
    "run.case",
    xf=lambda entry, mode, deltas: [name for name, is_so in CASES.items() if is_so(entry, deltas)],
    bins=list(CASES),
    rel=lambda names, name: name in names,
    inj=False,
)
@CoverCross("run.all", items=["run.layer", "run.mode", "run.case"], ign_bins=_IMPOSSIBLE)
def _sample(entry: Entry, mode: str, deltas: np.ndarray) -> None:
    """Take a run into account."""


def sample(entry: Entry, mode: str, deltas: np.ndarray) -> None:
    """Take a run in one of :data:`MODES` into account; deltas have the shape (..., channels)."""
    _sample(entry, mode, deltas)


def report() -> dict[tuple[str, ...], int]:
    """Return how often each combination of layer, mode and case has come."""
    return dict(coverage_db["run.all"].detailed_coverage)


def deltas_for(case: str, deltas: np.ndarray) -> np.ndarray:
    """Change random deltas so that they are likely of a case."""
    low = 1 << CONFIG.digit_bits
    match case:
        case "no item":
            return deltas * 0
        case "a position without items":
            return deltas * (np.arange(len(deltas)) % 2)[:, None]
        case "every delta has an item":
            return np.where(deltas == 0, 1, deltas)
        case "low items only":
            return np.clip(deltas, -low // 2, low // 2 - 1)
        case "high items only":
            return np.clip(np.where(deltas < 0, -low, low), -CONFIG.max_delta, CONFIG.max_delta)
        case "smallest and largest delta":
            # In any order: along a line, inputs go up and down.
            return np.where(deltas % 2, 1, -1) * CONFIG.max_delta
        case _:
            return deltas


def inputs_for(mode: Mode, entry: Entry, deltas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs of shape (positions, channels) whose deltas are likely these, and references.

    The references are inputs of the step before.
    """
    most = 1 << CONFIG.activation_bits - 1
    references = np.clip(-((deltas + 1) // 2), -most, most - 1)
    if mode is Mode.DENSE:
        inputs = deltas
    elif mode is Mode.TEMPORAL:
        inputs = references + deltas
    else:
        # Along each line, from the clusters' step on.
        step = entry["split"] * entry["stride_x"]
        inputs = deltas.reshape(entry["in_height"], entry["in_width"], -1).copy()
        for x in range(step, entry["in_width"]):
            inputs[:, x] = np.clip(inputs[:, x] + inputs[:, x - step], -most, most - 1)
        inputs = inputs.reshape(deltas.shape)
    return np.clip(inputs, -most, most - 1), references
