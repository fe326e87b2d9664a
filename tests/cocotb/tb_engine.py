# amaranth: UnusedElaboratable=no
"""Engine against the golden model: values, counters, refusals, and reset anywhere in a run."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge, RisingEdge
from gateware import (
    CONFIG,
    FIELDS,
    LIMIT_MS,
    PARAMETERS,
    WARM_UP,
    chance,
    generator,
    idle,
    of_inputs,
    pack,
    pulse,
    vector,
)
from preset import COUNTED, PresetEngine

from ditto.hdl.engine import Engine, task_of
from ditto.hdl.protocol import (
    COUNTERS,
    DECISION_WORDS,
    MOST_LEAD,
    CommandError,
    Counters,
    Decision,
    LayerEntry,
    Mode,
    Rule,
    Status,
)
from ditto.hdl.protocol import pack as pack_struct
from ditto.host.device import pack_deltas
from ditto.sim.cocotb_bench import Sink, Source, start
from ditto.sim.golden import Golden, split, wrap
from ditto.sim.spatial import edges, has_room, may_be_spatial, stretched
from ditto.sim.testbench import pauses
from ditto.sim.workload import DELTAS, Workload, random_deltas, random_workload

RUNS: int = PARAMETERS["runs"]
RESETS: int = PARAMETERS["resets"]
ACCUMULATOR, WEIGHT, COLUMNS = CONFIG.accumulator_bits, CONFIG.weight_bits, CONFIG.columns


class Bench:
    """An engine with the golden model beside it; also what a workload is loaded into."""

    def __init__(self, dut: Any, share: float = 0.0) -> None:
        self.dut = dut
        idle(dut, PresetEngine(CONFIG) if PARAMETERS.get("has_preset") else Engine(CONFIG))
        self.golden = Golden(CONFIG)
        self.tasks = Source(dut, "tasks", shape=task_of(CONFIG))
        self.deltas = Source(dut, "deltas", gaps=pauses(random.random(), share=share))
        self.results = Sink(dut, "results", stalls=pauses(random.random(), longest=9, share=share))
        self.writes: list[dict[str, int]] = []
        self.waits = 0  # cycles in which the encoder could have taken a byte of a tile
        self.is_sending = False

    async def start(self) -> None:
        await start(self.dut, "tasks", "deltas", "results")
        cocotb.start_soon(self._count_waits())
        await self.warm_up()

    async def warm_up(self) -> None:
        """Have every lane read a weight that exists.

        Icarus does not know what a lane has never read, or read beyond the end of a bank, even
        times zero.
        """
        if cocotb.SIM_NAME.startswith("Icarus"):
            await self.load(WARM_UP, 0)
            await self.encode(0, np.ones((1, CONFIG.lanes), int))
            await self.run(WARM_UP, 0, Mode.DENSE, "warm-up")

    async def _count_waits(self) -> None:
        ready, valid = self.dut.deltas__ready, self.dut.deltas__valid
        while True:
            await FallingEdge(self.dut.clk)
            self.waits += self.is_sending and int(ready.value) and not int(valid.value)

    # What Workload.load() needs, on both sides.

    def write_layers(self, first: int, entries: Sequence[dict[str, int]]) -> None:
        self.golden.write_layers(first, entries)
        for number, entry in enumerate(entries, first):
            raw = pack_struct(LayerEntry, **entry)
            word = int.from_bytes(raw, "little")
            self.writes.append(dict(layer_en=1, layer_address=number, layer_data=word))

    def write_weights(self, cluster: int, row: int, words: np.ndarray) -> None:
        self.golden.write_weights(cluster, row, words)
        for number, word in enumerate(words.tolist(), row):
            self.writes.append(
                dict(
                    weight_en=1,
                    cluster=cluster,
                    weight_address=number,
                    weight_data=vector(word, WEIGHT),
                )
            )

    async def load(self, work: Workload, number: int) -> None:
        work.load(self, number)
        await self.flush()

    async def flush(self) -> None:
        for write in self.writes:
            for name, value in write.items():
                getattr(self.dut, name).value = value
            await RisingEdge(self.dut.clk)
            for name in write:
                if name.endswith("_en"):
                    getattr(self.dut, name).value = 0
        self.writes.clear()

    async def status(self, task: Any) -> Status:
        """Give a task, and return how it ended."""
        await self.tasks.send([task])
        return Status((await self.results.receive())[0])

    async def task(self, number: int, mode: Mode, *, run: bool = True) -> Status:
        """Run an entry in a mode, or begin a tile."""
        return await self.status(dict(run=run, entry=number, mode=mode))

    async def tile(self, number: int, mode: Mode = Mode.DENSE) -> Status:
        return await self.task(number, mode, run=False)

    async def send(self, stream: bytes) -> None:
        """Send bytes of deltas and wait until they are encoded."""
        # From the first byte to the last, a tile surely waits for the link when nothing comes.
        await self.deltas.send(stream[:1])
        self.is_sending = True
        await self.deltas.send(stream[1:])
        self.is_sending = False
        await self.settle()

    async def settle(self) -> None:
        """Wait until everything is encoded, or forgotten."""
        await FallingEdge(self.dut.clk)
        while int(self.dut.encoding.value):
            await FallingEdge(self.dut.clk)
        await RisingEdge(self.dut.clk)

    async def encode(self, number: int, deltas: np.ndarray, mode: Mode = Mode.DENSE) -> None:
        assert await self.tile(number, mode) is Status.OK
        self.golden.write_deltas(number, deltas, mode)
        self.waits = 0
        await self.send(pack_deltas(deltas))

    async def inputs_tile(self, number: int, mode: Mode) -> Status:
        """Begin a tile of inputs."""
        return await self.status(dict(run=0, inputs=1, entry=number, mode=mode))

    async def take_inputs(self, number: int, inputs: np.ndarray, mode: Mode) -> Status:
        """Begin a tile of inputs as the golden model does, and send it if that takes it."""
        status = Status.OK
        try:
            self.golden.write_inputs(number, inputs, mode)
        except CommandError as error:
            status = error.status
        assert await self.inputs_tile(number, mode) is status
        if status is Status.OK:
            self.waits = 0
            await self.send((inputs & 0xFF).astype(np.uint8).tobytes())
        return status

    async def decide(self, number: int, decision: dict[str, int]) -> None:
        """Write a decision."""
        dut = self.dut
        word = int.from_bytes(pack_struct(Decision, **decision), "little")
        words = [word, *random.choices([0, 5, (1 << 32) - 1], k=DECISION_WORDS - 1)]
        self.golden.write_decisions(DECISION_WORDS * number, words)
        for address, data in enumerate(words, DECISION_WORDS * number):
            dut.decision_en.value = 1
            dut.decision_address.value = address
            dut.decision_data.value = data
            await RisingEdge(dut.clk)
        dut.decision_en.value = 0

    async def compare_decisions(self) -> None:
        """Compare the table of decisions."""
        dut, count = self.dut, DECISION_WORDS * CONFIG.layers
        words = []
        dut.reads_decisions.value = 1
        for address in range(count):
            dut.read_en.value = 1
            dut.read_address.value = address
            await RisingEdge(dut.clk)
            dut.read_en.value = 0
            dut.read_address.value = random.randrange(count)
            for _ in range(random.choice([1, 2])):
                await RisingEdge(dut.clk)
            await FallingEdge(dut.clk)
            words.append(int(dut.decision.value))
            await RisingEdge(dut.clk)
        dut.reads_decisions.value = 0
        # Its read port goes back to the entry's decision.
        await RisingEdge(dut.clk)
        await RisingEdge(dut.clk)
        assert words == self.golden.read_decisions(0, count)

    async def read(self, cluster: int, row: int, count: int) -> np.ndarray:
        """Read words of a cluster."""
        dut = self.dut
        words = []
        for address in range(row, row + count):
            dut.read_en.value = 1
            dut.read_address.value = address
            dut.cluster.value = cluster
            await RisingEdge(dut.clk)
            dut.read_en.value = 0
            for _ in range(random.choice([2, 2, 4])):
                # What was read stays.
                dut.read_address.value = random.randrange(CONFIG.accumulator_rows)
                await RisingEdge(dut.clk)
            await FallingEdge(dut.clk)
            raw, mask = int(dut.read_data.value), (1 << ACCUMULATOR) - 1
            words.append([raw >> n * ACCUMULATOR & mask for n in range(COLUMNS)])
            await RisingEdge(dut.clk)
        return wrap(np.array(words, int).reshape(count, COLUMNS), ACCUMULATOR)

    async def counters(self) -> Counters:
        await FallingEdge(self.dut.clk)
        result = Counters.unpack(
            int(self.dut.counters.value).to_bytes(COUNTERS.size // 8, "little")
        )
        await RisingEdge(self.dut.clk)
        return result

    async def run(self, work: Workload, number: int, mode: Mode, where: str = "") -> None:
        """Run, and compare the counters and all accumulators."""
        where = f"{where} entry {number} {work.entry}, {mode.name}"
        assert await self.task(number, mode) is Status.OK, where
        want = self.golden.run(number, mode)
        if not PARAMETERS.get("values_only"):
            got = await self.counters()
            assert got._replace(stall_link=0) == want, where
            assert got.stall_link >= self.waits, where
        await self.compare(work, where)

    async def compare(self, work: Workload, where: str) -> None:
        first, count = work.entry["accumulator_base"], work.rows
        wanted = self.golden.read_accumulators(first, count)
        for cluster, words in enumerate(work.filled):
            # Other words may hold what a run has left that was stopped.
            got = await self.read(cluster, first, words)
            np.testing.assert_array_equal(got, wanted[cluster, :words], where)


def random_layer(rows: int = 25, *, takes_inputs: bool = False) -> Workload:
    """Make a layer whose run is not cut off; what tiles of deltas do not read may be anything."""
    rows = min(rows, CONFIG.accumulator_rows)
    work = random_workload(generator(), CONFIG, rows=rows)
    entry = work.entry
    if chance(0.3):
        entry = anywhere(entry)
    entry |= of_inputs()
    if takes_inputs:
        size = entry["positions"] * entry["channels"]
        entry |= {
            "decision": random.randrange(CONFIG.layers),
            "zero_point": random.choice([0, 3, 0xF0]),
            "threshold": random.choice([0, 0, 2]),
            "reference_base": random.randint(0, CONFIG.reference_depth - size),
        }
    return work._replace(entry=entry)


def anywhere(entry: dict[str, int]) -> dict[str, int]:
    """Change an entry so that its windows are anywhere, also far beyond the image."""
    share = entry["out_height"] * -(-entry["out_width"] // entry["split"])
    width = random.randint(1, min(share * entry["split"], CONFIG.largest["out_width"]))
    names = ("stride_y", "stride_x", "dilation_y", "dilation_x", "pad_top", "pad_left")
    some = {name: random.randint(1, 15) for name in random.sample(names, 2)}
    entry = within(entry | random.choice([{}, {"out_height": 1, "out_width": width}]) | some)
    margin, lead = edges(entry)
    if max(margin, lead) > 15:
        return entry | {"spatial": 0}
    entry |= {"spatial": 1, "margin": margin, "lead": lead}
    return entry | {"spatial": int(may_be_spatial(entry) and has_room(entry, CONFIG))}


def within(entry: dict[str, int]) -> dict[str, int]:
    """Keep windows where the sequencer can count columns, which is far beyond any layer's."""
    return entry | {"stride_x": min(entry["stride_x"], max(440 // entry["out_width"], 1))}


def spatial_layer(*, takes_inputs: bool = False) -> Workload:
    """Make a layer that may be spatial."""
    while True:
        if (work := random_layer(takes_inputs=takes_inputs)).entry["spatial"]:
            return work


def largest_row() -> Workload:
    """Make a layer of one position whose row has as many items as fit the difference buffer."""
    height = min(CONFIG.list_depth, CONFIG.positions, 15)
    room = CONFIG.item_depth // CONFIG.digits // height, CONFIG.weight_rows // height
    channels = min(CONFIG.channels, *room)
    sizes = {"in_height": height, "positions": height, "kernel_height": height}
    shape = CONFIG.clusters, height * channels, COLUMNS
    weights = generator().integers(CONFIG.min_weight, 1 << WEIGHT - 1, shape)
    return Workload(WARM_UP.entry | sizes | {"channels": channels, "spatial": 0}, weights)


def deltas_of(work: Workload, kind: str | None = None, mode: Mode = Mode.DENSE) -> np.ndarray:
    entry = stretched(work.entry) if mode is Mode.SPATIAL else work.entry
    return random_deltas(generator(), CONFIG, entry, kind or random.choice(DELTAS))


def modes_of(work: Workload) -> list[Mode]:
    """Return the modes of a layer that has run."""
    return [Mode.DENSE, Mode.TEMPORAL, *([Mode.SPATIAL] * work.entry["spatial"])]


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
@cocotb.parametrize(share=[0.0, 0.5])
async def runs_follow_each_other(dut: Any, share: float) -> None:
    bench = Bench(dut, share)
    await bench.start()
    for _ in range(RUNS):
        number = random.randrange(CONFIG.layers)
        work = random_layer()
        await bench.load(work, number)
        mode = Mode.DENSE
        for kind in random.sample(DELTAS, len(DELTAS)):
            await bench.encode(number, deltas_of(work, kind, mode), mode)
            await bench.run(work, number, mode, kind)
            mode = random.choice(modes_of(work))


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def the_largest_row_runs_exactly(dut: Any) -> None:
    bench = Bench(dut, 0.1)
    await bench.start()
    work = largest_row()
    number = CONFIG.layers - 1
    await bench.load(work, number)
    shape = deltas_of(work).shape
    # The most digits, which has low and high ones where there are any; nothing; and low ones alone,
    # which the lanes share.
    values = np.arange(1, CONFIG.max_delta + 1)
    most = int(values[np.count_nonzero(split(values, CONFIG), axis=-1).argmax()])
    ones = np.ones(shape, int)
    some = (np.arange(ones.size) % 4 > 0).reshape(shape)
    for mode, deltas in [
        (Mode.DENSE, most * ones),
        (Mode.DENSE, ones),
        (Mode.TEMPORAL, -most * ones),
        (Mode.TEMPORAL, 0 * ones),
        (Mode.TEMPORAL, some * ones),
    ]:
        await bench.encode(number, deltas)
        await bench.run(work, number, mode, f"deltas {deltas.tolist()}")


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def lines_of_any_width_run_exactly(dut: Any) -> None:
    bench = Bench(dut, 0.1)
    await bench.start()
    for bit in range(CONFIG.largest["out_width"].bit_length()):
        width = min(1 << bit | random.getrandbits(bit), CONFIG.largest["out_width"])
        height = 1 + (2 * -(-width // CONFIG.clusters) <= CONFIG.accumulator_rows)
        sizes = {"out_height": height, "out_width": width, "tiles": 1, "accumulator_base": 0}
        shares = {"split": CONFIG.clusters, "skew": random.randrange(CONFIG.clusters)}
        work = random_layer()
        entry = work.entry | sizes | shares | {"stride_x": random.randint(1, 15), "spatial": 0}
        work = work._replace(entry=within(entry))
        await bench.load(work, 0)
        await bench.encode(0, deltas_of(work, "full"))
        await bench.run(work, 0, Mode.DENSE)


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def entries_keep_their_state_beside_each_other(dut: Any) -> None:
    """Two entries share everything but their accumulators, and take turns."""
    bench = Bench(dut, 0.1)
    await bench.start()
    while True:
        work = random_layer(rows=CONFIG.accumulator_rows // 3)
        base = work.entry["accumulator_base"] + work.rows
        if base + work.rows <= CONFIG.accumulator_rows:
            break
    other = work._replace(entry=work.entry | {"accumulator_base": base})
    pair = [(0, work), (CONFIG.layers - 1, other)]
    for number, layer in pair:
        await bench.load(layer, number)
    ran: set[int] = set()
    for _ in range(2 * RUNS):
        number, layer = random.choice(pair)
        mode = random.choice(modes_of(layer)) if number in ran else Mode.DENSE
        await bench.encode(number, deltas_of(layer, mode=mode), mode)
        await bench.run(layer, number, mode)
        ran.add(number)
        for each_number, each in pair:
            if each_number in ran:
                await bench.compare(each, "after a run of either")


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def modes_that_are_none_run_dense(dut: Any) -> None:
    bench = Bench(dut, 0.1)
    await bench.start()
    work = random_layer()
    await bench.load(work, 0)
    for number in (1 << bit | random.randrange(4) for bit in range(2, 8)):
        await bench.encode(0, deltas_of(work))
        assert await bench.status(pack(task_of(CONFIG), run=1, mode=number)) is Status.OK
        want = bench.golden.run(0, Mode.DENSE)._replace(mode=number)
        assert (await bench.counters())._replace(stall_link=0) == want
        await bench.compare(work, f"mode {number}")
    if not CONFIG.reference_depth:
        return
    # Nor are they learned.
    work = random_layer(takes_inputs=True)
    await bench.load(work, 0)
    for decision in range(CONFIG.layers):
        await bench.decide(decision, {"rule": Rule.ADAPTIVE.value})
    inputs = np.ones(deltas_of(work).shape, int)
    for number in (1 << bit | Mode.AUTO.value for bit in range(2, 8)):
        bench.golden.write_inputs(0, inputs, Mode.DENSE)
        task = pack(task_of(CONFIG), inputs=1, mode=number)
        assert await bench.status(task) is Status.OK
        await bench.send(inputs.astype(np.uint8).tobytes())
        assert await bench.status(task | pack(task_of(CONFIG), run=1)) is Status.OK
        bench.golden.run(0, Mode.DENSE)
        await bench.compare(work, f"inputs in mode {number}")
    await bench.compare_decisions()


@cocotb.test(skip=not PARAMETERS.get("has_preset"), timeout_time=LIMIT_MS, timeout_unit="ms")
@cocotb.parametrize(start=[(1 << 32) - 9, 0x5555_5555, 0xAAAA_AAAA])
async def counters_count_in_all_their_bits(dut: Any, start: int) -> None:
    """Count on from what no run or tile of a bench gets to."""
    bench = Bench(dut)
    await bench.start()
    dut.preset_to.value = start
    work = random_layer()
    await bench.load(work, 0)
    await bench.encode(0, deltas_of(work, "full"))
    await bench.run(work, 0, Mode.DENSE)

    assert await bench.tile(0) is Status.OK
    deltas = deltas_of(work, "full")
    bench.golden.write_deltas(0, deltas)
    await pulse(dut, "preset")
    before = (await bench.counters()).stall_link
    for _ in range(10):
        await RisingEdge(dut.clk)
    after = (await bench.counters()).stall_link
    assert (before, after) == (start, (start + 11) % (1 << 32))

    await bench.send(pack_deltas(deltas))
    at_end = (await bench.counters()).stall_link
    for _ in range(10):
        await RisingEdge(dut.clk)
    assert (await bench.counters()).stall_link == at_end, "the tile is whole"
    await bench.tasks.send([dict(run=1, entry=0, mode=Mode.DENSE)])
    # They begin at zero, some cycles before they count.
    while (await bench.counters()).cycles:
        pass
    await pulse(dut, "preset")
    assert Status((await bench.results.receive())[0]) is Status.OK
    want = bench.golden.run(0, Mode.DENSE)
    got = await bench.counters()
    assert got == await bench.counters(), "they stay"
    for name in set(COUNTED) - {"stall_link"}:
        assert getattr(got, name) == (getattr(want, name) + start) % (1 << 32), name


@cocotb.test(skip=not CONFIG.reference_depth, timeout_time=LIMIT_MS, timeout_unit="ms")
async def inputs_run_in_any_mode(dut: Any) -> None:
    """Take several steps of layers in turns; the table learns what the golden model does."""
    bench = Bench(dut, 0.1)
    await bench.start()
    most = 1 << CONFIG.activation_bits - 1
    for number in range(CONFIG.layers):
        await bench.decide(number, {"rule": Rule.FIXED.value})
    for _ in range(RUNS):
        works, inputs = [], []
        for number, rule in enumerate((Rule.ADAPTIVE, Rule.DEFO, Rule.FIXED)):
            make = spatial_layer if number == 0 else random_layer
            work = make(takes_inputs=True)
            # The second is a part of a layer that does not end a step.
            own = {"decision": number, "decides": int(number != 1 or chance(0.5))}
            works.append(work._replace(entry=work.entry | own))
            await bench.load(works[number], number)
            decision = {"rule": rule.value, "mode": Mode.TEMPORAL.value}
            await bench.decide(number, decision | {"spatial": work.entry["spatial"]})
            inputs.append(generator().integers(-most, most, deltas_of(work).shape))
            # The buffer holds what the test before has left.
            await bench.take_inputs(number, inputs[number], Mode.DENSE)
        for step in range(5):
            for number, work in enumerate(works):
                change = generator().integers(-3, 4, inputs[number].shape)
                inputs[number] = np.clip(inputs[number] + change, -most, most - 1)
                mode = random.choice(list(Mode)) if step == 3 else Mode.AUTO
                if await bench.take_inputs(number, inputs[number], mode) is Status.OK:
                    await bench.run(work, number, Mode.AUTO, f"step {step}")
                await bench.compare_decisions()
        await pulse(dut, "forget")
        bench.golden.reset()
        await bench.settle()
        await bench.compare_decisions()


async def refused_without_deltas(bench: Bench, work: Workload) -> None:
    stream = pack_deltas(deltas_of(work, "full"))
    for mode in (Mode.DENSE, Mode.TEMPORAL, Mode.AUTO):
        assert await bench.task(0, mode) is Status.NO_DELTAS, "no tile has begun"
    wrong = [b"", stream[:-1], stream + b"\1", stream + b"\x80", stream + b"\x80\1", stream * 2]
    for bytes_ in wrong:
        assert await bench.tile(0) is Status.OK
        if bytes_:
            await bench.send(bytes_)
        assert await bench.task(0, Mode.DENSE) is Status.NO_DELTAS, bytes_.hex()
    # Right deltas, but for the other entry.
    assert await bench.tile(1) is Status.OK
    await bench.send(stream)
    assert await bench.task(0, Mode.DENSE) is Status.NO_DELTAS
    # They are used up by a run, and forgotten with the rest.
    await bench.encode(0, deltas_of(work))
    await bench.run(work, 0, Mode.DENSE)
    assert await bench.task(0, Mode.TEMPORAL) is Status.NO_DELTAS
    await bench.encode(0, deltas_of(work))
    await pulse(bench.dut, "forget")
    assert await bench.task(0, Mode.DENSE) is Status.NO_DELTAS


async def refused_without_state(bench: Bench, work: Workload) -> None:
    async def refused(where: str) -> None:
        await bench.encode(0, deltas_of(work))
        assert await bench.task(0, Mode.TEMPORAL) is Status.NO_STATE, where

    async def fill() -> None:
        await bench.encode(0, deltas_of(work))
        await bench.run(work, 0, Mode.DENSE)

    await refused("nothing has run")
    await fill()
    await pulse(bench.dut, "forget")
    bench.golden.reset()
    await refused("after forget")
    await fill()
    await bench.load(work, 0)
    await refused("the entry was written")
    await fill()
    await bench.load(work, 1)
    await bench.encode(0, deltas_of(work))
    await bench.run(work, 0, Mode.TEMPORAL, "another entry was written")
    await bench.encode(1, deltas_of(work))
    assert await bench.task(1, Mode.TEMPORAL) is Status.NO_STATE, "the other entry has not run"
    # Each entry has a state of its own.
    for number in range(CONFIG.layers):
        await bench.load(work, number)
    others = set(range(CONFIG.layers))
    for number in random.sample(sorted(others), CONFIG.layers):
        await bench.encode(number, deltas_of(work))
        await bench.run(work, number, Mode.DENSE)
        others.remove(number)
        for other in others:
            await bench.encode(other, deltas_of(work))
            assert await bench.task(other, Mode.TEMPORAL) is Status.NO_STATE, (number, other)


async def refused_layers(bench: Bench, work: Workload) -> None:
    sizes = (
        "positions channels out_height out_width kernel_height kernel_width tiles split"
    ).split()
    taps = CONFIG.list_depth + 1
    kernels = [(h, w) for h in range(1, 16) for w in range(1, 16) if h * w >= taps]
    kernel = random.choice(kernels)
    wrong = [
        *({name: 0} for name in sizes),
        *({name: value + 1} for name, value in CONFIG.largest.items()),
        {"skew": work.entry["split"]},
        {"kernel_height": kernel[0], "kernel_width": kernel[1]},
    ]
    # Every bit of a size counts.
    for name, most in CONFIG.largest.items():
        bits = range(most.bit_length(), FIELDS[name].width)
        wrong += [{name: work.entry[name] | 1 << bit} for bit in bits]
    for change in wrong:
        if "split" in change:
            change = change | {"skew": 0}
        bench.write_layers(1, [work.entry | change])
        await bench.flush()
        assert await bench.tile(1) is Status.BAD_LAYER, change
        assert await bench.task(1, Mode.DENSE) is Status.BAD_LAYER, change


async def refused_rows(bench: Bench, work: Workload) -> None:
    """Stop a run that would fill more than the accumulator buffer; then run, exactly."""
    rows = CONFIG.accumulator_rows
    share = work.rows // work.entry["tiles"]
    changes = [
        # Beyond the image, where there is nothing to do, and in the middle of the work.
        {"out_height": 2, "out_width": (rows // 2 + 1) * work.entry["split"], "tiles": 1},
        # In the first cluster alone.
        {"out_height": 1, "out_width": rows // 2 * CONFIG.clusters + 1, "tiles": 2}
        | {"split": CONFIG.clusters, "skew": 0},
        {"tiles": rows, "out_height": 2, "out_width": work.entry["split"]},
    ]
    if share > 1:
        changes.append({"tiles": rows // share + 1})
    for change in changes:
        await bench.load(work._replace(entry=work.entry | change), 1)
        assert await bench.tile(1) is Status.OK
        deltas = deltas_of(work, "full")
        await bench.send(pack_deltas(deltas))
        assert await bench.task(1, Mode.DENSE) is Status.BAD_LAYER, change
        # Every lane and list is empty again.
        await bench.warm_up()
        await bench.load(work, 0)
        await bench.encode(0, deltas)
        await bench.run(work, 0, Mode.DENSE, f"after {change}")
        await bench.encode(0, deltas_of(work))
        await bench.run(work, 0, Mode.TEMPORAL, f"after {change}")
        assert await bench.tile(1) is Status.OK
        await bench.send(pack_deltas(deltas))
        assert await bench.task(1, Mode.TEMPORAL) is Status.NO_STATE, "a run that was cut off"


LEADS = [
    (lead, split, stride)
    for lead in range(16)
    for split in range(1, CONFIG.clusters + 1)
    for stride in range(1, 16)
    if MOST_LEAD - 16 < lead * split * stride < MOST_LEAD + 16
]
"""Rows before a line, shares and strides that are about the farthest."""


async def refused_spatial(bench: Bench, work: Workload) -> None:
    """Refuse entries that cannot be spatial, and tiles that are for another mode."""
    changes: list[dict[str, int]] = [{"spatial": 0}]
    for lead, shares, stride in random.sample(LEADS, min(len(LEADS), 8)):
        changes.append(dict(lead=lead, split=shares, stride_x=stride, skew=0, spatial=1))
    for change in changes:
        entry = work.entry | change
        await bench.load(work._replace(entry=entry), 1)
        if may_be_spatial(entry):
            assert await bench.tile(1, Mode.SPATIAL) is Status.OK, change
            continue
        assert await bench.tile(1, Mode.SPATIAL) is Status.BAD_LAYER, change
        await bench.encode(1, deltas_of(work))
        assert await bench.task(1, Mode.SPATIAL) is Status.BAD_LAYER, change
    work = spatial_layer()
    await bench.load(work, 0)
    for mode in (Mode.DENSE, Mode.SPATIAL):
        await bench.encode(0, deltas_of(work, mode=mode), mode)
        await bench.run(work, 0, mode)
    for tile, mode in [
        (Mode.SPATIAL, Mode.DENSE),
        (Mode.SPATIAL, Mode.TEMPORAL),
        (Mode.DENSE, Mode.SPATIAL),
        (Mode.TEMPORAL, Mode.SPATIAL),
    ]:
        await bench.encode(0, deltas_of(work, mode=tile), tile)
        assert await bench.task(0, mode) is Status.NO_DELTAS, (tile, mode)
    # A tile for as many positions as the image has, and one more than a spatial run reads.
    stream = pack_deltas(deltas_of(work, "full", Mode.SPATIAL))
    short = pack_deltas(deltas_of(work, "full")) if work.entry["margin"] else stream[:-1]
    for bytes_ in (short, stream + bytes(work.entry["channels"])):
        assert await bench.tile(0, Mode.SPATIAL) is Status.OK
        await bench.send(bytes_)
        assert await bench.task(0, Mode.SPATIAL) is Status.NO_DELTAS, bytes_.hex()
    # Margins count, however large they are.
    for height in (1 << bit for bit in range(min(CONFIG.positions.bit_length(), 6) - 1)):
        sizes = {"in_height": height, "in_width": 1, "positions": height, "margin": 8}
        shares = {"split": 1, "skew": 0, "stride_x": 8, "lead": 0, "spatial": 1}
        bench.write_layers(1, [work.entry | sizes | shares])
        await bench.flush()
        assert await bench.tile(1, Mode.SPATIAL) is Status.OK
        await bench.send(bytes(height * work.entry["channels"]))
        assert await bench.task(1, Mode.SPATIAL) is Status.NO_DELTAS, height
    # Whatever was refused, it has left the accumulators.
    await bench.encode(0, deltas_of(work))
    await bench.run(work, 0, Mode.TEMPORAL)


async def refused_inputs(bench: Bench, work: Workload) -> None:
    """Refuse tiles of inputs of some entries that are right for deltas."""
    work = random_layer(takes_inputs=True)
    split = work.entry["split"]
    stride = random.randint(1, 14 // split)
    shift = split * stride
    spatial = {"spatial": 1, "margin": shift}
    some = 1 << random.randrange(CONFIG.positions.bit_length() - 1)
    #: The entry, the mode, and whether it is taken.
    cases = [
        ({"in_height": 0}, Mode.DENSE, False),
        ({"in_width": 0}, Mode.DENSE, False),
        ({"in_height": some}, Mode.DENSE, True),
        ({"in_width": some}, Mode.DENSE, True),
        (spatial, Mode.DENSE, True),
        (spatial | {"margin": shift + 1}, Mode.DENSE, False),
        (spatial | {"stride_x": 0}, Mode.DENSE, False),
        (spatial | {"stride_x": 0, "margin": 0}, Mode.DENSE, False),
        (spatial | {"stride_x": 1 << random.randrange(4), "margin": 0}, Mode.DENSE, True),
        ({"spatial": 0, "margin": shift + 1}, Mode.DENSE, True),
        ({"spatial": 0, "stride_x": 0}, Mode.DENSE, True),
        ({"spatial": 0}, Mode.SPATIAL, False),
        ({"decision": CONFIG.layers}, Mode.DENSE, True),
        ({"decision": CONFIG.layers - 1}, Mode.AUTO, True),
        *(
            ({"decision": decision}, Mode.AUTO, False)
            for decision in (CONFIG.layers, *(1 << bit for bit in range(3, 8)))
        ),
    ]
    await bench.decide(CONFIG.layers - 1, {"rule": Rule.FIXED.value})
    for change, mode, is_taken in cases:
        bench.write_layers(1, [work.entry | {"stride_x": stride, "margin": 0} | change])
        await bench.flush()
        status = Status.OK if is_taken else Status.BAD_LAYER
        assert await bench.inputs_tile(1, mode) is status, (change, mode)
    # Whatever of the inputs is missing or too much, it does not run; nor does the other entry.
    count = work.entry["positions"] * work.entry["channels"]
    for sent, number, mode in [
        (count - 1, 0, Mode.DENSE),
        (count + 1, 0, Mode.DENSE),
        (count, 1, Mode.DENSE),
        (count, 0, Mode.TEMPORAL),
        (count, 0, Mode.AUTO),
    ]:
        await bench.load(work, 0)
        assert await bench.inputs_tile(0, Mode.TEMPORAL) is Status.NO_STATE
        assert await bench.inputs_tile(0, Mode.DENSE) is Status.OK
        if sent:
            await bench.send(bytes(sent))
        status = Status.OK if mode is Mode.AUTO else Status.NO_DELTAS
        assert await bench.task(number, mode) is status, (sent, number, mode)
    for bit in range(CONFIG.reference_depth.bit_length(), FIELDS["reference_base"].width):
        bench.write_layers(0, [work.entry | {"reference_base": 1 << bit}])
        await bench.flush()
        assert await bench.inputs_tile(0, Mode.DENSE) is Status.OK
        await bench.send(bytes(count))
        assert await bench.task(0, Mode.DENSE) is Status.NO_DELTAS, f"no room from 1 << {bit} on"
    await bench.load(work, 0)
    await bench.encode(0, deltas_of(work))
    assert await bench.task(0, Mode.DENSE) is Status.OK
    # Its accumulators are there, until the next tile of inputs begins.
    await bench.encode(0, deltas_of(work))
    assert await bench.task(0, Mode.TEMPORAL) is Status.OK
    assert await bench.inputs_tile(0, Mode.DENSE) is Status.OK
    await bench.encode(0, deltas_of(work))
    assert await bench.task(0, Mode.TEMPORAL) is Status.NO_STATE
    bench.golden.reset()


REFUSALS: dict[str, Callable[[Bench, Workload], Any]] = {
    "deltas": refused_without_deltas,
    "state": refused_without_state,
    "layers": refused_layers,
    "rows": refused_rows,
    "spatial": refused_spatial,
} | ({"inputs": refused_inputs} if CONFIG.reference_depth else {})


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
@cocotb.parametrize(reason=list(REFUSALS))
async def tasks_are_refused(dut: Any, reason: str) -> None:
    bench = Bench(dut, 0.1)
    await bench.start()
    for _ in range(3):
        work = random_layer(rows=CONFIG.accumulator_rows // 2)
        for number in (0, 1):
            await bench.load(work, number)
        await REFUSALS[reason](bench, work)
        # Whatever was refused, the next run is exact.
        await bench.load(work, 0)
        await bench.encode(0, deltas_of(work))
        await bench.run(work, 0, Mode.DENSE)
        await pulse(dut, "forget")
        bench.golden.reset()


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def reset_at_every_cycle_of_a_run(dut: Any) -> None:
    """Reset 0, 1, 2... cycles after a task was taken, until it ends by itself; then run exactly."""
    bench = Bench(dut, 0.0)
    await bench.start()
    delay = 0
    ended = 0
    step = 1
    work = random_layer(rows=8)
    while ended < 5:
        if delay and delay % RESETS == 0:
            work = random_layer(rows=8)
        await bench.load(work, 0)
        mode = random.choice([Mode.DENSE, Mode.SPATIAL]) if work.entry["spatial"] else Mode.DENSE
        await bench.encode(0, deltas_of(work, "full", mode), mode)
        # A task, or two: the reset also falls into what follows a report.
        task = dict(run=1, entry=0, mode=mode)
        await bench.tasks.send([task])
        dut.results__ready.value = delay % 2
        is_reported = False
        for _ in range(delay):
            await FallingEdge(dut.clk)
            is_reported |= bool(int(dut.results__valid.value))
            await RisingEdge(dut.clk)
        ended += is_reported
        await pulse(dut, "rst")
        dut.results__ready.value = 0
        bench.golden.reset()
        await FallingEdge(dut.clk)
        assert not int(dut.results__valid.value) and not int(dut.encoding.value)
        await RisingEdge(dut.clk)
        where = f"reset after {delay} cycles"
        if chance(0.5):
            assert await bench.task(0, Mode.DENSE) is Status.NO_DELTAS, where
        deltas = deltas_of(work)
        await bench.encode(0, deltas)
        if chance(0.5):
            assert await bench.task(0, Mode.TEMPORAL) is Status.NO_STATE, where
            await bench.encode(0, deltas)
        await bench.run(work, 0, Mode.DENSE, where)
        await bench.encode(0, deltas_of(work))
        await bench.run(work, 0, Mode.TEMPORAL, where)
        # Every cycle of the beginning, and then some of a long run.
        step = 1 if delay < RESETS else random.randint(1, 1 + delay // 8)
        delay += step


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def reset_among_the_deltas(dut: Any) -> None:
    bench = Bench(dut, 0.2)
    await bench.start()
    for _ in range(RESETS // 2):
        work = random_layer(rows=8)
        await bench.load(work, 1)
        stream = pack_deltas(deltas_of(work, "full"))
        assert await bench.tile(1) is Status.OK
        await bench.deltas.send(stream[: random.randrange(len(stream))])
        await pulse(dut, "rst")
        bench.golden.reset()
        await bench.encode(1, deltas_of(work))
        await bench.run(work, 1, Mode.DENSE)


@cocotb.test(skip="functional" not in PARAMETERS, timeout_time=50, timeout_unit="ms")
async def every_kind_of_run(dut: Any) -> None:
    """Seek the combinations of layer, mode and edge case that have not come yet."""
    import functional

    bench = Bench(dut)
    await bench.start()

    async def run(way: str, deltas: np.ndarray) -> None:
        mode = functional.MODES[way]
        if way.startswith("deltas"):
            if mode is Mode.TEMPORAL:
                await run("deltas, DENSE", deltas_of(work))
            await bench.encode(0, deltas, mode if mode is Mode.SPATIAL else Mode.DENSE)
        else:
            inputs, before = functional.inputs_for(mode, work.entry, deltas)
            if mode is Mode.TEMPORAL:
                await bench.take_inputs(0, before, Mode.DENSE)
                await bench.run(work, 0, Mode.DENSE)
            await bench.take_inputs(0, inputs, mode)
            told = bench.golden.differences
            assert told is not None
            deltas = told.deltas.reshape(-1, work.entry["channels"])
        await bench.run(work, 0, mode)
        functional.sample(work.entry, way, deltas)

    for combination in functional.report():
        layer, way, case = combination
        for _ in range(2000):
            if functional.report()[combination]:
                break
            work = random_layer(takes_inputs=bool(CONFIG.reference_depth))
            if way.endswith("SPATIAL") and not work.entry["spatial"]:
                continue
            tile = Mode.SPATIAL if way == "deltas, SPATIAL" else Mode.DENSE
            deltas = functional.deltas_for(case, deltas_of(work, mode=tile))
            if functional.LAYERS[layer](work.entry) and functional.CASES[case](work.entry, deltas):
                await bench.load(work, 0)
                await run(way, deltas)
    for way in functional.REFUSED:
        assert await bench.inputs_tile(0, Mode[way.split(", ")[1]]) is Status.BAD_LAYER
    found = {
        "hits": {", ".join(key): count for key, count in functional.report().items()},
        "refused": functional.REFUSED,
    }
    Path(PARAMETERS["functional"]).write_text(json.dumps(found))
