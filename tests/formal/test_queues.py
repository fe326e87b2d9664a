# amaranth: UnusedElaboratable=no
"""Queues and memories: nothing is lost, doubled, reordered or made up; what is offered stays."""

from typing import Any

import pytest
from amaranth.hdl import Array, Cat, Module, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from ditto.hdl.config import Config
from ditto.hdl.difference_buffer import DifferenceBuffer
from ditto.hdl.lanes import RowQueue
from ditto.sim.formal import Proof, mutant

WORD = data.StructLayout({"word": 2})


class RowQueueProof(Proof):
    """A queue, if its user keeps the two promises that its docstring asks for."""

    def specify(self, m: Module) -> None:
        dut = self.dut
        self.queue = queue = self.order(
            push=dut.push,
            tail=dut.tail,
            pop=dut.pop,
            head=dut.head,
            most=dut.depth,
            clear=dut.clear,
        )
        # The queue has no reset of its own: whoever resets it clears it.
        self.assume(~self.reset | dut.clear)
        self.assume(~dut.pop | dut.filled)
        self.assume(~dut.push | (queue.count != dut.depth))
        self.require(dut.filled == (queue.count != 0))
        self.cover(queue.count == dut.depth)

    def support(self, m: Module) -> None:
        size = 1 << (self.dut.depth - 1).bit_length()
        queue = self.queue
        level = self.internal(queue.count.shape(), "dut.level")
        write = self.internal(range(size), "dut.$signature__addr_register")
        read = self.internal(range(size), "dut.read__addr_register")
        words = [self.internal(WORD.size, f"dut.storage[{n}]") for n in range(size)]
        self.require(level == queue.count)
        self.require(write == (read + level)[: len(write)])
        self.require(
            ~queue.follows | (Array(words)[(read + queue.ahead)[: len(read)]] == queue.value)
        )


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_row_queue(holds: Any, depth: int) -> None:
    holds(lambda: RowQueueProof(RowQueue(shape=WORD, depth=depth)), 2, reach=8, registers=True)


@pytest.mark.parametrize(
    "old, new",
    [
        ("size = 1 << (self.depth - 1).bit_length()", "size = self.depth - 1"),
        ("level + self.push - self.pop", "level + (self.push & ~self.pop)"),
        ("self.filled.eq(level != 0)", "self.filled.eq(level > 1)"),
        ("[into.eq(0), out_of.eq(0), level.eq(0)]", "[into.eq(0), level.eq(0)]"),
    ],
)
def test_row_queue_with_a_defect(refutes: Any, old: str, new: str) -> None:
    module = mutant("ditto.hdl.lanes", old, new)
    refutes(lambda: RowQueueProof(module.RowQueue(shape=WORD, depth=3)), 10)


