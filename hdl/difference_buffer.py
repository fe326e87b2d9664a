"""Difference buffer: packed lists of work items, by position."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from ditto.hdl.config import Config
from ditto.hdl.protocol import item_layout

__all__ = [
    "DifferenceBuffer",
    "ItemRead",
    "ItemWrite",
    "PlaceRead",
    "PlaceWrite",
    "item_of",
    "place_of",
]


def item_of(config: Config) -> data.StructLayout:
    """Lay out the work items of a device."""
    return item_layout(
        channel_bits=config.channel_bits,
        digit_bits=config.digit_bits,
        shift_bits=config.shift_bits,
    )


def place_of(config: Config) -> data.StructLayout:
    """Lay out where a position's items are, and how many.

    Low items (without shift) lie from ``address``, the start of the position's slot, upwards; high
    ones from the end of the slot downwards.
    """
    return data.StructLayout(
        {
            "address": range(config.item_depth),
            "low": config.count_bits,
            "high": config.count_bits if config.shifts > 1 else 0,
        }
    )


class ItemWrite(wiring.Signature):
    """Write port of the items."""

    def __init__(self, config: Config) -> None:
        super().__init__(
            {
                "en": Out(1),
                "address": Out(range(config.item_depth)),
                "item": Out(item_of(config)),
            }
        )


class ItemRead(wiring.Signature):
    """Read port of the items; ``item`` is there the cycle after ``en``, and stays."""

    def __init__(self, config: Config) -> None:
        super().__init__(
            {
                "en": Out(1),
                "address": Out(range(config.item_depth)),
                "item": In(item_of(config)),
            }
        )


class PlaceWrite(wiring.Signature):
    """Write port of the places; ``address`` is the position."""

    def __init__(self, config: Config) -> None:
        super().__init__(
            {
                "en": Out(1),
                "address": Out(range(config.positions)),
                "place": Out(place_of(config)),
            }
        )


class PlaceRead(wiring.Signature):
    """Read port of the places; ``place`` is there the cycle after ``address``."""

    def __init__(self, config: Config) -> None:
        super().__init__({"address": Out(range(config.positions)), "place": In(place_of(config))})


class DifferenceBuffer(wiring.Component):
    """Hold the work items of a tile of positions, for the lanes of a cluster.

    The encoder writes while no lane reads.

    Parameters
    ----------
    config
        The device.

    Members
    -------
    items_w, places_w
        Write ports, for the encoder.
    items_r, places_r
        Read ports, for the lanes and the sequencer.
    """

    items_w: wiring.PureInterface
    items_r: list[wiring.PureInterface]
    places_w: wiring.PureInterface
    places_r: wiring.PureInterface

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "items_w": In(ItemWrite(config)),
                "items_r": In(ItemRead(config)).array(config.lanes),
                "places_w": In(PlaceWrite(config)),
                "places_r": In(PlaceRead(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the memories."""
        m = Module()
        config = self.config
        m.submodules.items = items = memory.Memory(
            shape=item_of(config), depth=config.item_depth, init=[]
        )
        # The write port shares its address with the first read port, so that two lanes make do
        # with one dual-port memory.
        write = items.write_port()
        address = Signal(range(config.item_depth))
        m.d.comb += [
            address.eq(Mux(self.items_w.en, self.items_w.address, self.items_r[0].address)),
            write.en.eq(self.items_w.en),
            write.addr.eq(address),
            write.data.eq(self.items_w.item),
        ]
        for lane, port in enumerate(self.items_r):
            read = items.read_port()
            m.d.comb += [
                read.en.eq(port.en & ~self.items_w.en if lane == 0 else port.en),
                read.addr.eq(address if lane == 0 else port.address),
                port.item.eq(read.data),
            ]

        m.submodules.places = places = memory.Memory(
            shape=place_of(config), depth=config.positions, init=[]
        )
        w, r = places.write_port(), places.read_port()
        m.d.comb += [
            w.en.eq(self.places_w.en),
            w.addr.eq(self.places_w.address),
            w.data.eq(self.places_w.place),
            r.addr.eq(self.places_r.address),
            self.places_r.place.eq(r.data),
        ]
        return m
