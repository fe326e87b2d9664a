# amaranth: UnusedElaboratable=no
"""Cluster's control: a run has ended when its last row is written, and after a stop nothing is.

The array is the cluster's own. Sequencer, lanes and difference buffer do anything that their own
proofs allow; memories hold anything.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from amaranth.hdl import Cat, Module, Signal

from ditto.hdl import cluster
from ditto.hdl.config import Config
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
    list_depth=4,
    weight_rows=2,
    accumulator_rows=2,
    layers=2,
)
WRITTEN = 7
"""Cycles from the issue of a row's last work to its write."""


def control_of(module: ModuleType) -> Any:
    """Make a cluster whose sequencer, lanes and difference buffer are stubs."""

    class Control(module.Cluster):
        def __init__(self) -> None:
            super().__init__(CONFIG, 0)
            self.sequencer = Stub(module.Sequencer(CONFIG))
            self.lanes = Stub(module.Lanes(CONFIG))
            self.buffer = Stub(module.DifferenceBuffer(CONFIG))

        def elaborate(self, platform: object) -> Module:
            with mock.patch.multiple(
                module,
                Sequencer=lambda _: self.sequencer,
                Lanes=lambda _: self.lanes,
                DifferenceBuffer=lambda _: self.buffer,
            ):
                return super().elaborate(platform)

    return Control()


