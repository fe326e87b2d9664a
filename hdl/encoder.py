"""Delta encoder: bytes to deltas, deltas to digits, nonzero digits to work items.

::

    bytes ──► DeltaReader ──► Gather ──► DigitSplitter ──► difference buffer
              one delta       one word     nonzero digits
              a cycle         of lanes     of every lane

"""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from ditto.hdl.config import Config
from ditto.hdl.difference_buffer import CountsWrite, ItemWrite
from ditto.hdl.protocol import ESCAPE

__all__ = ["DeltaReader", "DigitSplitter", "Encoder", "Gather", "digits_of", "word_of"]


def digits_of(delta: Value, *, digit_bits: int, digits: int) -> list[Value]:
    """Split a signed delta into balanced digits, low digit first, all combinational."""
    result: list[Value] = []
    for _ in range(digits - 1):
        low = delta[:digit_bits].as_signed()
        result.append(low)
        # A negative low digit is made good by one more in the digits above it.
        delta = (delta >> digit_bits) + low[-1]
    result.append(delta[:digit_bits].as_signed())
    return result


def word_of(*, lanes: int, delta_bits: int) -> data.StructLayout:
    """Lay out a delta for each lane, and whether they are the last of their position."""
    return data.StructLayout({"deltas": data.ArrayLayout(signed(delta_bits), lanes), "last": 1})


