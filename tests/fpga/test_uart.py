# amaranth: UnusedElaboratable=no
import random

import pytest
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto.fpga.uart import BitClock, Uart, UartReceiver, UartTransmitter
from ditto.sim.testbench import each, get, pauses, put, simulate

# Cycles that a bit lasts, as (frequency, baud): the least, whole and fractional ones.
RATES = [(4, 1), (9, 2), (25, 4), (25, 3), (12, 1), (217, 10)]
EVERY_BYTE = random.Random(1).sample(range(256), 256)
SOME_BYTES = [0x00, 0xFF, 0x55, 0xAA, *random.Random(2).sample(range(256), 28)]


class Line:
    """A sender with a clock of its own, on the receiver's time: levels with their ends in cycles.

    The simulator's cycles are integers, so the moment at which an edge comes in between matters
    only by which cycle sees it first: `phase` moves all edges by a share of a cycle.
    """

    def __init__(self, cycles_per_bit: float, phase: float = 0.0) -> None:
        self.cycles_per_bit = cycles_per_bit
        self.levels: list[tuple[float, int]] = []
        self.now = phase

    def hold(self, level: int, bits: float) -> "Line":
        self.now += bits * self.cycles_per_bit
        self.levels.append((self.now, level))
        return self

    def send(self, byte: int, stop: int = 1) -> "Line":
        for level in [0, *((byte >> n) & 1 for n in range(8)), stop]:
            self.hold(level, 1)
        return self

    async def drive(self, ctx, pin) -> None:
        ticks = aiter(ctx.tick())
        cycle = 0
        for end, level in self.levels:
            ctx.set(pin, level)
            while cycle < end:
                await anext(ticks)
                cycle += 1


def receive(rate, line, count, stalls=None):
    """Return the bytes and how often each flag was up."""
    dut = UartReceiver(frequency=rate[0], baud=rate[1])
    flags = [0, 0, 0]
    got = []

    async def source(ctx):
        await line.drive(ctx, dut.rx)
        await ctx.tick().repeat(64)

    async def sink(ctx):
        async for byte in each(ctx, dut.o, stalls):
            got.append(byte)

    async def count_flags(ctx):
        signals = dut.framing_error, dut.line_break, dut.overrun
        async for _, _, *values in ctx.tick().sample(*signals):
            for n, value in enumerate(values):
                flags[n] += value

    simulate(dut, source, background=[sink, count_flags], cycles=1 << 20)
    assert len(got) == count
    return got, flags


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("error", [-0.02, 0.02])
def test_takes_bytes_back_to_back_from_a_clock_that_is_off(rate, error):
    line = Line(rate[0] / rate[1] * (1 + error)).hold(1, 2)
    for byte in SOME_BYTES:
        line.send(byte)
    assert receive(rate, line.hold(1, 2), len(SOME_BYTES)) == (SOME_BYTES, [0, 0, 0])


def test_takes_every_byte():
    line = Line(4).hold(1, 2)
    for byte in EVERY_BYTE:
        line.send(byte)
    assert receive((4, 1), line.hold(1, 2), 256) == (EVERY_BYTE, [0, 0, 0])


def test_a_clock_that_is_off_by_a_tenth_is_noticed():
    line = Line(16 * 0.9)
    for byte in EVERY_BYTE:
        line.send(byte)
    dut = UartReceiver(frequency=16, baud=1)
    errors = 0

    async def source(ctx):
        await line.drive(ctx, dut.rx)

    async def watch(ctx):
        nonlocal errors
        async for _, _, error in ctx.tick().sample(dut.framing_error):
            errors += error

    simulate(dut, source, background=[watch])
    assert errors


@pytest.mark.parametrize("rate", RATES)
def test_a_byte_without_its_stop_bit_is_dropped_and_the_next_one_taken(rate):
    line = Line(rate[0] / rate[1]).hold(1, 2)
    line.send(0x55).send(0xA5, stop=0).hold(1, 1).send(0x12).send(0x34)
    assert receive(rate, line.hold(1, 2), 3) == ([0x55, 0x12, 0x34], [1, 0, 0])


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("length", [10, 10.7, 25, 60])
def test_a_break_of_any_length_is_one_break_and_no_byte(rate, length):
    line = Line(rate[0] / rate[1]).hold(1, 2).send(0x81).hold(0, length).hold(1, 1).send(0x7E)
    assert receive(rate, line.hold(1, 2), 2) == ([0x81, 0x7E], [1, 1, 0])


def test_a_line_that_is_low_from_power_up_on_is_a_break():
    line = Line(8).hold(0, 40).hold(1, 1).send(0x42).hold(1, 2)
    assert receive((8, 1), line, 1) == ([0x42], [1, 1, 0])


def test_a_short_disturbance_is_no_start_bit():
    line = Line(16).hold(1, 2).hold(0, 0.4).hold(1, 3).send(0x42).hold(1, 2)
    assert receive((16, 1), line, 1) == ([0x42], [0, 0, 0])