class Buffer(wiring.Component):
    """The queue on both sides of the command machine, see :class:`ditto.hdl.top.Top`."""

    i: stream.Interface
    o: stream.Interface

    def __init__(self) -> None:
        super().__init__({"i": In(stream.Signature(2)), "o": Out(stream.Signature(2))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=2, depth=2)
        m.d.comb += [
            fifo.w_data.eq(self.i.payload),
            fifo.w_en.eq(self.i.valid),
            self.i.ready.eq(fifo.w_rdy),
            self.o.payload.eq(fifo.r_data),
            self.o.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(self.o.ready),
        ]
        return m


class BufferProof(Proof):
    """A stream goes through, and is never held up for more than a cycle."""

    def specify(self, m: Module) -> None:
        i, o = self.dut.i, self.dut.o
        self.queue = self.order(
            push=i.valid & i.ready,
            tail=i.payload,
            pop=o.valid & o.ready,
            head=o.payload,
            most=2,
        )
        self.stable(o)
        late = Signal()
        m.d.sync += late.eq((self.queue.count != 0) & ~o.valid)
        self.require(~late | o.valid)
        self.require(i.ready | (self.queue.count != 0))
        self.cover(self.queue.count == 2)

    def support(self, m: Module) -> None:
        inner = self.internal(1, "dut.fifo.inner_level")
        word = self.internal(2, "dut.fifo.storage[0]")
        queue, o = self.queue, self.dut.o
        self.require(queue.count == inner + o.valid)
        first = queue.follows & (queue.ahead == 0) & o.valid
        self.require(~first | (o.payload == queue.value))
        self.require(~queue.follows | first | (word == queue.value))


def test_stream_buffer(holds: Any) -> None:
    holds(lambda: BufferProof(Buffer()), 3, reach=8, registers=True)


BUFFER = Config(
    clusters=1, columns=1, channels=2, item_depth=8, positions=3, weight_rows=2, accumulator_rows=2
)


class DifferenceBufferProof(Proof):
    """Items and places are read as they were written, by every lane; an item stays."""

    def specify(self, m: Module) -> None:
        dut = self.dut
        depth = dut.config.item_depth
        reads = Cat(port.en for port in dut.items_r)
        # The encoder writes while no lane reads, and addresses lie inside.
        self.assume(~(dut.items_w.en & reads.any()))
        for port in (dut.items_w, *dut.items_r):
            self.assume(port.address < depth)
        for port in (dut.places_w, dut.places_r):
            self.assume(port.address < dut.config.positions)

        self.spot = spot = self.constant(range(depth), "spot")
        self.assume(spot < depth)
        self.item = item = Signal(len(Value.cast(dut.items_w.item)))
        self.written = written = Signal()
        with m.If(dut.items_w.en & (dut.items_w.address == spot)):
            m.d.sync += [written.eq(1), item.eq(Value.cast(dut.items_w.item))]
        self.shown = []
        for number, port in enumerate(dut.items_r):
            shows = Signal(name=f"shows_{number}")
            value = Signal.like(item, name=f"value_{number}")
            with m.If(port.en):
                m.d.sync += [shows.eq(written & (port.address == spot)), value.eq(item)]
            self.require(~shows | (Value.cast(port.item) == value))
            self.cover(shows & ~port.en)

        self.place_spot = place_spot = self.constant(range(dut.config.positions), "place_spot")
        self.assume(place_spot < dut.config.positions)
        self.place = place = Signal(len(Value.cast(dut.places_w.place)))
        self.placed = placed = Signal()
        with m.If(dut.places_w.en & (dut.places_w.address == place_spot)):
            m.d.sync += [placed.eq(1), place.eq(Value.cast(dut.places_w.place))]
        shows, value = Signal(), Signal.like(place)
        # A place may not be read in the cycle in which it is written.
        clash = dut.places_w.en & (dut.places_w.address == dut.places_r.address)
        m.d.sync += [
            shows.eq(placed & ~clash & (dut.places_r.address == place_spot)),
            value.eq(place),
        ]
        self.require(~shows | (Value.cast(dut.places_r.place) == value))
        self.cover(shows)

    def support(self, m: Module) -> None:
        config = self.dut.config
        for name, depth, spot, is_written, value in (
            ("items", config.item_depth, self.spot, self.written, self.item),
            ("places", config.positions, self.place_spot, self.placed, self.place),
        ):
            words = [self.internal(len(value), f"dut.{name}[{n}]") for n in range(depth)]
            self.require(~is_written | (Array(words)[spot] == value))


def test_difference_buffer(holds: Any) -> None:
    holds(lambda: DifferenceBufferProof(DifferenceBuffer(BUFFER)), 2, reach=6, registers=True)


@pytest.mark.parametrize(
    "old, new",
    [
        (
            "Mux(self.items_w.en, self.items_w.address, self.items_r[0].address)",
            "Mux(self.items_r[0].en, self.items_w.address, self.items_r[0].address)",
        ),
        ("read.en.eq(port.en & ~self.items_w.en if lane == 0 else port.en)", "read.en.eq(1)"),
        ("w.data.eq(self.places_w.place)", "w.data.eq(self.items_w.item)"),
    ],
)
def test_difference_buffer_with_a_defect(refutes: Any, old: str, new: str) -> None:
    module = mutant("ditto.hdl.difference_buffer", old, new)
    refutes(lambda: DifferenceBufferProof(module.DifferenceBuffer(BUFFER)), 6)
