# amaranth: UnusedElaboratable=no
"""Array and column against NumPy, with the memories around them modelled in Python."""

import random
from collections import deque
from itertools import product
from typing import Any, NamedTuple

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge, RisingEdge
from gateware import CONFIG, PARAMETERS, chance, generator, idle, pack, vector

from ditto.hdl.array import Array, Column
from ditto.hdl.difference_buffer import item_of
from ditto.hdl.lanes import issue_of
from ditto.sim.cocotb_bench import start
from ditto.sim.golden import wrap

IS_COLUMN = PARAMETERS["top"] == "column"
RUNS: int = PARAMETERS.get("runs", 0)
LANES, COLUMNS = CONFIG.lanes, CONFIG.columns
ACCUMULATOR, WEIGHT, DIGIT = CONFIG.accumulator_bits, CONFIG.weight_bits, CONFIG.digit_bits
ITEM, ISSUE = item_of(CONFIG), issue_of(CONFIG)
ROW_BITS = ISSUE["rows"].width // LANES
LATENCY = 5
"""Cycles from the last issue of a row until its accumulators are written."""


def random_signed(bits: int) -> int:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    return random.choice([low, high, -1, 1]) if chance(0.3) else random.randint(low, high)


class Item(NamedTuple):
    """What a lane does in a cycle: ``base + row`` is the weight row."""

    base: int
    row: int
    digit: int
    shift: int


class Issue(NamedTuple):
    lanes: list[Item | None]
    first: bool
    last: bool
    last_of_tile: bool
    last_of_run: bool


def random_item() -> Item:
    weight_row = random.randrange(CONFIG.weight_rows)
    row = random.randint(0, min(weight_row, CONFIG.channel_rows - 1))
    # A zero never comes out of the encoder, and would do no harm.
    return Item(weight_row - row, row, random_signed(DIGIT), random.randrange(CONFIG.digits))


def random_run(longest: int) -> tuple[list[list[list[Issue]]], int]:
    """Make tiles of rows of issues; return them and the number of rows."""
    tiles, positions = random.randint(1, 3), random.randint(1, 6)
    busy = random.choice([0.1, 0.5, 1.0])
    run = []
    for tile in range(tiles):
        rows = []
        for position in range(positions):
            length = random.randint(1, longest)
            last_of_tile = position == positions - 1
            rows.append(
                [
                    Issue(
                        [random_item() if chance(busy) else None for _ in range(LANES)],
                        n == 0,
                        n == length - 1,
                        last_of_tile,
                        last_of_tile and tile == tiles - 1,
                    )
                    for n in range(length)
                ]
            )
        run.append(rows)
    return run, tiles * positions


