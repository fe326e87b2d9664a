"""The array of a cluster: the lanes' digits times their weights in every column, summed.

::

    cycle 0     lanes read work items from the difference buffer
    cycle 1     weight rows of the items
    cycle 2     the weight bank is read
    cycle 3     weights to registers
    cycle 4     products of digits and weights; the row's old accumulators are read
    cycle 5     shifted, and summed over the lanes
    cycle 6     added to the row's accumulators
    cycle 7     a finished row's accumulators are written back

A row enters in each cycle in which it has work; rows follow each other without a gap.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ditto.hdl.adder import SelectAdder
from ditto.hdl.config import Config
from ditto.hdl.difference_buffer import item_of
from ditto.hdl.lanes import issue_of
from ditto.hdl.multiplier import Products, product_bits, word_of
from ditto.hdl.register import register_of

__all__ = ["Array", "Column"]

_WEIGHTS, _FETCH, _SUMS, _ACCUMULATORS = 3, 4, 6, 7
"""Cycles from the issue until these are there."""


class Column(wiring.Component):
    """Shift the products of one column, sum them over the lanes, and accumulate.

    Only the last lane has shifted digits. Sums are registered, then the accumulator: ``o`` stands
    for the products of two cycles ago.

    Parameters
    ----------
    config
        The device.

    Members
    -------
    values : In(signed) array
        Product of each lane, less its carry.
    carries : In(lanes)
        What is to be added to each value.
    shift : In(unsigned(shift_bits))
        Shift of the last lane's digit, in digits.
    accumulate : In(1)
        Take the sum, the cycle after its products.
    first : In(1)
        Add the sum to ``start``, and not to ``o``.
    start : In(signed(accumulator_bits))
        What the accumulator was before the row.
    o : Out(signed(accumulator_bits))
        The accumulator.
    """

    values: list[Signal]
    carries: Signal
    shift: Signal
    accumulate: Signal
    first: Signal
    start: Signal
    o: Signal

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "values": In(signed(product_bits(config))).array(config.lanes),
                "carries": In(config.lanes),
                "shift": In(config.shift_bits),
                "accumulate": In(1),
                "first": In(1),
                "start": In(signed(config.accumulator_bits)),
                "o": Out(signed(config.accumulator_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the column."""
        m = Module()
        config = self.config
        value, carry = self.values[-1], self.carries[-1]
        widest = product_bits(config) + (config.shifts - 1) * config.digit_bits
        # A carry below a shift moves into the bits that the shift leaves free, and above them.
        shifted = Signal(signed(widest))
        for shift in range(1, config.shifts):
            with m.If(self.shift == shift):
                filled = Cat(carry.replicate(shift * config.digit_bits), value)
                m.d.comb += shifted.eq(filled.as_signed())

        m.submodules.sum = lanes = SelectAdder(min(widest + 1, config.accumulator_bits))
        total = Signal.like(lanes.o, reset_less=True)
        late_carry = Signal(reset_less=True)
        if config.lanes > 1:
            m.d.comb += [lanes.a.eq(self.values[0]), lanes.carry.eq(self.carries[0])]
        m.d.comb += [
            lanes.b.eq(shifted),
            lanes.c.eq(value),
            lanes.select.eq(self.shift.any()),
        ]
        m.d.sync += [total.eq(lanes.o), late_carry.eq(carry)]

        m.submodules.rows = rows = SelectAdder(config.accumulator_bits)
        accumulator = Signal.like(rows.o, reset_less=True)
        m.d.comb += [
            rows.a.eq(total),
            rows.b.eq(accumulator),
            rows.c.eq(self.start),
            rows.select.eq(~self.first),
            rows.carry.eq(late_carry),
            self.o.eq(accumulator),
        ]
        with m.If(self.accumulate):
            m.d.sync += accumulator.eq(rows.o)
        return m


