# amaranth: UnusedElaboratable=no
"""Guard of the references: they and the accumulators of an entry never part unnoticed.

The engine is whole but for its clusters, which may do anything at any time.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.hdl._ast import Initial

from ditto.hdl import engine
from ditto.hdl.cluster import Cluster
from ditto.hdl.config import Config
from ditto.hdl.engine import task_of
from ditto.hdl.protocol import LayerEntry, Mode, Status
from ditto.sim.formal import Proof, mutant

sys.path.append(str(Path(__file__).parent))
from stub import Stub  # noqa: E402  # pyright: ignore[reportMissingImports]

CONFIG = Config(
    clusters=1,
    lanes=1,
    columns=1,
    channels=1,
    activation_bits=2,
    digit_bits=3,
    weight_bits=2,
    accumulator_bits=8,
    item_depth=2,
    positions=2,
    list_depth=2,
    weight_rows=2,
    accumulator_rows=2,
    layers=2,
    reference_depth=4,
)


def any_cluster(config: Config, number: int) -> Stub:
    """Make a cluster that says anything."""
    return Stub(Cluster(config, number))


STATES = (
    *("Idle", "Look up", "Take entry", "Derive", "Judge", "Check", "Report", "Start", "Hear"),
    *("Walk ahead", "Run", "Learn", "Wait"),
)


class GuardProof(Proof):
    """What the host may rely on, for one entry, any one; it gets inputs only, or deltas only."""

    def __init__(self, dut: Any, *, far: bool = False) -> None:
        super().__init__(dut)
        self.far = far

    def specify(self, m: Module) -> None:
        dut = self.dut
        tasks, results = dut.tasks, dut.results
        self.entry = entry = self.constant(1, "entry")
        self.by_inputs = by_inputs = self.constant(1, "by_inputs")

        # One task at a time, and the rest only while none is at work.
        self.task: Any = Signal(tasks.payload.shape())
        task = self.task
        self.at_work = at_work = Signal()
        takes, done = tasks.valid & tasks.ready, results.valid & results.ready
        with m.If(takes):
            m.d.sync += [task.eq(tasks.payload), at_work.eq(1)]
        with m.Elif(done):
            m.d.sync += at_work.eq(0)
        self.require((~takes | ~at_work) & (~results.valid | at_work))
        others = dut.layer_en | dut.forget | dut.decision_en | dut.read_en
        self.assume(~(others | dut.deltas.valid) | (~at_work & ~tasks.valid))
        self.assume(~others | ~dut.encoding)
        self.assume(~(dut.layer_en & dut.forget))
        self.assume(~tasks.valid | at_work | ~dut.encoding)
        given = tasks.payload
        self.assume(Value.cast(given.mode) <= Mode.AUTO.value)
        self.assume(given.run | (given.entry != entry) | (given.inputs == by_inputs))
        self.assume(given.run | given.inputs | (given.mode != Mode.AUTO))

        # What is true of the entry, and of the latest tile.
        self.holds = holds = Signal()  # it has accumulators, which stand for its references
        self.is_open = is_open = Signal()  # the tile may be run
        self.own = own = Signal()  # it is one of the entry
        self.inputs = inputs = Signal()
        self.held = held = Signal()  # `holds`, when the tile was begun
        self.wanted = wanted = Signal(Mode)  # its mode, as it was asked for
        self.launched = launched = Signal()  # the task has begun a run
        self.state = state = self.internal(4, "dut.fsm_state")
        m.d.sync += launched.eq(~done & (launched | (state == STATES.index("Run"))))
        is_own = task.entry == entry
        ok = results.payload == Status.OK
        begins, runs = done & ok & ~task.run, done & ok & task.run
        with m.If(done):
            m.d.sync += is_open.eq(begins)
        with m.If(begins):
            m.d.sync += [
                own.eq(is_own),
                inputs.eq(task.inputs),
                held.eq(holds),
                wanted.eq(task.mode),
                holds.eq(holds & ~(is_own & task.inputs)),
            ]
        with m.If(done & launched & is_own):
            # One that is given up has written some accumulators.
            m.d.sync += holds.eq(ok)
        with m.If(dut.layer_en):
            m.d.sync += [is_open.eq(0), holds.eq(holds & (dut.layer_address != entry))]
        with m.If(dut.forget):
            m.d.sync += [is_open.eq(0), holds.eq(0)]

        # No difference is taken from references that the accumulators do not stand for.
        temporal = task.mode == Mode.TEMPORAL
        self.require(~(begins & is_own & task.inputs & temporal) | holds)
        mode = dut.counters.mode
        with m.If(runs):
            self.require(is_open & (own == is_own) & launched)
            self.require(mode <= Mode.SPATIAL.value)
            self.require((task.mode == Mode.AUTO) | (mode == Value.cast(task.mode)))
            asked = ~inputs | (wanted == Mode.AUTO)
            self.require(asked | (mode == Value.cast(wanted)))
            # Since the tile was begun, nothing has changed the accumulators but this run.
            was_temporal = mode == Mode.TEMPORAL.value
            self.require(~(is_own & was_temporal) | Mux(by_inputs, held, holds))
        # A reference becomes what an input of the tile is, and that parts it from accumulators.
        writes = self.internal(1, "dut.encoder.differencer.references.write_en")
        self.require(~writes | (is_open & inputs & ~(own & holds)))

        self.cover(done & launched & ~ok)
        self.cover(writes & own)
        if self.far:
            self.cover(begins & is_own & task.inputs & temporal)

    def support(self, m: Module) -> None:
        dut, task = self.dut, self.task
        at = {name: self.state == code for code, name in enumerate(STATES)}
        self.require(self.state < len(STATES))
        payload = task_of(dut.config)
        inner: Any = payload(self.internal(payload.size, "dut.task"))
        tile: Any = payload(self.internal(payload.size, "dut.tile"))
        mode, tile_mode = self.internal(8, "dut.mode"), self.internal(8, "dut.tile_mode")
        loaded, blind = self.internal(1, "dut.loaded"), self.internal(1, "dut.blind")
        takes_inputs = self.internal(1, "dut.encoder.takes_inputs")
        filled = self.internal(2, "dut.filled").bit_select(self.entry, 1)
        holds_state = self.internal(1, "dut.holds_state")
        status = dut.results.payload

        self.require(self.at_work == ~at["Idle"])
        self.require(at["Idle"] | (inner.as_value() == task.as_value()))
        is_own = task.entry == self.entry
        with m.If(self.at_work):
            self.require(Value.cast(task.mode) <= Mode.AUTO.value)
            self.require(task.run | ~is_own | (task.inputs == self.by_inputs))
            self.require(task.run | task.inputs | (task.mode != Mode.AUTO))
        ok = at["Report"] & (status == Status.OK)
        learns = at["Learn"] | at["Wait"]
        self.require(at["Report"] | at["Run"] | (self.launched == learns))
        self.require(~(at["Run"] | self.launched) | (dut.counters.mode == mode))
        waiting = Cat(at[n] for n in STATES[: STATES.index("Report")]).any()
        late = Cat(at[n] for n in STATES[STATES.index("Start") :]).any()
        ran = (ok & task.run) | learns
        begun = ok & ~task.run
        self.require(~(late | self.launched) | task.run)
        self.require(~ran | (self.launched & (status == Status.OK)))

        # What the engine has done already, and what it will tell of.
        given_up = at["Report"] & ~ok & self.launched
        gone = is_own & ((begun & task.inputs) | given_up)
        self.require(filled == (self.holds | (ran & is_own)) & ~gone)
        looked_up = ~(at["Idle"] | at["Look up"] | ran | begun | given_up)
        self.require(~(looked_up & is_own) | (holds_state == filled))
        self.require(loaded == (waiting & self.is_open) | begun)

        # The tile.
        self.require(~self.is_open | ~self.own | (self.inputs == self.by_inputs))
        self.require(~(self.is_open & self.own & self.inputs & self.holds))
        for there, own, wanted, inputs, held in (
            (begun, is_own, task.mode, task.inputs, self.holds),
            (
                (self.is_open & waiting) | late | ran,
                *(self.own, self.wanted, self.inputs, self.held),
            ),
        ):
            with m.If(there):
                self.require((tile.entry == self.entry) == own)
                self.require((tile.inputs == inputs) & (takes_inputs == inputs))
                self.require(Value.cast(tile.mode) == Value.cast(wanted))
                self.require(~own | (blind == ~held))
                self.require(tile_mode <= Mode.SPATIAL.value)
                self.require((wanted == Mode.AUTO) | (tile_mode == Value.cast(wanted)))
                self.require(inputs | (wanted != Mode.AUTO))
                is_temporal = tile_mode == Mode.TEMPORAL.value
                self.require(~(own & inputs & is_temporal) | held)
        with m.If(late | ran):
            self.require(self.is_open & (self.own == is_own))
            self.require(mode <= Mode.SPATIAL.value)
            self.require(~self.inputs | (mode == tile_mode))
            self.require((task.mode == Mode.AUTO) | (mode == Value.cast(task.mode)))
            by_deltas = is_own & ~self.inputs & (mode == Mode.TEMPORAL.value)
            self.require(~by_deltas | self.holds)

        # What is under way to the references.
        differencer = "dut.encoder.differencer"
        stages = [self.internal(1, f"{differencer}.full_{stage}") for stage in range(1, 5)]
        moving = Cat(stages).any() | self.internal(1, f"{differencer}.emits")
        self.require(~moving | (at["Idle"] & self.is_open & self.inputs & takes_inputs))


@pytest.fixture(autouse=True)
def clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "Cluster", any_cluster)


def guard_of(module: ModuleType, *, far: bool = False) -> GuardProof:
    return GuardProof(module.Engine(CONFIG), far=far)


def test_guard(holds: Any) -> None:
    holds(lambda: guard_of(engine), 3, reach=24)


@pytest.mark.long
def test_guard_lets_differences_through(holds: Any) -> None:
    # After a dense run.
    holds(lambda: guard_of(engine, far=True), 3, reach=34, timeout=900)


class ScriptedGuardProof(GuardProof):
    """The same for a script, of an entry whose sizes are one.

    The runs in which a defect does harm are too long to be found among all runs: two tiles and a
    run. Each part of a script happens at any time after the one before.
    """

    def __init__(self, dut: Any, script: list[str], *, inputs: bool) -> None:
        super().__init__(dut)
        self.script, self.by = script, inputs

    def cover(self, condition: Any) -> None:
        """Reach nothing: a script ends."""

    def specify(self, m: Module) -> None:
        super().specify(m)
        dut = self.dut
        self.assume(self.reset == Initial())
        layout = LayerEntry.as_shape()
        entry: Any = layout(self.internal(layout.size, "dut.entry"))
        zero = ("spatial", "pad_top", "pad_left", "skew", "lead", "margin")
        free = ("decision", "decides", "weight_base", "accumulator_base", "reserved")
        for name in layout.members:
            if name not in free:
                self.assume(entry[name] == (name not in zero))
        self.assume(dut.results.ready & (self.by_inputs == self.by))
        self.assume(~(dut.read_en | dut.decision_en | dut.reads_decisions))
        self.assume(dut.layer_address == self.entry)
        part = Signal(range(len(self.script) + 1))
        given, valid = dut.tasks.payload, dut.tasks.valid
        m.d.sync += part.eq(part + ((valid & dut.tasks.ready) | dut.layer_en | dut.forget))
        for number, name in enumerate([*self.script, ""]):
            kind, _, mode = name.partition(" ")
            with m.If(part == number):
                self.assume(~dut.layer_en | (kind == "write"))
                self.assume(~dut.forget | (kind == "forget"))
                if not mode:
                    self.assume(~valid | self.at_work)
                    continue
                self.assume((given.run == (kind != "tile")) & (given.inputs == self.by))
                self.assume((given.entry == self.entry) == (kind != "other"))
                self.assume(given.mode == Mode[mode.upper()])


TILE, RUN, NEXT = "tile dense", "run dense", "tile temporal"


@pytest.mark.parametrize(
    "old, new, inputs, script, at",
    [
        (
            "with m.If(task.inputs & (mode == Mode.TEMPORAL) & ~holds_state):",
            "with m.If(0):",
            *(True, [NEXT], 7),
        ),
        pytest.param(
            "m.d.sync += filled.eq(filled & ~task_bit)",
            "m.d.sync += filled.eq(filled)",
            *(True, [TILE, RUN, TILE, NEXT], 39),
            marks=pytest.mark.long,
        ),
        pytest.param(
            "m.d.sync += [filled.eq(filled & ~written_bit), loaded.eq(0)]",
            "m.d.sync += loaded.eq(0)",
            *(True, [TILE, RUN, "write", NEXT], 33),
            marks=pytest.mark.long,
        ),
        pytest.param(
            "m.d.sync += [filled.eq(0), loaded.eq(0)]",
            "m.d.sync += loaded.eq(0)",
            # The table of decisions forgets, too, and takes its time.
            *(True, [TILE, RUN, "forget", NEXT], 49),
            marks=pytest.mark.long,
        ),
        pytest.param(
            "m.d.sync += [running.eq(0), filled.eq(filled & ~task_bit)]",
            "m.d.sync += [running.eq(0), filled.eq(filled | task_bit)]",
            *(True, [TILE, RUN, NEXT], 33),
            marks=pytest.mark.long,
        ),
        pytest.param(
            "m.d.sync += loaded.eq(0)\n                    m.next",
            "m.next",
            *(True, [TILE, RUN, RUN], 36),
            marks=pytest.mark.long,
        ),
        (
            "is_other |= tile.inputs & (Value.cast(mode) != Value.cast(tile_mode))",
            "",
            *(True, [TILE, "run temporal"], 25),
        ),
        ("(tile.entry != task.entry)", "Const(0)", True, [TILE, "other dense"], 25),
        ("encoder.open.eq(loaded)", "encoder.open.eq(1)", True, [TILE, "write"], 13),
    ],
)
def test_guard_with_a_defect(
    refutes: Any, old: str, new: str, inputs: bool, script: list[str], at: int
) -> None:
    # In an earlier cycle, nothing is found.
    module = mutant("ditto.hdl.engine", old, new)
    module.Cluster = any_cluster  # type: ignore[attr-defined]
    dut = module.Engine(CONFIG)
    refutes(lambda: ScriptedGuardProof(dut, script, inputs=inputs), at + 1, skip=at)
