# amaranth: UnusedElaboratable=no
"""Lanes: every item of every list entry is read exactly once, in its row, in the time it takes.

A row begins with the accumulators of the row before if it carries, and ends without being written
if it is virtual.
"""

from typing import Any

import pytest
from amaranth.hdl import Module, Mux, Signal, signed

from ditto.hdl.config import Config
from ditto.hdl.lanes import Lanes
from ditto.hdl.sequencer import row_of
from ditto.sim.formal import Proof, mutant

CONFIG = Config(
    clusters=1,
    lanes=2,
    columns=1,
    channels=1,
    item_depth=16,
    positions=2,
    list_depth=4,
    weight_rows=2,
    accumulator_rows=2,
)
ROWS, ENTRIES, ITEMS = 2, 2, 2
"""Rows that are not finished, entries of each kind in a row, items of an entry, at most."""


class LanesProof(Proof):
    """Lists and rows are filled as the sequencer does, at any speed, and cleared at any time.

    One item of one entry, any one, is followed. Its entry alone has the weight row ``tag``.
    """

    def specify(self, m: Module) -> None:
        dut = self.dut
        work, issue = dut.work, dut.issue
        clear = dut.clear
        self.assume(~self.reset | clear)

        # What the sequencer hands over.
        sums, numbers, firsts = {}, {}, {}
        for kind, push, slot in (
            ("low", work.push_low, work.low_slot),
            ("high", work.push_high, work.high_slot),
        ):
            entry = getattr(work, kind)
            at = Signal.like(slot, name=f"{kind}_at")
            total = Signal(4, name=f"{kind}_total")
            number = Signal(range(ENTRIES + 1), name=f"{kind}_number")
            first = Signal.like(slot, name=f"{kind}_first")
            sums[kind], numbers[kind], firsts[kind] = total, number, first
            self.assume((entry.count >= 1) & (entry.count <= ITEMS))
            self.assume(entry.single == (entry.count == 1))
            self.assume(slot == at)
            self.assume(~push | work.push_row | (number != ENTRIES))
            m.d.sync += [
                at.eq(at + push),
                total.eq(Mux(work.push_row, 0, total) + Mux(push, entry.count, 0)),
                number.eq(Mux(work.push_row, 0, number) + push),
            ]
            with m.If(work.push_row):
                m.d.sync += first.eq(at)
            with m.If(clear):
                m.d.sync += [at.eq(0), total.eq(0), number.eq(0), first.eq(0)]
            self.assume(~clear | ~push)
        low, high = work.low, work.high
        self.assume((low.address <= 16 - ITEMS) & (low.last == low.address + low.count - 1))
        self.assume(high.address >= ITEMS)
        row = work.row
        surplus = Signal(signed(6))
        helped = Signal(4)
        m.d.comb += [
            surplus.eq(sums["low"] - sums["high"]),
            helped.eq(Mux(surplus < 0, 0, surplus >> 1)),
        ]
        self.assume(row.low[1] == helped)
        self.assume(row.low[0] == (sums["low"] - helped)[:4])
        self.assume(row.high == sums["high"])
        self.assume(row.low_first == firsts["low"])
        self.assume(row.high_first == firsts["high"])
        self.assume(row.low_last == (work.low_slot - 1)[: len(row.low_last)])
        # Rows that are handed over and not finished; one more may be in the making, with entries.
        rows = Signal(range(ROWS + 1))
        m.d.sync += rows.eq(rows + work.push_row - dut.free_row)
        with m.If(clear):
            m.d.sync += rows.eq(0)
        self.assume(~clear | ~work.push_row)
        made = (numbers["low"] != 0) | (numbers["high"] != 0)
        self.assume((rows + made + work.push_row <= ROWS) | dut.free_row)
        self.assume(~work.push_row | (rows != ROWS))
        pushes = work.push_low | work.push_high
        self.assume(~pushes | (rows + work.push_row < ROWS))
        self.require(~dut.free_row | (rows != 0))

        # The item.
        tag, is_high = self.constant(1, "tag"), self.constant(1, "is_high")
        offset = self.constant(range(ITEMS), "offset")
        mark = self.free(1, "mark")
        follows, hit, handed = Signal(), Signal(), Signal()
        ahead = Signal(range(ROWS + 1))  # rows before the entry's
        address, duration = Signal(4), Signal(4)
        marks = mark & ~follows & Mux(is_high, work.push_high, work.push_low)
        entry_count = Mux(is_high, high.count, low.count)
        self.assume(~marks | (offset < entry_count))
        self.assume(~work.push_low | ((low.row == tag) == (marks & ~is_high)))
        self.assume(~work.push_high | ((high.row == tag) == (marks & is_high)))
        reads = [
            follows
            & port.en
            & (issue.rows[lane] == tag)
            & issue.valid
            & (ahead == 0)
            & (port.address == address)
            for lane, port in enumerate(dut.items)
        ]
        for lane, port in enumerate(dut.items):
            # An item of an entry that is followed is read in its row, and nothing beside it is.
            is_tagged = port.en & (issue.rows[lane] == tag)
            away = Mux(is_high, address - port.address + offset, port.address - address + offset)
            self.require(~is_tagged | (follows & (ahead == 0) & handed))
            self.require(~is_tagged | (away[:4] < ITEMS))
            self.require(~port.en | issue.valid)
            self.require(issue.busy[lane] == port.en)
        self.require(~(reads[0] & reads[1]) & ~(hit & (reads[0] | reads[1])))
        with m.If(marks):
            m.d.sync += [
                follows.eq(1),
                hit.eq(0),
                handed.eq(0),
                ahead.eq(rows + work.push_row - dut.free_row),
                address.eq(Mux(is_high, high.address - offset, low.address + offset)),
            ]
        with m.If(follows):
            m.d.sync += hit.eq(hit | reads[0] | reads[1])
            with m.If(work.push_row & ~handed):
                first, second = row.low[0], row.low[1] + row.high
                m.d.sync += [
                    handed.eq(1),
                    duration.eq(Mux(first > second, first, second)),
                ]
            with m.If(dut.free_row):
                m.d.sync += ahead.eq(ahead - 1)
                with m.If(ahead == 0):
                    self.require(hit | reads[0] | reads[1])
                    m.d.sync += follows.eq(0)

        # A row's first cycle and its last; it takes as long as its busiest lane.
        marks_of = [Signal(row_of(CONFIG), name=f"marks_{age}") for age in range(ROWS)]
        with m.If(work.push_row):
            for age, kept in enumerate(marks_of):
                with m.If(rows - dut.free_row == age):
                    m.d.sync += kept.eq(row)
        with m.If(dut.free_row):
            with m.If(~work.push_row | (rows != 1)):
                m.d.sync += marks_of[0].eq(marks_of[1])
        present = marks_of[0]
        inside, spent = Signal(), Signal(4)
        with m.If(issue.valid):
            self.require(issue.first == (~inside & ~present.carries))
            self.require(issue.last == (dut.free_row & ~present.virtual))
            m.d.sync += [inside.eq(~dut.free_row), spent.eq(Mux(dut.free_row, 0, spent + 1))]
        self.require(~dut.free_row | issue.valid)
        ends = follows & (ahead == 0) & dut.free_row
        self.require(~ends | (spent + 1 == duration))
        ran = Signal()
        m.d.sync += ran.eq((ran | dut.run) & ~clear)
        self.require(~issue.valid | ran)
        waiting = Signal(2)  # cycles in which a row could have begun
        idle = (rows != 0) & dut.run & ~issue.valid
        m.d.sync += waiting.eq(Mux(idle, waiting + 1, 0))
        self.require(waiting < 2)
        with m.If(clear):
            m.d.sync += [follows.eq(0), inside.eq(0), spent.eq(0), waiting.eq(0)]

        self.cover(ends & is_high & (duration == 3))
        self.cover(ends & ~is_high & (duration == 2))
        self.cover(clear & follows & issue.valid)
        self.cover(dut.free_row & present.carries & ~present.virtual & (rows == ROWS))


def test_lanes(holds: Any) -> None:
    holds(lambda: LanesProof(Lanes(CONFIG)), 9, "bmc", reach=12)


@pytest.mark.long
def test_lanes_deeper(holds: Any) -> None:
    holds(lambda: LanesProof(Lanes(CONFIG)), 11, "bmc", reach=12)


@pytest.mark.parametrize(
    "old, new",
    [
        ("last_of_entry.eq(count == 2)", "last_of_entry.eq(count == 3)"),
        ("down = at_high | backward", "down = at_high"),
        ("self.free_row.eq(valid & finishing)", "self.free_row.eq(finishing)"),
        ("self.issue.last.eq(finishing & ~virtual)", "self.issue.last.eq(finishing)"),
        ("first.eq(~rows.head.carries)", "first.eq(1)"),
        ("virtual.eq(rows.head.virtual)", "virtual.eq(rows.tail.virtual)"),
    ],
)
def test_lanes_with_a_defect(refutes: Any, old: str, new: str) -> None:
    module = mutant("ditto.hdl.lanes", old, new)
    refutes(lambda: LanesProof(module.Lanes(CONFIG)), 10)
