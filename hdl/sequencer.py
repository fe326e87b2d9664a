"""Layer sequencer: walks the kernel taps of every output row, and lists what the lanes have to do.

::

    loop over column tiles, the cluster's output positions, kernel rows and columns
      │ 1, 2: position of the tap
      │ 3, 4: its place in the difference buffer
      │ 5: an entry in the list of low items, and one in that of high items
      │ 6: with the last tap, the row: how many items each lane takes
      ▼
    lists and rows ──► lanes

A row of the array is one output position (pixel, token) in one column tile. The sequencer spends a
cycle on each tap of a row, inside the image or not, and on each output row of the image without a
position of the cluster, while the lanes work on rows before it. It holds at most ``list_depth``
taps of rows that the lanes have not finished.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ditto.hdl.config import Config
from ditto.hdl.difference_buffer import PlaceRead
from ditto.hdl.protocol import MOST_LEAD, LayerEntry
from ditto.hdl.register import register_of

__all__ = [
    "Sequencer",
    "WorkWrite",
    "entry_of",
    "geometry_of",
    "row_of",
    "slot_range",
    "work_range",
]


def slot_range(config: Config) -> range:
    """Return the range of indices into a list of entries, which wrap around."""
    return range(1 << max((config.list_depth - 1).bit_length(), 1))


def work_range(config: Config) -> range:
    """Return the range of the number of items of a row."""
    return range(config.list_depth * config.channels * config.digits + 1)


def entry_of(config: Config) -> data.StructLayout:
    """Lay out a list entry: items of one tap, the first and the last, and the tap's weight row.

    ``single`` says that there is but one. High items are never taken from the last one on: their
    ``last`` is 0.
    """
    return data.StructLayout(
        {
            "address": range(config.item_depth),
            "last": range(config.item_depth),
            "count": config.count_bits,
            "single": 1,
            "row": range(config.weight_rows),
        }
    )


def row_of(config: Config) -> data.StructLayout:
    """Lay out a row: how many items of each kind each lane takes, and where its entries are.

    The first lane takes its low items from the front of the row, the second from the back. High
    items are for the last lane. A row that ``carries`` goes on with the accumulators of the row
    before; those of a ``virtual`` row are not written.
    """
    return data.StructLayout(
        {
            "low": data.ArrayLayout(work_range(config), config.lanes),
            "high": work_range(config) if config.shifts > 1 else 0,
            "low_first": slot_range(config),
            "low_last": slot_range(config),
            "high_first": slot_range(config),
            "carries": 1,
            "virtual": 1,
        }
    )


def geometry_of(config: Config) -> data.StructLayout:
    """Lay out what follows from a layer-table entry and is the same for all clusters."""
    return data.StructLayout(
        {
            # Rows that fit the lists, less one.
            "room": range(-1, config.rows_ahead(1)),
            # Passes of each loop, less two: the last one is -1.
            "tiles": range(-1, config.largest["tiles"] - 1),
            "lines": range(-1, config.largest["out_height"] - 1),
            "kernel_y": signed(5),
            "kernel_x": signed(5),
            # Last item of a slot of the difference buffer, counted from its first.
            "slot_last": range(config.item_depth),
            # ``split``, ``skew`` and ``skew - split`` in columns of the input image.
            "split_x": 8,
            "skew_x": 8,
            "skew_back_x": signed(9),
            # Columns of a line of the input image, which begins so many before the first one.
            "pitch": range(config.largest["in_width"] + 16),
            "before_x": range(MOST_LEAD + 16),
            # Spatial runs: rows carry, and some are before a line's first position. In any run,
            # ``split`` less the columns of the output image that those take.
            "carries": 1,
            "leads": 1,
            "end_back": range(-15 * config.clusters, config.clusters + 1),
        }
    )


class WorkWrite(wiring.Signature):
    """What the sequencer hands to the lanes: entries for their lists, and rows.

    Members
    -------
    low, high : Out(StructLayout)
        The entries that go into the lists, see :func:`entry_of`.
    push_low, push_high : Out(1)
        The list takes its entry in this cycle.
    low_slot, high_slot : Out
        Where in the list.
    row : Out(StructLayout)
        A row whose entries have all been pushed, see :func:`row_of`.
    push_row : Out(1)
        ``row`` is valid in this cycle.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(
            {
                "low": Out(entry_of(config)),
                "high": Out(entry_of(config)),
                "push_low": Out(1),
                "push_high": Out(1),
                "low_slot": Out(slot_range(config)),
                "high_slot": Out(slot_range(config)),
                "row": Out(row_of(config)),
                "push_row": Out(1),
            }
        )


