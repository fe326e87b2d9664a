"""The generated RTL against the golden model, through the link, over many configurations."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ditto.fpga.boards import BOARDS
from ditto.hdl.config import Config, ConfigError, Multiplier, demo
from ditto.hdl.protocol import CommandError, CommandHeader, Mode, Opcode, Status, pack
from ditto.host.device import Accelerator, Device
from ditto.host.framing import Decoder, encode
from ditto.sim.board import SimulatedBoard
from ditto.sim.commands import random_commands, without_link_stalls
from ditto.sim.faults import FaultRates, FaultyTransport
from ditto.sim.golden import Golden
from ditto.sim.golden_board import GoldenBoard
from ditto.sim.spatial import stretched
from ditto.sim.workload import DELTAS, Workload, random_deltas, random_workload

SMALL: dict[str, Any] = {
    "weight_rows": 320,
    "accumulator_rows": 512,
    "item_depth": 768,
    "positions": 64,
    "channels": 12,
    "layers": 8,
    "frame_bytes": 1024,
}


def configurations() -> list[Config]:
    """Corners of the space of configurations, and a seeded sample of what lies between."""
    corners: list[dict[str, Any]] = [
        dict(clusters=1, lanes=1, columns=1, digit_bits=2, activation_bits=2, weight_bits=2),
        dict(clusters=1, lanes=1, columns=1, digit_bits=9, activation_bits=8, weight_bits=8),
        dict(clusters=16, lanes=2, columns=1, digit_bits=2, multiplier=Multiplier.LUT),
        dict(clusters=1, lanes=2, columns=128, digit_bits=4, activation_bits=8, weight_bits=2),
        dict(clusters=5, lanes=2, columns=5, digit_bits=5, activation_bits=8, weight_bits=7),
        dict(clusters=3, lanes=1, columns=7, digit_bits=3, activation_bits=4, weight_bits=5),
        dict(clusters=2, lanes=2, columns=3, list_depth=9, accumulator_bits=19, channels=9),
        dict(clusters=4, lanes=2, columns=4, digit_bits=4, multiplier=Multiplier.LUT),
        dict(clusters=2, lanes=2, columns=5, digit_bits=9, skip=0),
        dict(clusters=3, lanes=1, columns=2, digit_bits=9, skip=0, multiplier=Multiplier.LUT),
    ]
    rng = random.Random(2)
    for _ in range(5):
        activation_bits = rng.randint(2, 8)
        corners.append(
            dict(
                clusters=rng.randint(1, 8),
                lanes=rng.randint(1, 2),
                columns=rng.randint(1, 16),
                multiplier=rng.choice(list(Multiplier)),
                activation_bits=activation_bits,
                digit_bits=rng.randint(2, activation_bits + 1),
                weight_bits=rng.randint(2, 8),
                accumulator_bits=rng.randint(20, 40),
                list_depth=rng.randint(9, 40),
            )
        )
    return [Config(**(SMALL | corner)) for corner in corners]


def drawn(count: int) -> list[Config]:
    """Draw configurations from the whole space in which the workloads find room."""
    rng = random.Random(7)
    configs: list[Config] = []
    while len(configs) < count:
        activation_bits = rng.randint(2, 8)
        skip = int(rng.random() < 0.8)
        # Few multipliers in all, or a simulator takes minutes to build.
        clusters, lanes = rng.randint(1, 16), rng.randint(1, 2)
        columns = rng.randint(1, max(64 // (clusters * lanes), 1))
        channels = rng.randint(1, 20)
        references = rng.choice([0, rng.randint(100, 800)])
        values: dict[str, Any] = dict(
            clusters=clusters,
            lanes=lanes,
            columns=columns,
            activation_bits=activation_bits,
            digit_bits=rng.randint(2, activation_bits + 1) if skip else activation_bits + 1,
            weight_bits=rng.randint(2, 8),
            accumulator_bits=rng.randint(20, 48),
            weight_rows=rng.randint(100, 400),
            accumulator_rows=rng.randint(40, 300),
            item_depth=rng.randint(channels * 12, 800),
            positions=rng.randint(8, 80),
            channels=channels,
            list_depth=rng.randint(2, 60),
            layers=rng.randint(2, 9),
            frame_bytes=rng.choice([64, 100, 1024, 4000]),
            multiplier=rng.choice(list(Multiplier)),
            skip=skip,
            reference_depth=references,
            neighbour_depth=rng.randint(1, 100) if references else 0,
        )
        try:
            configs.append(Config(**values))
        except ConfigError:
            continue
    return configs


def name(config: Config) -> str:
    return (
        f"{config.clusters}x{config.lanes}x{config.columns}-{config.multiplier}-"
        f"d{config.digit_bits}a{config.activation_bits}w{config.weight_bits}"
        f"{'' if config.skip else '-all'}"
        f"{f'-r{config.reference_depth}' if config.reference_depth else ''}"
    )


LARGEST = Config(**SMALL, clusters=8, lanes=2, columns=64)
PUBLISHED = list(dict.fromkeys(board.config for board in BOARDS.values()))
"""The boards' default devices."""


