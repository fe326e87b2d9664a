"""The array: every lane's digit times its weight in every column, summed over the lanes.

::

    cycle 0     lanes read work items from the difference buffer
    cycle 1     weight banks are read at the items' weight rows
    cycle 2     products of digits and weights
    cycle 3     shifted, and summed over the lanes; the row's old accumulators are read
    cycle 4     added to the row's accumulators
    cycle 5     a finished row's accumulators are written back

A row enters in each cycle in which it has work; rows follow each other without a gap.
"""

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ditto.hdl.config import Config
from ditto.hdl.difference_buffer import item_of
from ditto.hdl.lanes import issue_of

__all__ = ["Array", "Column"]


def _sum(values: list[Value]) -> Value:
    """Add in a balanced tree."""
    while len(values) > 1:
        pairs = [a + b for a, b in zip(values[::2], values[1::2], strict=False)]
        values = pairs + (values[-1:] if len(values) % 2 else [])
    return values[0]


class Column(wiring.Component):
    """Multiply the lanes' digits with one column's weights, and accumulate.

    Takes digits in any cycle. Products are registered, then their sum, then the accumulator: ``o``
    stands for the digits of three cycles ago.

    Parameters
    ----------
    config
        The device.

    Members
    -------
    digits : In(signed(digit_bits)) array
        Digit of each lane, zero if it has none.
    shifts : In(unsigned(shift_bits)) array
        Shift of each lane's digit of the cycle before, in digits.
    weights : In(signed(weight_bits)) array
        Weight of each lane.
    multiply : In(1)
        Take ``digits``.
    add : In(1)
        Sum the products, the cycle after ``multiply``.
    accumulate : In(1)
        Take the sum, the cycle after ``add``.
    first : In(1)
        Add the sum to ``start``, and not to ``o``.
    start : In(signed(accumulator_bits))
        What the accumulator was before the row.
    o : Out(signed(accumulator_bits))
        The accumulator.
    """

    digits: list[Signal]
    shifts: list[Signal]
    weights: list[Signal]
    multiply: Signal
    add: Signal
    accumulate: Signal
    first: Signal
    start: Signal
    o: Signal

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "digits": In(signed(config.digit_bits)).array(config.lanes),
                "shifts": In(config.shift_bits).array(config.lanes),
                "weights": In(signed(config.weight_bits)).array(config.lanes),
                "multiply": In(1),
                "add": In(1),
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
        terms: list[Value] = []
        for lane in range(config.lanes):
            product = Signal(
                signed(config.digit_bits + config.weight_bits),
                name=f"product_{lane}",
                reset_less=True,
            )
            with m.If(self.multiply):
                m.d.sync += product.eq(self.digits[lane] * self.weights[lane])
            term: Value = product
            for digits in range(1, config.digits):
                shifted = product << digits * config.digit_bits
                term = Mux(self.shifts[lane] == digits, shifted, term)
            terms.append(term)
        total = Signal(signed(config.accumulator_bits), reset_less=True)
        accumulator = Signal(signed(config.accumulator_bits), reset_less=True)
        with m.If(self.add):
            m.d.sync += total.eq(_sum(terms))
        with m.If(self.accumulate):
            m.d.sync += accumulator.eq(Mux(self.first, self.start, accumulator) + total)
        m.d.comb += self.o.eq(accumulator)
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
        Read the weight banks.
    weight_address : Out array
        Row of each weight bank.
    weights : In(ArrayLayout) array
        The words that were read last.
    begin : In(1)
        Use the addresses that follow from now on.
    accumulator_base, bias_base : In
        First word of the run's accumulators, and of its biases.
    dense : In(1)
        Rows start from the bias of their tile, and not from their last accumulators.
    read_en, read_address, read_data
        Read port of the accumulator buffer.
    write_en, write_address, write_data
        Write port of the accumulator buffer.
    done : Out(1)
        The last accumulators of the run are being written in this cycle.
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
    bias_base: Signal
    dense: Signal
    read_en: Signal
    read_address: Signal
    read_data: data.View
    write_en: Signal
    write_address: Signal
    write_data: data.View
    done: Signal
    stop: Signal

    def __init__(self, config: Config) -> None:
        self.config = config
        address = range(config.accumulator_rows)
        accumulators = data.ArrayLayout(signed(config.accumulator_bits), config.columns)
        weights = data.ArrayLayout(signed(config.weight_bits), config.columns)
        super().__init__(
            {
                "issue": In(issue_of(config)),
                "items": In(item_of(config)).array(config.lanes),
                "weight_en": Out(1),
                "weight_address": Out(range(config.weight_rows)).array(config.lanes),
                "weights": In(weights).array(config.lanes),
                "begin": In(1),
                "accumulator_base": In(address),
                "bias_base": In(address),
                "dense": In(1),
                "read_en": Out(1),
                "read_address": Out(address),
                "read_data": In(accumulators),
                "write_en": Out(1),
                "write_address": Out(address),
                "write_data": Out(accumulators),
                "done": Out(1),
                "stop": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the array."""
        m = Module()
        config = self.config
        columns = [Column(config) for _ in range(config.columns)]

        # The issue of each cycle goes down the pipeline: stages[n] is what was issued n cycles ago,
        # if valid[n].
        stages = [self.issue]
        valid = [self.issue.valid]
        for index in range(1, 6):
            stage = Signal(issue_of(config), name=f"issue_{index}", reset_less=True)
            is_valid = Signal(name=f"valid_{index}")
            m.d.sync += [stage.eq(stages[-1]), is_valid.eq(valid[-1] & ~self.stop)]
            stages.append(stage)
            valid.append(is_valid)

        m.d.comb += self.weight_en.eq(valid[1])
        for lane in range(config.lanes):
            m.d.comb += self.weight_address[lane].eq(stages[1].rows[lane] + self.items[lane].row)
            digit = Signal(signed(config.digit_bits), name=f"digit_{lane}", reset_less=True)
            shift_2 = Signal(config.shift_bits, name=f"shift_2_{lane}", reset_less=True)
            shift_3 = Signal(config.shift_bits, name=f"shift_3_{lane}", reset_less=True)
            busy = valid[1] & stages[1].busy[lane]
            m.d.sync += [
                digit.eq(Mux(busy, self.items[lane].digit, 0)),
                shift_2.eq(self.items[lane].shift),
                shift_3.eq(shift_2),
            ]
            for index, column in enumerate(columns):
                m.d.comb += [
                    column.digits[lane].eq(digit),
                    column.shifts[lane].eq(shift_3),
                    column.weights[lane].eq(self.weights[lane][index]),
                ]

        # Old accumulators are read when a row's first sum is about to be registered.
        address = Signal(range(config.accumulator_rows), reset_less=True)
        bias = Signal(range(config.accumulator_rows), reset_less=True)
        m.d.comb += [
            self.read_en.eq(valid[3] & stages[3].first),
            self.read_address.eq(Mux(self.dense, bias, address)),
        ]
        with m.If(valid[3] & stages[3].last):
            m.d.sync += address.eq(address + 1)
            with m.If(stages[3].last_of_tile):
                m.d.sync += bias.eq(bias + 1)
        with m.If(self.begin):
            m.d.sync += [address.eq(self.accumulator_base), bias.eq(self.bias_base)]

        for index, column in enumerate(columns):
            m.submodules[f"column_{index}"] = column
            m.d.comb += [
                column.multiply.eq(valid[2]),
                column.add.eq(valid[3]),
                column.accumulate.eq(valid[4]),
                column.first.eq(stages[4].first),
                column.start.eq(self.read_data[index]),
                self.write_data[index].eq(column.o),
            ]

        m.d.comb += [
            self.write_en.eq(valid[5] & stages[5].last),
            self.done.eq(self.write_en & stages[5].last_of_run),
        ]
        # The address follows the read of the row by two cycles.
        delayed = Signal.like(address, reset_less=True)
        m.d.sync += [delayed.eq(address), self.write_address.eq(delayed)]
        return m
