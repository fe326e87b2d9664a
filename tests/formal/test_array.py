# amaranth: UnusedElaboratable=no
"""Array: what is written of a row, and where, and with what it began.

The work items of rows that carry add up until one is written; a row that is not written leaves the
accumulator buffer as it is.
"""

from typing import Any

import pytest
from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed

from ditto.hdl.array import Array
from ditto.hdl.config import Config
from ditto.sim.formal import Proof, mutant

CONFIG = Config(
    clusters=1,
    lanes=2,
    columns=1,
    accumulator_bits=18,
    channels=2,
    item_depth=8,
    positions=2,
    weight_rows=4,
    accumulator_rows=8,
)
READ, SUMMED, WRITTEN = 4, 6, 7
"""Cycles from the issue to the row's read, to its sum, and to its write."""


class ArrayProof(Proof):
    """Items of any digits, weights of one, and rows that begin, carry and end as they like.

    The lanes issue nothing before a run has begun, and its first row does not carry.
    """

    def specify(self, m: Module) -> None:
        dut, config = self.dut, self.dut.config
        issue = dut.issue
        self.assume(~self.reset | dut.stop)
        base = self.constant(range(config.accumulator_rows), "base")
        self.assume(dut.accumulator_base == base)
        for word in dut.weights:
            self.assume(word[0] == 1)
        for number, item in enumerate(dut.items):
            is_last = number == config.lanes - 1
            self.assume(item.shift < (config.shifts if is_last else 1))

        valid: list[Value] = [issue.valid]
        first: list[Value] = [issue.first]
        last: list[Value] = [issue.last]
        for age in range(1, WRITTEN + 1):
            for name, marks in (("valid", valid), ("first", first), ("last", last)):
                marks.append(Signal(name=f"{name}_{age}"))
            m.d.sync += [
                valid[age].eq(valid[age - 1] & ~dut.stop),
                first[age].eq(first[age - 1]),
                last[age].eq(last[age - 1]),
            ]
        begun, opened = Signal(), Signal()
        self.assume(~dut.begin | ~(begun | dut.stop | Cat(valid).any()))
        self.assume(~issue.valid | (begun & (issue.first | opened)))
        with m.If(dut.begin):
            m.d.sync += begun.eq(1)
        with m.If(issue.valid):
            m.d.sync += opened.eq(1)
        with m.If(dut.stop):
            m.d.sync += [begun.eq(0), opened.eq(0)]

        # What the items of a cycle are worth, until it is summed.
        busy = Signal(config.lanes)
        m.d.sync += busy.eq(issue.busy)
        worth = [Signal(signed(config.accumulator_bits), name=f"worth_{age}") for age in range(7)]
        m.d.comb += worth[1].eq(
            sum(
                Mux(busy[lane], item.digit << item.shift * config.digit_bits, 0)
                for lane, item in enumerate(dut.items)
            )
        )
        m.d.sync += [worth[age].eq(worth[age - 1]) for age in range(2, SUMMED + 1)]
        total = Signal(signed(config.accumulator_bits))
        with m.If(valid[SUMMED]):
            m.d.sync += total.eq(
                Mux(first[SUMMED], dut.read_data[0], total) + worth[SUMMED],
            )

        # A row's word is read as it was before the run, and written once.
        ended, written = Signal(range(config.accumulator_rows)), Signal.like(dut.write_address)
        reads = valid[READ] & first[READ]
        writes = valid[WRITTEN] & last[WRITTEN]
        self.require(dut.read_en == reads)
        self.require(~reads | (dut.read_address == (base + ended)[: len(ended)]))
        self.require((dut.write_en == writes) & (dut.written == writes))
        with m.If(writes):
            self.require(dut.write_address == (base + written)[: len(written)])
            self.require(dut.write_data[0] == total)
        m.d.sync += [
            ended.eq(ended + (valid[READ] & last[READ])),
            written.eq(written + writes),
        ]
        with m.If(dut.begin):
            m.d.sync += [ended.eq(0), written.eq(0)]
        self.total, self.ended, self.written = total, ended, written
        self.begun, self.opened, self.base = begun, opened, base
        self.valid, self.first, self.last = valid, first, last
        self.cover(writes & ~first[WRITTEN] & valid[SUMMED] & ~first[SUMMED] & (written == 2))
        self.cover(valid[WRITTEN] & ~last[WRITTEN] & reads)

    def support(self, m: Module) -> None:
        bits = self.dut.config.accumulator_bits
        moving = Cat(self.valid[1:])
        self.require(self.begun | ~(moving.any() | self.opened))
        # The accumulator is this run's from its first sum on.
        summed = Signal()
        with m.If(self.valid[SUMMED]):
            m.d.sync += summed.eq(1)
        with m.If(self.dut.stop):
            m.d.sync += summed.eq(0)
        before = Cat(self.valid[1 : SUMMED + 1])
        self.require(self.opened == (summed | before.any()))
        first = self.first[SUMMED]
        self.require(summed | ~self.valid[SUMMED] | first)
        accumulator = self.internal(signed(bits), "dut.column_0.accumulator")
        self.require(~summed | (accumulator == self.total))
        address = self.internal(range(self.dut.config.accumulator_rows), "dut.address")
        at = (self.base + self.ended)[: len(address)]
        self.require(~self.begun | (address == at))
        late = sum(self.valid[age] & self.last[age] for age in range(READ + 1, WRITTEN + 1))
        self.require(~self.begun | (self.ended == (self.written + late)[: len(self.ended)]))


def test_array(holds: Any) -> None:
    holds(lambda: ArrayProof(Array(CONFIG)), 10, reach=16)


@pytest.mark.parametrize(
    "old, new",
    [
        ('with m.If(valid[_FETCH] & marks[_FETCH]["last"]):', "with m.If(self.read_en):"),
        (
            'self.written.eq(valid[_ACCUMULATORS] & marks[_ACCUMULATORS]["last"])',
            "self.written.eq(valid[_ACCUMULATORS])",
        ),
        ("rows.select.eq(~self.first)", "rows.select.eq(0)"),
    ],
)
def test_array_with_a_defect(refutes: Any, old: str, new: str) -> None:
    module = mutant("ditto.hdl.array", old, new)
    refutes(lambda: ArrayProof(module.Array(CONFIG)), 14)
