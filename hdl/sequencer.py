"""Layer sequencer: walks the kernel taps of every output row, and lists what each lane has to do.

::

    loop over column tiles, output rows and columns, kernel rows and columns
      │ 1: position of the tap
      │ 2: counts of its items
      │ 3: an entry in the list of each lane that has items
      ▼
    lists ──► lanes

A row of the array is one output position (pixel, token) in one column tile. The sequencer spends a
cycle on each tap of a row, inside the image or not, while the lanes work on rows before it. It
holds at most ``list_depth`` taps of rows that the lanes have not finished.
"""

from amaranth.hdl import Const, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from ditto.hdl.config import Config
from ditto.hdl.difference_buffer import CountsRead
from ditto.hdl.protocol import LayerEntry

__all__ = ["List", "Sequencer", "entry_of", "row_of"]


def entry_of(config: Config) -> data.StructLayout:
    """Lay out an entry of a lane's list: its items of one tap, and the tap's first weight row."""
    return data.StructLayout(
        {
            "address": range(config.item_depth),
            "count": config.count_bits,
            "row": range(config.weight_rows),
        }
    )


def row_of(config: Config) -> data.StructLayout:
    """Lay out what the lanes must know of a row: its entries in each list, and where it ends."""
    return data.StructLayout(
        {
            "entries": data.ArrayLayout(range(config.list_depth + 1), config.lanes),
            "last_of_tile": 1,
            "last_of_run": 1,
        }
    )


