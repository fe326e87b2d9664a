"""Layer sequencer: walks the kernel taps of every output row, and lists what the lanes have to do.

::

    loop over column tiles, the cluster's output positions, kernel rows and columns
      │ 1: position of the tap
      │ 2: its place in the difference buffer
      │ 3: an entry in the list of low items, and one in that of high items
      │ 4: with the last tap, the row: how many items each lane takes
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
from ditto.hdl.protocol import LayerEntry

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
    """Lay out a list entry: items of one tap, the first of them, and the tap's weight row."""
    return data.StructLayout(
        {
            "address": range(config.item_depth),
            "count": config.count_bits,
            "row": range(config.weight_rows),
        }
    )


def row_of(config: Config) -> data.StructLayout:
    """Lay out a row: how many items of each kind each lane takes, and where its entries are.

    The first lane takes its low items from the front of the row, the second from the back. High
    items are for the last lane.
    """
    return data.StructLayout(
        {
            "low": data.ArrayLayout(work_range(config), config.lanes),
            "high": work_range(config) if config.shifts > 1 else 0,
            "low_first": slot_range(config),
            "low_last": slot_range(config),
            "high_first": slot_range(config),
        }
    )


def geometry_of(config: Config) -> data.StructLayout:
    """Lay out what follows from a layer-table entry and is the same for all clusters."""
    return data.StructLayout(
        {
            # Kernel taps, and the list entries that are set aside for them.
            "taps": 8,
            "held": 8,
            # The last one of each loop.
            "last_kernel_y": 4,
            "last_kernel_x": 4,
            "last_y": range(config.largest["out_height"]),
            "last_tile": range(config.largest["tiles"]),
            # Last item of a slot of the difference buffer, counted from its first.
            "slot_last": range(config.item_depth),
            # ``split`` and ``skew`` in columns of the input image.
            "split_x": 8,
            "skew_x": 8,
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
        What to run; stays as it is during the run.
    geometry : In(StructLayout)
        What follows from it, see :func:`geometry_of`.
    share : In
        The cluster's share of the output positions, less than ``entry.split``.
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
        entry, geometry, work = self.entry, self.geometry, self.work
        place = signed(max(config.positions.bit_length(), 8) + 2)
        largest = config.largest
        out_width = Signal(range(largest["out_width"] + 1))
        in_height = Signal(range(largest["in_height"] + 1))
        in_width = Signal(range(largest["in_width"] + 1))
        m.d.comb += [
            out_width.eq(entry.out_width),
            in_height.eq(entry.in_height),
            in_width.eq(entry.in_width),
        ]

        # The loops. An origin is the image coordinate of the first tap, y and x of the present one;
        # ``first`` is what begins an output row of the image.
        walking = Signal()
        tile = Signal(range(largest["tiles"]), reset_less=True)
        out_y = Signal(range(largest["out_height"]), reset_less=True)
        out_x = Signal(range(largest["out_width"] + config.clusters), reset_less=True)
        first_x, first_origin = Signal(8, reset_less=True), Signal(place, reset_less=True)
        kernel_y, kernel_x = Signal(4, reset_less=True), Signal(4, reset_less=True)
        origin_y, origin_x = Signal(place, reset_less=True), Signal(place, reset_less=True)
        y, x = Signal(place, reset_less=True), Signal(place, reset_less=True)
        row_base = Signal(range(config.weight_rows), reset_less=True)
        next_base = Signal(range(config.weight_rows), reset_less=True)
        weight_row = Signal(range(config.weight_rows), reset_less=True)

        last_x = kernel_x == geometry.last_kernel_x
        last_tap = last_x & (kernel_y == geometry.last_kernel_y)
        last_of_tile = out_y == geometry.last_y
        last_of_run = last_of_tile & (tile == geometry.last_tile)

        # A row begins when its taps fit beside those of the rows that are not finished.
        held = Signal(range(config.list_depth + 1))
        rows_left = Signal(range(config.accumulator_rows + 1))
        begins = Signal()
        empty = Signal()
        fits = Signal()
        step, skip = Signal(), Signal()
        m.d.comb += [
            begins.eq((kernel_x == 0) & (kernel_y == 0)),
            empty.eq(out_x >= out_width),
            fits.eq((held + geometry.held <= config.list_depth) & (rows_left != 0)),
            step.eq(walking & ~empty & (~begins | fits)),
            skip.eq(walking & empty),
            self.overrun.eq(walking & ~empty & begins & (rows_left == 0)),
        ]
        begun, freed = Mux(step & begins, geometry.held, 0), Mux(self.free_row, geometry.held, 0)
        m.d.sync += held.eq(held + begun - freed)

        # Where the next output row of the image begins, and the next tap.
        wraps = Signal()
        next_first = Signal.like(first_x)
        next_first_origin = Signal(place)
        end_x = Signal(len(out_x) + 1)
        next_y = Signal(place)
        goes_on = Signal()
        m.d.comb += [
            wraps.eq(first_x + entry.skew >= entry.split),
            next_first.eq(first_x + entry.skew - Mux(wraps, entry.split, 0)),
            next_first_origin.eq(first_origin + geometry.skew_x - Mux(wraps, geometry.split_x, 0)),
            next_y.eq(origin_y + entry.stride_y),
            end_x.eq(out_x + entry.split),
            goes_on.eq(end_x < out_width),
        ]
        start_origin = Signal(place)
        m.d.comb += start_origin.eq(self.share * entry.stride_x - entry.pad_left)

        with m.If(step):
            m.d.sync += [
                kernel_x.eq(kernel_x + 1),
                x.eq(x + entry.dilation_x),
                weight_row.eq(weight_row + entry.channels),
            ]
            with m.If(last_x):
                m.d.sync += [
                    kernel_x.eq(0),
                    kernel_y.eq(kernel_y + 1),
                    x.eq(origin_x),
                    y.eq(y + entry.dilation_y),
                ]
            with m.If(last_tap):
                m.d.sync += [
                    kernel_y.eq(0),
                    out_x.eq(end_x),
                    origin_x.eq(origin_x + geometry.split_x),
                    x.eq(origin_x + geometry.split_x),
                    y.eq(origin_y),
                    weight_row.eq(row_base),
                    next_base.eq(weight_row + entry.channels),
                    rows_left.eq(rows_left - 1),
                ]
        with m.If(skip | (step & last_tap & ~goes_on)):
            m.d.sync += [
                out_y.eq(out_y + 1),
                out_x.eq(next_first),
                first_x.eq(next_first),
                first_origin.eq(next_first_origin),
                origin_x.eq(next_first_origin),
                x.eq(next_first_origin),
                origin_y.eq(next_y),
                y.eq(next_y),
            ]
        with m.If((skip | (step & last_tap & ~goes_on)) & last_of_tile):
            base = Mux(step, (weight_row + entry.channels)[: len(row_base)], next_base)
            m.d.sync += [tile.eq(tile + 1), row_base.eq(base), weight_row.eq(base)]
            with m.If(last_of_run):
                m.d.sync += walking.eq(0)
        with m.If(self.start):
            m.d.sync += [
                walking.eq(1),
                tile.eq(0),
                kernel_y.eq(0),
                kernel_x.eq(0),
                row_base.eq(entry.weight_base),
                weight_row.eq(entry.weight_base),
                held.eq(0),
                rows_left.eq(config.accumulator_rows),
            ]
        with m.If(self.start | ((skip | (step & last_tap & ~goes_on)) & last_of_tile)):
            m.d.sync += [
                out_y.eq(0),
                out_x.eq(self.share),
                first_x.eq(self.share),
                first_origin.eq(start_origin),
                origin_x.eq(start_origin),
                x.eq(start_origin),
                origin_y.eq(-entry.pad_top),
                y.eq(-entry.pad_top),
            ]

        # Stage 1: the tap's position, whose place is read in the next cycle.
        tap = data.StructLayout(
            {
                "inside": 1,
                "weight_row": range(config.weight_rows),
                "last": 1,
            }
        )
        taps_of = [Signal(tap, name=f"tap_{stage}", reset_less=True) for stage in (1, 2)]
        valid = [Signal(name=f"valid_{stage}") for stage in (1, 2, 3, 4)]
        m.d.sync += [
            valid[0].eq(step & ~self.stop),
            valid[1].eq(valid[0] & ~self.stop),
            taps_of[0].inside.eq(
                # What is negative is large without its sign.
                (y.as_unsigned() < in_height) & (x.as_unsigned() < in_width)
            ),
            taps_of[0].weight_row.eq(weight_row),
            taps_of[0].last.eq(last_tap),
            taps_of[1].eq(taps_of[0]),
            self.places.address.eq((y * in_width)[: len(x)] + x),
        ]

        # Stage 2: its place, from which follow the entries, and the row's sums.
        present = taps_of[1]
        spot = self.places.place
        low_sum = Signal(work_range(config), reset_less=True)
        high_sum = Signal(work_range(config), reset_less=True)
        low_total, high_total = Signal.like(low_sum), Signal.like(high_sum)
        fresh = Signal(init=1)
        inside = valid[1] & present.inside
        m.d.comb += [
            low_total.eq(Mux(fresh, 0, low_sum) + Mux(present.inside, spot.low, 0)),
            high_total.eq(Mux(fresh, 0, high_sum) + Mux(present.inside, spot.high, 0)),
        ]
        with m.If(valid[1]):
            m.d.sync += [
                low_sum.eq(low_total),
                high_sum.eq(high_total),
                fresh.eq(present.last),
            ]
        m.d.sync += [
            work.push_low.eq(inside & (spot.low != 0) & ~self.stop),
            work.push_high.eq(inside & (spot.high != 0) & ~self.stop),
            work.low.address.eq(spot.address),
            work.low.count.eq(spot.low),
            work.low.row.eq(present.weight_row),
            work.high.address.eq(spot.address + geometry.slot_last),
            work.high.count.eq(spot.high),
            work.high.row.eq(present.weight_row),
            valid[2].eq(valid[1] & present.last & ~self.stop),
        ]

        # Stage 3: the entries go into the lists; the row is complete.
        low_first, high_first = Signal.like(work.low_slot), Signal.like(work.high_slot)
        low_end, high_end = Signal.like(low_first), Signal.like(high_first)
        m.d.comb += [
            low_end.eq(work.low_slot + work.push_low),
            high_end.eq(work.high_slot + work.push_high),
        ]
        m.d.sync += [work.low_slot.eq(low_end), work.high_slot.eq(high_end)]
        with m.If(valid[2]):
            m.d.sync += [low_first.eq(low_end), high_first.eq(high_end)]

        # The second lane takes low items off the first until both have as many.
        m.d.sync += [
            valid[3].eq(valid[2] & ~self.stop),
            work.row.high.eq(high_sum),
            work.row.low_first.eq(low_first),
            work.row.low_last.eq(low_end - 1),
            work.row.high_first.eq(high_first),
        ]
        if config.lanes == 1:
            m.d.sync += work.row.low[0].eq(low_sum)
        else:
            surplus = Signal(signed(len(low_sum) + 1))
            helped = Signal.like(low_sum)
            m.d.comb += [
                surplus.eq(low_sum - high_sum),
                helped.eq(Mux(surplus < 0, 0, surplus[1:])),
            ]
            m.d.sync += [work.row.low[0].eq(low_sum - helped), work.row.low[1].eq(helped)]

        # Stage 4: the row goes to the lanes.
        m.d.comb += [
            work.push_row.eq(valid[3]),
            self.steady.eq(~(step | skip | self.start | Cat(valid).any())),
            self.ended.eq(~walking & ~self.start & ~Cat(valid).any()),
        ]
        with m.If(self.stop):
            m.d.sync += [
                walking.eq(0),
                fresh.eq(1),
                work.low_slot.eq(0),
                work.high_slot.eq(0),
                low_first.eq(0),
                high_first.eq(0),
            ]
        return m
