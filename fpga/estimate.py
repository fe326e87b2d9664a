"""Estimates the size and speed of a device without building it.

Block memories follow exactly from the sizes of the memories, by the rules of Yosys. Everything else
is a linear model of a few sizes of the device, fitted to builds by :mod:`ditto.fpga.fit`.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from ditto.fpga.parts import PARTS, Part
from ditto.hdl.config import Config, Multiplier

__all__ = [
    "FITTED",
    "PLACES",
    "Estimate",
    "Fit",
    "Mapped",
    "estimate",
    "features",
    "map_memory",
    "memories",
    "shrink",
    "speed_features",
]

FITTED = ("luts", "carries", "comb", "ffs", "distributed", "dsps")
"""What is fitted, by field of :class:`ditto.fpga.build.Synthesized`."""

PLACES = {
    "comb": "TRELLIS_COMB",
    "ffs": "TRELLIS_FF",
    "brams": "DP16KD",
    "dsps": "MULT18X18D",
}
"""What a part may have too little of: our name, and that of the part's cells."""

# Depth and width of a block memory; the widest form has a read port and a write port alone.
_SHAPES = ((16384, 1), (8192, 2), (4096, 4), (2048, 9), (1024, 18), (512, 36))
_BYTE = 9  # bits that are written apart
_BLOCK_COST, _CELL_COST = 128, 4

RESERVED_BITS = 6
"""Bits of a layer-table entry that nobody reads."""

OF_INPUTS_BITS = 49
"""Bits of a layer-table entry that are for tiles of inputs alone."""

_RING = (512, 8)  # what the framer sends


class Mapped(NamedTuple):
    """How Yosys maps a memory: block memories, or cells of 16 x 4 bits, and what joins them."""

    brams: int
    cells: int
    #: Bits that are selected among several blocks or cells, each time two become one.
    muxes: int


