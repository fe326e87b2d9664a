# amaranth: UnusedElaboratable=no
"""Encoder against the golden model's digits: what it writes, where, and what it counts."""

import random
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge, RisingEdge
from gateware import CONFIG, LIMIT_MS, PARAMETERS, chance, generator, idle, pulse

from ditto.hdl.difference_buffer import item_of
from ditto.hdl.encoder import Encoder
from ditto.hdl.protocol import ESCAPE
from ditto.sim.cocotb_bench import Source, start
from ditto.sim.golden import classify, split
from ditto.sim.testbench import pauses
from ditto.sim.workload import DELTAS, random_deltas

TILES: int = PARAMETERS["tiles"]
LANES, DIGITS = CONFIG.lanes, CONFIG.digits

Items = dict[tuple[int, int], tuple[int, int, int]]
Counts = dict[int, list[int]]


class Writes:
    """The difference buffer's side: items by lane and address, counts by position."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        self.items: Items = {}
        self.counts: Counts = {}
        self.layout = item_of(CONFIG)
        self.ports = [
            tuple(getattr(dut, f"items__{lane}__{name}") for name in ("en", "address", "item"))
            for lane in range(LANES)
        ]

    async def watch(self) -> None:
        dut = self.dut
        while True:
            await FallingEdge(dut.clk)
            if int(dut.begin.value) or int(dut.rst.value):
                self.items, self.counts = {}, {}
                continue
            for lane, (en, address, item) in enumerate(self.ports):
                if int(en.value):
                    key = lane, int(address.value)
                    assert key not in self.items, f"item {key} written twice"
                    value = self.layout.from_bits(int(item.value))
                    self.items[key] = value.row, value.digit, value.shift
            if int(dut.counts__en.value):
                position = int(dut.counts__address.value)
                assert position not in self.counts, f"counts {position} written twice"
                raw, bits = int(dut.counts__counts.value), CONFIG.count_bits
                self.counts[position] = [
                    raw >> lane * bits & (1 << bits) - 1 for lane in range(LANES)
                ]


def expected(deltas: np.ndarray, channels: int) -> tuple[Items, Counts]:
    """Say what is written for deltas, the last of which may be in the middle of a position."""
    slot = -(-channels // LANES) * DIGITS
    items: Items = {}
    counts: Counts = {}
    for first in range(0, len(deltas), channels):
        position, digits = first // channels, split(deltas[first : first + channels], CONFIG)
        if position >= CONFIG.positions or (position + 1) * slot > CONFIG.item_depth:
            break
        count = [0] * LANES
        # A word is written when it is full, or when its position is.
        whole = len(digits) if len(digits) == channels else len(digits) // LANES * LANES
        for channel in range(whole):
            lane = channel % LANES
            for shift, digit in enumerate(digits[channel].tolist()):
                if digit:
                    key = lane, position * slot + count[lane]
                    items[key] = channel // LANES, digit, shift
                    count[lane] += 1
        if len(digits) == channels:
            counts[position] = count
    return items, counts


def as_bytes(deltas: np.ndarray, waste: float = 0.0) -> list[list[int]]:
    """Encode each delta; some in three bytes that need only one."""
    return [
        [delta & 0xFF]
        if -127 <= delta <= 127 and not chance(waste)
        else [ESCAPE, delta & 0xFF, delta >> 8 & 0xFF]
        for delta in deltas.tolist()
    ]


class Bench:
    def __init__(self, dut: Any, share: float) -> None:
        self.dut = dut
        idle(dut, Encoder(CONFIG))
        self.source = Source(dut, "i", gaps=pauses(random.random(), share=share))
        self.writes = Writes(dut)

    async def start(self) -> None:
        await start(self.dut, "i")
        cocotb.start_soon(self.writes.watch())

    async def begin(self, channels: int) -> None:
        self.dut.channels.value = channels
        self.dut.channel_rows.value = -(-channels // LANES)
        await pulse(self.dut, "begin")

    async def tile(self, deltas: np.ndarray, channels: int, cut: int | None = None) -> None:
        """Encode a tile, or its first ``cut`` bytes, and compare everything."""
        dut = self.dut
        await self.begin(channels)
        coded = as_bytes(deltas, waste=0.1)
        stream = [byte for delta in coded for byte in delta]
        if cut is not None:
            stream = stream[:cut]
            whole = 0
            while whole < len(coded) and sum(map(len, coded[: whole + 1])) <= cut:
                whole += 1
            partial = sum(map(len, coded[:whole])) < len(stream)
            deltas = deltas[:whole]
        else:
            partial = False
        await self.source.send(stream)
        if cut is not None and chance(0.5):
            for _ in range(random.randint(0, 3)):
                await RisingEdge(dut.clk)
            return  # The next tile begins while this one may still be at work.
        await FallingEdge(dut.clk)
        while int(dut.busy.value):
            await FallingEdge(dut.clk)
        where = f"{channels} channels, deltas {deltas.tolist()}"
        items, counts = expected(deltas, channels)
        assert self.writes.counts == counts, where
        assert self.writes.items == items, where
        counted = tuple(int(getattr(dut, kind).value) for kind in ("zero", "narrow", "wide"))
        assert counted == classify(deltas, CONFIG), where
        assert int(dut.positions.value) == len(counts), where
        ended = not partial and len(deltas) % channels == 0
        exact = ended and len(counts) == len(deltas) // channels
        assert int(dut.exact.value) == exact, where
        await RisingEdge(dut.clk)


def random_tile() -> tuple[np.ndarray, int]:
    """Make a tile, which may have up to two positions more than fit."""
    channels = random.randint(1, LANES * CONFIG.channel_rows)
    slot = -(-channels // LANES) * DIGITS
    capacity = min(CONFIG.positions, CONFIG.item_depth // slot)
    positions = random.randint(1, capacity + 2) if chance(0.3) else random.randint(1, 6)
    entry = {"positions": positions, "channels": channels}
    return random_deltas(generator(), CONFIG, entry, random.choice(DELTAS)).ravel(), channels


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def every_delta(dut: Any) -> None:
    bench = Bench(dut, share=0.1)
    await bench.start()
    top = CONFIG.max_delta
    for channels in {1, LANES * CONFIG.channel_rows, max(1, LANES * CONFIG.channel_rows - 1)}:
        deltas = generator().permutation(np.arange(-top, top + 1))
        slot = -(-channels // LANES) * DIGITS
        step = channels * min(CONFIG.positions, CONFIG.item_depth // slot)
        for first in range(0, len(deltas) - channels + 1, step):
            part = deltas[first : first + step]
            await bench.tile(part[: len(part) // channels * channels], channels)


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
@cocotb.parametrize(share=[0.0, 0.4])
async def random_tiles(dut: Any, share: float) -> None:
    bench = Bench(dut, share)
    await bench.start()
    for _ in range(TILES):
        await bench.tile(*random_tile())


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def a_tile_begins_anywhere_in_the_last_one(dut: Any) -> None:
    bench = Bench(dut, share=0.2)
    await bench.start()
    for _ in range(2 * TILES):
        deltas, channels = random_tile()
        await bench.tile(deltas, channels, cut=random.randint(0, 3 * min(len(deltas), 20)))
        if chance(0.5):
            await bench.tile(*random_tile())


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def reset_anywhere(dut: Any) -> None:
    bench = Bench(dut, share=0.2)
    await bench.start()
    for _ in range(TILES):
        deltas, channels = random_tile()
        await bench.begin(channels)
        stream = [byte for delta in as_bytes(deltas) for byte in delta]
        await bench.source.send(stream[: random.randint(0, len(stream))])
        await pulse(dut, "rst")
        await FallingEdge(dut.clk)
        assert not int(dut.positions.value) and not int(dut.busy.value)
        await bench.tile(*random_tile())
