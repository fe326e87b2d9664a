"""Tiles of inputs and decisions: the generated RTL against the golden model, step by step."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.hdl.protocol import (
    CommandError,
    CommandHeader,
    Counters,
    Decision,
    Mode,
    Opcode,
    Rule,
    pack,
)
from ditto.host.device import Accelerator, Device
from ditto.host.framing import encode
from ditto.sim.board import SimulatedBoard
from ditto.sim.faults import FaultRates, FaultyTransport
from ditto.sim.golden import Golden
from ditto.sim.spatial import stretched
from ditto.sim.workload import Workload, random_workload

LAYERS = 4
CONFIG = Config(
    clusters=3,
    columns=2,
    accumulator_bits=20,
    weight_rows=200,
    accumulator_rows=120,
    item_depth=768,
    positions=64,
    channels=9,
    layers=LAYERS,
    frame_bytes=100,
    reference_depth=900,
    neighbour_depth=40,
)
MODES = (Mode.DENSE, Mode.TEMPORAL, Mode.SPATIAL, Mode.AUTO, Mode.AUTO, Mode.AUTO)


@pytest.fixture(scope="module")
def board() -> Iterator[SimulatedBoard]:
    with SimulatedBoard(CONFIG) as board:
        yield board


class Steps:
    """A device and the golden model, at the same steps of the same layers."""

    def __init__(self, device: Accelerator, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.golden = Golden(CONFIG)
        self.both: tuple[Accelerator, ...] = (self.golden, device)
        self.works = []
        self.inputs: list[NDArray[np.int64]] = []
        base = 0
        for number in range(LAYERS):
            work = random_workload(rng, CONFIG, rows=25)
            entry = work.entry
            count = entry["positions"] * entry["channels"]
            shift = entry["split"] * entry["stride_x"]
            ring = min(shift, entry["in_width"]) * entry["channels"]
            entry |= {
                "reference_base": base,
                # The second and the third are two parts of a layer.
                "decision": (0, 1, 1, 3)[number],
                "decides": int(number != 1),
                "zero_point": int(rng.choice([0, 3, 0xF0])),
                "threshold": int(rng.choice([0, 0, 2])),
                "spatial": int(ring <= CONFIG.neighbour_depth and entry["spatial"]),
            }
            if rng.random() < 0.3:
                # Edges of another kernel.
                wild = {
                    "margin": int(rng.integers(0, min(shift, 15) + 1)),
                    "lead": int(rng.integers(0, 4)),
                }
                positions = stretched(entry | wild)["positions"]
                room = CONFIG.item_depth // entry["channels"] // CONFIG.digits
                if positions <= min(CONFIG.positions, room):
                    entry |= wild
            base += count
            self.works.append(work)
            self.inputs.append(rng.integers(-128, 128, (entry["positions"], entry["channels"])))
        assert base <= CONFIG.reference_depth
        for target in self.both:
            target.reset()
            for number, work in enumerate(self.works):
                work.load(target, number)
            # The buffer holds what the test before has left.
            for number in range(LAYERS):
                target.write_inputs(number, self.inputs[number], Mode.DENSE)
        rules = (Rule.DEFO, Rule.ADAPTIVE, Rule.FIXED, Rule.ADAPTIVE)
        for number, rule in enumerate(rng.permutation(LAYERS).tolist()):
            own = [work.entry for work in self.works if work.entry["decision"] == number]
            spatial = int(all(entry["spatial"] for entry in own))
            mode = int(rng.integers(0, 2 + spatial))
            word = pack(Decision, rule=rules[rule], mode=mode, spatial=spatial)
            self.same("write_decisions", 4 * number, [int.from_bytes(word, "little"), 0, 0, 0])

    def same(self, command: str, *arguments: Any) -> Any:
        """Give a command to both, which do or refuse the same; return what they tell."""
        told = []
        for target in self.both:
            try:
                answer = getattr(target, command)(*arguments)
                if isinstance(answer, Counters):
                    answer = answer._replace(stall_link=0)
                told.append(answer)
            except CommandError as error:
                told.append(error.status)
        want, got = told
        assert got == want, (command, arguments)
        return want

    def compare(self, work: Workload) -> None:
        """Compare the accumulators of a layer."""
        at = work.entry["accumulator_base"]
        want, got = (target.read_accumulators(at, work.rows) for target in self.both)
        for cluster, words in enumerate(work.filled):
            np.testing.assert_array_equal(got[cluster, :words], want[cluster, :words])

    def drift(self, number: int) -> None:
        """Go on to the inputs of the next step."""
        inputs = self.inputs[number]
        kind = self.rng.integers(3)
        change = self.rng.integers(-3, 4, inputs.shape)
        if kind == 0:
            change *= self.rng.random(inputs.shape) < 0.2
        elif kind == 1:
            change = self.rng.integers(-255, 256, inputs.shape)
        self.inputs[number] = np.clip(inputs + change, -128, 127)

    def step(self, what: str, number: int, mode: Mode) -> None:
        """Do something; then the decisions are the same."""
        self.drift(number)
        inputs = self.inputs[number]
        if what == "reset":
            self.same("reset")
        elif what == "cut":
            # A host that dies in the middle: the tile is never whole.
            self.same("write_inputs", number, inputs[: max(len(inputs) // 2, 1)], mode)
            if len(inputs) > 1:
                assert not isinstance(self.same("run", number, Mode.AUTO), Counters)
        elif what == "deltas":
            for target in self.both:
                target.write_deltas(number, inputs % 7)
            self.same("run", number, Mode.DENSE)
        else:
            self.same("write_inputs", number, inputs, mode)
            told = self.same("run", number, Mode.AUTO)
            if isinstance(told, Counters):
                assert told.digits_dense
                self.compare(self.works[number])
        self.same("read_decisions", 0, 4 * LAYERS)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 1000),
    moves=st.lists(
        st.tuples(
            st.sampled_from(["tile"] * 12 + ["reset", "cut", "deltas"]),
            st.integers(0, LAYERS - 1),
            st.sampled_from(MODES),
        ),
        min_size=10,
        max_size=40,
    ),
)
@example(
    # A run without a tile is one in the mode of the last tile that has begun.
    seed=483,
    moves=[("tile", 0, Mode.SPATIAL), ("cut", 0, Mode.DENSE), ("tile", 2, Mode.TEMPORAL)],
)
def test_any_steps(board: SimulatedBoard, seed: int, moves: list[tuple[str, int, Mode]]) -> None:
    board.reset()
    steps = Steps(Device(board), seed)
    for move in moves:
        steps.step(*move)


@pytest.mark.parametrize("delay", [0, 3, 20, 50, 80, 110, 150, 200, 300, 500])
def test_reset_at_any_time_leaves_a_device_that_works(board: SimulatedBoard, delay: int) -> None:
    # A run by the table's choice and `delay` cycles more, then the reset of everything.
    board.reset()
    device = Device(board)
    steps = Steps(device, delay)
    for number in range(LAYERS):
        steps.step("tile", number, Mode.AUTO)
    device.write_inputs(0, steps.inputs[0], Mode.AUTO)
    sequence = device._sequence + 1
    run = pack(CommandHeader, op=Opcode.RUN, mode=Mode.AUTO, address=0, sequence=sequence)
    board.write(encode(run))
    board.advance(delay)
    board.reset(1)
    device = Device(board)
    for number in range(LAYERS):
        with pytest.raises(CommandError, match="NO_STATE"):
            device.write_inputs(number, steps.inputs[number], Mode.TEMPORAL)
    steps = Steps(device, delay)
    for mode in (Mode.AUTO, Mode.TEMPORAL, Mode.AUTO):
        for number in range(LAYERS):
            steps.step("tile", number, mode)


def test_a_bad_line_changes_no_step(board: SimulatedBoard) -> None:
    board.reset()
    rates = FaultRates(drop=5e-4, flip=5e-4, duplicate=5e-4, insert=5e-4)
    line = FaultyTransport(board, seed=3, to_device=rates, from_device=rates)
    steps = Steps(Device(line, timeout=0.05, tries=50), 11)
    rng = np.random.default_rng(5)
    for _ in range(60):
        what = str(rng.choice(["tile"] * 8 + ["cut", "reset"]))
        steps.step(what, int(rng.integers(LAYERS)), Mode.AUTO)
    assert line.faults > 10