class Sequencer(wiring.Component):
    """Fill the lists of a cluster, row by row.

    Parameters
    ----------
    config
        The device.

    Members
    -------
    entry : In(LayerEntry)
        What to run; there since two cycles before ``start``, and stays as it is during the run.
    geometry : In(StructLayout)
        What follows from it, see :func:`geometry_of`.
    share : In
        The cluster's share of the output positions, less than ``entry.split``; there since two
        cycles before ``start``.
    start : In(1)
        Begin with the first tap in the next cycle.
    stop : In(1)
        Drop everything.
    places : Out(PlaceRead)
        Read port of the difference buffer.
    work : Out(WorkWrite)
        Entries and rows for the lanes.
    free_row : In(1)
        The lanes are done with a row.
    steady : Out(1)
        Nothing will change until a row is freed.
    ended : Out(1)
        Every row has been pushed.
    overrun : Out(1)
        The entry has more rows than an accumulator buffer: it makes no sense.
    """

    entry: data.View
    geometry: data.View
    share: Signal
    start: Signal
    stop: Signal
    places: wiring.PureInterface
    work: wiring.PureInterface
    free_row: Signal
    steady: Signal
    ended: Signal
    overrun: Signal

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "entry": In(LayerEntry),
                "geometry": In(geometry_of(config)),
                "share": In(range(config.clusters)),
                "start": In(1),
                "stop": In(1),
                "places": Out(PlaceRead(config)),
                "work": Out(WorkWrite(config)),
                "free_row": In(1),
                "steady": Out(1),
                "ended": Out(1),
                "overrun": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the sequencer."""
        m = Module()
        config = self.config
        entry, geometry = self.entry, self.geometry
        place = signed(max(config.positions.bit_length(), 8) + 2)
        largest = config.largest
        out_width = Signal(range(largest["out_width"] + 1))
        in_height = Signal(range(largest["in_height"] + 1))
        split = Signal(range(largest["split"] + 1))
        skew = Signal(range(largest["split"]))
        m.d.comb += [
            out_width.eq(entry.out_width),
            in_height.eq(entry.in_height),
            split.eq(entry.split),
            skew.eq(entry.skew),
        ]

        # Loops count down to -1, so that the sign says which pass is the last.
        walking = Signal(reset_less=True)
        tiles_left = Signal.like(geometry.tiles, reset_less=True)
        lines_left = Signal.like(geometry.lines, reset_less=True)
        kernel_y_left = Signal.like(geometry.kernel_y, reset_less=True)
        kernel_x_left = Signal.like(geometry.kernel_x, reset_less=True)
        last_x = kernel_x_left[-1]
        last_tap = last_x & kernel_y_left[-1]
        last_of_tile = lines_left[-1]
        begins = Signal(reset_less=True)  # at the first tap of a row

        # A row begins when its taps fit beside those of the rows that are not finished.
        room = Signal.like(geometry.room, reset_less=True)
        rows_left = Signal(signed(config.accumulator_rows.bit_length() + 1), reset_less=True)
        empty = Signal(reset_less=True)  # no position of the cluster in this output row
        step, skip, turn = Signal(), Signal(), Signal()
        m.d.comb += [
            step.eq(walking & ~empty & ~(begins & (room[-1] | rows_left[-1]))),
            skip.eq(walking & empty),
            self.overrun.eq(walking & ~empty & begins & rows_left[-1]),
        ]
        m.d.sync += room.eq(room - (step & begins) + self.free_row)

        # An origin is the image coordinate of the first tap of an output position; ``end_x`` is the
        # position after the present one, and ``next`` what begins the next output row.
        end_x = Signal(
            range(-15 * config.clusters, largest["out_width"] + 2 * config.clusters),
            reset_less=True,
        )
        # The row goes on with the accumulators of the one before; it is before the first position.
        carries, virtual = Signal(reset_less=True), Signal(reset_less=True)
        next_first = Signal(range(config.clusters), reset_less=True)
        next_origin = Signal(place, reset_less=True)
        origin_y, origin_x = Signal(place, reset_less=True), Signal(place, reset_less=True)
        y, x = Signal(place, reset_less=True), Signal(place, reset_less=True)
        following_x = Signal(place)
        following_y = Signal(place)
        restarts = Signal()
        first, origin = Signal(range(config.clusters)), Signal(place)
        wraps = Signal()
        share_start, share_origin = Signal(place, reset_less=True), Signal(place, reset_less=True)
        m.d.sync += [
            share_start.eq(self.share * entry.stride_x),
            share_origin.eq(share_start - geometry.before_x),
        ]
        m.d.comb += [
            turn.eq(skip | (step & last_tap & (end_x >= out_width))),
            following_x.eq(origin_x + geometry.split_x),
            restarts.eq(last_of_tile | ~walking),
            first.eq(Mux(restarts, self.share, next_first)),
            origin.eq(Mux(restarts, share_origin, next_origin)),
            following_y.eq(Mux(restarts, -entry.pad_top, origin_y + entry.stride_y)),
            wraps.eq(first + skew >= split),
        ]

        row_base = Signal(range(config.weight_rows), reset_less=True)
        next_base = Signal(range(config.weight_rows), reset_less=True)
        weight_row = Signal(range(config.weight_rows), reset_less=True)
        following_row = Signal(range(config.weight_rows))
        m.d.comb += following_row.eq(weight_row + entry.channels)

        with m.If(step):
            m.d.sync += [
                begins.eq(last_tap),
                kernel_x_left.eq(kernel_x_left - 1),
                x.eq(x + entry.dilation_x),
                weight_row.eq(following_row),
            ]
            with m.If(last_x):
                m.d.sync += [
                    kernel_x_left.eq(geometry.kernel_x),
                    kernel_y_left.eq(kernel_y_left - 1),
                    x.eq(origin_x),
                    y.eq(y + entry.dilation_y),
                ]
            with m.If(last_tap):
                m.d.sync += [
                    kernel_y_left.eq(geometry.kernel_y),
                    end_x.eq(end_x + split),
                    origin_x.eq(following_x),
                    x.eq(following_x),
                    y.eq(origin_y),
                    weight_row.eq(row_base),
                    next_base.eq(following_row),
                    carries.eq(geometry.carries),
                    virtual.eq(end_x < 0),
                ]
                with m.If(~virtual):
                    m.d.sync += rows_left.eq(rows_left - 1)
        with m.If(turn | self.start):
            m.d.sync += [
                lines_left.eq(lines_left - 1),
                end_x.eq(first + geometry.end_back),
                carries.eq(0),
                virtual.eq(geometry.leads),
                empty.eq(first >= out_width),
                next_first.eq(first + skew - Mux(wraps, split, 0)),
                next_origin.eq(origin + Mux(wraps, geometry.skew_back_x, geometry.skew_x)),
                origin_x.eq(origin),
                x.eq(origin),
                origin_y.eq(following_y),
                y.eq(following_y),
            ]
            with m.If(restarts):
                base = Mux(step, following_row, next_base)
                m.d.sync += [
                    lines_left.eq(geometry.lines),
                    tiles_left.eq(tiles_left - 1),
                    row_base.eq(base),
                    weight_row.eq(base),
                ]
                with m.If(tiles_left[-1]):
                    m.d.sync += walking.eq(0)
        with m.If(self.start):
            m.d.sync += [
                walking.eq(1),
                tiles_left.eq(geometry.tiles),
                kernel_y_left.eq(geometry.kernel_y),
                kernel_x_left.eq(geometry.kernel_x),
                begins.eq(1),
                row_base.eq(entry.weight_base),
                weight_row.eq(entry.weight_base),
                room.eq(geometry.room),
                rows_left.eq(config.accumulator_rows - 1),
            ]

        # Stages 1 to 3: the tap's position, whose place is read in the fourth.
        tap = data.StructLayout(
            {
                "inside": 1,
                "weight_row": range(config.weight_rows),
                "last": 1,
                "carries": 1,
                "virtual": 1,
            }
        )
        taps_of = [Signal(tap, name=f"tap_{stage}", reset_less=True) for stage in range(4)]
        valid = [Signal(name=f"valid_{stage}", reset_less=True) for stage in range(6)]
        line = Signal(range(config.positions), reset_less=True)
        column = Signal(range(config.positions), reset_less=True)
        position = register_of(m, self.places.address)
        m.d.sync += [
            valid[0].eq(step & ~self.stop),
            # What is negative is large without its sign.
            taps_of[0].inside.eq(
                (y.as_unsigned() < in_height) & (x.as_unsigned() < geometry.pitch)
            ),
            taps_of[0].weight_row.eq(weight_row),
            taps_of[0].last.eq(last_tap),
            taps_of[0].carries.eq(carries),
            taps_of[0].virtual.eq(virtual),
            line.eq(y[: len(line)] * geometry.pitch),
            column.eq(x),
            position.eq(line + column),
        ]
        for stage in range(1, 4):
            m.d.sync += [
                valid[stage].eq(valid[stage - 1] & ~self.stop),
                taps_of[stage].eq(taps_of[stage - 1]),
            ]

        # Stage 4: its place, from which follow the entries, and the row's sums.
        low, high = register_of(m, self.work.low), register_of(m, self.work.high)
        push_low, push_high = (
            register_of(m, push) for push in (self.work.push_low, self.work.push_high)
        )
        present = taps_of[3]
        spot = Signal.like(self.places.place, reset_less=True)
        m.d.sync += spot.eq(self.places.place)
        low_sum = Signal(work_range(config), reset_less=True)
        high_sum = Signal(work_range(config), reset_less=True)
        low_total, high_total = Signal.like(low_sum), Signal.like(high_sum)
        fresh = Signal(init=1, reset_less=True)
        marks = Signal(2, reset_less=True)
        inside = valid[3] & present.inside
        m.d.comb += [
            low_total.eq(Mux(fresh, 0, low_sum) + Mux(present.inside, spot.low, 0)),
            high_total.eq(Mux(fresh, 0, high_sum) + Mux(present.inside, spot.high, 0)),
        ]
        with m.If(valid[3]):
            m.d.sync += [
                low_sum.eq(low_total),
                high_sum.eq(high_total),
                fresh.eq(present.last),
                marks.eq(Cat(present.carries, present.virtual)),
            ]
        m.d.sync += [
            push_low.eq(inside & (spot.low != 0) & ~self.stop),
            push_high.eq(inside & (spot.high != 0) & ~self.stop),
            low.address.eq(spot.address),
            low.last.eq(spot.address + spot.low - 1),
            low.count.eq(spot.low),
            low.single.eq(spot.low == 1),
            low.row.eq(present.weight_row),
            high.address.eq(spot.address + geometry.slot_last),
            high.count.eq(spot.high),
            high.single.eq(spot.high == 1),
            high.row.eq(present.weight_row),
            valid[4].eq(valid[3] & present.last & ~self.stop),
        ]

        # Stage 5: the entries go into the lists; the row is complete.
        low_slot, high_slot = (
            register_of(m, slot) for slot in (self.work.low_slot, self.work.high_slot)
        )
        low_first, high_first = Signal.like(low_slot), Signal.like(high_slot)
        low_end, high_end = Signal.like(self.work.low_slot), Signal.like(self.work.high_slot)
        m.d.comb += [
            low_end.eq(low_slot + push_low),
            high_end.eq(high_slot + push_high),
        ]
        m.d.sync += [low_slot.eq(low_end), high_slot.eq(high_end)]
        with m.If(valid[4]):
            m.d.sync += [low_first.eq(low_end), high_first.eq(high_end)]

        # The second lane takes low items off the first until both have as many.
        row = register_of(m, self.work.row)
        m.d.sync += [
            valid[5].eq(valid[4] & ~self.stop),
            row.high.eq(high_sum),
            row.low_first.eq(low_first),
            row.low_last.eq(low_end - 1),
            row.high_first.eq(high_first),
            Cat(row.carries, row.virtual).eq(marks),
        ]
        if config.lanes == 1:
            m.d.sync += row.low[0].eq(low_sum)
        else:
            surplus = Signal(signed(len(low_sum) + 1))
            helped = Signal.like(low_sum)
            m.d.comb += [
                surplus.eq(low_sum - high_sum),
                helped.eq(Mux(surplus < 0, 0, surplus[1:])),
            ]
            m.d.sync += [row.low[0].eq(low_sum - helped), row.low[1].eq(helped)]

        # Stage 6: the row goes to the lanes.
        m.d.comb += [
            self.work.push_row.eq(valid[5]),
            self.steady.eq(~(step | skip | self.start | Cat(valid).any())),
            self.ended.eq(~walking & ~self.start & ~Cat(valid).any()),
        ]
        with m.If(self.stop):
            m.d.sync += [
                walking.eq(0),
                fresh.eq(1),
                low_slot.eq(0),
                high_slot.eq(0),
                low_first.eq(0),
                high_first.eq(0),
            ]
        return m
