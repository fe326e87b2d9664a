"""A cluster: a share of the output positions, from the difference buffer to the accumulators.

::

    items, places ──► difference buffer ──► lanes ──► array ──► accumulators
                             │                ▲         ▲
                             └─► sequencer ───┘      weights

All clusters hold the same items, and run the same layer-table entry on other output positions or
with the weights of other output channels. What a cluster runs, and when, it hears a cycle late.
It has no reset, which would be a long way from everything: it must be stopped after one.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from ditto.hdl.array import Array
from ditto.hdl.config import Config
from ditto.hdl.difference_buffer import DifferenceBuffer, ItemWrite, PlaceWrite
from ditto.hdl.lanes import Lanes
from ditto.hdl.protocol import LayerEntry
from ditto.hdl.register import OwnRegister, register_of
from ditto.hdl.sequencer import Sequencer, geometry_of

__all__ = ["Cluster"]


class Cluster(wiring.Component):
    """Run layer-table entries on one share of the output positions.

    Parameters
    ----------
    config
        The device.
    number
        Which of its clusters.

    Members
    -------
    items, places : In
        Write ports of the difference buffer.
    weight_en, weight_address, weight_data
        Write port of the weight bank, for words as :func:`ditto.hdl.multiplier.stored` makes them.
    selected : In(1)
        Show what is read; else zeros. There with ``read_en``, and stays.
    read_en, read_address, read_data
        Read port of the accumulator buffer while nothing runs; data comes two cycles after
        ``read_en`` and stays.
    entry : In(LayerEntry)
        What to run; stays as it is from ``start`` on.
    geometry : In(StructLayout)
        What follows from it.
    start : In(1)
        Walk ahead: the difference buffer is complete.
    steady : Out(1)
        Walked as far ahead as possible, as of the cycle before; so are the outputs that follow.
    begin : In(1)
        Run, from the next cycle on, in a mode; :py:attr:`steady` has come.
    dense : In(1)
        Start from zero.
    ended : Out(1)
        The run has written its last accumulators.
    stop : In(1)
        Drop everything; nothing is written from the cycle on after it is heard, the second one.
    overrun : Out(1)
        The entry makes no sense and will never end.
    working : Out(1)
        A row is at work.
    busy : Out(lanes)
        Lanes that read an item in this cycle.
    """

    items: wiring.PureInterface
    places: wiring.PureInterface
    weight_en: Signal
    weight_address: Signal
    weight_data: data.View
    selected: Signal
    read_en: Signal
    read_address: Signal
    read_data: data.View
    entry: data.View
    geometry: data.View
    start: Signal
    steady: Signal
    begin: Signal
    dense: Signal
    ended: Signal
    stop: Signal
    overrun: Signal
    working: Signal
    busy: Signal

    def __init__(self, config: Config, number: int) -> None:
        self.config = config
        self.number = number
        weights = data.ArrayLayout(signed(config.weight_bits), config.columns)
        accumulators = data.ArrayLayout(signed(config.accumulator_bits), config.columns)
        super().__init__(
            {
                "items": In(ItemWrite(config)),
                "places": In(PlaceWrite(config)),
                "weight_en": In(1),
                "weight_address": In(range(config.weight_rows)),
                "weight_data": In(weights),
                "selected": In(1),
                "read_en": In(1),
                "read_address": In(range(config.accumulator_rows)),
                "read_data": Out(accumulators),
                "entry": In(LayerEntry),
                "geometry": In(geometry_of(config)),
                "start": In(1),
                "steady": Out(1),
                "begin": In(1),
                "dense": In(1),
                "ended": Out(1),
                "stop": In(1),
                "overrun": Out(1),
                "working": Out(1),
                "busy": Out(config.lanes),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the cluster."""
        m = Module()
        config = self.config
        m.submodules.buffer = buffer = DifferenceBuffer(config)
        m.submodules.sequencer = sequencer = Sequencer(config)
        m.submodules.lanes = lanes = Lanes(config)
        m.submodules.array = array = Array(config)

        connect(m, flipped(self.items), buffer.items_w)
        connect(m, flipped(self.places), buffer.places_w)
        connect(m, sequencer.places, buffer.places_r)
        connect(m, sequencer.work, lanes.work)
        for lane in range(config.lanes):
            connect(m, lanes.items[lane], buffer.items_r[lane])
            m.d.comb += array.items[lane].eq(buffer.items_r[lane].item)

        m.submodules.entry_register = entry = OwnRegister(LayerEntry)
        m.submodules.geometry_register = geometry = OwnRegister(geometry_of(config))
        m.submodules.told_register = told = OwnRegister(3)
        m.d.comb += [
            entry.i.eq(self.entry),
            geometry.i.eq(self.geometry),
            told.i.eq(Cat(self.start, self.begin, self.stop)),
        ]
        start, begin, stop = told.o
        share = Signal(range(config.clusters), reset_less=True)
        with m.Switch(self.entry.split):
            for split in range(1, config.clusters + 1):
                with m.Case(split):
                    m.d.sync += share.eq(self.number % split)
        running = Signal(reset_less=True)
        with m.If(begin):
            m.d.sync += running.eq(1)
        with m.Elif(self.ended | stop):
            m.d.sync += running.eq(0)
        m.d.comb += [
            sequencer.entry.eq(entry.o),
            sequencer.geometry.eq(geometry.o),
            sequencer.share.eq(share),
            sequencer.start.eq(start),
            sequencer.stop.eq(stop),
            sequencer.free_row.eq(lanes.free_row),
            lanes.run.eq(running),
            lanes.clear.eq(stop),
            array.issue.eq(lanes.issue),
            array.begin.eq(begin),
            array.accumulator_base.eq(entry.o.accumulator_base),
            array.stop.eq(stop),
        ]

        # Rows that were pushed and not written yet. One that is not written has another after it.
        pending = Signal(range(config.list_depth + 16), reset_less=True)
        pushed = sequencer.work.push_row & ~sequencer.work.row.virtual
        m.d.sync += pending.eq(pending + pushed - array.written)
        with m.If(stop):
            m.d.sync += pending.eq(0)
        # The engine hears of everything a cycle late, far away as it is.
        m.d.sync += [
            register_of(m, self.steady).eq(sequencer.steady),
            register_of(m, self.ended).eq(sequencer.ended & (pending == 0)),
            register_of(m, self.overrun).eq(sequencer.overrun),
            register_of(m, self.working).eq(lanes.issue.valid),
            register_of(m, self.busy).eq(lanes.issue.busy),
        ]

        # The bank is written while nothing runs, so that the first lane's port can serve both.
        m.submodules.weights = bank = memory.Memory(
            shape=self.weight_data.shape(), depth=config.weight_rows, init=[]
        )
        write = bank.write_port()
        address = Mux(self.weight_en, self.weight_address, array.weight_address[0])
        m.d.comb += [
            write.en.eq(self.weight_en),
            write.addr.eq(address),
            write.data.eq(self.weight_data),
        ]
        for lane in range(config.lanes):
            read = bank.read_port()
            m.d.comb += [
                read.en.eq(array.weight_en & ~self.weight_en if lane == 0 else array.weight_en),
                read.addr.eq(address if lane == 0 else array.weight_address[lane]),
                array.weights[lane].eq(read.data),
            ]

        m.submodules.accumulators = accumulators = memory.Memory(
            shape=self.read_data.shape(), depth=config.accumulator_rows, init=[]
        )
        write, read = accumulators.write_port(), accumulators.read_port()
        old = Signal(self.read_data.shape(), reset_less=True)
        none = Signal(reset_less=True)
        m.d.sync += none.eq(Mux(running, self.dense, ~self.selected))
        # Without a register's reset, this would be a multiplexer.
        with m.If(none):
            m.d.sync += Value.cast(old).eq(0)
        with m.Else():
            m.d.sync += old.eq(read.data)
        m.d.comb += [
            write.en.eq(array.write_en),
            write.addr.eq(array.write_address),
            write.data.eq(array.write_data),
            read.en.eq(array.read_en | self.read_en),
            read.addr.eq(Mux(array.read_en, array.read_address, self.read_address)),
            array.read_data.eq(old),
            self.read_data.eq(old),
        ]
        return m
