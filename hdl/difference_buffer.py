"""Difference buffer: packed lists of work items, by position and lane."""

from amaranth.hdl import Module
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from ditto.hdl.config import Config
from ditto.hdl.protocol import item_layout

__all__ = ["CountsRead", "CountsWrite", "DifferenceBuffer", "ItemRead", "ItemWrite", "item_of"]


def item_of(config: Config) -> data.StructLayout:
    """Lay out the work items of a device."""
    return item_layout(
        row_bits=config.row_bits, digit_bits=config.digit_bits, shift_bits=config.shift_bits
    )


class ItemWrite(wiring.Signature):
    """Write port of one lane's items."""

    def __init__(self, config: Config) -> None:
        super().__init__(
            {
                "en": Out(1),
                "address": Out(range(config.item_depth)),
                "item": Out(item_of(config)),
            }
        )


class ItemRead(wiring.Signature):
    """Read port of one lane's items; ``item`` is there the cycle after ``en``, and stays."""

    def __init__(self, config: Config) -> None:
        super().__init__(
            {
                "en": Out(1),
                "address": Out(range(config.item_depth)),
                "item": In(item_of(config)),
            }
        )


class CountsWrite(wiring.Signature):
    """Write port of the number of items that a position has in each lane."""

    def __init__(self, config: Config) -> None:
        super().__init__(
            {
                "en": Out(1),
                "address": Out(range(config.positions)),
                "counts": Out(data.ArrayLayout(config.count_bits, config.lanes)),
            }
        )


class CountsRead(wiring.Signature):
    """Read port of the counts; ``counts`` are there the cycle after ``address``."""

    def __init__(self, config: Config) -> None:
        super().__init__(
            {
                "address": Out(range(config.positions)),
                "counts": In(data.ArrayLayout(config.count_bits, config.lanes)),
            }
        )


class DifferenceBuffer(wiring.Component):
    """Hold the work items of a tile of positions.

    The encoder writes while no run reads. Where a position's items lie is up to both sides.

    Parameters
    ----------
    config
        The device.

    Members
    -------
    items_w, counts_w
        Write ports, for the encoder.
    items_r, counts_r
        Read ports, for the lanes and the sequencer.
    """

    items_w: list[wiring.PureInterface]
    items_r: list[wiring.PureInterface]
    counts_w: wiring.PureInterface
    counts_r: wiring.PureInterface

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "items_w": In(ItemWrite(config)).array(config.lanes),
                "items_r": In(ItemRead(config)).array(config.lanes),
                "counts_w": In(CountsWrite(config)),
                "counts_r": In(CountsRead(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the memories."""
        m = Module()
        config = self.config
        for lane in range(config.lanes):
            m.submodules[f"items_{lane}"] = items = memory.Memory(
                shape=item_of(config), depth=config.item_depth, init=[]
            )
            w, r = items.write_port(), items.read_port()
            m.d.comb += [
                w.en.eq(self.items_w[lane].en),
                w.addr.eq(self.items_w[lane].address),
                w.data.eq(self.items_w[lane].item),
                r.en.eq(self.items_r[lane].en),
                r.addr.eq(self.items_r[lane].address),
                self.items_r[lane].item.eq(r.data),
            ]
        m.submodules.counts = counts = memory.Memory(
            shape=data.ArrayLayout(config.count_bits, config.lanes),
            depth=config.positions,
            init=[],
        )
        w, r = counts.write_port(), counts.read_port()
        m.d.comb += [
            w.en.eq(self.counts_w.en),
            w.addr.eq(self.counts_w.address),
            w.data.eq(self.counts_w.counts),
            r.addr.eq(self.counts_r.address),
            self.counts_r.counts.eq(r.data),
        ]
        return m
