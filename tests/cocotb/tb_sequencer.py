# amaranth: UnusedElaboratable=no
"""Sequencer against the golden model's taps: every list entry, every row, and when they come."""

import random
from collections import deque
from typing import Any, NamedTuple

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge, RisingEdge
from gateware import CONFIG, LIMIT_MS, PARAMETERS, chance, entry_bits, generator, idle, pack, pulse

from ditto.hdl.difference_buffer import place_of
from ditto.hdl.sequencer import Sequencer, entry_of, geometry_of, row_of, slot_range
from ditto.sim.cocotb_bench import start
from ditto.sim.golden import shares, taps
from ditto.sim.spatial import has_room, may_be_spatial, stretched
from ditto.sim.workload import random_workload

RUNS: int = PARAMETERS["runs"]
SLOTS = len(slot_range(CONFIG))
LATENCY = 6
"""Cycles from the walk over a row's last tap until the row is pushed."""

Entry = tuple[int, int, int]


class Row(NamedTuple):
    """What is pushed for a row: its entries (address, count, weight row), its items and marks."""

    low: list[Entry]
    high: list[Entry]
    low_items: int
    high_items: int
    gap: int
    carries: bool
    is_virtual: bool


def expected(entry: dict[str, int], share: int, places: np.ndarray, is_spatial: bool) -> list[Row]:
    """List the rows of a share; ``places`` has address, low and high count of every position."""
    rows = []
    lead = entry["lead"] if is_spatial else 0
    walked = stretched(entry) if is_spatial else entry
    positions = taps(walked)
    own = shares(entry, CONFIG.clusters, lead)[share]
    slot = entry["channels"] * CONFIG.digits
    gap = 0
    line_before = -1
    for tile in range(entry["tiles"]):
        for number, output in enumerate(own.positions.tolist()):
            gap += int(own.gaps[number])
            window = positions[output].tolist()
            base = entry["weight_base"] + tile * len(window) * entry["channels"]
            low, high = [], []
            for tap, position in enumerate(window):
                if position < 0:
                    continue
                row = base + tap * entry["channels"]
                address, low_count, high_count = places[position].tolist()
                if low_count:
                    low.append((address, low_count, row))
                if high_count:
                    high.append((address + slot - 1, high_count, row))
            sums = (sum(e[1] for e in low), sum(e[1] for e in high))
            line, x = divmod(output, walked["out_width"])
            line += tile * entry["out_height"]
            carries = is_spatial and line == line_before
            is_virtual = x < walked["out_width"] - entry["out_width"]
            rows.append(Row(low, high, *sums, gap, carries, is_virtual))
            gap, line_before = 0, line
        gap += own.rest
    return rows


def random_places(entry: dict[str, int]) -> np.ndarray:
    """Draw address, low and high count of every position; the sequencer takes any slots."""
    rng = generator()
    shape = (entry["positions"], 2)
    most = np.array([entry["channels"], entry["channels"] * (CONFIG.digits - 1)])
    counts = rng.integers(0, most + 1, shape) if chance(0.8) else np.tile(most, (shape[0], 1))
    counts *= rng.random(shape) < random.choice([0.1, 0.6, 1.0])
    last = CONFIG.item_depth - entry["channels"] * CONFIG.digits
    return np.column_stack([rng.integers(0, last + 1, entry["positions"]), counts])


def few(most: int) -> int:
    """Draw a number that is mostly small."""
    return random.randint(1, random.choice([3, 5, max(most, 1)]))