class Array(wiring.Component):
    """Lanes times columns, from work items to accumulators.

    Parameters
    ----------
    config
        The device.

    Members
    -------
    issue : In(StructLayout)
        What the lanes read in this cycle, see :func:`ditto.hdl.lanes.issue_of`.
    items : In(StructLayout) array
        The item that each lane read in the cycle before.
    weight_en : Out(1)
        Read the weight bank.
    weight_address : Out array
        Row of the weight bank for each lane.
    weights : In(ArrayLayout) array
        The words that were read last.
    begin : In(1)
        Use the addresses that follow from now on.
    accumulator_base : In
        First word of the run's accumulators.
    read_en, read_address, read_data
        Read port of the accumulator buffer; data comes two cycles after ``read_en`` and stays for
        one.
    write_en, write_address, write_data
        Write port of the accumulator buffer.
    written : Out(1)
        A row's accumulators are being written in this cycle.
    stop : In(1)
        Drop everything; nothing is written from the next cycle on.
    """

    issue: data.View
    items: list[data.View]
    weight_en: Signal
    weight_address: list[Signal]
    weights: list[data.View]
    begin: Signal
    accumulator_base: Signal
    read_en: Signal
    read_address: Signal
    read_data: data.View
    write_en: Signal
    write_address: Signal
    write_data: data.View
    written: Signal
    stop: Signal

    def __init__(self, config: Config) -> None:
        self.config = config
        address = range(config.accumulator_rows)
        accumulators = data.ArrayLayout(signed(config.accumulator_bits), config.columns)
        super().__init__(
            {
                "issue": In(issue_of(config)),
                "items": In(item_of(config)).array(config.lanes),
                "weight_en": Out(1),
                "weight_address": Out(range(config.weight_rows)).array(config.lanes),
                "weights": In(word_of(config)).array(config.lanes),
                "begin": In(1),
                "accumulator_base": In(address),
                "read_en": Out(1),
                "read_address": Out(address),
                "read_data": In(accumulators),
                "write_en": Out(1),
                "write_address": Out(address),
                "write_data": Out(accumulators),
                "written": Out(1),
                "stop": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the array."""
        m = Module()
        config = self.config
        columns = [Column(config) for _ in range(config.columns)]

        # What was issued n cycles ago is in marks[n], if valid[n].
        marks = [{name: self.issue[name] for name in ("first", "last")}]
        valid = [self.issue.valid]
        for age in range(1, _ACCUMULATORS + 1):
            is_valid = Signal(name=f"valid_{age}", reset_less=True)
            m.d.sync += is_valid.eq(valid[-1] & ~self.stop)
            mark = {name: Signal(name=f"{name}_{age}", reset_less=True) for name in marks[-1]}
            m.d.sync += [mark[name].eq(marks[-1][name]) for name in mark]
            marks.append(mark)
            valid.append(is_valid)

        m.d.comb += self.weight_en.eq(valid[2])
        for lane in range(config.lanes):
            m.submodules[f"products_{lane}"] = products = Products(config)
            row = Signal(range(config.weight_rows), name=f"row_{lane}", reset_less=True)
            busy = Signal(name=f"busy_{lane}", reset_less=True)
            item = self.items[lane]
            weight_address = register_of(m, self.weight_address[lane])
            m.d.sync += [
                row.eq(self.issue.rows[lane]),
                busy.eq(self.issue.busy[lane] & self.issue.valid),
                weight_address.eq(row + item.channel),
            ]
            digit: Value = Mux(busy, item.digit, 0)
            shift: Value = item.shift
            for age in range(2, _WEIGHTS + 2):
                next_digit = Signal.like(item.digit, name=f"digit_{lane}_{age}", reset_less=True)
                next_shift = Signal.like(item.shift, name=f"shift_{lane}_{age}", reset_less=True)
                m.d.sync += [next_digit.eq(digit), next_shift.eq(shift)]
                digit, shift = next_digit, next_shift
            shift_5 = Signal.like(item.shift, name=f"shift_{lane}_5", reset_less=True)
            word = Signal(word_of(config), name=f"weights_{lane}", reset_less=True)
            m.d.sync += [shift_5.eq(shift), word.eq(self.weights[lane])]
            m.d.comb += [products.digit.eq(digit), products.weights.eq(word)]
            for index, column in enumerate(columns):
                m.d.comb += [
                    column.values[lane].eq(products.values[index]),
                    column.carries[lane].eq(products.carries[index]),
                ]
                if lane == config.lanes - 1:
                    m.d.comb += column.shift.eq(shift_5)

        address = Signal(range(config.accumulator_rows), reset_less=True)
        m.d.comb += [
            self.read_en.eq(valid[_FETCH] & marks[_FETCH]["first"]),
            self.read_address.eq(address),
        ]
        with m.If(valid[_FETCH] & marks[_FETCH]["last"]):
            m.d.sync += address.eq(address + 1)
        with m.If(self.begin):
            m.d.sync += address.eq(self.accumulator_base)

        for index, column in enumerate(columns):
            m.submodules[f"column_{index}"] = column
            m.d.comb += [
                column.accumulate.eq(valid[_SUMS]),
                column.first.eq(marks[_SUMS]["first"]),
                column.start.eq(self.read_data[index]),
                self.write_data[index].eq(column.o),
            ]

        m.d.comb += [
            self.written.eq(valid[_ACCUMULATORS] & marks[_ACCUMULATORS]["last"]),
            self.write_en.eq(self.written),
        ]
        for _ in range(_FETCH, _ACCUMULATORS):
            delayed = Signal.like(address, reset_less=True)
            m.d.sync += delayed.eq(address)
            address = delayed
        m.d.comb += self.write_address.eq(address)
        return m