class List(wiring.Component):
    """A queue that shows its head in the cycle after it was written, and holds ``depth`` values.

    The user must not push into a full queue nor pop from an empty one.

    Members
    -------
    push : In(1)
        Append ``tail``.
    pop : In(1)
        Remove ``head``.
    clear : In(1)
        Remove everything.
    filled : Out(1)
        ``head`` is valid.
    """

    push: Signal
    tail: Signal
    pop: Signal
    head: Signal
    clear: Signal
    filled: Signal

    def __init__(self, *, shape: data.Layout, depth: int) -> None:
        self.shape = shape
        self.depth = depth
        super().__init__(
            {
                "push": In(1),
                "tail": In(shape),
                "pop": In(1),
                "head": Out(shape),
                "clear": In(1),
                "filled": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the queue."""
        m = Module()
        size = 1 << (self.depth - 1).bit_length()
        m.submodules.storage = storage = memory.Memory(shape=self.shape, depth=size, init=[])
        write, read = storage.write_port(), storage.read_port(domain="comb")
        level = Signal(range(self.depth + 1))
        m.d.comb += [
            write.en.eq(self.push),
            write.data.eq(self.tail),
            self.head.eq(read.data),
            self.filled.eq(level != 0),
        ]
        with m.If(self.push):
            m.d.sync += write.addr.eq(write.addr + 1)
        with m.If(self.pop):
            m.d.sync += read.addr.eq(read.addr + 1)
        m.d.sync += level.eq(level + self.push - self.pop)
        with m.If(self.clear):
            m.d.sync += [write.addr.eq(0), read.addr.eq(0), level.eq(0)]
        return m


class Sequencer(wiring.Component):
    """Fill the lanes' lists, row by row.

    Parameters
    ----------
    config
        The device.

    Members
    -------
    entry : In(LayerEntry)
        What to run; stays as it is during the run.
    start : In(1)
        Begin with the first tap in the next cycle.
    stop : In(1)
        Drop everything.
    counts : Out(CountsRead)
        Read port of the difference buffer.
    entries : Out(StructLayout) array
        The entry that goes into a lane's list, see :func:`entry_of`.
    push : Out(lanes)
        Lanes whose list takes its entry in this cycle.
    row : Out(StructLayout)
        The row whose last tap this is, see :func:`row_of`.
    push_row : Out(1)
        ``row`` is valid in this cycle. Its entries have all been pushed by the next one.
    free_row : In(1)
        The lanes are done with a row.
    """

    entry: data.View
    start: Signal
    stop: Signal
    counts: wiring.PureInterface
    entries: list[data.View]
    push: Signal
    row: data.View
    push_row: Signal
    free_row: Signal

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "entry": In(LayerEntry),
                "start": In(1),
                "stop": In(1),
                "counts": Out(CountsRead(config)),
                "entries": Out(entry_of(config)).array(config.lanes),
                "push": Out(config.lanes),
                "row": Out(row_of(config)),
                "push_row": Out(1),
                "free_row": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the sequencer."""
        m = Module()
        config = self.config
        entry = self.entry
        place = signed(max(config.positions.bit_length(), 8) + 2)

        # The loops. An origin is the image coordinate of the first tap, y and x of the present one.
        walking = Signal()
        tile = Signal(16, reset_less=True)
        out_y, out_x = Signal(16), Signal(16)
        kernel_y, kernel_x = Signal(4), Signal(4)
        origin_y, origin_x = Signal(place), Signal(place)
        y, x = Signal(place), Signal(place)
        row_base = Signal(range(config.weight_rows), reset_less=True)
        weight_row = Signal(range(config.weight_rows), reset_less=True)

        last_x = kernel_x == entry.kernel_width - 1
        last_tap = last_x & (kernel_y == entry.kernel_height - 1)
        last_out_x = out_x == entry.out_width - 1
        last_of_tile = last_out_x & (out_y == entry.out_height - 1)
        last_of_run = last_of_tile & (tile == entry.tiles - 1)

        # A row begins when its taps fit beside those of the rows that are not finished.
        taps = Signal(8)
        held = Signal(range(config.list_depth + 1))
        begins = Signal()
        step = Signal()
        m.d.comb += [
            taps.eq(entry.kernel_height * entry.kernel_width),
            begins.eq((kernel_x == 0) & (kernel_y == 0)),
            step.eq(walking & (~begins | (held + taps <= config.list_depth))),
        ]
        m.d.sync += held.eq(held + Mux(step & begins, taps, 0) - Mux(self.free_row, taps, 0))

        with m.If(step):
            m.d.sync += [
                kernel_x.eq(kernel_x + 1),
                x.eq(x + entry.dilation_x),
                weight_row.eq(weight_row + entry.channel_rows),
            ]
            with m.If(last_x):
                m.d.sync += [
                    kernel_x.eq(0),
                    kernel_y.eq(kernel_y + 1),
                    x.eq(origin_x),
                    y.eq(y + entry.dilation_y),
                ]
            with m.If(last_tap):
                next_x = Signal(place)
                next_y = Signal(place)
                m.d.comb += [
                    next_x.eq(origin_x + entry.stride_x),
                    next_y.eq(origin_y),
                ]
                with m.If(last_out_x):
                    m.d.comb += [
                        next_x.eq(-Const(0, 1) - entry.pad_left),
                        next_y.eq(origin_y + entry.stride_y),
                    ]
                with m.If(last_of_tile):
                    m.d.comb += next_y.eq(-Const(0, 1) - entry.pad_top)
                m.d.sync += [
                    kernel_y.eq(0),
                    out_x.eq(out_x + 1),
                    origin_x.eq(next_x),
                    origin_y.eq(next_y),
                    x.eq(next_x),
                    y.eq(next_y),
                    weight_row.eq(row_base),
                ]
                with m.If(last_out_x):
                    m.d.sync += [out_x.eq(0), out_y.eq(out_y + 1)]
                with m.If(last_of_tile):
                    m.d.sync += [
                        out_y.eq(0),
                        tile.eq(tile + 1),
                        row_base.eq(weight_row + entry.channel_rows),
                        weight_row.eq(weight_row + entry.channel_rows),
                    ]
                with m.If(last_of_run):
                    m.d.sync += walking.eq(0)
        with m.If(self.start):
            m.d.sync += [
                walking.eq(1),
                tile.eq(0),
                out_y.eq(0),
                out_x.eq(0),
                kernel_y.eq(0),
                kernel_x.eq(0),
                origin_y.eq(-entry.pad_top),
                origin_x.eq(-entry.pad_left),
                y.eq(-entry.pad_top),
                x.eq(-entry.pad_left),
                row_base.eq(entry.weight_base),
                weight_row.eq(entry.weight_base),
                held.eq(0),
            ]

        # Stage 1: the tap's position, which the counts are read at in the next cycle.
        tap = data.StructLayout(
            {
                "inside": 1,
                "position": range(config.positions),
                "weight_row": range(config.weight_rows),
                "last": 1,
                "last_of_tile": 1,
                "last_of_run": 1,
            }
        )
        tap_1, tap_2 = Signal(tap, reset_less=True), Signal(tap, reset_less=True)
        valid_1, valid_2 = Signal(), Signal()
        m.d.sync += [
            valid_1.eq(step & ~self.stop),
            valid_2.eq(valid_1 & ~self.stop),
            tap_1.inside.eq((y >= 0) & (y < entry.in_height) & (x >= 0) & (x < entry.in_width)),
            tap_1.position.eq(y * entry.in_width + x),
            tap_1.weight_row.eq(weight_row),
            tap_1.last.eq(last_tap),
            tap_1.last_of_tile.eq(last_of_tile),
            tap_1.last_of_run.eq(last_of_run),
        ]
        m.d.comb += self.counts.address.eq(tap_1.position)

        # Stage 2: its first item, while the counts come out of the difference buffer.
        address = Signal(range(config.item_depth), reset_less=True)
        slot = Signal(range(config.item_depth + 1), reset_less=True)
        m.d.sync += [
            tap_2.eq(tap_1),
            slot.eq(entry.channel_rows * config.digits),
            address.eq(tap_1.position * slot),
        ]

        # Stage 3: an entry for every lane that has items.
        m.d.comb += [
            self.push_row.eq(valid_2 & tap_2.last),
            self.row.last_of_tile.eq(tap_2.last_of_tile),
            self.row.last_of_run.eq(tap_2.last_of_run),
        ]
        for lane in range(config.lanes):
            pushed = Signal(range(config.list_depth + 1), name=f"pushed_{lane}")
            m.d.comb += [
                self.push[lane].eq(valid_2 & tap_2.inside & (self.counts.counts[lane] != 0)),
                self.entries[lane].address.eq(address),
                self.entries[lane].count.eq(self.counts.counts[lane]),
                self.entries[lane].row.eq(tap_2.weight_row),
                self.row.entries[lane].eq(pushed + self.push[lane]),
            ]
            with m.If(valid_2):
                m.d.sync += pushed.eq(Mux(tap_2.last, 0, self.row.entries[lane]))
            with m.If(self.stop):
                m.d.sync += pushed.eq(0)
        with m.If(self.stop):
            m.d.sync += walking.eq(0)
        return m
