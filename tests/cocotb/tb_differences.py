# amaranth: UnusedElaboratable=no
"""Differences against their specification: values, digits, references, what finds no room."""

import random
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge, RisingEdge
from gateware import CONFIG, LIMIT_MS, PARAMETERS, chance, entry_bits, generator, idle, pulse

from ditto.hdl.differences import Differencer
from ditto.hdl.protocol import Mode
from ditto.sim.cocotb_bench import Sink, Source, start
from ditto.sim.differences import room, take
from ditto.sim.golden import items, wrap
from ditto.sim.testbench import pauses

TILES: int = PARAMETERS["tiles"]
LINE = dict.fromkeys(("spatial", "margin", "zero_point", "threshold"), 0)
HALF = 1 << CONFIG.activation_bits - 1


class Bench:
    """A differencer, and what its reference buffer holds."""

    def __init__(self, dut: Any, share: float) -> None:
        self.dut = dut
        idle(dut, Differencer(CONFIG))
        self.source = Source(dut, "i", gaps=pauses(random.random(), share=share))
        self.sink = Sink(dut, "o", stalls=pauses(random.random(), share=share))
        self.references = np.zeros(CONFIG.reference_depth, np.int64)
        self.deltas: list[int] = []

    async def start(self) -> None:
        await start(self.dut, "i", "o")
        cocotb.start_soon(self._watch())
        # The buffer holds what the test before has left.
        await self.fill(Mode.DENSE, holds=False)

    async def fill(self, mode: Mode, *, holds: bool) -> None:
        """Fill the buffer with what it should hold; temporal differences show what it did hold."""
        for base in range(0, CONFIG.reference_depth, CONFIG.positions):
            width = min(CONFIG.positions, CONFIG.reference_depth - base)
            names = ("in_height", "channels", "split", "stride_x")
            entry = LINE | {"in_width": width, "reference_base": base} | dict.fromkeys(names, 1)
            await self.tile(entry, mode, self.references[base : base + width].tolist(), holds)

    async def _watch(self) -> None:
        async for delta in self.sink.each():
            self.deltas.append(delta)

    async def begin(self, entry: dict[str, int], mode: Mode, holds: bool) -> None:
        dut = self.dut
        dut.entry.value = entry_bits(entry)
        dut.distance.value = entry["split"] * entry["stride_x"]
        dut.holds.value = holds
        dut.open.value = 1
        await RisingEdge(dut.clk)
        dut.mode.value = mode.value
        await pulse(dut, "begin")
        self.deltas.clear()

    async def drain(self) -> None:
        await FallingEdge(self.dut.clk)
        while int(self.dut.busy.value):
            await FallingEdge(self.dut.clk)
        for _ in range(3):  # counts lag behind
            await RisingEdge(self.dut.clk)

    async def tile(self, entry: dict[str, int], mode: Mode, inputs: list[int], holds: bool) -> None:
        """Send a tile, or some of it, or more than it has, and compare everything."""
        dut, bits = self.dut, CONFIG.activation_bits
        await self.begin(entry, mode, holds)
        await self.source.send([q & 0xFF for q in inputs])
        await self.drain()
        count = min(len(inputs), room(entry, CONFIG))
        base = entry["reference_base"]
        want = take(
            np.array(inputs[:count], np.int64),
            self.references[base : base + count],
            entry,
            mode,
            has_state=holds,
            bits=bits,
        )
        self.references[base : base + count] = want.references
        where = f"{mode.name}, {entry}"
        got = wrap(np.array(self.deltas, np.int64), CONFIG.delta_bits).tolist()
        assert got == want.deltas.tolist(), where
        for name in ("dense", "temporal", "spatial"):
            digits = sum(int(part.sum()) for part in items(getattr(want, name), CONFIG))
            if name == "spatial":
                digits += sum(int(part.sum()) for part in items(want.behind, CONFIG))
            assert int(getattr(dut, name).value) == digits, f"{name} digits, {where}"
        full = entry["in_height"] * entry["in_width"] * entry["channels"]
        assert int(dut.whole.value) == (len(inputs) == full == count), where


