"""Lanes: work off the lists of a cluster, an item a cycle each, row after row.

The two lanes of a cluster share a weight bank, and the items of a row: the first takes low items
from the row's front, the second takes its high items, and then low ones from its back. So neither
waits for the other, but for a cycle where the number of items is odd or most of them are high.
"""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from ditto.hdl.config import Config
from ditto.hdl.difference_buffer import ItemRead
from ditto.hdl.register import register_of
from ditto.hdl.sequencer import WorkWrite, entry_of, row_of, slot_range, work_range

__all__ = ["Lane", "Lanes", "RowQueue", "issue_of"]


class RowQueue(wiring.Component):
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
        level = Signal(range(self.depth + 1), reset_less=True)
        into, out_of = register_of(m, write.addr), register_of(m, read.addr)
        m.d.comb += [
            write.en.eq(self.push),
            write.data.eq(self.tail),
            self.head.eq(read.data),
            self.filled.eq(level != 0),
        ]
        with m.If(self.push):
            m.d.sync += into.eq(into + 1)
        with m.If(self.pop):
            m.d.sync += out_of.eq(out_of + 1)
        m.d.sync += level.eq(level + self.push - self.pop)
        with m.If(self.clear):
            m.d.sync += [into.eq(0), out_of.eq(0), level.eq(0)]
        return m


class ListRead(wiring.Signature):
    """Read port of a list; ``entry`` is there in the same cycle."""

    def __init__(self, config: Config) -> None:
        super().__init__({"slot": Out(slot_range(config)), "entry": In(entry_of(config))})