def test_a_byte_that_is_not_taken_in_time_stays_and_the_next_one_is_lost():
    line = Line(8).hold(1, 2)
    for byte in 1, 2, 3:
        line.send(byte)
    # Stalls until after the third byte.
    got, flags = receive((8, 1), line.hold(1, 2), 1, iter([300]))
    assert got == [1]
    assert flags == [0, 0, 2]


def test_pauses_between_bits_of_any_length_change_nothing():
    rng = random.Random(2)
    line = Line(25 / 3)
    data = [rng.randrange(256) for _ in range(100)]
    for byte in data:
        line.hold(1, rng.random() * 3).send(byte)
    assert receive((25, 3), line.hold(1, 2), 100, pauses("sink", longest=60)) == (data, [0, 0, 0])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(4, 40)
    .flatmap(lambda n: st.tuples(st.integers(n, 6 * n), st.just(n)))
    .filter(lambda rate: rate[0] >= 4 * rate[1]),
    st.floats(-0.02, 0.02),
    st.floats(0, 1),
    st.lists(st.integers(0, 255), min_size=1, max_size=12),
)
def test_any_rate_within_two_percent(rate, error, phase, data):
    line = Line(rate[0] / rate[1] * (1 + error), phase).hold(1, 2)
    for byte in data:
        line.send(byte)
    assert receive(rate, line.hold(1, 2), len(data)) == (data, [0, 0, 0])


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("gaps", [None, "some"])
def test_bits_end_where_they_should(rate, gaps):
    """Every edge is less than a cycle late, counted from the byte's start."""
    dut = UartTransmitter(frequency=rate[0], baud=rate[1])
    cycles_per_bit = rate[0] / rate[1]
    levels = []

    async def source(ctx):
        assert ctx.get(dut.tx) == 1
        await put(ctx, dut.i, SOME_BYTES, gaps and pauses(gaps, longest=50))
        await ctx.tick().repeat(int(12 * cycles_per_bit))

    async def watch(ctx):
        async for _, _, level in ctx.tick().sample(dut.tx):
            levels.append(level)

    simulate(dut, source, background=[watch], cycles=1 << 20)
    at = 0
    starts = []
    for byte in SOME_BYTES:
        at = levels.index(0, at)
        starts.append(at)
        expected = [0, *((byte >> n) & 1 for n in range(8)), 1]
        for n, level in enumerate(expected):
            begin, end = -(-n * rate[0] // rate[1]), -(-(n + 1) * rate[0] // rate[1])
            assert levels[at + begin : at + end] == [level] * (end - begin), (byte, n)
        at += -(-10 * rate[0] // rate[1])
    assert set(levels[at:]) == {1}
    if gaps is None:  # back to back
        length = -(-10 * rate[0] // rate[1])
        assert all(b - a == length for a, b in zip(starts, starts[1:], strict=False))


class Loop(wiring.Component):
    """Two UARTs on one cable, with the same clock and different divisors."""

    i: stream.Interface
    o: stream.Interface

    def __init__(self, left: dict[str, int], right: dict[str, int]) -> None:
        self.left = Uart(frequency=left["frequency"], baud=left["baud"])
        self.right = Uart(frequency=right["frequency"], baud=right["baud"])
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.left, m.submodules.right = left, right = self.left, self.right
        connect(m, flipped(self.i), left.i)
        connect(m, right.o, right.i)  # an echo
        connect(m, left.o, flipped(self.o))
        m.d.comb += [right.rx.eq(left.tx), left.rx.eq(right.tx)]
        return m


@pytest.mark.parametrize("error", [-2, 2])
def test_an_echo_from_a_device_with_another_clock(error):
    dut = Loop({"frequency": 800, "baud": 100}, {"frequency": 800 + 8 * error, "baud": 100})

    async def source(ctx):
        # A sender whose clock is slow cannot echo back to back for ever: the queue takes it up.
        await put(ctx, dut.i, SOME_BYTES, pauses("source", longest=20))

    async def sink(ctx):
        assert await get(ctx, dut.o, len(SOME_BYTES), pauses("sink")) == SOME_BYTES

    simulate(dut, source, sink)


def test_the_queue_takes_the_repeats_that_its_page_counts():
    dut = Uart(frequency=4, baud=1)
    line = Line(4).hold(1, 2)
    data = [n * 7 % 256 for n in range(57)]
    for byte in data:
        line.send(byte)

    async def source(ctx):
        await line.drive(ctx, dut.rx)
        await ctx.tick().repeat(50)
        assert await get(ctx, dut.o, 57) == data

    async def watch(ctx):
        async for _, _, overrun in ctx.tick().sample(dut.overrun):
            assert not overrun

    simulate(dut, source, background=[watch])


@pytest.mark.parametrize("kind", [BitClock, UartReceiver, UartTransmitter, Uart])
def test_impossible_rates_are_refused(kind):
    with pytest.raises(
        ValueError, match=r"at most 1/4 .* 6000001 Bd leave 4.00 cycles of 24000000"
    ):
        kind(frequency=24_000_000, baud=6_000_001)
    with pytest.raises(ValueError, match="Baud rate must be positive, not 0"):
        kind(frequency=24_000_000, baud=0)
    with pytest.raises(TypeError, match="Clock frequency must be an integer, not 25000000.0"):
        kind(frequency=25e6, baud=115200)