class Bench:
    """Everything around the array, a clock cycle at a time."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        idle(dut, Array(CONFIG))
        rng = generator()
        half = 1 << WEIGHT - 1
        shape = (LANES, CONFIG.weight_rows, COLUMNS)
        self.weights = rng.integers(-half, half, shape)
        extreme = rng.random(shape) < 0.2
        self.weights[extreme] = rng.choice([-half, half - 1], int(extreme.sum()))
        half = 1 << ACCUMULATOR - 1
        self.accumulators = rng.integers(-half, half, (CONFIG.accumulator_rows, COLUMNS))
        self.weight_addresses = [getattr(dut, f"weight_address__{n}") for n in range(LANES)]
        self.weight_words = [getattr(dut, f"weights__{n}") for n in range(LANES)]
        self.items = [getattr(dut, f"items__{n}") for n in range(LANES)]
        self.before: Issue | None = None
        self.cycle = 0
        self.wanted: deque[tuple[int, int, list[int], bool]] = deque()

    def expect(self, address: int, word: np.ndarray, *, done: bool) -> None:
        """Ask for a write, ``LATENCY`` cycles after the one that comes."""
        self.wanted.append((self.cycle + LATENCY, address, word.tolist(), done))

    async def step(self, issue: Issue | None = None, **signals: int) -> None:
        dut = self.dut
        self._issue(issue)
        for name, value in signals.items():
            getattr(dut, name).value = value
        for lane, port in enumerate(self.items):
            item = self.before.lanes[lane] if self.before else None
            # A lane that read nothing shows anything.
            port.value = (
                random.getrandbits(ITEM.size)
                if item is None
                else pack(ITEM, row=item.row, digit=item.digit, shift=item.shift)
            )
        await FallingEdge(dut.clk)
        reads_weights, reads = int(dut.weight_en.value), int(dut.read_en.value)
        addresses = [int(port.value) for port in self.weight_addresses] if reads_weights else []
        read = int(dut.read_address.value)
        want = self.wanted[0] if self.wanted and self.wanted[0][0] == self.cycle else None
        where = f"cycle {self.cycle}"
        assert int(dut.write_en.value) == (want is not None), where
        assert int(dut.done.value) == (want is not None and want[3]), where
        if want is not None:
            _, address, word, _ = self.wanted.popleft()
            assert int(dut.write_address.value) == address, where
            raw, low = int(dut.write_data.value), (1 << ACCUMULATOR) - 1
            got = wrap(
                np.array([raw >> n * ACCUMULATOR & low for n in range(COLUMNS)]), ACCUMULATOR
            )
            assert got.tolist() == word, f"{where}, address {address}"
        await RisingEdge(dut.clk)
        if reads_weights:
            for lane, port in enumerate(self.weight_words):
                port.value = (
                    vector(self.weights[lane, addresses[lane]].tolist(), WEIGHT)
                    if addresses[lane] < CONFIG.weight_rows
                    else random.getrandbits(WEIGHT * COLUMNS)  # an idle lane's
                )
        if reads:
            dut.read_data.value = vector(self.accumulators[read].tolist(), ACCUMULATOR)
        if want is not None:
            self.accumulators[want[1]] = want[2]
        self.before = issue
        self.cycle += 1
        for name in signals:
            if name in ("begin", "stop"):
                getattr(dut, name).value = 0

    def _issue(self, issue: Issue | None) -> None:
        if issue is None:
            raw = random.getrandbits(ISSUE.size) & ~(1 << ISSUE["valid"].offset)
        else:
            bases = [
                random.randrange(CONFIG.weight_rows) if item is None else item.base
                for item in issue.lanes
            ]
            raw = pack(
                ISSUE,
                valid=1,
                busy=sum((item is not None) << n for n, item in enumerate(issue.lanes)),
                rows=vector(bases, ROW_BITS),
                first=issue.first,
                last=issue.last,
                last_of_tile=issue.last_of_tile,
                last_of_run=issue.last_of_run,
            )
        self.dut.issue.value = raw

    def total(self, row: list[Issue]) -> np.ndarray:
        result = np.zeros(COLUMNS, np.int64)
        for issue in row:
            for lane, item in enumerate(issue.lanes):
                if item is not None:
                    digit = item.digit << item.shift * DIGIT
                    result += digit * self.weights[lane, item.base + item.row]
        return result

    async def run(self, *, longest: int, gap: float, stop_after: int | None = None) -> None:
        tiles, rows = random_run(longest)
        dense = random.randrange(2)
        while len(tiles) + rows > CONFIG.accumulator_rows:
            tiles, rows = random_run(longest)
        base = random.randint(len(tiles), CONFIG.accumulator_rows - rows)
        bias = random.randint(0, base - len(tiles))
        await self.step(begin=1, accumulator_base=base, bias_base=bias, dense=dense)
        address = base
        issued = 0
        for tile, tile_rows in enumerate(tiles):
            for row in tile_rows:
                start_at = bias + tile if dense else address
                word = wrap(self.accumulators[start_at] + self.total(row), ACCUMULATOR)
                for issue in row:
                    while chance(gap):
                        await self.step()
                    if issued == stop_after:
                        await self._stop()
                        return
                    issued += 1
                    if issue.last:
                        self.expect(address, word, done=issue.last_of_run)
                    await self.step(issue)
                address += 1
        while self.wanted:
            await self.step()
        for _ in range(random.randint(0, 3)):
            await self.step()

    async def _stop(self) -> None:
        """Stop; what is written in this very cycle may still be."""
        while self.wanted and self.wanted[-1][0] > self.cycle:
            self.wanted.pop()
        await self.step(stop=1)
        for _ in range(LATENCY + 2):
            await self.step()


@cocotb.test(skip=IS_COLUMN)
@cocotb.parametrize((("longest", "gap"), [(1, 0.0), (4, 0.0), (1, 0.5), (5, 0.3)]))
async def accumulators_are_those_of_numpy(dut: Any, longest: int, gap: float) -> None:
    bench = Bench(dut)
    await start(dut)
    for _ in range(RUNS):
        await bench.run(longest=longest, gap=gap)


@cocotb.test(skip=IS_COLUMN)
@cocotb.parametrize(gap=[0.0, 0.4])
async def nothing_is_written_after_stop(dut: Any, gap: float) -> None:
    bench = Bench(dut)
    await start(dut)
    for _ in range(2 * RUNS):
        await bench.run(longest=3, gap=gap, stop_after=random.randint(0, 12))
        await bench.run(longest=3, gap=gap)


@cocotb.test(skip=not IS_COLUMN)
async def every_product(dut: Any) -> None:
    """Multiply every digit with every weight at every shift in lane 0, others at random."""
    idle(dut, Column(CONFIG))
    await start(dut)
    low, high = -(1 << DIGIT - 1), 1 << DIGIT - 1
    weights = range(-(1 << WEIGHT - 1), 1 << WEIGHT - 1)
    cases = list(product(range(low, high), range(CONFIG.digits), weights))
    random.shuffle(cases)
    shifts, digits, factors = (
        [getattr(dut, f"{name}__{lane}") for lane in range(LANES)]
        for name in ("shifts", "digits", "weights")
    )
    mask = (1 << ACCUMULATOR) - 1
    # Stages of the pipeline: products and their shifts, their sum, the accumulator.
    products = [0] * LANES
    next_shifts = [0] * LANES
    total = accumulator = 0
    held: int | None = None  # the accumulator means nothing until it was first set
    add = accumulate = False
    for digit, shift, weight in [*cases, *cases[:3]]:
        while True:
            multiply = chance(0.98)
            lane_digits = [digit, *(random_signed(DIGIT) for _ in range(LANES - 1))]
            lane_weights = [weight, *(random_signed(WEIGHT) for _ in range(LANES - 1))]
            first, begin = chance(0.7), random_signed(ACCUMULATOR)
            for lane in range(LANES):
                digits[lane].value = lane_digits[lane] & (1 << DIGIT) - 1
                factors[lane].value = lane_weights[lane] & (1 << WEIGHT) - 1
                shifts[lane].value = next_shifts[lane]
            dut.multiply.value = multiply
            dut.add.value = add
            dut.accumulate.value = accumulate
            dut.first.value = first
            dut.start.value = begin & mask
            await FallingEdge(dut.clk)
            if held is not None:
                assert int(dut.o.value) == accumulator & mask, f"at {digit}, {shift}, {weight}"
            await RisingEdge(dut.clk)
            if accumulate:
                if first or held is not None:
                    held = accumulator = (begin if first else accumulator) + total
            if add:
                total = sum(
                    product << shift * DIGIT
                    for product, shift in zip(products, next_shifts, strict=True)
                )
            add, accumulate = multiply, add
            if multiply:
                products = [a * b for a, b in zip(lane_digits, lane_weights, strict=True)]
                next_shifts = [shift, *(random.randrange(CONFIG.digits) for _ in range(LANES - 1))]
                break
            # Shifts belong to the cycle after the digits, whatever comes then.
            next_shifts = [random.randrange(CONFIG.digits) for _ in range(LANES)]
