# amaranth: UnusedElaboratable=no
"""What the testbenches of the gateware's blocks share."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In
from cocotb.triggers import RisingEdge

from ditto.hdl.config import Config
from ditto.hdl.protocol import OF_INPUTS, LayerEntry
from ditto.hdl.protocol import pack as pack_struct
from ditto.sim.cocotb_bench import parameters
from ditto.sim.workload import Workload

__all__ = [
    "CONFIG",
    "FIELDS",
    "LIMIT_MS",
    "PARAMETERS",
    "WARM_UP",
    "chance",
    "entry_bits",
    "generator",
    "idle",
    "of_inputs",
    "pack",
    "pulse",
    "vector",
]

PARAMETERS = parameters()
CONFIG = Config(**PARAMETERS["config"])
FIELDS = {str(name): field for name, field in data.Layout.cast(LayerEntry)}
"""Of a layer-table entry."""
LIMIT_MS = 5
"""Longest that a test may take, 100,000 cycles a millisecond: a device that hangs fails."""

_ONES = (
    "in_height in_width positions out_height out_width kernel_height kernel_width "
    "stride_y stride_x dilation_y dilation_x tiles accumulator_base split"
).split()
WARM_UP = Workload(
    dict.fromkeys(_ONES, 1)
    | dict.fromkeys(["pad_top", "pad_left", "weight_base", "skew"], 0)
    | {"channels": CONFIG.lanes},
    np.zeros((CONFIG.clusters, CONFIG.lanes, CONFIG.columns), np.int64),
)
"""A layer of one position, in which every lane has work."""


def generator() -> np.random.Generator:
    """Make a generator that follows from the seed of the testbench."""
    return np.random.default_rng(random.getrandbits(64))


def entry_bits(entry: Mapping[str, int]) -> int:
    """Return the bits of a layer-table entry; what a block does not read of it is anything."""
    values = {name: random.getrandbits(field.width) for name, field in FIELDS.items()}
    return int.from_bytes(pack_struct(LayerEntry, **(values | dict(entry))), "little")


def of_inputs() -> dict[str, int]:
    """Draw the fields of an entry that are for tiles of inputs alone."""
    return {name: random.getrandbits(FIELDS[name].width) for name in sorted(OF_INPUTS)}


def chance(share: float) -> bool:
    return random.random() < share


def idle(dut: Any, component: wiring.Component) -> None:
    """Set every input to zero; the component tells which ports are inputs."""
    for path, member, _ in component.signature.flatten(component):
        if member.flow is In:
            getattr(dut, "__".join(map(str, path))).value = 0


def vector(values: Sequence[int], bits: int) -> int:
    """Pack integers, signed or not, the first one lowest."""
    return sum((int(value) & (1 << bits) - 1) << i * bits for i, value in enumerate(values))


def pack(layout: data.StructLayout, **values: int) -> int:
    """Pack a structure of plain fields or ready vectors; fields that are not given are zero."""
    result = 0
    for name, value in values.items():
        field = layout[name]
        result |= (int(value) & (1 << field.width) - 1) << field.offset
    return result


async def pulse(dut: Any, name: str, cycles: int = 1) -> None:
    """Set an input to one for some cycles."""
    getattr(dut, name).value = 1
    for _ in range(cycles):
        await RisingEdge(dut.clk)
    getattr(dut, name).value = 0
