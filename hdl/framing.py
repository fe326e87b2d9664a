"""Frames on the link: bytes in, checked bodies out, and back.

A frame is ``COBS(body + CRC-32(body))`` between zero bytes, the CRC little-endian and computed as
``zlib.crc32`` does. COBS (Cheshire and Baker, "Consistent overhead byte stuffing", 1999) replaces
zero bytes, so that a zero byte always ends a frame and a receiver finds its place again after any
error.
"""

from typing import Any

from amaranth import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.crc.catalog import CRC32_ISO_HDLC
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import bits_for

__all__ = ["PACKET", "CobsDecoder", "CobsEncoder", "CrcAppender", "Deframer", "Framer"]

PACKET = data.StructLayout({"data": 8, "last": 1})
"""Payload of a stream of bodies: a byte, and whether it is the last one of its body."""

_CRC_BYTES = 4


class CobsDecoder(wiring.Component):
    """Undo byte stuffing, frame by frame.

    Each transfer on ``o`` is a decoded byte or, with ``end`` set, the delimiter; then ``intact``
    tells whether the frame ended where a block ends, and ``data`` means nothing. Delimiters without
    a frame between them are passed on too.

    One byte a cycle, no latency: ``o`` depends on ``i`` in the same cycle. The first code byte of a
    frame, and one that follows a block of 254 bytes, stand for no byte of ``o``.

    Members
    -------
    i : In(stream.Signature(8))
        Stuffed bytes.
    o : Out(stream.Signature(StructLayout({"data", "end", "intact"})))
        Decoded bytes and delimiters.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self) -> None:
        token = data.StructLayout({"data": 8, "end": 1, "intact": 1})
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(token))})

    def elaborate(self, platform: object) -> Module:
        """Build the decoder."""
        m = Module()

        left = Signal(8)  # bytes that the block still has
        owes_zero = Signal()  # the block stands for a zero byte, unless the frame ends with it
        is_end = Signal()
        is_code = Signal()
        m.d.comb += [
            is_end.eq(self.i.payload == 0),
            is_code.eq(~is_end & (left == 0)),
            self.o.p.data.eq(Mux(is_code, 0, self.i.payload)),
            self.o.p.end.eq(is_end),
            self.o.p.intact.eq(left == 0),
            self.o.valid.eq(self.i.valid & (~is_code | owes_zero)),
            self.i.ready.eq(self.o.ready),
        ]

        with m.If(self.i.valid & self.i.ready):
            with m.If(is_end):
                m.d.sync += [left.eq(0), owes_zero.eq(0)]
            with m.Elif(is_code):
                m.d.sync += [left.eq(self.i.payload - 1), owes_zero.eq(self.i.payload != 0xFF)]
            with m.Else():
                m.d.sync += left.eq(left - 1)

        return m


class Deframer(wiring.Component):
    """Take frames from the link and pass on the bodies of those that arrived well.

    A body appears on ``o``, without its CRC, only when the whole frame is stored and found right.
    Frames that are cut, garbled, empty or too long leave no trace; the next zero byte starts anew.

    A byte a cycle goes in. The first byte of the body is on ``o`` two cycles after the transfer of
    the frame's last delimiter; the others follow in a byte a cycle. ``i`` is not ready from the
    cycle after that delimiter until the cycle after the last transfer on ``o``. A frame that is
    dropped takes no time.

    Parameters
    ----------
    frame_bytes
        Longest frame, CRC included, before stuffing; at least 5.

    Members
    -------
    i : In(stream.Signature(8))
        Bytes of the link.
    o : Out(stream.Signature(PACKET))
        Bodies.

    Raises
    ------
    TypeError
        If ``frame_bytes`` is not an integer.
    ValueError
        If a frame of that size has no room for a body.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, *, frame_bytes: int) -> None:
        if not isinstance(frame_bytes, int):
            raise TypeError(f"Frame size must be an integer, not {frame_bytes!r}")
        if frame_bytes <= _CRC_BYTES:
            raise ValueError(
                f"Frame size must be at least {_CRC_BYTES + 1} bytes, not {frame_bytes!r}"
            )
        self.frame_bytes = frame_bytes
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(PACKET))})

    def elaborate(self, platform: object) -> Module:
        """Build the deframer."""
        m = Module()
        m.submodules.decoder = decoder = CobsDecoder()
        crc: Any = CRC32_ISO_HDLC(8).create()  # unknown to amaranth-stubs
        m.submodules.crc = crc
        m.submodules.store = store = Memory(shape=8, depth=self.frame_bytes, init=[])
        write, read = store.write_port(), store.read_port()
        connect(m, flipped(self.i), decoder.i)

        count = Signal(bits_for(self.frame_bytes + 1))  # stored bytes; frame_bytes + 1: too many
        position = Signal(range(self.frame_bytes + 1))
        do_write = Signal()
        m.d.comb += [
            write.addr.eq(count),
            write.data.eq(decoder.o.p.data),
            write.en.eq(do_write & (count != self.frame_bytes)),
            crc.data.eq(decoder.o.p.data),
            crc.valid.eq(do_write),
            read.addr.eq(position),
            read.en.eq(~self.o.valid | self.o.ready),
            self.o.p.data.eq(read.data),
        ]

        with m.FSM():
            with m.State("Take a frame"):
                m.d.comb += decoder.o.ready.eq(1)
                with m.If(decoder.o.valid):
                    with m.If(~decoder.o.p.end):
                        with m.If(count <= self.frame_bytes):
                            m.d.comb += do_write.eq(1)
                            m.d.sync += count.eq(count + 1)
                    with m.Else():
                        fits = (count > _CRC_BYTES) & (count <= self.frame_bytes)
                        m.d.comb += crc.start.eq(1)
                        with m.If(decoder.o.p.intact & crc.match_detected & fits):
                            m.next = "Pass its body on"
                        with m.Else():
                            m.d.sync += count.eq(0)

            with m.State("Pass its body on"), m.If(read.en):
                m.d.sync += [
                    self.o.valid.eq(1),
                    self.o.p.last.eq(position + (_CRC_BYTES + 1) == count),
                    position.eq(position + 1),
                ]
                with m.If(position + _CRC_BYTES == count):
                    m.d.sync += [self.o.valid.eq(0), position.eq(0), count.eq(0)]
                    m.next = "Take a frame"

        return m