class ClusterProof(Proof):
    """Rows of any length, virtual or not, pushed at any time between a start and a stop.

    It is stopped after a reset, starts once after each stop, and begins once after the start.
    """

    def specify(self, m: Module) -> None:
        dut = self.dut
        sequencer, lanes = dut.sequencer, dut.lanes
        work, issue = sequencer.work, lanes.issue
        # The cycle after a reset stops the cluster, which hears of it in the next one.
        stopped, live = Signal(), Signal()
        m.d.sync += [stopped.eq(1), live.eq(stopped)]
        self.assume(stopped | dut.stop)

        # What the cluster has heard, a cycle late, since the last stop.
        start, begin, stop = heard = [Signal(name=name) for name in ("start", "begin", "stop")]
        started, begun = Signal(), Signal()
        told, tells_begin = Signal(), Signal()
        m.d.always += Cat(heard).eq(Cat(dut.start, dut.begin, dut.stop))
        self.assume(~dut.start | ~(told | dut.stop))
        self.assume(~dut.begin | (told & ~tells_begin & ~dut.stop))
        m.d.sync += [told.eq(told | dut.start), tells_begin.eq(tells_begin | dut.begin)]
        m.d.always += [started.eq(started | start), begun.eq(begun | begin)]
        with m.If(dut.stop):
            m.d.sync += [told.eq(0), tells_begin.eq(0)]
        with m.If(stop):
            m.d.always += [started.eq(0), begun.eq(0)]

        # Rows that were pushed and not finished, those of them that are to be written, and all
        # those that are not written. The last one of a run is to be written.
        most = CONFIG.rows_ahead(1)
        rows, real = Signal(range(most + 1)), Signal(range(most + 1))
        unwritten = Signal(range(32))
        pushed_all = Signal()
        push, free = work.push_row, lanes.free_row
        pushes_real = push & ~work.row.virtual
        ends = issue.valid & issue.last
        self.assume(~push | (started & ~sequencer.ended))
        self.assume(rows + push <= most)
        self.assume(~free | ((rows != 0) & issue.valid))
        self.assume(~ends | (free & (real != 0)))
        self.assume(~free | ends | (rows != real))
        self.assume(~(started & (sequencer.ended | pushed_all)) | (rows == 0) | (real != 0))
        self.assume(~issue.valid | begun)
        self.assume(~pushed_all | sequencer.ended)
        m.d.always += [
            rows.eq(rows + push - free),
            real.eq(real + pushes_real - ends),
            pushed_all.eq(pushed_all | (started & sequencer.ended)),
        ]
        writes = self.internal(1, "dut.array.write_en")
        m.d.always += unwritten.eq(unwritten + pushes_real - writes)
        with m.If(stop):
            m.d.always += [rows.eq(0), real.eq(0), pushed_all.eq(0), unwritten.eq(0)]

        was_started = Signal()
        m.d.always += was_started.eq(started & ~stop)
        waits = Signal(range(16))
        done = pushed_all & (rows == 0) & ~stop
        m.d.always += waits.eq((waits + 1)[:4] & done.replicate(4))
        with m.If(live):
            self.require(~writes | (unwritten != 0))
            # Nothing is written but what this run has issued.
            self.require(~writes | begun)
            # Ended means that all is written, and comes.
            says = was_started & dut.ended
            self.require(~says | (pushed_all & (rows == 0) & (unwritten == 0)))
            self.require((waits <= WRITTEN + 1) | dut.ended)
            # The lanes may work from the run's begin on until then.
            self.require(~lanes.run | begun)
            self.require(~begun | (rows == 0) | lanes.run)
        self.stopped, self.live, self.heard = stopped, live, heard
        self.told, self.tells_begin = told, tells_begin
        self.started, self.was_started, self.begun = started, was_started, begun
        self.rows, self.real, self.unwritten = rows, real, unwritten
        self.pushed_all, self.waits = pushed_all, waits

        self.cover(live & was_started & dut.ended & begun & (waits != 0))
        self.cover(live & stop & writes)
        self.cover(live & (rows == most) & (unwritten == most + 3))
        self.cover(live & (rows != real) & (real != 0) & writes)

    def support(self, m: Module) -> None:
        start, begin, stop = self.heard
        held = self.internal(3, "dut.told_register.held")
        running = self.internal(1, "dut.running")
        self.require(held == Cat(self.heard))
        self.require(self.live | ~self.stopped | stop)
        self.require(~self.live | self.stopped)
        moving = [
            self.internal(1, f"dut.array.valid_{age}") & self.internal(1, f"dut.array.last_{age}")
            for age in range(1, WRITTEN + 1)
        ]
        idle = self.pushed_all & (self.rows == 0)
        with m.If(self.live):
            # No more and no less than what is not written, so it never wraps.
            pending = self.internal(range(CONFIG.list_depth + 16), "dut.pending")
            self.require(pending == self.unwritten)
            self.require(self.told == ((self.started | start) & ~stop))
            self.require(self.tells_begin == ((self.begun | begin) & ~stop))
            self.require(~(start & self.started) & ~(begin & (self.begun | ~self.started)))
            self.require(self.started | ~(self.was_started | self.begun | self.pushed_all))
            self.require(self.started | (self.rows == 0))
            self.require(self.begun | ~Cat(moving).any())
            self.require(self.real <= self.rows)
            self.require(self.unwritten == self.real + sum(moving))
            self.require(~running | self.begun)
            self.require(~self.begun | running | idle)
            self.require((self.waits == 0) | idle)
            for age, moves in enumerate(moving, 1):
                self.require((self.waits < age) | ~moves)


def test_cluster(holds: Any) -> None:
    holds(lambda: ClusterProof(control_of(cluster)), 2, reach=24)


@pytest.mark.parametrize(
    "old, new",
    [
        ("work.push_row & ~sequencer.work.row.virtual", "work.push_row"),
        ("sequencer.ended & (pending == 0)", "sequencer.ended"),
        ("array.stop.eq(stop)", "array.stop.eq(begin)"),
        ("range(config.list_depth + 16)", "range(config.list_depth)"),
        ("with m.Elif(self.ended | stop):", "with m.Elif(sequencer.ended | stop):"),
        ("with m.Elif(self.ended | stop):", "with m.Elif(self.ended):"),
    ],
)
def test_cluster_with_a_defect(refutes: Any, old: str, new: str) -> None:
    module = mutant("ditto.hdl.cluster", old, new)
    refutes(lambda: ClusterProof(control_of(module)), 20)
