"""Measures what a model's sampling takes on a device, beside what it could take at best."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from math import prod
from statistics import median
from typing import Any

import numpy as np

from ditto.hdl.config import Config, Multiplier
from ditto.hdl.protocol import Mode
from ditto.host.device import word_bytes
from ditto.host.executor import LayerRun
from ditto.host.layers import Product
from ditto.host.lowering import windows
from ditto.host.model import Model
from ditto.host.program import Band, Part, Placement, PlacementError, Program, suggest
from ditto.host.report import Total, describe
from ditto.host.samplers import Sampler
from ditto.host.session import OnStep, draw
from ditto.sim.cycles import schedule
from ditto.sim.golden import Golden, shares

__all__ = ["BOUNDS", "baseline", "compare_builds", "fitting", "ideal", "macs", "measure"]

BOUNDS = {
    "products": "products of nonzero digits",
    "lanes": "lanes that wait for each other at a row's end",
    "columns": "columns without an output channel",
    "clusters": "clusters that are done before others",
    "fill": "pipeline that fills and drains",
    "sequencer": "no row ready",
}
"""What the multiplier cycles of a run go to; see :func:`measure`."""

LINK_BYTES = 1
"""Bytes that cross the link in a cycle, at best."""

_IDEAL = "an ideal dense array of 8 x 8 bits, always in use"


def fitting(model: Model, config: Config) -> Config:
    """Return the device with memories deep enough for a model.

    Parameters
    ----------
    model
        The model.
    config
        The device. Its array stays, and no memory becomes smaller.

    Raises
    ------
    PlacementError
        If the model does not fit even so.
    """
    layers, shapes = model.layers, model.shapes()
    try:
        Program(layers, shapes, config)
        return config
    except PlacementError:
        least = suggest(layers, shapes, config)
    kept = {"clusters", "lanes", "columns", "digit_bits", "multiplier", "skip"}
    grown = {
        parameter.name: max(getattr(config, parameter.name), getattr(least, parameter.name))
        for parameter in fields(Config)
        if parameter.name not in kept
    }
    config = replace(config, **grown)
    Program(layers, shapes, config)
    return config


def baseline(config: Config) -> Config | None:
    """Return the dense array of the same generator, with as many multiplier bits; None if none.

    With digits of four bits, a product of a whole delta and a weight takes the bits of two of ours,
    so there are half as many clusters; or as many columns less, where that is no whole number.
    """
    clusters, rest = divmod(config.clusters * config.digit_bits, config.activation_bits)
    columns = config.columns * config.digit_bits // config.activation_bits
    dense: dict[str, Any] = {"skip": 0, "digit_bits": config.delta_bits}
    if not rest:
        return replace(config, clusters=clusters, **dense)
    return replace(config, columns=columns, **dense) if columns else None


def macs(placement: Placement) -> int:
    """Return the multiply-accumulates of a layer, without those of zeros around the image."""
    layer = placement.layer
    if isinstance(layer, Product):
        return prod(layer.sizes(placement.shape))
    inside = int((windows(layer, placement.shape) >= 0).sum())
    return inside * layer.channels // layer.groups * layer.outputs


def ideal(config: Config) -> dict[str, float]:
    """Return what a device could do at best, in each cycle."""
    return {
        "products_per_cycle": config.multipliers,
        # A weight for every multiplier, and never one that is not multiplied.
        "weight_bytes_per_cycle": config.multipliers * config.weight_bits / 8,
        "link_bytes_per_cycle": LINK_BYTES,
        # What a multiplier of 8 x 8 bits takes of ours.
        "dense_macs_per_cycle": config.multipliers * config.digit_bits / 8,
    }


def measure(
    model: Model,
    config: Config,
    sampler: Sampler,
    *,
    name: str,
    modes: Sequence[Mode] = (Mode.TEMPORAL, Mode.DENSE),
    samples: int = 1,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> list[dict[str, Any]]:
    """Count the cycles of whole trajectories, by the golden model and its cycle model.

    Parameters
    ----------
    model
        The model.
    config
        The device, on which the model fits.
    sampler
        The sampler.
    name
        The model's name in the results.
    modes
        What the steps after the first start from.
    samples, seed
        Number of images, and the seed of their noise.
    on_step
        Called after each step.

    Returns
    -------
    list of dict
        For each mode, plain values for JSON. Shares of cycles are those of :data:`BOUNDS`.
    """
    program = Program(model.layers, model.shapes(), config)
    results = []
    for mode in modes:
        drawing = draw(
            model,
            program,
            lambda: Golden(config),
            sampler,
            samples=samples,
            seed=seed,
            mode=mode,
            on_step=on_step,
        )
        runs = [run for sample in drawing.runs for run in sample]
        count = samples * len(sampler.timesteps)
        result = {
            "model": name,
            "sampler": sampler.name,
            "steps": len(sampler.timesteps),
            "samples": samples,
            "seed": seed,
            "mode": mode.name.lower(),
            "configuration": asdict(config),
            "ideal": ideal(config),
        }
        layers = [
            _layer(placement, [run for run in runs if run.layer == index], config, count)
            for index, placement in enumerate(program.layers)
        ]
        result |= _sum(layers, Total.of(runs), config)
        result |= _speedups(model, config, result, count)
        results.append(result | {"layers": layers})
    return results


def _layer(
    placement: Placement, runs: Sequence[LayerRun], config: Config, count: int
) -> dict[str, Any]:
    """Describe what a layer took in all steps."""
    kind, sizes = describe(placement)
    total = Total.of(runs)
    facts = {
        "name": placement.layer.name,
        "kind": kind,
        "sizes": sizes,
        "macs": macs(placement) * count,
        "link_bytes_in": total.counters.zero
        + total.counters.narrow
        + total.counters.wide
        + sum(run.weight_bytes for run in runs),
        "link_bytes_out": sum(
            _read_bytes(part, band, config) for part in placement.parts for band in part.bands
        )
        * count,
        "shares": _shares(placement, total, config),
    }
    facts |= _counts(facts, total, config)
    shares = facts["shares"]
    array = max(shares, key=lambda cause: shares[cause])
    facts["array_bound"] = array
    facts["bound"] = "link" if facts["link_cycles"] > facts["array_cycles"] else array
    return facts


def _counts(facts: Mapping[str, Any], total: Total, config: Config) -> dict[str, Any]:
    # A layer's outputs are read when its run is done, and the next layer needs them.
    link = (facts["link_bytes_in"] + facts["link_bytes_out"]) // LINK_BYTES
    return {
        "products": total.products,
        "array_cycles": total.counters.cycles,
        "ideal_cycles": -(-total.products // config.multipliers),
        "link_cycles": link,
        "utilization": total.utilization(config),
    }


def _sum(layers: Sequence[Mapping[str, Any]], total: Total, config: Config) -> dict[str, Any]:
    """Add up the layers."""
    facts: dict[str, Any] = {
        name: sum(layer[name] for layer in layers)
        for name in ("macs", "link_bytes_in", "link_bytes_out")
    }
    cycles = max(total.counters.cycles, 1)
    facts["shares"] = {
        cause: sum(layer["shares"][cause] * layer["array_cycles"] for layer in layers) / cycles
        for cause in BOUNDS
    }
    return facts | _counts(facts, total, config) | {"counters": total.counters._asdict()}


def _shares(placement: Placement, total: Total, config: Config) -> dict[str, float]:
    """Return the share of multiplier cycles that goes to each of :data:`BOUNDS`."""
    idle = total.idleness(config)
    # What the shortest of runs takes besides its only work item.
    latency = schedule([1], [0], 1, config).cycles - 1
    clusters = [
        sum(len(share.positions) > 0 for share in shares(band.entry, config.clusters))
        for band in placement.bands
    ]
    cluster_cycles = max(config.clusters * total.counters.cycles, 1)
    fill = min(total.runs * sum(clusters) * latency / cluster_cycles, idle["item"])
    return {
        "products": total.utilization(config),
        "lanes": idle["row"],
        "columns": idle["columns"],
        "clusters": idle["cluster"],
        "fill": fill,
        "sequencer": idle["item"] - fill,
    }


def _read_bytes(part: Part, band: Band, config: Config) -> int:
    """Return the bytes of accumulators that the host reads after a run of a band."""
    most = max(len(share.positions) for share in shares(band.entry, config.clusters))
    columns = min(part.lowered.layer.outputs, config.columns)
    word = word_bytes(columns, config.accumulator_bits)
    return config.clusters * part.tiles * most * word


def _speedups(
    model: Model, config: Config, result: Mapping[str, Any], count: int
) -> dict[str, Any]:
    """Compare with a dense array that has as many multiplier bits."""
    cycles = -(-result["macs"] // result["ideal"]["dense_macs_per_cycle"])
    facts: dict[str, Any] = {"baseline": _IDEAL, "baseline_configuration": None}
    dense = baseline(config)
    try:
        dense = None if dense is None else fitting(model, dense)
    except PlacementError:  # its columns may be too few for the deepest memories
        dense = None
    if dense is not None:
        layers, shapes = model.layers, model.shapes()
        device = Golden(dense)
        # Without a skip, no run depends on its deltas.
        cycles = count * sum(
            device.count(band.entry, _zeros(band)).cycles
            for placement in Program(layers, shapes, dense).layers
            for band in placement.bands
        )
        facts["baseline"] = "the dense array of the same generator"
        facts["baseline_configuration"] = asdict(dense)
    return facts | {
        "baseline_cycles": int(cycles),
        "speedup_equal_bits": cycles / max(result["array_cycles"], 1),
        # These need builds of both, see `compare_builds`.
        "speedup_equal_resources": None,
        "speedup_end_to_end": None,
        "built": {},
    }


def _zeros(band: Band) -> Any:
    return np.zeros((band.entry["positions"], band.entry["channels"]), np.int64)


def compare_builds(run: dict[str, Any], builds: Sequence[Mapping[str, Any]]) -> None:
    """Fill in what a run's speedup is at equal resources, by builds of its array and the baseline.

    The scarcer of lookup tables and multiplier blocks decides how many copies of an array a part
    has room for. ``speedup_equal_resources`` counts cycles, ``speedup_end_to_end`` time, at the
    median of the clock frequencies. ``built`` has the same for multipliers of each kind.

    Parameters
    ----------
    run
        A result of :func:`measure`.
    builds
        What :meth:`ditto.fpga.build.Builder.facts` says of devices. Those with the array of the run
        and of its baseline count, whatever the depths of their memories.
    """
    if run["baseline_configuration"] is None:
        return
    sides = (
        (run["configuration"], run["array_cycles"]),
        (run["baseline_configuration"], run["baseline_cycles"]),
    )
    for kind in Multiplier:
        found = [
            next((b for b in builds if _array(b["configuration"]) == _array(wanted, kind)), None)
            for wanted, _ in sides
        ]
        if None in found:
            continue
        rates = [
            _rates(build, run["macs"], cycles)
            for build, (_, cycles) in zip(found, sides, strict=True)
            if build is not None
        ]
        per_cycle, per_second = (_ratio(*(rate[name] for rate in rates)) for name in _RATES)
        run["built"][str(kind)] = {
            "speedup_equal_resources": per_cycle,
            "speedup_end_to_end": per_second,
            "array": rates[0],
            "baseline": rates[1],
        }
        if kind == run["configuration"]["multiplier"]:
            run["speedup_equal_resources"] = per_cycle
            run["speedup_end_to_end"] = per_second


_RATES = ("part_macs_per_cycle", "part_gmacs")


def _rates(build: Mapping[str, Any], macs: int, cycles: int) -> dict[str, Any]:
    """Return the share of a part that an array takes, and the dense work that both do in a time."""
    available = build["available"]
    share = max(build["comb"] / available["TRELLIS_COMB"], build["dsps"] / available["MULT18X18D"])
    clocks = build["fmax_mhz"].values()
    per_cycle = macs / max(cycles, 1)
    gmacs = per_cycle * median(clocks) / 1000 if clocks else None
    return {
        "share": share,
        "gmacs": gmacs,
        "part_macs_per_cycle": per_cycle / share,
        "part_gmacs": None if gmacs is None else gmacs / share,
    }


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def _array(configuration: Mapping[str, Any], kind: Multiplier | None = None) -> dict[str, Any]:
    """Return what makes an array, of a configuration: everything but the depths of memories."""
    names = ("clusters", "lanes", "columns", "digit_bits", "activation_bits", "weight_bits", "skip")
    return {name: configuration[name] for name in names} | {
        "multiplier": str(kind or configuration["multiplier"])
    }