class DeltaReader(wiring.Component):
    """Read deltas from a stream of bytes, see :attr:`ditto.hdl.protocol.Space.DELTAS`.

    A byte is a delta in -127..127; the byte 0x80 announces a 16-bit little-endian delta. Takes a
    byte a cycle; a delta leaves in the cycle in which its last byte comes.

    Parameters
    ----------
    delta_bits
        Width of a delta.

    Members
    -------
    i : In(stream.Signature(8))
        Bytes.
    o : Out(stream.Signature(signed(delta_bits)))
        Deltas.
    clear : In(1)
        Forget a delta that has begun.
    partial : Out(1)
        A delta has begun and not ended.
    """

    i: stream.Interface
    o: stream.Interface
    clear: Signal
    partial: Signal

    def __init__(self, *, delta_bits: int) -> None:
        super().__init__(
            {
                "i": In(stream.Signature(8)),
                "o": Out(stream.Signature(signed(delta_bits))),
                "clear": In(1),
                "partial": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the reader."""
        m = Module()
        low = Signal(8)
        with m.FSM() as fsm:
            with m.State("Delta"):
                # Nothing is remembered here, so `clear` has nothing to do.
                escape = self.i.payload == ESCAPE
                m.d.comb += [
                    self.o.payload.eq(self.i.payload.as_signed()),
                    self.o.valid.eq(self.i.valid & ~escape),
                    self.i.ready.eq(self.o.ready | escape),
                ]
                with m.If(self.i.valid & escape & ~self.clear):
                    m.next = "Low byte"
            with m.State("Low byte"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += low.eq(self.i.payload)
                with m.If(self.clear):
                    m.next = "Delta"
                with m.Elif(self.i.valid):
                    m.next = "High byte"
            with m.State("High byte"):
                m.d.comb += [
                    self.o.payload.eq(Cat(low, self.i.payload).as_signed()),
                    self.o.valid.eq(self.i.valid),
                    self.i.ready.eq(self.o.ready),
                ]
                with m.If(self.clear | (self.i.valid & self.o.ready)):
                    m.next = "Delta"
            m.d.comb += self.partial.eq(~fsm.ongoing("Delta"))
        return m


class Gather(wiring.Component):
    """Gather the channels of a position into words of one delta a lane.

    Channel ``k`` goes to lane ``k % lanes``; lanes without a channel get zero. Takes a delta a
    cycle; a word leaves the cycle after its last delta came.

    Parameters
    ----------
    lanes
        Deltas in a word.
    delta_bits
        Width of a delta.

    Members
    -------
    channels : In(16)
        Channels of a position, at least 1; may change only together with ``clear``.
    i : In(stream.Signature(signed(delta_bits)))
        Deltas, position by position.
    o : Out(stream.Signature(StructLayout))
        ``deltas``, one a lane; ``last`` with the last word of a position.
    clear : In(1)
        Begin with a new position, and drop what was gathered.
    partial : Out(1)
        A position has begun and not ended.
    """

    channels: Signal
    i: stream.Interface
    o: stream.Interface
    clear: Signal
    partial: Signal

    def __init__(self, *, lanes: int, delta_bits: int) -> None:
        self.lanes = lanes
        self.delta_bits = delta_bits
        super().__init__(
            {
                "channels": In(16),
                "i": In(stream.Signature(signed(delta_bits))),
                "o": Out(stream.Signature(word_of(lanes=lanes, delta_bits=delta_bits))),
                "clear": In(1),
                "partial": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gatherer."""
        m = Module()
        lane = Signal(range(max(self.lanes, 2)))
        left = Signal(16)
        last = left == 1
        m.d.comb += [
            self.i.ready.eq(~self.o.valid | self.o.ready),
            self.partial.eq(left != self.channels),
        ]
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            with m.If(lane == 0):
                m.d.sync += self.o.payload.deltas.eq(0)
            m.d.sync += [
                self.o.payload.last.eq(last),
                lane.eq(lane + 1),
                left.eq(left - 1),
            ]
            for index in range(self.lanes):
                with m.If(lane == index):
                    m.d.sync += self.o.payload.deltas[index].eq(self.i.payload)
            with m.If(last | (lane == self.lanes - 1)):
                m.d.sync += [lane.eq(0), self.o.valid.eq(1)]
            with m.If(last):
                m.d.sync += left.eq(self.channels)
        with m.If(self.clear):
            m.d.sync += [lane.eq(0), left.eq(self.channels), self.o.valid.eq(0)]
        return m


class DigitSplitter(wiring.Component):
    """Write the nonzero digits of every lane's deltas to the difference buffer as work items.

    Zero digits produce nothing. A word takes as many cycles as its delta with the most nonzero
    digits has, and at least one. Position ``n`` begins at item ``n * slot`` in every lane.

    Parameters
    ----------
    config
        The device.

    Members
    -------
    slot : In(16)
        Items reserved for a position: channel rows times digits; may change only with ``clear``.
    i : In(stream.Signature(StructLayout))
        Words of :class:`Gather`.
    items : Out(ItemWrite) array
        One write port a lane.
    counts : Out(CountsWrite)
        Number of items in every lane, once a position.
    positions : Out(16)
        Positions written since ``clear``; stays at its largest value.
    overflow : Out(1)
        A position did not fit the difference buffer since ``clear``, and was not written.
    busy : Out(1)
        A word is being written.
    clear : In(1)
        Begin at the first position again.
    """

    slot: Signal
    i: stream.Interface
    items: list[wiring.PureInterface]
    counts: wiring.PureInterface
    positions: Signal
    overflow: Signal
    busy: Signal
    clear: Signal

    def __init__(self, config: Config) -> None:
        self.config = config
        word = word_of(lanes=config.lanes, delta_bits=config.delta_bits)
        super().__init__(
            {
                "slot": In(16),
                "i": In(stream.Signature(word)),
                "items": Out(ItemWrite(config)).array(config.lanes),
                "counts": Out(CountsWrite(config)),
                "positions": Out(16),
                "overflow": Out(1),
                "busy": Out(1),
                "clear": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the splitter."""
        m = Module()
        config = self.config
        row = Signal(config.row_bits)
        base = Signal(range(config.item_depth + 1))
        end = Signal(17)
        fits = Signal()
        done = Signal()
        waiting: list[Value] = []
        m.d.comb += [
            end.eq(base + self.slot),
            fits.eq(
                ~self.overflow & (end <= config.item_depth) & (self.positions < config.positions)
            ),
            self.i.ready.eq(done),
            self.busy.eq(self.i.valid),
            self.counts.en.eq(self.i.valid & self.i.p.last & done & fits),
            self.counts.address.eq(self.positions),
        ]
        for lane in range(config.lanes):
            digits = digits_of(
                self.i.p.deltas[lane], digit_bits=config.digit_bits, digits=config.digits
            )
            nonzero = Signal(config.digits, name=f"nonzero_{lane}")
            written = Signal(config.digits, name=f"written_{lane}")
            left = Signal(config.digits, name=f"left_{lane}")
            lowest = Signal(config.digits, name=f"lowest_{lane}")
            shift = Signal(range(max(config.digits, 2)), name=f"shift_{lane}")
            count = Signal(config.count_bits, name=f"count_{lane}")
            port = self.items[lane]
            m.d.comb += [
                nonzero.eq(Cat(digit != 0 for digit in digits)),
                left.eq(nonzero & ~written),
                lowest.eq(left & -left),
                port.en.eq(self.i.valid & left.any() & fits),
                port.address.eq(base + count),
                port.item.row.eq(row),
                port.item.digit.eq(Array(digits)[shift]),
                port.item.shift.eq(shift),
                self.counts.counts[lane].eq(count + left.any()),
            ]
            for i in range(config.digits):
                with m.If(lowest[i]):
                    m.d.comb += shift.eq(i)
            waiting.append((left & ~lowest).any())
            with m.If(self.i.valid):
                m.d.sync += [
                    written.eq(Mux(done, 0, written | lowest)),
                    count.eq(Mux(done & self.i.p.last, 0, count + left.any())),
                ]
            with m.If(self.clear):
                m.d.sync += [written.eq(0), count.eq(0)]
        m.d.comb += done.eq(~Cat(waiting).any())
        with m.If(self.i.valid & done):
            m.d.sync += row.eq(row + 1)
            with m.If(self.i.p.last):
                m.d.sync += row.eq(0)
                with m.If(fits):
                    m.d.sync += [base.eq(end), self.positions.eq(self.positions + 1)]
                with m.Else():
                    m.d.sync += self.overflow.eq(1)
        with m.If(self.clear):
            m.d.sync += [row.eq(0), base.eq(0), self.positions.eq(0), self.overflow.eq(0)]
        return m


class Encoder(wiring.Component):
    """Encode a tile of deltas into the difference buffer, and count what they are.

    Takes a byte a cycle unless wide deltas come closer together than there are lanes.

    Parameters
    ----------
    config
        The device.

    Members
    -------
    channels : In(16)
        Channels of a position.
    channel_rows : In(16)
        Weight rows of a position: ``ceil(channels / lanes)``.
    i : In(stream.Signature(8))
        Bytes of deltas, see :class:`DeltaReader`.
    items, counts
        Write ports of the difference buffer.
    begin : In(1)
        Empty the difference buffer and begin a tile; ``channels`` and ``channel_rows`` have their
        new values in this cycle and keep them.
    positions : Out(16)
        Whole positions that the difference buffer holds.
    exact : Out(1)
        No position has begun without having ended, and all of them fitted.
    busy : Out(1)
        Something is still on its way to the difference buffer.
    zero, narrow, wide : Out(32)
        Deltas since ``begin`` that are zero, that fit the low digit, and others.
    """

    channels: Signal
    channel_rows: Signal
    i: stream.Interface
    items: list[wiring.PureInterface]
    counts: wiring.PureInterface
    begin: Signal
    positions: Signal
    exact: Signal
    busy: Signal
    zero: Signal
    narrow: Signal
    wide: Signal

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "channels": In(16),
                "channel_rows": In(16),
                "i": In(stream.Signature(8)),
                "items": Out(ItemWrite(config)).array(config.lanes),
                "counts": Out(CountsWrite(config)),
                "begin": In(1),
                "positions": Out(16),
                "exact": Out(1),
                "busy": Out(1),
                "zero": Out(32),
                "narrow": Out(32),
                "wide": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the encoder."""
        m = Module()
        config = self.config
        m.submodules.reader = reader = DeltaReader(delta_bits=config.delta_bits)
        m.submodules.gather = gather = Gather(lanes=config.lanes, delta_bits=config.delta_bits)
        m.submodules.splitter = splitter = DigitSplitter(config)
        connect(m, flipped(self.i), reader.i)
        connect(m, reader.o, gather.i)
        connect(m, gather.o, splitter.i)
        for lane in range(config.lanes):
            connect(m, splitter.items[lane], flipped(self.items[lane]))
        connect(m, splitter.counts, flipped(self.counts))
        m.d.comb += [
            reader.clear.eq(self.begin),
            gather.clear.eq(self.begin),
            gather.channels.eq(self.channels),
            splitter.clear.eq(self.begin),
            splitter.slot.eq(self.channel_rows * config.digits),
            self.positions.eq(splitter.positions),
            self.exact.eq(~(reader.partial | gather.partial | splitter.overflow)),
            self.busy.eq(self.i.valid | splitter.busy),
        ]
        with m.If(self.begin):
            m.d.sync += [self.zero.eq(0), self.narrow.eq(0), self.wide.eq(0)]
        with m.Elif(gather.i.valid & gather.i.ready):
            delta = gather.i.payload
            with m.If(delta == 0):
                m.d.sync += self.zero.eq(self.zero + 1)
            with m.Elif(delta == delta[: config.digit_bits].as_signed()):
                m.d.sync += self.narrow.eq(self.narrow + 1)
            with m.Else():
                m.d.sync += self.wide.eq(self.wide + 1)
        return m