@pytest.mark.parametrize(
    "config",
    [
        *configurations(),
        # The largest array takes minutes to build, and so do many.
        pytest.param(LARGEST, marks=pytest.mark.slow),
        *(pytest.param(config, marks=pytest.mark.long) for config in [*PUBLISHED, *drawn(30)]),
    ],
    ids=name,
)
def test_values_and_counters_are_those_of_the_golden_model(config: Config) -> None:
    rng = np.random.default_rng([config.clusters, config.columns, config.digit_bits])
    golden = Golden(config)
    with Device(SimulatedBoard(config), expect=config) as device:
        for number in range(min(config.layers, 9)):
            work = random_workload(rng, config)
            at = work.entry["accumulator_base"]
            for accelerator in (golden, device):
                work.load(accelerator, number)
            third = Mode.SPATIAL if work.entry["spatial"] else Mode.DENSE
            modes = [Mode.DENSE, Mode.TEMPORAL, third, Mode.TEMPORAL, Mode.TEMPORAL]
            for kind, mode in zip(rng.permutation(DELTAS), modes, strict=True):
                walked = stretched(work.entry) if mode is Mode.SPATIAL else work.entry
                deltas = random_deltas(rng, config, walked, str(kind))
                results = []
                for accelerator in (golden, device):
                    accelerator.write_deltas(number, deltas, mode)
                    counters = accelerator.run(number, mode)._replace(stall_link=0)
                    results.append((counters, accelerator.read_accumulators(at, work.rows)))
                (want, wanted), (got, gotten) = results
                where = f"layer {number} ({work.entry}), {mode.name}, {kind} deltas"
                assert got == want, where
                np.testing.assert_array_equal(gotten, wanted, where)
            if config.reference_depth:
                compare_inputs(rng, golden, device, work, number)


def compare_inputs(
    rng: np.random.Generator, golden: Golden, device: Device, work: Workload, number: int
) -> None:
    """Give inputs in every mode to a layer; what one side refuses, the other one does, too."""
    config, entry = golden.config, work.entry
    shift = entry["split"] * entry["stride_x"]
    ring = min(shift, entry["in_width"]) * entry["channels"]
    entry |= {
        "reference_base": int(rng.integers(0, 50)),
        "zero_point": int(rng.integers(-(1 << config.activation_bits - 1), 0)) & 0xFF,
        "threshold": int(rng.choice([0, 0, 2])),
        "spatial": int(entry.get("spatial", 1) and ring <= config.neighbour_depth),
        "margin": entry.get("margin", 0),
    }
    both: tuple[Accelerator, ...] = (golden, device)
    for accelerator in both:
        work.load(accelerator, number)
    most = 1 << config.activation_bits - 1
    at, shape = entry["accumulator_base"], (entry["positions"], entry["channels"])
    inputs = rng.integers(-most, most, shape)
    for mode in (Mode.DENSE, Mode.TEMPORAL, Mode.SPATIAL, Mode.TEMPORAL, Mode.DENSE):
        told: list[Any] = []
        for accelerator in both:
            try:
                accelerator.write_inputs(number, inputs, mode)
                counters = accelerator.run(number, mode)._replace(stall_link=0)
                told.append((counters, accelerator.read_accumulators(at, work.rows)))
            except CommandError as error:
                told.append((error.status, np.empty(0)))
        (want, wanted), (got, gotten) = told
        where = f"layer {number} ({entry}), inputs, {mode.name}"
        assert got == want, where
        np.testing.assert_array_equal(gotten, wanted, where)
        change = rng.integers(-3, 4, shape) * (rng.random(shape) < 0.5)
        inputs = np.clip(inputs + change, -most, most - 1)


