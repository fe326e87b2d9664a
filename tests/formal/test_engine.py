# amaranth: UnusedElaboratable=no
"""Engine's control: every task is answered, and nothing runs that must not."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from amaranth.hdl import Cat, Elaboratable, Module, Mux, ShapeLike, Signal, Value

from ditto.hdl import engine
from ditto.hdl.config import Config
from ditto.hdl.protocol import LayerEntry, Mode, Status
from ditto.sim.formal import Proof, mutant

sys.path.append(str(Path(__file__).parent))
from stub import Stub  # noqa: E402  # pyright: ignore[reportMissingImports]

CONFIG = Config(
    clusters=2,
    lanes=1,
    columns=1,
    accumulator_bits=17,
    channels=1,
    item_depth=4,
    positions=2,
    list_depth=2,
    layers=2,
    weight_rows=3,
    accumulator_rows=3,
)
#: With a reference buffer, and so with a table of decisions.
REFERENCES = replace(CONFIG, reference_depth=2)
SLOWEST = 18
"""Cycles until a task is answered if nothing that it waits for takes more than two."""


class StubMemory(Elaboratable):
    """In the place of a memory: what is read may be anything."""

    def __init__(self, shape: ShapeLike, depth: int, init: list[int]) -> None:
        self.free = Signal(shape, name="word")
        self.depth = depth

    def write_port(self) -> Any:
        """Return a port to nowhere."""
        data = Signal.like(self.free, name="written")
        return SimpleNamespace(en=Signal(), addr=Signal(range(self.depth)), data=data)

    def read_port(self) -> Any:
        """Return the port."""
        return SimpleNamespace(addr=Signal(range(self.depth)), data=self.free)

    def elaborate(self, platform: object) -> Module:
        """Build nothing."""
        return Module()


def control_of(module: ModuleType, config: Config) -> Any:
    """Make an engine whose encoder, clusters and tables are stubs."""

    class Control(module.Engine):
        def __init__(self) -> None:
            super().__init__(config)
            self.encoder = Stub(module.Encoder(config))
            self.clusters = [Stub(module.Cluster(config, n)) for n in range(config.clusters)]
            self.table = Stub(module.DecisionTable(config)) if config.reference_depth else None
            self.layers = StubMemory(LayerEntry.as_shape().size, config.layers, [])

        def elaborate(self, platform: object) -> Module:
            with mock.patch.multiple(
                module,
                Encoder=lambda _: self.encoder,
                Cluster=lambda _, number: self.clusters[number],
                DecisionTable=lambda _: self.table,
                memory=SimpleNamespace(Memory=lambda **_: self.layers),
            ):
                return super().elaborate(platform)

    return Control()


class EngineProof(Proof):
    """Tasks of any kind, of any entries, on clusters and an encoder that do as they like.

    Each task gets one answer, in bounded time. An answer of OK means that a tile has begun, or that
    the clusters have run, once. The clusters hear of a start when they are stopped, and of a begin
    when they have walked; a stop in the same cycle wins. A run adds to accumulators only if those
    of its entry have been filled, by a run that ended, since the last reset, write of the entry and
    forgetting. It runs the last tile that has begun, which is of its entry, and no tile twice.
    """

    def __init__(self, dut: Any, *, far: bool = False) -> None:
        super().__init__(dut)
        self.far = far

    def specify(self, m: Module) -> None:
        dut = self.dut
        tasks, results = dut.tasks, dut.results
        self._free["layer"] = dut.layers.free
        cluster = dut.clusters[0]
        self.stable(tasks, assume=True)
        self.stable(results)

        # One answer to each task, and none to anything else.
        takes, gives = tasks.valid & tasks.ready, results.valid & results.ready
        owed = Signal()
        task = Signal.like(tasks.payload, name="task_owed")
        self.require(~owed | ~tasks.ready)
        self.require(owed | ~results.valid)
        with m.If(takes):
            m.d.sync += [owed.eq(1), task.eq(tasks.payload)]
        with m.Elif(gives):
            m.d.sync += owed.eq(0)
        # Whoever commands uses everything else only while no task is at work.
        others = dut.layer_en | dut.forget
        self.assume(~others | ~(owed | tasks.valid))

        # It waits for clusters, for the table and for whoever takes the result, a cycle each.
        ready = [
            Cat(each.steady for each in dut.clusters).all(),
            Cat(each.ended for each in dut.clusters).all()
            | Cat(each.overrun for each in dut.clusters).any(),
            *([~dut.table.busy] if dut.table else []),
            results.ready | ~results.valid,
        ]
        for number, condition in enumerate(ready):
            waits = Signal(name=f"waits_{number}")
            m.d.sync += waits.eq(owed & ~condition)
            self.assume(condition | ~waits)
        late = Signal(range(SLOWEST + 1))
        m.d.sync += late.eq(Mux(owed, late + 1, 0))
        self.require(late < SLOWEST)

        # Clusters hear the same, a start only when stopped, and a begin only when they have walked.
        for name in ("start", "begin", "stop"):
            self.require(
                Cat(getattr(each, name) == getattr(cluster, name) for each in dut.clusters).all()
            )
        walks, runs = Signal(), Signal()
        age, since = Signal(range(4)), Signal(range(4))
        steady = Signal()
        m.d.sync += [
            age.eq(Mux(cluster.stop, 0, Mux(age == 3, 3, age + 1))),
            since.eq(Mux(cluster.start, 0, Mux(since == 3, 3, since + 1))),
            steady.eq(Cat(each.steady for each in dut.clusters).all()),
        ]
        with m.If(cluster.stop):
            m.d.sync += [walks.eq(0), runs.eq(0)]
        with m.Else():
            with m.If(cluster.start):
                m.d.sync += walks.eq(1)
            with m.If(cluster.begin):
                m.d.sync += runs.eq(1)
        self.require(~cluster.start | ~walks)
        # `steady` tells of a walk from the second cycle after the start.
        self.require(~cluster.begin | (walks & ~runs & steady & (since >= 2)))
        # What they walk stays as it is: nobody hears of another entry without being stopped.
        entry = Value.cast(cluster.entry)
        before = Signal.like(entry, name="entry_before")
        m.d.sync += before.eq(entry)
        self.require(~(runs & ~cluster.stop) | (entry == before))

        # A tile, and what has become of it.
        begins_tile = dut.encoder.begin
        # A tile that has just begun is not complete.
        fresh = Signal(range(3))
        m.d.sync += fresh.eq(Mux(begins_tile, 2, Mux(fresh == 0, 0, fresh - 1)))
        self.assume((fresh == 0) | (dut.encoder.positions == 0))
        tile, has_tile, tile_held = Signal.like(task, name="tile_begun"), Signal(), Signal()
        began_tile, began = Signal(), Signal()
        self.require(~begins_tile | (owed & ~task.run & ~began_tile))
        self.require(~cluster.begin | (owed & task.run & ~began))
        with m.If(takes):
            m.d.sync += [began_tile.eq(0), began.eq(0)]
        is_ok = results.payload == Status.OK
        self.require(~gives | ~is_ok | Mux(task.run, began, began_tile))
        self.require(~gives | is_ok | ~began_tile)
        self.require(~(gives & began) | is_ok | (results.payload == Status.BAD_LAYER))

        # What one of the entries holds.
        one = self.constant(range(dut.config.layers), "one")
        self.assume(one < dut.config.layers)
        held = Signal()
        mine = task.entry == one
        with m.If(begins_tile):
            m.d.sync += [has_tile.eq(1), tile.eq(task), began_tile.eq(1), tile_held.eq(held)]
            with m.If(mine & task.inputs):
                m.d.sync += held.eq(0)
        with m.If(cluster.begin):
            m.d.sync += [began.eq(1), has_tile.eq(0)]
            self.require(has_tile & (tile.entry == task.entry))
            adds = dut.counters.mode == Mode.TEMPORAL
            self.require(~(mine & adds) | Mux(tile.inputs, tile_held, held))
            self.require(cluster.dense == ~adds)
        with m.If(gives & began):
            with m.If(mine):
                m.d.sync += held.eq(is_ok)
        with m.If(dut.forget | dut.layer_en):
            m.d.sync += has_tile.eq(0)
            with m.If(dut.forget | (dut.layer_address == one)):
                m.d.sync += held.eq(0)
        ran = gives & began & mine
        self.cover(ran & ~is_ok)
        self.cover(ran & is_ok & (dut.counters.mode == Mode.DENSE))
        if self.far:
            self.cover(ran & is_ok & (dut.counters.mode == Mode.TEMPORAL))


CONFIGS = pytest.mark.parametrize("config", [CONFIG, REFERENCES], ids=["deltas", "references"])


@CONFIGS
def test_engine_control(holds: Any, config: Config) -> None:
    # A tile and a run, as slow as they may be.
    holds(lambda: EngineProof(control_of(engine, config)), 24, "bmc", reach=30)


@pytest.mark.long
@CONFIGS
def test_engine_control_deeper(holds: Any, config: Config) -> None:
    # A dense run, and then one that adds to what it has left.
    make = lambda: EngineProof(control_of(engine, config), far=True)  # noqa: E731
    holds(make, 40, "bmc", reach=42, timeout=400)


OVERRUN = "m.d.sync += [running.eq(0), filled.eq(filled & ~task_bit)]"
WRITTEN = "m.d.sync += [filled.eq(filled & ~written_bit), loaded.eq(0)]"


@pytest.mark.parametrize(
    "old, new",
    [
        pytest.param(OVERRUN, OVERRUN.replace("& ~", "| "), marks=pytest.mark.long),
        pytest.param(WRITTEN, "m.d.sync += loaded.eq(0)", marks=pytest.mark.long),
        ("(tile.entry != task.entry)", "(tile.run == task.run)"),
        ('m.next = "Hear"', 'm.next = "Walk ahead"'),
    ],
)
def test_engine_control_with_a_defect(refutes: Any, old: str, new: str) -> None:
    module = mutant("ditto.hdl.engine", old, new)
    refutes(lambda: EngineProof(control_of(module, CONFIG)), 40)
