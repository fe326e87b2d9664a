"""Fits the model of :mod:`ditto.fpga.estimate` to builds, and measures its error.

::

    python -m ditto.fpga.fit

builds devices, which takes an hour or two, or seconds where the cache has the builds, and replaces
``fpga/estimate.json``.
"""

import argparse
import json
import random
import signal
import statistics
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditto.fpga.build import Builder
from ditto.fpga.estimate import FITTED, Fit, features, speed_features
from ditto.fpga.tools import TimeLimitError, ToolError
from ditto.hdl.config import Config, Multiplier, demo

__all__ = ["fit", "main", "model_of", "samples"]

_CHOICES: dict[str, Sequence[Any]] = {
    "clusters": (1, 2, 3, 4),
    "lanes": (1, 2, 2),
    "columns": (4, 6, 8, 12, 16, 24, 32),
    "weight_bits": (8, 8, 8, 6, 4),
    "accumulator_bits": (20, 24, 28, 32),
    "weight_rows": (128, 512, 1024, 3072),
    "accumulator_rows": (64, 256, 512, 1536),
    "item_depth": (1024, 4096, 8192),
    "positions": (16, 64, 256),
    "channels": (16, 32, 64),
    "list_depth": (9, 16, 32),
    "layers": (8, 32, 48, 96),
    "frame_bytes": (128, 512, 1024),
    "multiplier": tuple(Multiplier),
}

# Width of a digit, and whether zeros are skipped.
_DIGITS = (*[(4, 1)] * 6, (3, 1), (5, 1), (9, 0))

_LARGE = {"weight_rows": 1024, "accumulator_rows": 512, "item_depth": 4096}
_SMALL = {"clusters": 1, "weight_rows": 512, "accumulator_rows": 256, "item_depth": 1024}
_DENSE = {"skip": 0, "digit_bits": 9}
# Block memories are scarcest then.
_TABLES = {"multiplier": Multiplier.LUT, "accumulator_bits": 22, "item_depth": 2048}

_NAMED = (
    demo,
    *(
        replace(demo, **changes)
        for changes in (
            _SMALL | {"columns": 8},
            _SMALL | {"columns": 8, "multiplier": Multiplier.LUT},
            _SMALL | _DENSE | {"columns": 4},
            _LARGE | {"clusters": 8},
            _LARGE | {"clusters": 4, "columns": 32},
            _LARGE | _DENSE | {"clusters": 4},
            _LARGE | _TABLES | {"clusters": 8, "columns": 20},
        )
    ),
)
"""Devices that others are compared with."""


def samples(count: int, most: int) -> list[Config]:
    """Draw configurations of at most so many multipliers, always the same ones."""
    rng = random.Random(202)  # draws some of everything
    found: list[Config] = []
    while len(found) < count:
        drawn = {name: rng.choice(values) for name, values in _CHOICES.items()}
        digit_bits, skip = rng.choice(_DIGITS)
        if drawn["clusters"] * drawn["lanes"] * drawn["columns"] <= most:
            found.append(Config(**drawn, digit_bits=digit_bits, skip=skip))
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


def _solve(table: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
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


def model_of(builds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fit everything to builds: the fits, and the range of each parameter.

    Parameters
    ----------
    builds
        ``configuration``, the numbers of its cells, and ``fmax_mhz`` by seed, if it was routed.
    """
    configs = [Config(**build["configuration"]) for build in builds]
    fits = {
        name: fit([features(config, name) for config in configs], [b[name] for b in builds])
        for name in FITTED
    }
    routed = [pair for pair in zip(configs, builds, strict=True) if pair[1]["fmax_mhz"]]
    fits["period_ns"] = fit(
        [speed_features(config) for config, _ in routed],
        [1000 / statistics.median(build["fmax_mhz"].values()) for _, build in routed],
    )
    numbers = [name for name in asdict(demo) if name != "multiplier"]
    values = {name: [getattr(config, name) for config in configs] for name in numbers}
    return {
        "fits": {name: found._asdict() for name, found in fits.items()},
        "ranges": {name: [min(found), max(found)] for name, found in values.items()},
    }


def _build(config: Config, timeout: float) -> dict[str, Any] | None:
    """Build a device; leave out its speed, or all of it, if that takes too long."""
    builder = Builder(config, timeout=timeout, progress=lambda text: print(f"  {text}", flush=True))
    try:
        area = builder.synthesize()
        fmax_mhz = {}
        with suppress(TimeLimitError):
            fmax_mhz["1"] = builder.place(1).fmax_mhz
    except TimeLimitError:
        return None
    cells = {name: getattr(area, name) for name in (*FITTED, "brams")}
    return {"configuration": asdict(config), **cells, "fmax_mhz": fmax_mhz}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Fit the model of `ditto estimate` to builds.")
    add = parser.add_argument
    add("--count", type=int, default=12, metavar="N", help="small devices to draw (default: 12)")
    add(
        "--timeout",
        type=float,
        default=1800,
        metavar="S",
        help="most seconds for each run of a tool; what takes longer is left out (default: 1800)",
    )
    add("-o", "--output", type=Path, default=Path(__file__).with_name("estimate.json"))
    options = parser.parse_args(arguments)
    plan = [*samples(options.count, 48), *_NAMED]
    builds = []
    try:
        for number, config in enumerate(plan, 1):
            print(f"build {number} of {len(plan)}", flush=True)
            build = _build(config, options.timeout)
            if build is not None:
                builds.append(build)
        versions = Builder(demo).versions
    except ToolError as error:
        print(f"fit: {error}", file=sys.stderr)
        return 1
    model = model_of(builds)
    for name, found in model["fits"].items():
        mean, largest = found["mean_error"], found["largest_error"]
        print(f"{name:12} error {mean:6.1%} mean, {largest:6.1%} largest")
    facts = {"tools": versions, **model, "builds": builds}
    options.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    # `kill` ends the tool that runs, as ^C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
