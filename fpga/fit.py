"""Fits the model of :mod:`ditto.fpga.estimate` to builds, and measures its error.

::

    python -m ditto.fpga.fit

takes minutes, or seconds where the cache has the builds, and replaces ``fpga/estimate.json``.
"""

import argparse
import json
import random
import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ditto.fpga.build import Builder
from ditto.fpga.estimate import FITTED, Fit, features, speed_features
from ditto.fpga.tools import ToolError
from ditto.hdl.config import Config, demo

__all__ = ["fit", "main", "samples"]

_CHOICES: dict[str, Sequence[Any]] = {
    "clusters": (1, 2, 3, 4),
    "lanes": (1, 2),
    "columns": (4, 6, 8, 12, 16, 24, 32),
    "digit_bits": (4, 4, 4, 5, 3),
    "weight_bits": (8, 8, 8, 6, 4),
    "accumulator_bits": (20, 24, 28, 32),
    "weight_rows": (128, 512, 1024, 3072),
    "accumulator_rows": (64, 256, 512, 1536),
    "item_depth": (512, 1024, 4096),
    "positions": (16, 64, 256),
    "channels": (16, 32, 64),
    "list_depth": (9, 16, 32),
    "layers": (8, 32, 48, 96),
    "frame_bytes": (128, 512, 1024),
    "multiplier": ("dsp", "lut"),
}


def samples(count: int, most: int) -> list[Config]:
    """Draw configurations of at most so many multipliers, always the same ones."""
    rng = random.Random(1)
    found: list[Config] = []
    while len(found) < count:
        drawn = {name: rng.choice(values) for name, values in _CHOICES.items()}
        if drawn["clusters"] * drawn["lanes"] * drawn["columns"] <= most:
            found.append(Config(**drawn))
    return found


def fit(rows: Sequence[dict[str, float]], values: Sequence[float]) -> Fit:
    """Fit a linear model to builds, for the least sum of squared relative errors.

    No coefficient is negative: more of anything takes more room, also outside the range of the
    builds.
    """
    names = list(rows[0])
    table = np.array([[row[name] for name in names] for row in rows])
    wanted = np.array(values, float)
    errors = []
    for left_out in range(len(wanted)):
        kept = np.arange(len(wanted)) != left_out
        guess = table[left_out] @ _solve(table[kept], wanted[kept])
        errors.append(abs(guess - wanted[left_out]) / max(wanted[left_out], 1))
    factors = {
        name: float(f"{factor:.6g}")
        for name, factor in zip(names, _solve(table, wanted), strict=True)
        if factor
    }
    return Fit(factors, round(float(np.mean(errors)), 4), round(float(max(errors)), 4))


def _solve(table: "np.ndarray[Any, Any]", wanted: "np.ndarray[Any, Any]") -> Any:
    """Solve the least squares; of the factors that come out negative, drop the worst, again."""
    weights = 1 / np.maximum(wanted, 1)
    # Equal scales, so that what is negligible is the same for all.
    scales = np.maximum(np.abs(table).max(axis=0), 1e-9)
    scaled = table / scales * weights[:, None]
    used = [i for i in range(table.shape[1]) if table[:, i].any()]
    result = np.zeros(table.shape[1])
    while used:
        factors = np.linalg.lstsq(scaled[:, used], wanted * weights, rcond=None)[0]
        if factors.min() >= 0:
            result[used] = factors
            break
        del used[int(factors.argmin())]
    return result / scales


def _build(
    configs: Sequence[Config], measure: Callable[[Builder], dict[str, Any]], timeout: float
) -> list[dict[str, Any]]:
    results = []
    for number, config in enumerate(configs, 1):
        print(f"build {number} of {len(configs)}", flush=True)
        builder = Builder(config, timeout=timeout, progress=lambda text: print(f"  {text}"))
        results.append({"configuration": asdict(config), **measure(builder)})
    return results


def _area(builder: Builder) -> dict[str, Any]:
    area = builder.synthesize()
    return {name: getattr(area, name) for name in (*FITTED, "brams")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Fit the model of `ditto estimate` to builds.")
    add = parser.add_argument
    add("--areas", type=int, default=24, metavar="N", help="synthesized devices (default: 24)")
    add("--speeds", type=int, default=8, metavar="N", help="routed devices (default: 8)")
    add("--seeds", type=int, default=1, metavar="N", help="seeds of each (default: 1)")
    add("--timeout", type=float, default=1800, metavar="S", help="seconds for each run of a tool")
    add("-o", "--output", type=Path, default=Path(__file__).with_name("estimate.json"))
    options = parser.parse_args(arguments)
    seeds = range(1, options.seeds + 1)

    def speed(builder: Builder) -> dict[str, Any]:
        found = {str(seed): builder.place(seed).fmax_mhz for seed in seeds}
        return {"fmax_mhz": found}

    try:
        areas = _build([*samples(options.areas, 160), demo], _area, options.timeout)
        small = [config for config in samples(options.areas, 160) if config.multipliers <= 24]
        speeds = _build(small[: options.speeds], speed, options.timeout)
        versions = Builder(demo).versions
    except ToolError as error:
        print(f"fit: {error}", file=sys.stderr)
        return 1
    fits = {}
    for name in FITTED:
        rows = [features(Config(**build["configuration"]), name) for build in areas]
        fits[name] = fit(rows, [build[name] for build in areas])
    periods = [1000 / statistics.median(build["fmax_mhz"].values()) for build in speeds]
    rows = [speed_features(Config(**build["configuration"])) for build in speeds]
    fits["period_ns"] = fit(rows, periods)
    for name, result in fits.items():
        print(f"{name:12} error {result.mean_error:6.1%} mean, {result.largest_error:6.1%} largest")
    facts = {
        "tools": versions,
        "fits": {name: result._asdict() for name, result in fits.items()},
        "areas": areas,
        "speeds": speeds,
    }
    options.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    # `kill` ends the tool that runs, as ^C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
