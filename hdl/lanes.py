"""Lanes: each works off its own list of items, and all of them meet at the end of a row."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ditto.hdl.config import Config
from ditto.hdl.difference_buffer import ItemRead
from ditto.hdl.sequencer import List, entry_of, row_of

__all__ = ["Lane", "Lanes", "issue_of"]


class Lane(wiring.Component):
    """Read the items of one lane, one a cycle, list entry after list entry, without a gap.

    Parameters
    ----------
    config
        The device.

    Members
    -------
    push : In(1)
        Append ``entry`` to the list.
    entry : In(StructLayout)
        See :func:`ditto.hdl.sequencer.entry_of`.
    begin : In(1)
        Begin a row of ``entries`` list entries, which have all been pushed.
    entries : In
        Zero makes the lane idle during the row.
    clear : In(1)
        Drop everything.
    finishing : Out(1)
        Nothing of the row is left after this cycle.
    item : Out(ItemRead)
        Read port of the difference buffer; an item is read in each cycle in which the lane is busy.
    row : Out
        First weight row of the item's tap.
    """

    push: Signal
    entry: data.View
    begin: Signal
    entries: Signal
    clear: Signal
    finishing: Signal
    item: wiring.PureInterface
    row: Signal

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "push": In(1),
                "entry": In(entry_of(config)),
                "begin": In(1),
                "entries": In(range(config.list_depth + 1)),
                "clear": In(1),
                "finishing": Out(1),
                "item": Out(ItemRead(config)),
                "row": Out(range(config.weight_rows)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the lane."""
        m = Module()
        m.submodules.list = pending = List(
            shape=entry_of(self.config), depth=self.config.list_depth
        )
        busy = Signal()
        left = Signal.like(self.entries, reset_less=True)
        count = Signal(self.config.count_bits, reset_less=True)
        last_item = count == 1
        m.d.comb += [
            pending.push.eq(self.push),
            pending.tail.eq(self.entry),
            pending.clear.eq(self.clear),
            self.item.en.eq(busy),
            self.finishing.eq(~busy | (last_item & (left == 0))),
        ]
        with m.If(busy):
            m.d.sync += [self.item.address.eq(self.item.address + 1), count.eq(count - 1)]
            with m.If(last_item):
                m.d.sync += left.eq(left - 1)
                m.d.comb += pending.pop.eq(left != 0)
            with m.If(self.finishing):
                m.d.sync += busy.eq(0)
        with m.If(self.begin):
            m.d.sync += [busy.eq(self.entries != 0), left.eq(self.entries - 1)]
            m.d.comb += pending.pop.eq(self.entries != 0)
        with m.If(pending.pop):
            m.d.sync += [
                self.item.address.eq(pending.head.address),
                count.eq(pending.head.count),
                self.row.eq(pending.head.row),
            ]
        with m.If(self.clear):
            m.d.sync += busy.eq(0)
        return m


def issue_of(config: Config) -> data.StructLayout:
    """Lay out what the lanes do in a cycle.

    ``busy`` has a bit for each lane that reads an item; ``rows`` are the first weight rows of the
    items' taps. ``first`` and ``last`` mark the ends of an output row, which may be one cycle.
    """
    return data.StructLayout(
        {
            "valid": 1,
            "busy": config.lanes,
            "rows": data.ArrayLayout(range(config.weight_rows), config.lanes),
            "first": 1,
            "last": 1,
            "last_of_tile": 1,
            "last_of_run": 1,
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
    entries, push, row, push_row
        From the sequencer.
    free_row : Out(1)
        A row has ended.
    clear : In(1)
        Drop everything.
    items : Out(ItemRead) array
        Read ports of the difference buffer.
    issue : Out(StructLayout)
        What is read in this cycle, see :func:`issue_of`.
    """

    entries: list[data.View]
    push: Signal
    row: data.View
    push_row: Signal
    free_row: Signal
    clear: Signal
    items: list[wiring.PureInterface]
    issue: data.View

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "entries": In(entry_of(config)).array(config.lanes),
                "push": In(config.lanes),
                "row": In(row_of(config)),
                "push_row": In(1),
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
        m.submodules.rows = rows = List(shape=row_of(config), depth=config.list_depth)
        lanes = [Lane(config) for _ in range(config.lanes)]
        for index, lane in enumerate(lanes):
            m.submodules[f"lane_{index}"] = lane
            m.d.comb += [
                lane.push.eq(self.push[index]),
                lane.entry.eq(self.entries[index]),
                lane.begin.eq(rows.pop),
                lane.entries.eq(rows.head.entries[index]),
                lane.clear.eq(self.clear),
                self.items[index].en.eq(lane.item.en),
                self.items[index].address.eq(lane.item.address),
                lane.item.item.eq(self.items[index].item),
                self.issue.busy[index].eq(lane.item.en),
                self.issue.rows[index].eq(lane.row),
            ]

        finishing = Cat(lane.finishing for lane in lanes).all()
        m.d.comb += [
            rows.push.eq(self.push_row),
            rows.tail.eq(self.row),
            rows.clear.eq(self.clear),
            self.free_row.eq(self.issue.valid & finishing),
            rows.pop.eq((~self.issue.valid | finishing) & rows.filled),
            self.issue.last.eq(finishing),
        ]
        with m.If(self.issue.valid):
            m.d.sync += [self.issue.first.eq(0), self.issue.valid.eq(~finishing)]
        with m.If(rows.pop):
            m.d.sync += [
                self.issue.valid.eq(1),
                self.issue.first.eq(1),
                self.issue.last_of_tile.eq(rows.head.last_of_tile),
                self.issue.last_of_run.eq(rows.head.last_of_run),
            ]
        with m.If(self.clear):
            m.d.sync += self.issue.valid.eq(0)
        return m
