# amaranth: UnusedElaboratable=no
"""Sequencer against the golden model's taps: every list entry, every row, and when they come."""

import random
from collections import deque
from itertools import chain
from typing import Any, NamedTuple

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge, RisingEdge
from gateware import CONFIG, PARAMETERS, chance, generator, idle, pulse, vector

from ditto.hdl.protocol import LayerEntry
from ditto.hdl.protocol import pack as pack_struct
from ditto.hdl.sequencer import Sequencer, entry_of, row_of
from ditto.sim.cocotb_bench import start
from ditto.sim.golden import taps
from ditto.sim.workload import random_workload

RUNS: int = PARAMETERS["runs"]
LANES = CONFIG.lanes
LATENCY = 2
"""Cycles from the walk over a tap until its entries and its row are pushed."""


class Row(NamedTuple):
    """What is pushed for a row: entries (address, count, weight row) by lane, and its ends."""

    entries: list[list[tuple[int, int, int]]]
    last_of_tile: bool
    last_of_run: bool


def expected(entry: dict[str, int], counts: np.ndarray) -> list[Row]:
    rows = []
    positions = taps(entry).tolist()
    slot = entry["channel_rows"] * CONFIG.digits
    for tile in range(entry["tiles"]):
        for number, row in enumerate(positions):
            base = entry["weight_base"] + tile * len(row) * entry["channel_rows"]
            lists = [
                [
                    (position * slot, int(counts[position, lane]), base + n * entry["channel_rows"])
                    for n, position in enumerate(row)
                    if position >= 0 and counts[position, lane]
                ]
                for lane in range(LANES)
            ]
            last = number == len(positions) - 1
            rows.append(Row(lists, last, last and tile == entry["tiles"] - 1))
    return rows


def random_counts(entry: dict[str, int]) -> np.ndarray:
    rng = generator()
    counts = rng.integers(
        0, 1 << CONFIG.count_bits, (entry["in_height"] * entry["in_width"], LANES)
    )
    return counts * (rng.random(counts.shape) < random.choice([0.1, 0.6, 1.0]))