class Lane(wiring.Component):
    """Read the items of one lane, one a cycle, list entry after list entry, without a gap.

    Parameters
    ----------
    config
        The device.
    number
        Which lane of the cluster: the last one takes high items, the second goes backwards.

    Members
    -------
    begin : In(1)
        Begin ``row``, whose entries have all been pushed.
    row : In(StructLayout)
        See :func:`ditto.hdl.sequencer.row_of`.
    low, high : Out(ListRead)
        Read ports of the lists.
    clear : In(1)
        Drop everything.
    finishing : Out(1)
        Nothing of the row is left after this cycle.
    item : Out(ItemRead)
        Read port of the difference buffer; an item is read in each cycle in which the lane is busy.
    weight_row : Out
        First weight row of the item's tap.
    """

    begin: Signal
    row: data.View
    low: wiring.PureInterface
    high: wiring.PureInterface
    clear: Signal
    finishing: Signal
    item: wiring.PureInterface
    weight_row: Signal

    def __init__(self, config: Config, number: int) -> None:
        self.config = config
        self.number = number
        super().__init__(
            {
                "begin": In(1),
                "row": In(row_of(config)),
                "low": Out(ListRead(config)),
                "high": Out(ListRead(config)),
                "clear": In(1),
                "finishing": Out(1),
                "item": Out(ItemRead(config)),
                "weight_row": Out(range(config.weight_rows)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the lane."""
        m = Module()
        config = self.config
        takes_high = self.number == config.lanes - 1 and config.shifts > 1
        backward = self.number == 1
        busy = Signal(reset_less=True)
        at_high = Signal(reset_less=True)  # the item at hand is a high one
        low_left = Signal(work_range(config), reset_less=True)
        high_left = Signal(work_range(config), reset_less=True)
        count = Signal(config.count_bits, reset_less=True)  # items left of the entry
        last_of_entry = Signal(reset_less=True)
        low_slot = Signal(slot_range(config), reset_less=True)
        high_slot = Signal(slot_range(config), reset_less=True)

        row = self.row
        address, weight_row = (register_of(m, o) for o in (self.item.address, self.weight_row))
        load_low, load_high = Signal(), Signal()
        # What the rest of the path waits for is compared a cycle ahead.
        low_none, low_one = Signal(reset_less=True), Signal(reset_less=True)
        high_one = Signal(reset_less=True)
        finishing = Signal(init=1, reset_less=True)
        last_high = at_high & high_one
        last_low = ~at_high & low_one
        m.d.comb += [
            self.finishing.eq(finishing),
            self.item.en.eq(busy),
            # A row that ends takes no further entry.
            self.low.slot.eq(Mux(finishing, row.low_last if backward else row.low_first, low_slot)),
            self.high.slot.eq(Mux(finishing, row.high_first, high_slot)),
        ]
        high = row.high if takes_high else 0
        low_two, high_two = low_left == 2, high_left == 2
        row_none, row_one = row.low[self.number] == 0, row.low[self.number] == 1
        with m.If(self.begin):
            m.d.comb += [
                load_high.eq(high != 0),
                load_low.eq((high == 0) & ~row_none),
            ]
        with m.Else():
            m.d.comb += [
                load_high.eq(busy & at_high & last_of_entry & ~last_high),
                load_low.eq(
                    busy
                    & Mux(
                        at_high,
                        last_high & ~low_none,
                        last_of_entry & ~last_low,
                    )
                ),
            ]

        # High items lie from the end of their slot downwards.
        with m.If(busy):
            down = at_high | backward
            m.d.sync += [
                count.eq(count - 1),
                last_of_entry.eq(count == 2),
                address.eq(address + Mux(down, -1, 1)),
            ]
            with m.If(at_high):
                m.d.sync += [high_left.eq(high_left - 1), high_one.eq(high_two)]
                with m.If(Mux(high_one, low_one | low_none, high_two & low_none)):
                    m.d.sync += finishing.eq(1)
            with m.Else():
                m.d.sync += [low_left.eq(low_left - 1), low_none.eq(low_one), low_one.eq(low_two)]
                with m.If(low_one | low_two):
                    m.d.sync += finishing.eq(1)
        with m.If(self.begin):
            m.d.sync += [
                low_left.eq(row.low[self.number]),
                low_none.eq(row_none),
                low_one.eq(row_one),
                finishing.eq(((high == 0) & (row_none | row_one)) | ((high == 1) & row_none)),
                high_left.eq(high),
                high_one.eq(high == 1),
                low_slot.eq(self.low.slot),
                high_slot.eq(self.high.slot),
                busy.eq(load_low | load_high),
            ]
        with m.Elif(finishing):
            m.d.sync += busy.eq(0)
        with m.If(load_low):
            entry = self.low.entry
            m.d.sync += [
                at_high.eq(0),
                address.eq(entry.last if backward else entry.address),
                count.eq(entry.count),
                last_of_entry.eq(entry.single),
                weight_row.eq(entry.row),
                low_slot.eq(self.low.slot + (-1 if backward else 1)),
            ]
        if takes_high:
            with m.If(load_high):
                entry = self.high.entry
                m.d.sync += [
                    at_high.eq(1),
                    address.eq(entry.address),
                    count.eq(entry.count),
                    last_of_entry.eq(entry.single),
                    weight_row.eq(entry.row),
                    high_slot.eq(self.high.slot + 1),
                ]
        with m.If(self.clear):
            m.d.sync += [busy.eq(0), finishing.eq(1)]
        return m


def issue_of(config: Config) -> data.StructLayout:
    """Lay out what the lanes do in a cycle.

    ``busy`` has a bit for each lane that reads an item; ``rows`` are the first weight rows of the
    items' taps. ``first`` marks the beginning of an output row that starts anew, ``last`` the end
    of one that is written; both may be one cycle.
    """
    return data.StructLayout(
        {
            "valid": 1,
            "busy": config.lanes,
            "rows": data.ArrayLayout(range(config.weight_rows), config.lanes),
            "first": 1,
            "last": 1,
        }
    )


class Lanes(wiring.Component):
    """Run rows: a row takes as long as its busiest lane, and at least one cycle.

    The next row follows without a gap if the sequencer is ahead.

    Parameters
    ----------
    config
        The device.

    Members
    -------
    work : In(WorkWrite)
        Entries and rows from the sequencer.
    run : In(1)
        Begin rows.
    free_row : Out(1)
        A row has ended.
    clear : In(1)
        Drop everything.
    items : Out(ItemRead) array
        Read ports of the difference buffer.
    issue : Out(StructLayout)
        What is read in this cycle, see :func:`issue_of`.
    """

    work: wiring.PureInterface
    run: Signal
    free_row: Signal
    clear: Signal
    items: list[wiring.PureInterface]
    issue: data.View

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "work": In(WorkWrite(config)),
                "run": In(1),
                "free_row": Out(1),
                "clear": In(1),
                "items": Out(ItemRead(config)).array(config.lanes),
                "issue": Out(issue_of(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the lanes."""
        m = Module()
        config = self.config
        m.submodules.rows = rows = RowQueue(shape=row_of(config), depth=config.rows_ahead(1))
        lanes = [Lane(config, number) for number in range(config.lanes)]

        # Every reader of a list has a read port of it; only the last lane takes high items, and
        # without shifts there are none.
        for name in ("low", "high") if config.shifts > 1 else ("low",):
            entries = memory.Memory(shape=entry_of(config), depth=len(slot_range(config)), init=[])
            m.submodules[f"{name}_list"] = entries
            write = entries.write_port()
            m.d.comb += [
                write.en.eq(getattr(self.work, f"push_{name}")),
                write.addr.eq(getattr(self.work, f"{name}_slot")),
                write.data.eq(getattr(self.work, name)),
            ]
            for lane in lanes if name == "low" else lanes[-1:]:
                read = entries.read_port(domain="comb")
                port = getattr(lane, name)
                m.d.comb += [read.addr.eq(port.slot), port.entry.eq(read.data)]

        for number, lane in enumerate(lanes):
            m.submodules[f"lane_{number}"] = lane
            m.d.comb += [
                lane.begin.eq(rows.pop),
                lane.row.eq(rows.head),
                lane.clear.eq(self.clear),
                self.items[number].en.eq(lane.item.en),
                self.items[number].address.eq(lane.item.address),
                lane.item.item.eq(self.items[number].item),
                self.issue.busy[number].eq(lane.item.en),
                self.issue.rows[number].eq(lane.weight_row),
            ]

        finishing = Cat(lane.finishing for lane in lanes).all()
        valid, first = Signal(reset_less=True), Signal(reset_less=True)
        virtual = Signal(reset_less=True)
        m.d.comb += [
            self.issue.valid.eq(valid),
            self.issue.first.eq(first),
            rows.push.eq(self.work.push_row),
            rows.tail.eq(self.work.row),
            rows.clear.eq(self.clear),
            self.free_row.eq(valid & finishing),
            rows.pop.eq((~valid | finishing) & rows.filled & self.run),
            self.issue.last.eq(finishing & ~virtual),
        ]
        with m.If(valid):
            m.d.sync += [first.eq(0), valid.eq(~finishing)]
        with m.If(rows.pop):
            m.d.sync += [valid.eq(1), first.eq(~rows.head.carries), virtual.eq(rows.head.virtual)]
        with m.If(self.clear):
            m.d.sync += valid.eq(0)
        return m