FUZZED = Config(
    **(SMALL | dict[str, Any](layers=3, weight_rows=20, accumulator_rows=9, frame_bytes=128)),
    clusters=3,
    columns=2,
    accumulator_bits=20,
    reference_depth=30,
    neighbour_depth=16,
)


@pytest.fixture(scope="module")
def board() -> Iterator[SimulatedBoard]:
    board = SimulatedBoard(FUZZED)
    yield board
    board.close()


class Link:
    """One end of a link without a driver: bodies in, bodies out."""

    def __init__(self, transport: GoldenBoard | SimulatedBoard) -> None:
        self.transport = transport
        self.decoder = Decoder(max_frame=1 << 16)

    def ask(self, body: bytes, timeout: float = 5.0) -> bytes | None:
        self.transport.write(encode(body))
        while chunk := self.transport.read(1 << 12, timeout):
            if bodies := self.decoder.feed(chunk):
                (answer,) = bodies
                return answer
        return None


@pytest.mark.parametrize("seed", range(6))
def test_every_answer_is_that_of_the_golden_board(board: SimulatedBoard, seed: int) -> None:
    rng = random.Random(seed)
    golden = GoldenBoard(FUZZED)
    board.reset()
    links = [Link(golden), Link(board)]
    for step, body in zip(range(300), random_commands(rng, FUZZED), strict=False):
        want, got = (link.ask(body) for link in links)
        assert want is not None and got is not None, f"seed {seed}, step {step}: no answer"
        assert without_link_stalls(got) == without_link_stalls(want), (
            f"seed {seed}, step {step}: command {body.hex()}"
        )
    # The first one clears the accumulators; with it alone, little would be compared.
    assert golden.executed.count(Opcode.RUN) > 5


@pytest.mark.parametrize("kind", ["golden", "rtl"])
def test_a_repeat_is_told_the_same_whatever_came_between(board: SimulatedBoard, kind: str) -> None:
    board.reset()
    link = Link(board if kind == "rtl" else GoldenBoard(FUZZED))

    def status(op: Opcode, sequence: int, **fields: int) -> Status:
        answer = link.ask(pack(CommandHeader, op=op, sequence=sequence, **fields))
        assert answer is not None
        return Status(answer[3])

    assert status(Opcode.RESET, 6) is Status.NO_SESSION
    assert status(Opcode.IDENTIFY, 5) is Status.OK
    assert status(Opcode.RESET, 6) is Status.OK
    assert status(Opcode.RESET, 9) is Status.BAD_SEQUENCE
    assert status(Opcode.RESET, 6) is Status.OK
    assert status(Opcode.READ, 7) is Status.BAD_ADDRESS  # no words
    assert status(Opcode.RESET, 5) is Status.BAD_SEQUENCE
    assert status(Opcode.READ, 7) is Status.BAD_ADDRESS
    assert status(Opcode.RESET, 8) is Status.OK
    # Another command with the last sequence is not a repeat of it: it has not been checked.
    assert status(Opcode.READ, 8) is Status.BAD_SEQUENCE
    assert status(Opcode.RESET, 8, count=1) is Status.BAD_SEQUENCE
    assert status(Opcode.RESET, 8) is Status.OK
    assert status(Opcode.READ, 9, count=1, size=1) is Status.OK
    for count, size in ((0, 1), (1, 0), (2, 1)):
        assert status(Opcode.READ, 9, count=count, size=size) is Status.BAD_SEQUENCE
    assert status(Opcode.READ, 9, count=1, size=1) is Status.OK