class CrcAppender(wiring.Component):
    """Append the CRC-32 to each body.

    One byte a cycle, no latency: a byte of ``i`` is on ``o`` in the same cycle. The four bytes of
    the CRC follow the last one at once; ``i`` is not ready meanwhile.

    Members
    -------
    i : In(stream.Signature(PACKET))
        Bodies.
    o : Out(stream.Signature(PACKET))
        Bodies with CRC.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self) -> None:
        super().__init__({"i": In(stream.Signature(PACKET)), "o": Out(stream.Signature(PACKET))})

    def elaborate(self, platform: object) -> Module:
        """Build the appender."""
        m = Module()
        crc: Any = CRC32_ISO_HDLC(8).create()  # unknown to amaranth-stubs
        m.submodules.crc = crc
        m.d.comb += crc.data.eq(self.i.p.data)

        with m.FSM():
            with m.State("Body"):
                m.d.comb += [
                    self.o.p.data.eq(self.i.p.data),
                    self.o.valid.eq(self.i.valid),
                    self.i.ready.eq(self.o.ready),
                    crc.valid.eq(self.i.valid & self.i.ready),
                ]
                with m.If(crc.valid & self.i.p.last):
                    m.next = "CRC"

            with m.State("CRC"):
                index = Signal(range(_CRC_BYTES))
                m.d.comb += [
                    self.o.p.data.eq(crc.crc.word_select(index, 8)),
                    self.o.p.last.eq(index == _CRC_BYTES - 1),
                    self.o.valid.eq(1),
                ]
                with m.If(self.o.ready):
                    m.d.sync += index.eq(index + 1)
                    with m.If(self.o.p.last):
                        m.d.comb += crc.start.eq(1)
                        m.next = "Body"

        return m


class CobsEncoder(wiring.Component):
    """Stuff the bytes of each packet, and put a zero byte before and after.

    A block's first byte, the code, depends on what follows in the block. So blocks of up to 255
    bytes wait in a ring of 512 until they are complete, and the next one is written behind them.

    ``i`` takes a byte a cycle but for three cycles a packet (delimiters, last code) and one for
    each block of 254 bytes without a zero: every byte of ``o`` costs one cycle of ``i``, and the
    ring never fills as long as ``o`` is taken at once. The leading delimiter is on ``o`` two cycles
    after ``valid`` of the first byte. The other bytes follow a byte a cycle from two cycles after
    their block is complete; between blocks of full length there is no pause.

    Members
    -------
    i : In(stream.Signature(PACKET))
        Packets of any length.
    o : Out(stream.Signature(8))
        Frames.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self) -> None:
        super().__init__({"i": In(stream.Signature(PACKET)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform: object) -> Module:
        """Build the encoder."""
        m = Module()
        m.submodules.ring = ring = Memory(shape=8, depth=512, init=[])
        write, read = ring.write_port(), ring.read_port()

        code_at = Signal(9)  # everything before this address is complete
        byte_at = Signal(9, init=1)
        read_at = Signal(9)
        has_room = Signal()
        m.d.comb += has_room.eq((byte_at + 1)[:9] != read_at)

        def append(byte):
            m.d.comb += [write.addr.eq(byte_at), write.data.eq(byte), write.en.eq(1)]
            m.d.sync += byte_at.eq(byte_at + 1)

        def complete(code):
            m.d.comb += [write.addr.eq(code_at), write.data.eq(code), write.en.eq(1)]
            m.d.sync += [code_at.eq(byte_at), byte_at.eq(byte_at + 1)]

        code = Signal(8)
        m.d.comb += code.eq(byte_at - code_at)
        is_ended = Signal()

        with m.FSM():
            with m.State("Delimiter before"), m.If(self.i.valid & has_room):
                complete(0)
                m.next = "Bytes"

            with m.State("Bytes"):
                m.d.comb += self.i.ready.eq(has_room)
                with m.If(self.i.valid & has_room):
                    m.d.sync += is_ended.eq(self.i.p.last)
                    with m.If(self.i.p.data == 0):
                        complete(code)
                    with m.Else():
                        append(self.i.p.data)
                    with m.If(self.i.p.last | (self.i.p.data != 0) & (code == 0xFE)):
                        m.next = "Code"

            with m.State("Code"), m.If(has_room):
                complete(code)
                with m.If(is_ended):
                    m.next = "Delimiter after"
                with m.Else():
                    m.next = "Bytes"

            with m.State("Delimiter after"), m.If(has_room):
                complete(0)
                m.next = "Delimiter before"

        m.d.comb += [
            read.addr.eq(read_at),
            read.en.eq(~self.o.valid | self.o.ready),
            self.o.payload.eq(read.data),
        ]
        with m.If(read.en):
            m.d.sync += self.o.valid.eq(read_at != code_at)
            with m.If(read_at != code_at):
                m.d.sync += read_at.eq(read_at + 1)

        return m


class Framer(wiring.Component):
    """Make a frame of each body.

    A body's ``n`` bytes and CRC occupy the framer for as many cycles as the frame has bytes, which
    is ``n + 7`` and one for each block of 254 bytes without a zero, unless ``o`` stalls. The frame
    leaves two cycles or more behind; see :class:`CobsEncoder`. ``i`` may pause within a body.

    Members
    -------
    i : In(stream.Signature(PACKET))
        Bodies of at least one byte.
    o : Out(stream.Signature(8))
        Bytes for the link.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self) -> None:
        super().__init__({"i": In(stream.Signature(PACKET)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform: object) -> Module:
        """Build the framer."""
        m = Module()
        m.submodules.appender = appender = CrcAppender()
        m.submodules.encoder = encoder = CobsEncoder()

        connect(m, flipped(self.i), appender.i)
        connect(m, appender.o, encoder.i)
        connect(m, encoder.o, flipped(self.o))

        return m