def wild_entry() -> dict[str, int]:
    """Make an entry whose kernel may lie far outside of its image."""
    while True:
        height, width = few(CONFIG.positions), few(CONFIG.positions)
        kernel = random.randint(1, 15), random.randint(1, 15)
        channels, tiles = random.randint(1, CONFIG.channels), few(CONFIG.accumulator_rows)
        out = few(CONFIG.accumulator_rows), few(CONFIG.accumulator_rows)
        room = CONFIG.weight_rows - tiles * kernel[0] * kernel[1] * channels
        most = min(CONFIG.positions, CONFIG.item_depth // channels // CONFIG.digits)
        if (
            height * width <= most
            and kernel[0] * kernel[1] <= CONFIG.list_depth
            and room >= 0
            and tiles * out[0] * out[1] <= CONFIG.accumulator_rows
        ):
            break
    split = random.choice([CONFIG.clusters, random.randint(1, CONFIG.clusters)])
    return {
        "in_height": height,
        "in_width": width,
        "positions": height * width,
        "channels": channels,
        "out_height": out[0],
        "out_width": out[1],
        "kernel_height": kernel[0],
        "kernel_width": kernel[1],
        "stride_y": random.choice([1, 2, 15, random.randint(1, 15)]),
        "stride_x": random.choice([1, 2, 15, random.randint(1, 15)]),
        "dilation_y": random.choice([1, 2, 15, random.randint(1, 15)]),
        "dilation_x": random.choice([1, 2, 15, random.randint(1, 15)]),
        "pad_top": random.randint(0, 15),
        "pad_left": random.randint(0, 15),
        "tiles": tiles,
        "weight_base": random.randint(0, room),
        "accumulator_base": 0,
        "split": split,
        "skew": random.randrange(split),
        "margin": random.randint(0, min(most // height - width, 15)),
        "lead": random.choice([0, 0, 1, 2, random.randint(0, 15)]),
    }


def geometry(entry: dict[str, int], *, is_spatial: bool = False) -> int:
    taps = entry["kernel_height"] * entry["kernel_width"]
    walked = stretched(entry) if is_spatial else entry
    lead = entry["lead"] * is_spatial
    return pack(
        geometry_of(CONFIG),
        room=CONFIG.rows_ahead(taps) - 1,
        tiles=entry["tiles"] - 2,
        lines=entry["out_height"] - 2,
        kernel_y=entry["kernel_height"] - 2,
        kernel_x=entry["kernel_width"] - 2,
        slot_last=entry["channels"] * CONFIG.digits - 1,
        split_x=entry["split"] * entry["stride_x"],
        skew_x=entry["skew"] * entry["stride_x"],
        skew_back_x=(entry["skew"] - entry["split"]) * entry["stride_x"],
        pitch=walked["in_width"],
        before_x=walked["pad_left"],
        carries=is_spatial,
        leads=lead > 0,
        end_back=entry["split"] - lead * entry["split"],
    )


def lengths(row: Row) -> list[int]:
    """Say how many low items each lane takes."""
    if CONFIG.lanes == 1:
        return [row.low_items]
    helped = max(0, row.low_items - row.high_items) // 2
    return [row.low_items - helped, helped]


class Bench:
    def __init__(self, dut: Any) -> None:
        self.dut = dut
        self.entry_layout, self.row_layout = entry_of(CONFIG), row_of(CONFIG)
        idle(dut, Sequencer(CONFIG))

    async def start(self) -> None:
        """Reset; a sequencer has none of its own, and whoever has resets it stops it."""
        await start(self.dut)
        await pulse(self.dut, "stop")

    def is_pushing(self) -> bool:
        return any(int(getattr(self.dut, f"work__push_{n}").value) for n in ("low", "high", "row"))

    async def begin(self, entry: dict[str, int], share: int, *, is_spatial: bool) -> None:
        """Start the walk over a share of an entry."""
        dut = self.dut
        dut.entry.value = entry_bits(entry)
        dut.geometry.value = geometry(entry, is_spatial=is_spatial)
        dut.share.value = share
        for _ in range(2):
            await RisingEdge(dut.clk)
        await pulse(dut, "start")

    async def run(self, entry: dict[str, int], *, longest: int, stop_at: int | None = None) -> None:
        """Run an entry, up to the cycle ``stop_at``.

        The rows are freed ``2..longest`` cycles after they are pushed.
        """
        dut = self.dut
        share = random.randrange(entry["split"])
        is_possible = may_be_spatial(entry | {"spatial": 1}) and has_room(entry, CONFIG)
        is_spatial = is_possible and chance(0.5)
        places = random_places(stretched(entry) if is_spatial else entry)
        wanted = expected(entry, share, places, is_spatial)
        tap_count = entry["kernel_height"] * entry["kernel_width"]
        ahead = CONFIG.rows_ahead(tap_count)
        await self.begin(entry, share, is_spatial=is_spatial)

        pending: deque[int] = deque()  # when each row that was pushed will be freed
        freed: list[int] = []
        walked = held = number = cycle = quiet = 0
        lists: dict[str, dict[int, Entry]] = {"low": {}, "high": {}}
        bound = 400 + 40 * len(wanted) * (tap_count + longest)
        is_stopped = False
        was_steady = free = False
        while quiet < 10:
            cycle += 1
            free = bool(pending) and pending[0] <= cycle
            dut.free_row.value = free
            is_stopped = cycle == stop_at
            dut.stop.value = is_stopped
            await FallingEdge(dut.clk)
            where = f"{entry}, share {share}, cycle {cycle}, row {number}"
            # What is freed is heard in the cycle after.
            assert not (was_steady and self.is_pushing()), f"{where}: pushed, but was steady"
            was_steady = bool(int(dut.steady.value)) and not free
            if int(dut.work__push_row.value):
                assert number < len(wanted), f"{where}: a row too many"
                row = self.row_layout.from_bits(int(dut.work__row.value))
                want = wanted[number]
                for name, first in (("low", row.low_first), ("high", row.high_first)):
                    entries = getattr(want, name)
                    slots = [(first + i) % SLOTS for i in range(len(entries))]
                    found = [lists[name].get(s) for s in slots]
                    assert found == entries, f"{where}, {name}: {found}, not {entries}"
                if want.low:
                    assert row.low_last == (row.low_first + len(want.low) - 1) % SLOTS, where
                got = [row.low[lane] for lane in range(CONFIG.lanes)]
                assert (got, row.high) == (lengths(want), want.high_items), where
                assert (row.carries, row.virtual) == (want.carries, want.is_virtual), where
                # The walk waits for room and for nothing else.
                room = freed[number - ahead] if number >= ahead else 0
                walked = max(walked + want.gap, room) + tap_count
                assert cycle == walked + LATENCY, f"{where}: pushed, but wanted at {walked}"
                held += CONFIG.held_taps(tap_count)
                assert held <= CONFIG.list_depth, where
                pending.append(
                    max(cycle + random.randint(2, longest), pending[-1] + 1 if pending else 0)
                )
                number += 1
            for name in ("low", "high"):
                if int(getattr(dut, f"work__push_{name}").value):
                    item = self.entry_layout.from_bits(int(getattr(dut, f"work__{name}").value))
                    at = int(getattr(dut, f"work__{name}_slot").value)
                    lists[name][at] = item.address, item.count, item.row
                    assert item.single == (item.count == 1), where
                    if name == "low":
                        assert item.last == item.address + item.count - 1, where
            assert not int(dut.overrun.value), where
            if int(dut.ended.value):
                assert number == len(wanted) and int(dut.steady.value), where
            address = int(dut.places__address.value)
            await RisingEdge(dut.clk)
            place = random.getrandbits(place_of(CONFIG).size)
            if address < len(places):
                first, low, high = places[address].tolist()
                place = pack(place_of(CONFIG), address=first, low=low, high=high)
            dut.places__place.value = place
            if free:
                pending.popleft()
                freed.append(cycle)
                held -= CONFIG.held_taps(tap_count)
            if is_stopped:
                break
            quiet = 0 if number < len(wanted) or pending else quiet + 1
            assert cycle < bound, where
        dut.free_row.value = 0
        dut.stop.value = 0
        if is_stopped:
            for _ in range(random.randint(0, 10)):
                await FallingEdge(dut.clk)
                assert not self.is_pushing(), "after stop"
                await RisingEdge(dut.clk)
        else:
            # The walk may still be on its way over empty output rows.
            for _ in range(entry["tiles"] * entry["out_height"] + 10):
                await RisingEdge(dut.clk)
            await FallingEdge(dut.clk)
            assert int(dut.ended.value)
            await RisingEdge(dut.clk)


def long_entry(loop: str) -> dict[str, int]:
    """Make an entry of 1x1 kernels with a loop of many passes."""
    entry = wild_entry()
    split = entry["split"]
    ones = ("in_height kernel_height kernel_width channels tiles out_height out_width").split()
    entry |= dict.fromkeys(ones, 1) | {"pad_top": 0, "margin": 0, "lead": 0}
    entry |= {"in_width": CONFIG.positions, "positions": CONFIG.positions}
    entry |= {"weight_base": 0, "skew": random.randrange(split)}
    entry[loop] = random.randint(1, min(CONFIG.accumulator_rows, CONFIG.weight_rows))
    if loop == "out_height":
        entry["out_width"] = random.randint(1, max(CONFIG.accumulator_rows // entry[loop], 1))
        # Lines begin with any of the clusters, near the left edge of the image.
        entry |= {
            "stride_y": random.choice([1, 2]),
            "stride_x": random.choice([15, random.randint(1, 15)]),
        }
        entry["pad_left"] = random.choice([0, 0, random.randint(0, 15)])
        # Lines above the image, lines of one column, or some of each.
        height = random.choice([1, CONFIG.positions, min(5, CONFIG.positions)])
        width = CONFIG.positions // height
        entry |= {"in_height": height, "in_width": width, "positions": height * width}
        entry["pad_top"] = random.choice([0, random.randint(0, 15)])
    return entry


def random_entry() -> dict[str, int]:
    if chance(0.25):
        return long_entry(random.choice(["tiles", "out_height", "out_height", "out_width"]))
    if chance(0.5):
        return wild_entry()
    return random_workload(generator(), CONFIG, rows=CONFIG.accumulator_rows).entry


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
@cocotb.parametrize(longest=[2, 5, 60])
async def rows_are_the_taps(dut: Any, longest: int) -> None:
    bench = Bench(dut)
    await bench.start()
    for _ in range(RUNS):
        await bench.run(random_entry(), longest=longest)


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def a_run_ends_anywhere(dut: Any) -> None:
    bench = Bench(dut)
    await bench.start()
    for _ in range(2 * RUNS):
        await bench.run(random_entry(), longest=12, stop_at=random.choice([1, 2, 3, 4, 10, 40]))
        await bench.run(random_entry(), longest=12, stop_at=random.randint(1, 60))
        if chance(0.3):
            await bench.run(random_entry(), longest=12)


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
@cocotb.parametrize(more=[0, 1])
async def an_entry_with_more_rows_than_words_overruns(dut: Any, more: int) -> None:
    """Fill all words of the buffer, and begin no row after them."""
    bench = Bench(dut)
    await bench.start()
    # A row in each tile, or four in two lines.
    for is_spatial, side in [(False, 1), (True, 1), (False, 2), (True, 2)]:
        entry = wild_entry() | {"tiles": CONFIG.accumulator_rows + more, "weight_base": 0}
        entry |= {"out_height": side, "out_width": side, "split": 1, "skew": 0}
        entry |= {"lead": 1, "stride_x": 1}
        overruns = bool(more) or side > 1
        await bench.begin(entry, 0, is_spatial=is_spatial)
        written = quiet = 0
        has_overrun = False
        while quiet < 300:
            await FallingEdge(dut.clk)
            pushed = int(dut.work__push_row.value)
            row = bench.row_layout.from_bits(int(dut.work__row.value))
            written += pushed and not row.virtual
            assert written <= CONFIG.accumulator_rows
            has_overrun |= bool(int(dut.overrun.value))
            await RisingEdge(dut.clk)
            dut.free_row.value = pushed
            quiet = 0 if pushed else quiet + 1
        dut.free_row.value = 0
        assert (written, has_overrun) == (CONFIG.accumulator_rows, overruns)
        assert int(dut.ended.value) == (not overruns)
        await pulse(dut, "stop")
        await bench.run(random_entry(), longest=5)