def test_a_bad_line_costs_time_and_no_result() -> None:
    rng = np.random.default_rng(7)
    golden = Golden(FUZZED)
    rates = FaultRates(drop=1e-3, flip=1e-3, duplicate=1e-3, insert=1e-3)
    with SimulatedBoard(FUZZED) as inner:
        line = FaultyTransport(inner, seed=7, to_device=rates, from_device=rates)
        device = Device(line, expect=FUZZED, timeout=0.05, tries=50)
        for number in range(3):
            work = random_workload(rng, FUZZED, rows=6)
            for mode, kind in [(Mode.DENSE, "full"), *[(Mode.TEMPORAL, "temporal")] * 20]:
                deltas = random_deltas(rng, FUZZED, work.entry, kind)
                results = []
                for accelerator in (golden, device):
                    if mode is Mode.DENSE:
                        work.load(accelerator, number)
                    accelerator.write_deltas(number, deltas)
                    counters = accelerator.run(number, mode)._replace(stall_link=0)
                    at = work.entry["accumulator_base"]
                    results.append((counters, accelerator.read_accumulators(at, work.rows)))
                (want, wanted), (got, gotten) = results
                assert got == want
                np.testing.assert_array_equal(gotten, wanted)
        assert line.faults > 20 and device.resent > 5


def test_the_demo_device_runs_a_layer_exactly() -> None:
    rng = np.random.default_rng(0)
    golden = Golden(demo)
    with Device(SimulatedBoard(demo), expect=demo) as device:
        work = random_workload(rng, demo)
        for accelerator in (golden, device):
            work.load(accelerator, 5)
            accelerator.write_deltas(
                5, random_deltas(np.random.default_rng(1), demo, work.entry, "full")
            )
        assert device.run(5, Mode.DENSE)._replace(stall_link=0) == golden.run(5, Mode.DENSE)
        at = work.entry["accumulator_base"]
        got, want = (each.read_accumulators(at, work.rows) for each in (device, golden))
        for cluster, words in enumerate(work.filled):
            # Other words may hold what the run before the reset has left.
            np.testing.assert_array_equal(got[cluster, :words], want[cluster, :words])


@pytest.mark.parametrize("delay", [0, 1, 5, 30, 31, 32, 33, 34, 35, 36, 60, 100, 150, 250])
def test_reset_at_any_time_leaves_a_device_that_works(board: SimulatedBoard, delay: int) -> None:
    # The bytes of a run command and `delay` cycles more, then reset: the next run is exact.
    rng = np.random.default_rng(delay)
    board.reset()
    golden = Golden(FUZZED)
    device = Device(board, expect=FUZZED)
    for attempt in range(2):
        while True:
            work = random_workload(rng, FUZZED, rows=6)
            if work.entry["weight_base"] == 0:
                break
        for accelerator in (golden, device):
            work.load(accelerator, 0)
            deltas = random_deltas(np.random.default_rng(delay), FUZZED, work.entry, "full")
            accelerator.write_deltas(0, deltas)
        if attempt == 0:
            run = pack(CommandHeader, op=Opcode.RUN, address=0, sequence=device._sequence + 1)
            board.write(encode(run)[: max(1, delay)])
            if delay > 30:
                board.advance(delay - 30)
            board.reset(1)
            golden.reset()
            device = Device(board, expect=FUZZED)
            continue
        assert device.run(0, Mode.DENSE)._replace(stall_link=0) == golden.run(0, Mode.DENSE)
        at = work.entry["accumulator_base"]
        got, want = (each.read_accumulators(at, work.rows) for each in (device, golden))
        for cluster, words in enumerate(work.filled):
            # Other words may hold what the run before the reset has left.
            np.testing.assert_array_equal(got[cluster, :words], want[cluster, :words])