def map_memory(depth: int, width: int, readers: int = 1) -> Mapped:
    """Map a memory with a write port, which one of two readers shares, as Yosys does.

    It takes the form that costs least, by the costs of its library for ECP5: blocks side by side
    for the width, and in rows for the depth, of which multiplexers select one.

    >>> map_memory(5632, 128, 2)
    Mapped(brams=45, cells=0, muxes=512)
    >>> map_memory(32, 21)
    Mapped(brams=0, cells=12, muxes=21)
    """
    deep = -(-depth // 16)
    options = [(_CELL_COST, 0, readers * -(-width // 4) * deep, deep)]
    for block_depth, block_width in _SHAPES[: len(_SHAPES) - (readers > 1)]:
        rows = -(-depth // block_depth)
        columns, rest = divmod(width, block_width)
        # A block of bytes that the last column does not need stands in for the rows below.
        blocks = columns * rows
        if rest:
            spare = block_width // _BYTE // -(-rest // _BYTE) if block_width > _BYTE else 1
            blocks += -(-rows // spare)
        options.append((_BLOCK_COST, blocks, 0, rows))
    found = []
    for cost, brams, cells, rows in options:
        muxes = readers * width * (rows - 1)
        found.append((cost * (brams + cells) + muxes, Mapped(brams, cells, muxes)))
    return min(found, key=lambda option: option[0])[1]


def memories(config: Config) -> Mapped:
    """Map the memories of a device, and add them up."""
    readers = {"weights": config.lanes, "items": config.lanes}
    mapped = [map_memory(*_RING)]
    for memory in config.memories:
        width = memory.width
        if memory.name == "layers":
            # What nobody reads is left out.
            width -= RESERVED_BITS + (0 if config.reference_depth else OF_INPUTS_BITS)
        each = map_memory(memory.depth, width, readers.get(memory.name, 1))
        mapped += [each] * memory.count
    return Mapped(*map(sum, zip(*mapped, strict=True)))


def shrink(config: Config, part: Part) -> Config:
    """Return the device with memories that a part has the blocks for.

    As long as there are too few, the memory that gives back most becomes shallower, down to a power
    of two. A device that fits stays as it is, and so does one whose memories cannot shrink enough.
    """
    most = part.cells["DP16KD"]
    found = config
    while (taken := memories(found).brams) > most:
        smaller = []
        for name in ("weight_rows", "accumulator_rows", "item_depth"):
            depth = 1 << (getattr(found, name) - 1).bit_length() - 1
            # Down to where it takes fewer blocks.
            while depth >= _LEAST[name](config):
                candidate = replace(found, **{name: depth})
                if memories(candidate).brams < taken:
                    smaller.append(candidate)
                    break
                depth //= 2
        if not smaller:
            return config
        found = min(smaller, key=lambda candidate: memories(candidate).brams)
    return found


_LEAST: dict[str, Callable[[Config], int]] = {
    "weight_rows": lambda config: 256,
    "accumulator_rows": lambda config: 256,
    "item_depth": lambda config: config.channels * config.digits,
}
"""Least depth of the memories that shrink."""


def features(config: Config, name: str) -> dict[str, float]:
    """Return the sizes of a device that the number of some cells is linear in.

    Parameters
    ----------
    config
        The device.
    name
        One of :data:`FITTED`.
    """
    clusters, lanes = config.clusters, config.clusters * config.lanes
    is_block = config.multiplier is Multiplier.DSP
    # Blocks of multipliers: two columns share one where they can.
    blocks = -(-config.columns // 2) if config.is_packed else config.columns
    rows = -(-config.digit_bits // 2)  # radix-4 Booth rows of a product of tables
    weight_bits = lanes * config.columns * config.weight_bits
    lists = clusters * -(-config.list_depth // 16)
    mapped = memories(config)
    sizes = {
        "device": 1,
        "clusters": clusters,
        "lanes": lanes,
        # Adders and registers of the accumulators.
        "accumulator bits": clusters * config.columns * config.accumulator_bits,
        # The way of the weights from the host, and those that are multiplied.
        "word bits": config.columns * config.weight_bits,
        "weight bits": weight_bits,
        "multiplier blocks": lanes * blocks if is_block else 0,
        "table row bits": 0 if is_block else rows * weight_bits,
        "lists": lists,
        "lists of two lanes": lists * (config.lanes - 1),
        "lists of high items": lists * (config.shifts > 1),
        "memory cells": mapped.cells,
        "memory multiplexers": mapped.muxes,
    }
    return {size: sizes[size] for size in _SIZES[name]}


_SIZES = {
    "luts": (
        *("device", "clusters", "accumulator bits", "table row bits", "lists of two lanes"),
        *("lists of high items", "memory cells", "memory multiplexers"),
    ),
    "carries": ("device", "clusters", "accumulator bits", "weight bits", "table row bits"),
    "comb": (
        *("device", "clusters", "accumulator bits", "table row bits", "lists of two lanes"),
        *("lists of high items", "memory cells", "memory multiplexers"),
    ),
    "ffs": (
        *("device", "clusters", "lanes", "accumulator bits", "word bits", "weight bits"),
        "lists of high items",
    ),
    "distributed": ("lists", "lists of two lanes", "lists of high items", "memory cells"),
    "dsps": ("device", "clusters", "multiplier blocks"),
}
"""What the cells of each kind depend on most."""


def speed_features(config: Config) -> dict[str, float]:
    """Return the sizes of a device that its clock period is linear in."""
    return {
        "device": 1,
        "multipliers, doublings": math.log2(config.multipliers),
        "tables": float(config.multiplier is Multiplier.LUT),
    }


class Fit(NamedTuple):
    """A linear model, and how well it foretells builds that it was not fitted to."""

    coefficients: dict[str, float]
    #: Mean and largest relative error over the builds, each left out in turn.
    mean_error: float
    largest_error: float

    def __call__(self, values: Mapping[str, float]) -> float:
        """Evaluate the model."""
        return sum(factor * values[name] for name, factor in self.coefficients.items())


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Size and speed of a device.

    Parameters
    ----------
    cells
        Cells by name: :data:`FITTED` and ``brams``.
    fmax_mhz
        Clock frequency, speed grade 6.
    margins
        Largest relative error of each, over builds that the model had not seen.
    outside
        Parameters out of the range of all builds, with that range: margins do not hold there.
    """

    cells: dict[str, int]
    fmax_mhz: float
    margins: dict[str, float]
    outside: dict[str, tuple[int, int]]

    def exceeded(self, part: Part, *, surely: bool = True) -> dict[str, int]:
        """Return by how many cells the device exceeds a part, for each kind that it exceeds.

        Parameters
        ----------
        part
            The part.
        surely
            Only where it does so even if the estimate is too high by its margin. Otherwise where it
            would if the estimate were too low by its margin.
        """
        sign = -1 if surely else 1
        excess = {
            name: math.ceil(self.cells[name] * (1 + sign * self.margins[name])) - part.cells[cell]
            for name, cell in PLACES.items()
        }
        return {name: cells for name, cells in excess.items() if cells > 0}

    def verdict(self, part: Part) -> str:
        """Say whether the device fits a part: ``fits``, ``too big`` or ``unsure``."""
        if self.exceeded(part):
            return "too big"
        return "unsure" if self.exceeded(part, surely=False) else "fits"

    def facts(self) -> dict[str, Any]:
        """Describe the estimate in plain values, for JSON."""
        parts = {
            part.name: {
                "verdict": self.verdict(part),
                "shares": {name: self.cells[name] / part.cells[c] for name, c in PLACES.items()},
                "exceeded": self.exceeded(part),
            }
            for part in PARTS.values()
        }
        return self.cells | {
            "fmax_mhz": self.fmax_mhz,
            "margins": self.margins,
            "outside": self.outside,
            "parts": parts,
        }


@cache
def _model() -> dict[str, Any]:
    return json.loads(files("ditto.fpga").joinpath("estimate.json").read_text(encoding="utf-8"))


def estimate(config: Config) -> Estimate:
    """Estimate the size and speed of a device."""
    model = _model()
    fits = {name: Fit(**fit) for name, fit in model["fits"].items()}
    cells = {"brams": memories(config).brams}
    cells |= {name: round(fits[name](features(config, name))) for name in FITTED}
    values = asdict(config)
    return Estimate(
        cells=cells,
        fmax_mhz=round(1000 / fits["period_ns"](speed_features(config)), 1),
        margins={"brams": 0.0}
        | {name: fits[name].largest_error for name in FITTED}
        | {"fmax_mhz": fits["period_ns"].largest_error},
        outside={
            name: (low, high)
            for name, (low, high) in model["ranges"].items()
            if not low <= values[name] <= high
        },
    )
