# amaranth: UnusedElaboratable=no
"""UART against levels on its lines, whose bits do not last whole cycles."""

import math
import random
from typing import Any

import cocotb
from cocotb.simtime import get_sim_time
from cocotb.triggers import FallingEdge, RisingEdge

from ditto.sim.cocotb_bench import Sink, Source, parameters, start
from ditto.sim.testbench import pauses

PARAMETERS = parameters()
RATE: dict[str, int] = PARAMETERS["rate"]
BIT = RATE["frequency"] / RATE["baud"]
_UNIT = math.gcd(RATE["frequency"], RATE["baud"])
_CYCLE, _BIT = RATE["baud"] // _UNIT, RATE["frequency"] // _UNIT
ENDS = [-(-n * _BIT // _CYCLE) for n in range(1, 11)]
"""Cycles from the beginning of a start bit to the end of each bit."""
MIDDLES = [-(-(n * _BIT + _BIT // 2) // _CYCLE) for n in range(10)]
COUNT: int = PARAMETERS["bytes"]
FLAGS = ("framing_error", "line_break", "overrun")


def some_bytes() -> list[int]:
    return [0x00, 0xFF, 0x55, 0xAA, *(random.randrange(256) for _ in range(COUNT))]


class Bench:
    """A UART with whoever is at its streams, and its flags counted."""

    def __init__(self, dut: Any, stalls: float = 0.0) -> None:
        self.dut = dut
        dut.rx.value = 1
        self.source = Source(dut, "i", gaps=pauses(random.random(), share=stalls, longest=100))
        self.sink = Sink(dut, "o", stalls=pauses(random.random(), share=stalls, longest=100))
        self.flags = dict.fromkeys(FLAGS, 0)

    async def start(self) -> None:
        await start(self.dut, "i", "o")
        cocotb.start_soon(self._count())
        # Levels of before the reset leave the receiver.
        await self.wait(12 * BIT)

    async def _count(self) -> None:
        while True:
            await FallingEdge(self.dut.clk)
            for flag in FLAGS:
                self.flags[flag] += int(getattr(self.dut, flag).value)

    async def wait(self, cycles: float) -> None:
        for _ in range(math.ceil(cycles)):
            await RisingEdge(self.dut.clk)

    async def drive(self, bytes_: list[int], *, stop: int = 1, pause: int = 0) -> None:
        """Put bytes on the line, each bit as long as it has to be in the mean."""
        now = 0.0
        cycle = 0
        for byte in bytes_:
            for level in [0, *(byte >> n & 1 for n in range(8)), stop]:
                self.dut.rx.value = level
                now += BIT
                while cycle < now:
                    await RisingEdge(self.dut.clk)
                    cycle += 1
            if pause:
                self.dut.rx.value = 1
                length = random.randrange(pause)
                await self.wait(length)
                now += length
                cycle += length
        self.dut.rx.value = 1

    async def drive_middles(self, byte: int) -> None:
        """Put a byte on the line whose bits are there only while they have to be sampled."""
        bits = [0, *(byte >> n & 1 for n in range(8)), 1]
        levels = [0] * MIDDLES[0]
        for n in range(1, 10):
            between = MIDDLES[n] - MIDDLES[n - 1] - 1
            levels += [1 - bits[n - 1]] * (between // 2) + [1 - bits[n]] * (between - between // 2)
            levels.append(bits[n])
        for level in levels:
            self.dut.rx.value = level
            await RisingEdge(self.dut.clk)

    async def listen(self, count: int) -> list[int]:
        """Read bytes off the line, whose bits have to last as long as they should."""
        found = []
        dut = self.dut
        for _ in range(count):
            while int(dut.tx.value):
                await FallingEdge(dut.clk)
            bits = []
            cycle = 0
            for end in ENDS:
                bits.append(int(dut.tx.value))
                while cycle < end:
                    assert int(dut.tx.value) == bits[-1], (bits, cycle)
                    await FallingEdge(dut.clk)
                    cycle += 1
            assert bits[0] == 0 and bits[9] == 1, bits
            found.append(sum(bit << n for n, bit in enumerate(bits[1:9])))
        return found


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(stalls=[0.0, 0.3])
async def bytes_go_to_the_line(dut: Any, stalls: float) -> None:
    bench = Bench(dut, stalls)
    await bench.start()
    wanted = some_bytes()
    sending = cocotb.start_soon(bench.source.send(wanted))
    assert await bench.listen(len(wanted)) == wanted
    await sending
    # The line rests high, until there is another byte.
    for _ in range(math.ceil(12 * BIT)):
        await FallingEdge(dut.clk)
        assert int(dut.tx.value) == 1 and int(dut.i__ready.value)


@cocotb.test(timeout_time=200, timeout_unit="us")
async def bytes_follow_each_other_at_once(dut: Any) -> None:
    bench = Bench(dut)
    await bench.start()
    wanted = some_bytes()
    begin = get_sim_time("ns")
    await bench.source.send(wanted)
    cycles = (get_sim_time("ns") - begin) / 10
    # The last one has been taken when its start bit begins.
    assert abs(cycles - 10 * BIT * (len(wanted) - 1)) <= len(wanted) + 2


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(stalls=[0.0, 0.3], pause=[0, 30])
async def bytes_come_from_the_line(dut: Any, stalls: float, pause: int) -> None:
    bench = Bench(dut, stalls)
    await bench.start()
    wanted = some_bytes()
    driving = cocotb.start_soon(bench.drive(wanted, pause=pause))
    assert [(await bench.sink.receive())[0] for _ in wanted] == wanted
    await driving
    assert not any(bench.flags.values()), bench.flags


@cocotb.test(timeout_time=200, timeout_unit="us")
async def bits_are_sampled_in_their_middle(dut: Any) -> None:
    bench = Bench(dut)
    await bench.start()
    for byte in some_bytes():
        await bench.drive_middles(byte)
        assert (await bench.sink.receive())[0] == byte
    assert not any(bench.flags.values()), bench.flags


@cocotb.test(timeout_time=200, timeout_unit="us")
async def what_is_no_byte_is_dropped(dut: Any) -> None:
    bench = Bench(dut)
    await bench.start()
    for byte in some_bytes():
        before = dict(bench.flags)
        await bench.drive([byte], stop=0)
        await bench.wait(2 * BIT)
        assert bench.flags["framing_error"] == before["framing_error"] + 1
        assert bench.flags["line_break"] == before["line_break"] + (byte == 0)
        # A disturbance that is over by the middle of a start bit.
        dut.rx.value = 0
        await bench.wait(MIDDLES[0] - 1)
        dut.rx.value = 1
        await bench.wait(2 * BIT)
        await bench.drive([byte])
        assert (await bench.sink.receive())[0] == byte
    # A line that stays low is one error.
    before = dict(bench.flags)
    dut.rx.value = 0
    await bench.wait(40 * BIT)
    dut.rx.value = 1
    await bench.wait(2 * BIT)
    assert bench.flags["line_break"] == before["line_break"] + 1
    await bench.drive([0x42])
    assert (await bench.sink.receive())[0] == 0x42
    assert not bench.flags["overrun"]


@cocotb.test(timeout_time=200, timeout_unit="us")
async def what_finds_no_room_is_dropped(dut: Any) -> None:
    """Nobody takes bytes: the first ones wait, and the others are counted."""
    bench = Bench(dut)
    await bench.start()
    room: int = PARAMETERS["room"]
    sent = [random.randrange(256) for _ in range(room + 5)]
    await bench.drive(sent)
    await bench.wait(2 * BIT)
    lost = bench.flags["overrun"]
    assert lost == 5, lost
    got = [(await bench.sink.receive())[0] for _ in range(room)]
    assert got == sent[:room]
    assert not bench.flags["framing_error"]


@cocotb.test(timeout_time=200, timeout_unit="us")
async def reset_anywhere(dut: Any) -> None:
    bench = Bench(dut)
    await bench.start()
    for _ in range(PARAMETERS["resets"]):
        sending = cocotb.start_soon(bench.source.send([0, 0]))
        driving = cocotb.start_soon(bench.drive([0, 0]))
        await bench.wait(random.uniform(1, 18 * BIT))
        sending.cancel()
        driving.cancel()
        dut.i__valid.value = 0
        dut.rx.value = 1
        # The levels of before have left the receiver when the reset ends.
        dut.rst.value = 1
        await bench.wait(4)
        dut.rst.value = 0
        await FallingEdge(dut.clk)
        assert int(dut.tx.value) == 1 and not int(dut.o__valid.value)
        assert int(dut.i__ready.value)
        await RisingEdge(dut.clk)
        byte = random.randrange(256)
        sending = cocotb.start_soon(bench.source.send([byte]))
        assert await bench.listen(1) == [byte]
        await sending
        await bench.drive([byte])
        assert (await bench.sink.receive())[0] == byte