def wild_entry() -> dict[str, int]:
    """Make an entry whose kernel may lie far outside of its image."""
    while True:
        height, width = random.randint(1, 8), random.randint(1, 8)
        kernel = random.randint(1, 15), random.randint(1, 15)
        channel_rows, tiles = random.randint(1, CONFIG.channel_rows), random.randint(1, 3)
        room = CONFIG.weight_rows - tiles * kernel[0] * kernel[1] * channel_rows
        if (
            height * width
            <= min(CONFIG.positions, CONFIG.item_depth // channel_rows // CONFIG.digits)
            and kernel[0] * kernel[1] <= CONFIG.list_depth
            and room >= 0
        ):
            break
    return {
        "in_height": height,
        "in_width": width,
        "positions": height * width,
        "channels": channel_rows * LANES,
        "channel_rows": channel_rows,
        "out_height": random.randint(1, 5),
        "out_width": random.randint(1, 5),
        "kernel_height": kernel[0],
        "kernel_width": kernel[1],
        "stride_y": random.choice([1, 2, 15]),
        "stride_x": random.choice([1, 2, 15]),
        "dilation_y": random.choice([1, 2, 15]),
        "dilation_x": random.choice([1, 2, 15]),
        "pad_top": random.randint(0, 15),
        "pad_left": random.randint(0, 15),
        "tiles": tiles,
        "weight_base": random.randint(0, room),
        "accumulator_base": 0,
        "bias_base": 0,
    }


class Bench:
    def __init__(self, dut: Any) -> None:
        self.dut = dut
        self.entry_layout, self.row_layout = entry_of(CONFIG), row_of(CONFIG)
        self.entries = [getattr(dut, f"entries__{lane}") for lane in range(LANES)]
        idle(dut, Sequencer(CONFIG))

    async def run(self, entry: dict[str, int], *, longest: int, stop_at: int | None = None) -> int:
        """Run an entry, up to the cycle ``stop_at``; return the cycles that it took.

        The rows are freed ``2..longest`` cycles after they are pushed.
        """
        dut = self.dut
        counts = random_counts(entry)
        words = [vector(row, CONFIG.count_bits) for row in counts.tolist()]
        wanted = expected(entry, counts)
        tap_count = entry["kernel_height"] * entry["kernel_width"]
        ahead = CONFIG.list_depth // tap_count
        dut.entry.value = int.from_bytes(pack_struct(LayerEntry, **entry), "little")
        await pulse(dut, "start")

        pending: deque[int] = deque()  # when each row that was pushed will be freed
        freed: list[int] = []
        walked = 0
        lists: list[list[tuple[int, int, int]]] = [[] for _ in range(LANES)]
        held = 0
        number = 0
        cycle = 0
        quiet = 0
        dut.counts__counts.value = random.getrandbits(CONFIG.count_bits * LANES)
        while quiet < 10:
            cycle += 1
            free = bool(pending) and pending[0] <= cycle
            dut.free_row.value = free
            is_stopped = cycle == stop_at
            dut.stop.value = is_stopped
            await FallingEdge(dut.clk)
            where = f"{entry}, cycle {cycle}, row {number}"
            push = int(dut.push.value)
            for lane, port in enumerate(self.entries):
                if push >> lane & 1:
                    item = self.entry_layout.from_bits(int(port.value))
                    lists[lane].append((item.address, item.count, item.row))
            if int(dut.push_row.value):
                assert number < len(wanted), f"{where}: a row too many"
                row = self.row_layout.from_bits(int(dut.row.value))
                want = wanted[number]
                assert lists == want.entries, where
                assert [row.entries[lane] for lane in range(LANES)] == list(map(len, lists)), where
                ends = bool(row.last_of_tile), bool(row.last_of_run)
                assert ends == (want.last_of_tile, want.last_of_run), where
                # The walk waits for room and for nothing else.
                room = freed[number - ahead] if number >= ahead else 0
                walked = max(walked, room) + tap_count
                assert cycle == walked + LATENCY, f"{where}: pushed, but wanted at {walked}"
                held += tap_count
                assert held <= CONFIG.list_depth, where
                pending.append(
                    max(cycle + random.randint(2, longest), pending[-1] + 1 if pending else 0)
                )
                lists = [[] for _ in range(LANES)]
                number += 1
            address = int(dut.counts__address.value)
            await RisingEdge(dut.clk)
            dut.counts__counts.value = (
                words[address]
                if address < len(words)
                else random.getrandbits(CONFIG.count_bits * LANES)
            )
            if free:
                pending.popleft()
                freed.append(cycle)
                held -= tap_count
            if is_stopped:
                break
            quiet = 0 if number < len(wanted) or pending else quiet + 1
            assert cycle < 20_000, where
        dut.free_row.value = 0
        dut.stop.value = 0
        if stop_at is not None:
            for _ in range(random.randint(0, 10)):
                await FallingEdge(dut.clk)
                assert not int(dut.push.value) and not int(dut.push_row.value), "after stop"
                await RisingEdge(dut.clk)
        else:
            assert not any(chain.from_iterable(lists))
        return cycle


def random_entry() -> dict[str, int]:
    if chance(0.5):
        return wild_entry()
    return random_workload(generator(), CONFIG, rows=60).entry


@cocotb.test()
@cocotb.parametrize(longest=[2, 5, 60])
async def rows_are_the_taps(dut: Any, longest: int) -> None:
    bench = Bench(dut)
    await start(dut)
    for _ in range(RUNS):
        await bench.run(random_entry(), longest=longest)


@cocotb.test()
@cocotb.parametrize(signal=["stop", "rst"])
async def a_run_ends_anywhere(dut: Any, signal: str) -> None:
    bench = Bench(dut)
    await start(dut)
    for _ in range(2 * RUNS):
        await bench.run(random_entry(), longest=12, stop_at=random.choice([1, 2, 3, 4, 10, 40]))
        if signal == "rst":
            await pulse(dut, "rst")
        await bench.run(random_entry(), longest=12, stop_at=random.randint(1, 60))
        if chance(0.3):
            await bench.run(random_entry(), longest=12)
