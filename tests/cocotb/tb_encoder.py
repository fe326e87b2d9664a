# amaranth: UnusedElaboratable=no
"""Encoder against the golden model's digits: what it writes, where, and what it counts."""

import random
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge, RisingEdge
from gateware import CONFIG, LIMIT_MS, PARAMETERS, chance, entry_bits, generator, idle, pulse

from ditto.hdl.difference_buffer import item_of, place_of
from ditto.hdl.encoder import Encoder
from ditto.hdl.protocol import ESCAPE
from ditto.sim.cocotb_bench import Source, start
from ditto.sim.golden import classify, split
from ditto.sim.testbench import pauses
from ditto.sim.workload import DELTAS, random_deltas

TILES: int = PARAMETERS["tiles"]
DIGITS = CONFIG.digits

Items = dict[int, tuple[int, int, int]]
Places = dict[int, tuple[int, int, int]]


class Writes:
    """The difference buffer's side: items by address, places by position."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        self.items: Items = {}
        self.places: Places = {}
        self.item, self.place = item_of(CONFIG), place_of(CONFIG)

    async def watch(self) -> None:
        dut = self.dut
        while True:
            await FallingEdge(dut.clk)
            if int(dut.begin.value) or int(dut.rst.value):
                self.items, self.places = {}, {}
                continue
            if int(dut.items__en.value):
                address = int(dut.items__address.value)
                assert address not in self.items, f"item {address} written twice"
                item = self.item.from_bits(int(dut.items__item.value))
                self.items[address] = item.channel, item.digit, item.shift
            if int(dut.places__en.value):
                position = int(dut.places__address.value)
                assert position not in self.places, f"place {position} written twice"
                place = self.place.from_bits(int(dut.places__place.value))
                self.places[position] = place.address, place.low, place.high


def expected(deltas: np.ndarray, channels: int) -> tuple[Items, Places]:
    """Say what is written for deltas, the last of which may be in the middle of a position."""
    slot = channels * DIGITS
    items: Items = {}
    places: Places = {}
    for first in range(0, len(deltas), channels):
        position, digits = first // channels, split(deltas[first : first + channels], CONFIG)
        base = position * slot
        if position >= CONFIG.positions or base + slot > CONFIG.item_depth:
            break
        low = high = 0
        for channel in range(len(digits)):
            for number, digit in enumerate(digits[channel].tolist()):
                if not digit:
                    continue
                shift = min(number, CONFIG.shifts - 1)
                if shift:
                    items[base + slot - 1 - high] = channel, digit, shift
                    high += 1
                else:
                    items[base + low] = channel, digit, shift
                    low += 1
        if len(digits) == channels:
            places[position] = base, low, high
    return items, places


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
        self.dut.entry.value = entry_bits({"channels": channels})
        # Nor does it know of inputs and modes.
        for name, bits in (("distance", 8), ("mode", 8), ("holds", 1), ("open", 1), ("inputs", 1)):
            getattr(self.dut, name).value = random.getrandbits(bits)
        await RisingEdge(self.dut.clk)
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
        # The last item is written in the cycle after.
        await FallingEdge(dut.clk)
        where = f"{channels} channels, deltas {deltas.tolist()}"
        items, places = expected(deltas, channels)
        assert self.writes.places == places, where
        assert self.writes.items == items, where
        counted = tuple(int(getattr(dut, kind).value) for kind in ("zero", "narrow", "wide"))
        assert counted == classify(deltas, CONFIG), where
        assert int(dut.positions.value) == len(places), where
        ended = not partial and len(deltas) % channels == 0
        exact = ended and len(places) == len(deltas) // channels
        assert int(dut.exact.value) == exact, where
        await RisingEdge(dut.clk)


def random_tile() -> tuple[np.ndarray, int]:
    """Make a tile, which may have up to two positions more than fit."""
    channels = random.randint(1, CONFIG.channels)
    slot = channels * DIGITS
    capacity = min(CONFIG.positions, CONFIG.item_depth // slot)
    positions = random.randint(1, capacity + 2) if chance(0.3) else random.randint(1, 6)
    entry = {"positions": positions, "channels": channels}
    return random_deltas(generator(), CONFIG, entry, random.choice(DELTAS)).ravel(), channels


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def every_delta(dut: Any) -> None:
    bench = Bench(dut, share=0.1)
    await bench.start()
    top = CONFIG.max_delta
    for channels in {1, CONFIG.channels, max(1, CONFIG.channels - 1)}:
        deltas = generator().permutation(np.arange(-top, top + 1))
        slot = channels * DIGITS
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


@cocotb.test(skip="counts" not in PARAMETERS, timeout_time=LIMIT_MS, timeout_unit="ms")
@cocotb.parametrize(byte=[0x00, 0x01, 0x70])
async def counts_far_beyond_a_tile(dut: Any, byte: int) -> None:
    """Deltas that find no room are counted, too; one a cycle, with nobody else watching."""
    idle(dut, Encoder(CONFIG))
    await start(dut)
    dut.entry.value = entry_bits({"channels": 1})
    await RisingEdge(dut.clk)
    await pulse(dut, "begin")
    dut.i__payload.value = byte
    dut.i__valid.value = 1
    taken = 0
    for _ in range(PARAMETERS["counts"]):
        await FallingEdge(dut.clk)
        taken += int(dut.i__ready.value)
        await RisingEdge(dut.clk)
    dut.i__valid.value = 0
    await FallingEdge(dut.clk)
    while int(dut.busy.value):
        await FallingEdge(dut.clk)
    counted = tuple(int(getattr(dut, kind).value) for kind in ("zero", "narrow", "wide"))
    assert counted == tuple(taken * n for n in classify(np.array([byte]), CONFIG))


@cocotb.test(skip="counts" not in PARAMETERS, timeout_time=LIMIT_MS, timeout_unit="ms")
async def as_many_channels_as_an_entry_can_say(dut: Any) -> None:
    """No position is complete before its last channel, however many the entry has."""
    bench = Bench(dut, 0.0)
    await bench.start()
    for bit in range(CONFIG.channels.bit_length(), 16):
        rest = random.randint(1, 3)
        await bench.begin((1 << bit) + rest)
        await bench.source.send([1] * (2 * rest))
        await FallingEdge(dut.clk)
        while int(dut.busy.value):
            await FallingEdge(dut.clk)
        assert int(dut.positions.value) == 0 and not int(dut.exact.value), bit
        await RisingEdge(dut.clk)
