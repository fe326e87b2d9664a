# amaranth: UnusedElaboratable=no
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Cat, Const, Module, Signal, Value, signed
from amaranth.lib import data
from amaranth.sim import Simulator

from ditto.fpga.ecp5 import Ecp5
from ditto.fpga.generate import write
from ditto.hdl.adder import SelectAdder
from ditto.hdl.config import Config
from ditto.hdl.protocol import LayerEntry
from ditto.hdl.register import OwnRegister


class Modelled(Ecp5):
    """Cells as Lattice and Yosys describe them."""

    def carry_cell(
        self,
        tables: Sequence[int],
        inputs: Sequence[Sequence[Value]],
        carry: Value,
        sums: Sequence[Value],
        next_carry: Value,
    ) -> Module:
        m = Module()
        for bit in range(2):
            index = Cat(inputs[bit])
            propagate, generate, out = Signal(), Signal(), Signal()
            m.d.comb += [
                propagate.eq(Const(tables[bit], 16).bit_select(index, 1)),
                generate.eq(Const(tables[bit] & 0xF, 4).bit_select(index[:2], 1)),
                sums[bit].eq(propagate ^ carry),
                out.eq((propagate & carry) | (~propagate & generate)),
            ]
            carry = out
        m.d.comb += next_carry.eq(carry)
        return m

    def flip_flop(self, i: Value, o: Value) -> Module:
        m = Module()
        held = Signal(reset_less=True)
        m.d.sync += held.eq(i)
        m.d.comb += o.eq(held)
        return m


def test_a_device_is_built_of_them(tmp_path: Path) -> None:
    for suffix in (".v", ".il"):
        output = tmp_path / f"ditto{suffix}"
        config = Config(clusters=1, columns=2)
        write(config, output, Ecp5())
        # Of 24 and more bits, two a cell, for each column.
        assert output.read_text().count("CCU2C") >= 2 * (config.accumulator_bits // 2)
        # A cluster has a register of its own for each bit of the entry that it runs.
        assert output.read_text().count("TRELLIS_FF") >= LayerEntry.as_shape().size
        write(config, output)
        assert "CCU2C" not in output.read_text()
        assert "TRELLIS_FF" not in output.read_text()


def check(width: int, platform: object, values: list[tuple[int, int, int, int, int]]) -> None:
    dut: Any = SelectAdder(width)
    m = Module()
    m.submodules.dut = dut.elaborate(platform)

    async def bench(ctx: Any) -> None:
        for a, b, c, select, carry in values:
            for name, value in zip("abc", (a, b, c), strict=True):
                ctx.set(getattr(dut, name), value)
            ctx.set(dut.select, select)
            ctx.set(dut.carry, carry)
            half = 1 << width - 1
            want = (a + (b if select else c) + carry + half) % (2 * half) - half
            assert ctx.get(dut.o) == want, (a, b, c, select, carry)

    simulator = Simulator(m)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("platform", [None, Modelled()], ids=["any", "ecp5"])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_every_sum_of_few_bits(width: int, platform: object) -> None:
    numbers = range(-(1 << width - 1), 1 << width - 1)
    check(
        width,
        platform,
        [
            (a, b, c, select, carry)
            for a in numbers
            for b in numbers
            for c in numbers
            for select in (0, 1)
            for carry in (0, 1)
        ],
    )


@pytest.mark.parametrize("platform", [None, Modelled()], ids=["any", "ecp5"])
@pytest.mark.parametrize("width", [17, 24])
def test_sums_of_many_bits(width: int, platform: object) -> None:
    rng = random.Random(width)
    ends = [-(1 << width - 1), (1 << width - 1) - 1, -1, 0, 1]

    def number() -> int:
        return rng.choice(ends) if rng.random() < 0.3 else rng.randrange(ends[0], ends[1] + 1)

    bits = [0, 1]
    check(
        width,
        platform,
        [(number(), number(), number(), rng.choice(bits), rng.choice(bits)) for _ in range(2000)],
    )


@pytest.mark.parametrize("platform", [None, Modelled()], ids=["any", "ecp5"])
@pytest.mark.parametrize("shape", [3, data.StructLayout({"a": 2, "b": signed(9)})], ids=str)
def test_an_own_register_delays_by_a_cycle(shape: Any, platform: object) -> None:
    dut = OwnRegister(shape)
    m = Module()
    m.submodules.dut = dut.elaborate(platform)
    source, target = Value.cast(dut.i), Value.cast(dut.o)

    async def bench(ctx: Any) -> None:
        rng = random.Random(7)
        for _ in range(50):
            value = rng.getrandbits(len(source))
            ctx.set(source, value)
            await ctx.tick()
            ctx.set(source, rng.getrandbits(len(source)))
            assert ctx.get(target) == value

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