def random_entry() -> dict[str, int]:
    """Make an entry; some find no room."""
    channels = random.choice([1, random.randint(1, CONFIG.channels)])
    split, stride = random.randint(1, CONFIG.clusters), random.choice([1, 2, random.randint(1, 15)])
    width = random.randint(1, random.choice([min(9, CONFIG.positions), CONFIG.positions]))
    if chance(0.4):
        # Most of them fit the ring, and are not wider than the image.
        channels, split, stride = 1, 1, random.choice([1, random.randint(1, 15)])
        width = random.randint(min(stride, CONFIG.positions), CONFIG.positions)
    height = random.randint(1, CONFIG.positions // width)
    size = width * height * channels
    last = max(CONFIG.reference_depth - size, 0)
    zero_point = random.randint(-HALF, HALF - 1) if chance(0.5) else 0
    return {
        "in_height": height,
        "in_width": width,
        "channels": channels,
        "split": split,
        "stride_x": stride,
        "spatial": int(chance(0.7)),
        "margin": random.randint(0, min(split * stride, 15)),
        "zero_point": zero_point & 0xFF,
        "threshold": random.choice([0, 0, 1, 3]),
        "reference_base": random.randint(0, last + (3 if chance(0.1) else 0)),
    }


def random_inputs(entry: dict[str, int]) -> list[int]:
    count = entry["in_height"] * entry["in_width"] * entry["channels"]
    kind = random.choice([2, HALF // 4 + 1, HALF])
    values = np.clip(generator().integers(-kind, kind, count), -HALF, HALF - 1)
    return values.tolist()


def next_inputs(inputs: list[int]) -> list[int]:
    """Change some inputs, most of them a little."""
    change = generator().choice([-5, -1, 0, 0, 0, 1, 2, 2 * HALF], len(inputs))
    return np.clip(np.array(inputs) + change, -HALF, HALF - 1).tolist()


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
@cocotb.parametrize(share=[0.0, 0.4])
async def steps_of_tiles(dut: Any, share: float) -> None:
    bench = Bench(dut, share)
    await bench.start()
    for _ in range(TILES):
        entry = random_entry()
        inputs = random_inputs(entry)
        modes = [Mode.DENSE, Mode.SPATIAL] if entry["spatial"] else [Mode.DENSE]
        await bench.tile(entry, random.choice(modes), inputs, False)
        for _ in range(random.randint(0, 3)):
            inputs = next_inputs(inputs)
            await bench.tile(entry, random.choice([*modes, Mode.TEMPORAL]), inputs, True)
        if chance(0.3):
            await bench.fill(Mode.TEMPORAL, holds=True)


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def too_few_or_too_many(dut: Any) -> None:
    bench = Bench(dut, 0.2)
    await bench.start()
    for _ in range(TILES):
        entry = random_entry()
        inputs = random_inputs(entry)
        inputs = (inputs + random_inputs(entry))[: random.randint(0, 2 * len(inputs))]
        mode = random.choice([Mode.DENSE, Mode.SPATIAL, Mode.TEMPORAL])
        if not entry["spatial"]:
            mode = Mode.DENSE
        await bench.tile(entry, mode, inputs, chance(0.5))


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def references_behind_the_buffer(dut: Any) -> None:
    bench = Bench(dut, 0.2)
    await bench.start()
    for bit in range(24):
        entry = random_entry()
        entry["reference_base"] = random.randrange(CONFIG.reference_depth) | 1 << bit
        await bench.tile(entry, Mode.DENSE, random_inputs(entry), False)
    await bench.fill(Mode.TEMPORAL, holds=True)


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def inputs_that_are_not_wanted_leave_no_trace(dut: Any) -> None:
    bench = Bench(dut, 0.2)
    await bench.start()
    for _ in range(TILES):
        entry = random_entry() | {"reference_base": 0}
        await bench.tile(entry, Mode.DENSE, random_inputs(entry), False)
        dut.open.value = 0
        counts = [int(getattr(dut, name).value) for name in ("dense", "whole")]
        bench.deltas.clear()
        await bench.source.send(random.choices(range(256), k=20))
        await bench.drain()
        assert not bench.deltas
        assert counts == [int(getattr(dut, name).value) for name in ("dense", "whole")]
        await bench.tile(entry, Mode.TEMPORAL, random_inputs(entry), True)


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def reset_anywhere(dut: Any) -> None:
    bench = Bench(dut, 0.2)
    await bench.start()
    for _ in range(TILES):
        entry = random_entry()
        await bench.begin(entry, Mode.DENSE, False)
        inputs = random_inputs(entry)
        sent = inputs[: random.randint(0, len(inputs))]
        await bench.source.send([q & 0xFF for q in sent])
        await pulse(dut, "rst")
        await FallingEdge(dut.clk)
        assert not int(dut.busy.value)
        # What the buffer holds now is read by nobody: the next tile of the entry is dense.
        entry["reference_base"] = 0
        await bench.tile(entry, Mode.DENSE, random_inputs(entry), False)
        if room(entry, CONFIG) == len(inputs):
            await bench.tile(entry, Mode.TEMPORAL, random_inputs(entry), True)
