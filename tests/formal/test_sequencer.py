# amaranth: UnusedElaboratable=no
"""Sequencer: every row is listed once, with its own entries, and the walk ends.

Of a spatial run, rows carry along a line and not into the next, and the first ones are virtual.
"""

from typing import Any

import pytest
from amaranth.hdl import Module, Mux, Signal

from ditto.hdl.config import Config
from ditto.hdl.sequencer import Sequencer
from ditto.sim.formal import Proof, mutant

CONFIG = Config(
    clusters=1,
    lanes=2,
    columns=1,
    channels=1,
    item_depth=8,
    positions=8,
    list_depth=4,
    weight_rows=8,
    accumulator_rows=8,
    layers=2,
)
LATENCY = 7
"""Cycles from a step to its row."""


class SequencerProof(Proof):
    """Entries of one or two taps, positions, lines and tiles; lanes at any speed.

    They run in any mode, spatial ones with up to two rows before a line and up to one position
    behind it. The geometry is what the engine derives from the entry. Places hold any counts of up
    to two.
    """

    def specify(self, m: Module) -> None:
        dut = self.dut
        config = dut.config
        work = dut.work
        # No reset of its own: whoever resets it stops it.
        self.assume(~self.reset | dut.stop)
        taps, width, height, tiles = (
            self.constant(range(3), name) for name in ("taps", "width", "height", "tiles")
        )
        for value in (taps, width, height, tiles):
            self.assume((value >= 1) & (value <= 2))
        spatial = self.constant(1, "spatial")
        lead, margin = self.constant(range(3), "lead"), self.constant(1, "margin")
        self.assume((lead <= 2) & (spatial | ((lead == 0) & (margin == 0))))
        entry, geometry = dut.entry, dut.geometry
        same = {
            "in_height": height,
            "in_width": 2,
            "channels": 1,
            "out_height": height,
            "out_width": width,
            "kernel_height": 1,
            "kernel_width": taps,
            "stride_y": 1,
            "stride_x": 1,
            "dilation_y": 1,
            "dilation_x": 1,
            "pad_top": 0,
            "pad_left": 0,
            "tiles": tiles,
            "weight_base": 0,
            "accumulator_base": 0,
            "split": 1,
            "skew": 0,
        }
        for name, value in same.items():
            self.assume(entry[name] == value)
        self.assume(geometry.room == 1)
        self.assume(geometry.tiles == tiles - 2)
        self.assume(geometry.lines == height - 2)
        self.assume(geometry.kernel_y == -1)
        self.assume(geometry.kernel_x == taps - 2)
        self.assume(geometry.slot_last == config.digits - 1)
        self.assume((geometry.split_x == 1) & (geometry.skew_x == 0))
        self.assume(geometry.skew_back_x == -1)
        self.assume((geometry.pitch == 2 + margin) & (geometry.before_x == lead))
        self.assume((geometry.carries == spatial) & (geometry.leads == (lead != 0)))
        self.assume(geometry.end_back == 1 - lead)
        place = dut.places.place
        self.assume((place.low <= 2) & (place.high <= 2))
        self.assume(place.address + config.digits <= config.item_depth)

        # One walk after each stop; the entry has been there for some cycles.
        age = Signal(range(4))
        started = Signal()
        m.d.sync += age.eq(Mux(dut.stop, 0, Mux(age == 3, 3, age + 1)))
        with m.If(dut.stop):
            m.d.sync += started.eq(0)
        with m.Elif(dut.start):
            m.d.sync += started.eq(1)
        self.assume(~dut.start | ((age == 3) & ~started & ~dut.stop))

        # Rows, and those that the lanes have not finished.
        rows, waiting = Signal(5), Signal(4)
        along = Signal(range(4))  # rows of the line so far
        length = Signal(range(5))
        m.d.comb += length.eq(lead + width)
        self.assume(~dut.free_row | (waiting != 0))
        m.d.sync += [
            rows.eq(rows + work.push_row),
            waiting.eq(waiting + work.push_row - dut.free_row),
        ]
        pushes = work.push_low | work.push_high | work.push_row
        self.require(~pushes | started)
        self.require(waiting + work.push_row <= config.rows_ahead(2))
        self.require(~work.push_row | (rows < tiles * height * length))
        self.require(~(started & dut.ended) | (rows == tiles * height * length))
        self.require(~dut.overrun)
        was_over = Signal()
        m.d.sync += was_over.eq(started & dut.ended & ~dut.stop)
        self.require(~was_over | dut.ended)
        with m.If(work.push_row):
            self.require(work.row.carries == (spatial & (along != 0)))
            self.require(work.row.virtual == (along < lead))
            m.d.sync += along.eq(Mux(along + 1 == length, 0, along + 1))

        # A row's numbers are those of its entries, which lie one after the other.
        for kind, push, slot, first_name in (
            ("low", work.push_low, work.low_slot, "low_first"),
            ("high", work.push_high, work.high_slot, "high_first"),
        ):
            listed = getattr(work, kind)
            at = Signal.like(slot, name=f"{kind}_at")
            first = Signal.like(slot, name=f"{kind}_first")
            total = Signal(4, name=f"{kind}_total")
            number = Signal(range(4), name=f"{kind}_number")
            self.require(~push | ((slot == at) & (listed.count != 0)))
            self.require(~push | (listed.single == (listed.count == 1)))
            self.require(~push | (number + 1 <= 2) | work.push_row)
            row = work.row
            wanted = row.low[0] + row.low[1] if kind == "low" else row.high
            with m.If(work.push_row):
                self.require(wanted == total)
                self.require(row[first_name] == first)
                m.d.sync += first.eq(at)
            m.d.sync += [
                at.eq(at + push),
                total.eq(Mux(work.push_row, 0, total) + Mux(push, listed.count, 0)),
                number.eq(Mux(work.push_row, 0, number) + push),
            ]
            with m.If(dut.stop):
                m.d.sync += [at.eq(0), first.eq(0), total.eq(0), number.eq(0)]
        with m.If(work.push_row):
            second = work.row.low[1] + work.row.high
            # The second lane helps until both have as many.
            self.require((work.row.low[1] == 0) | (work.row.low[0] >= second))
            self.require((work.row.low[0] <= second + 1) | (work.row.low[0] <= 1))
        with m.If(dut.stop):
            m.d.sync += [rows.eq(0), waiting.eq(0), along.eq(0)]

        # It is never idle: with nothing of its own in the lanes, a row comes or the walk ends.
        quiet = Signal(5)
        m.d.sync += quiet.eq(Mux(started & ~dut.ended & (waiting == 0) & ~dut.stop, quiet + 1, 0))
        self.require(quiet <= LATENCY + 3)
        self.cover(started & dut.ended & (rows == 4))
        self.cover(work.push_row & work.row.carries & ~work.row.virtual & (rows > length))
        self.cover(dut.stop & work.push_row)
        self.cover(waiting == config.rows_ahead(2))


def test_sequencer(holds: Any) -> None:
    holds(lambda: SequencerProof(Sequencer(CONFIG)), 18, "bmc", reach=24)


@pytest.mark.parametrize(
    "old, new",
    [
        (
            "m.d.sync += room.eq(room - (step & begins) + self.free_row)",
            "m.d.sync += room.eq(room)",
        ),
        ("low_end.eq(low_slot + push_low)", "low_end.eq(low_slot + 1)"),
        ("fresh.eq(present.last)", "fresh.eq(0)"),
        ("carries.eq(0)", "carries.eq(geometry.carries)"),
        ("virtual.eq(end_x < 0)", "virtual.eq(0)"),
        ("virtual.eq(geometry.leads)", "virtual.eq(virtual)"),
    ],
)
def test_sequencer_with_a_defect(refutes: Any, old: str, new: str) -> None:
    module = mutant("ditto.hdl.sequencer", old, new)
    refutes(lambda: SequencerProof(module.Sequencer(CONFIG)), 18)
