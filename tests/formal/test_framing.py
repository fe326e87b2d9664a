# amaranth: UnusedElaboratable=no
"""Framing: streams keep their contract, bytes their order; receivers find their place again."""

from typing import Any
from zlib import crc32

import pytest
from amaranth.hdl import Array, Const, Module, Mux, Signal
from cobs import cobs

from ditto.hdl.framing import CobsDecoder, CrcAppender, Deframer, Framer
from ditto.sim.formal import Proof, mutant


class CobsDecoderProof(Proof):
    """Tokens follow from the bytes of the frame; whatever came before a zero byte is forgotten."""

    def specify(self, m: Module) -> None:
        i, o = self.dut.i, self.dut.o
        self.stable(i, assume=True)
        self.stable(o)
        takes = i.valid & i.ready
        # The block, as the format has it: its code byte and how many bytes of it have come.
        self.code, self.got = code, got = Signal(8), Signal(8)
        block_ends = (code == 0) | (got == code)
        is_end, is_code = i.payload == 0, (i.payload != 0) & block_ends
        self.require(i.ready == o.ready | ~i.valid & i.ready)
        stands = (code != 0) & (code != 0xFF)
        self.require(o.valid == (i.valid & (~is_code | stands)))
        with m.If(o.valid):
            self.require(o.p.end == is_end)
            self.require(~is_end | (o.p.intact == block_ends))
            self.require(is_end | (o.p.data == Mux(is_code, 0, i.payload)))
        with m.If(takes):
            m.d.sync += [
                code.eq(Mux(is_end, 0, Mux(is_code, i.payload, code))),
                got.eq(Mux(is_end, 0, Mux(is_code, 1, got + 1))),
            ]
        self.cover(o.valid & o.p.end & ~o.p.intact)
        self.cover(o.valid & is_code & stands)

    def support(self, m: Module) -> None:
        left = self.internal(8, "dut.left")
        owes = self.internal(1, "dut.owes_zero")
        self.require((self.got <= self.code) & ((self.got != 0) | (self.code == 0)))
        self.require(left == (self.code - self.got)[:8])
        self.require(owes == ((self.code != 0) & (self.code != 0xFF)))


def test_cobs_decoder(holds: Any) -> None:
    holds(lambda: CobsDecoderProof(CobsDecoder()), 2, reach=6)


@pytest.mark.parametrize(
    "old, new",
    [
        ("[left.eq(self.i.payload - 1)", "[left.eq(self.i.payload)"),
        ("m.d.sync += [left.eq(0), owes_zero.eq(0)]", "m.d.sync += left.eq(0)"),
        ("self.o.p.intact.eq(left == 0)", "self.o.p.intact.eq(left <= 1)"),
    ],
)
def test_cobs_decoder_with_a_defect(refutes: Any, old: str, new: str) -> None:
    module = mutant("ditto.hdl.framing", old, new)
    refutes(lambda: CobsDecoderProof(module.CobsDecoder()), 8)


class CrcAppenderProof(Proof):
    """A body goes through as it is, and four bytes and the end follow."""

    def specify(self, m: Module) -> None:
        i, o = self.dut.i, self.dut.o
        self.stable(i, assume=True)
        self.stable(o)
        self.extra = extra = Signal(range(5))  # bytes of the check to come
        gives, takes = o.valid & o.ready, i.valid & i.ready
        with m.If(extra == 0):
            self.require((o.valid == i.valid) & (i.ready == o.ready))
            self.require(~o.valid | ((o.p.data == i.p.data) & ~o.p.last))
            with m.If(takes & i.p.last):
                m.d.sync += extra.eq(4)
        with m.Else():
            self.require(o.valid & ~i.ready & (o.p.last == (extra == 1)))
            with m.If(gives):
                m.d.sync += extra.eq(extra - 1)
        self.cover(gives & o.p.last)

    def support(self, m: Module) -> None:
        state = self.internal(1, "dut.fsm_state")
        index = self.internal(2, "dut.index")
        self.require((self.extra <= 4) & (state == (self.extra != 0)))
        self.require(index == (4 - self.extra)[:2])


def test_crc_appender(holds: Any) -> None:
    holds(lambda: CrcAppenderProof(CrcAppender()), 2, reach=8)


def test_crc_appender_with_a_defect(refutes: Any) -> None:
    module = mutant("ditto.hdl.framing", "index == _CRC_BYTES - 1", "index == _CRC_BYTES - 2")
    refutes(lambda: CrcAppenderProof(module.CrcAppender()), 8)


class FramerProof(Proof):
    """The frame of a short body of any bytes, and nothing else, at any speed of either side.

    Stuffing is undone byte by byte as the format describes it; the check is left to the
    simulation, which compares it with ``zlib``.
    """

    def specify(self, m: Module) -> None:
        i, o = self.dut.i, self.dut.o
        self.stable(i, assume=True)
        self.stable(o)
        takes, gives = i.valid & i.ready, o.valid & o.ready
        # Bytes of the one body, of at most two.
        body = Array(Signal(8, name=f"body_{n}") for n in range(2))
        length = Signal(range(3))
        whole = Signal()
        self.assume(~(whole & i.valid))
        self.assume(~i.valid | (length != 1) | i.p.last)
        with m.If(takes):
            m.d.sync += [body[length].eq(i.p.data), length.eq(length + 1), whole.eq(i.p.last)]
        place, left, decoded = Signal(5), Signal(8), Signal(4)
        after_first = Signal()
        self.require(~gives | (place <= length + 7))
        with m.If(gives):
            m.d.sync += place.eq(place + 1)
            ends = whole & (place == length + 6)
            with m.If((place == 0) | ends):
                self.require(o.payload == 0)
                self.require(~ends | (left == 0))
            with m.Elif(left == 0):
                self.require(o.payload != 0)
                m.d.sync += [left.eq(o.payload - 1), after_first.eq(1)]
                # The code stands for a zero byte, but for the first one.
                with m.If(after_first):
                    m.d.sync += decoded.eq(decoded + 1)
                    self.require((decoded >= length) | (body[decoded[:1]] == 0))
            with m.Else():
                self.require(o.payload != 0)
                m.d.sync += [left.eq(left - 1), decoded.eq(decoded + 1)]
                self.require((decoded >= length) | (body[decoded[:1]] == o.payload))
        self.cover(gives & whole & (place == length + 6))


def test_framer(holds: Any) -> None:
    holds(lambda: FramerProof(Framer()), 12, "bmc", reach=14)


class ResynchronizationProof(Proof):
    """After a zero byte or a body, nothing is left of what came before: as after a reset.

    So a frame arrives, or not, whatever the link has carried before the zero byte that begins it.
    """

    def specify(self, m: Module) -> None:
        i, o = self.dut.i, self.dut.o
        self.stable(i, assume=True)
        self.stable(o)
        passes, count = self.internal(1, "dut.fsm_state"), self.internal(4, "dut.count")
        position = self.internal(4, "dut.position")
        left = self.internal(8, "dut.decoder.left")
        owes_zero = self.internal(1, "dut.decoder.owes_zero")
        crc = self.internal(32, "dut.crc.crc_reg")
        is_clear = (left == 0) & ~owes_zero & (crc == 0xFFFFFFFF)
        # Whether a byte of a frame has come since the last zero byte.
        began = Signal()
        with m.If(i.valid & i.ready):
            m.d.sync += began.eq(i.payload != 0)
        self.require(began | is_clear)
        self.require(passes | ((position == 0) & ~o.valid))
        self.require(began | passes | (count == 0))
        self.require(~(passes & began))
        self.require(i.ready == ~passes)
        # A body has a byte at least, and ends.
        self.require(~passes | ((count > 4) & (count <= self.dut.frame_bytes)))
        self.require(~passes | (position + 4 <= count))
        self.require(~passes | (o.valid == (position != 0)))
        self.require(~o.valid | (o.p.last == (position + 4 == count)))
        self.require(count <= self.dut.frame_bytes + 1)


def test_resynchronization(holds: Any) -> None:
    holds(lambda: ResynchronizationProof(Deframer(frame_bytes=8)), 2, reach=0)


@pytest.mark.parametrize(
    "old, new",
    [
        (
            "with m.Else():\n                            m.d.sync += count.eq(0)",
            "with m.Elif(0):\n                            m.d.sync += count.eq(0)",
        ),
        (
            "m.d.comb += crc.start.eq(1)\n                        with m.If(decoder",
            "with m.If(decoder",
        ),
    ],
)
def test_resynchronization_with_a_defect(refutes: Any, old: str, new: str) -> None:
    module = mutant("ditto.hdl.framing", old, new)
    refutes(lambda: ResynchronizationProof(module.Deframer(frame_bytes=8)), 6)


BODY = b"\x2a\x00"
FRAME = b"\0" + cobs.encode(BODY + crc32(BODY).to_bytes(4, "little")) + b"\0"


class DeframerProof(Proof):
    """Whatever has come before, a whole frame between zero bytes arrives, and only its body.

    After any bytes comes the frame of a fixed body. Sides are as fast as they like.
    """

    garbage = 1

    def specify(self, m: Module) -> None:
        i, o = self.dut.i, self.dut.o
        self.stable(i, assume=True)
        self.stable(o)
        takes, gives = i.valid & i.ready, o.valid & o.ready
        begins = self.free(1, "begins")
        sending, sent, before = Signal(), Signal(range(len(FRAME) + 1)), Signal(4)
        frame = Array(Const(byte, 8) for byte in FRAME)
        now = sending | (begins & ~i_waits(self, m, i))
        position = Signal.like(sent)
        m.d.comb += position.eq(Mux(sending, sent, 0))
        self.assume(~now | (i.payload == frame[position]))
        self.assume(~i.valid | (sent != len(FRAME)))
        self.assume(now | ~i.valid | (before < self.garbage))
        with m.If(takes & ~now):
            m.d.sync += before.eq(before + 1)
        with m.If(now & (i.valid | sending)):
            m.d.sync += [sending.eq(1), sent.eq(position + takes)]
        # Nothing comes of garbage this short: no body fits beside a check in it.
        got = Signal(range(4))
        self.require(~o.valid | (sent == len(FRAME)))
        self.require(~o.valid | (got < len(BODY)))
        body = Array(Const(byte, 8) for byte in BODY)
        with m.If(o.valid):
            self.require(o.p.data == body[got[:1]])
            self.require(o.p.last == (got == len(BODY) - 1))
        with m.If(gives):
            m.d.sync += got.eq(got + 1)
        late = Signal(range(9))
        with m.If((sent == len(FRAME)) & (got != len(BODY)) & o.ready):
            m.d.sync += late.eq(late + 1)
        self.require(late < 6)
        self.cover((got == len(BODY)) & (before == self.garbage))


def i_waits(proof: Proof, m: Module, i: Any) -> Signal:
    """Return whether the present byte has been offered before and not been taken."""
    waits = Signal()
    m.d.sync += waits.eq(i.valid & ~i.ready)
    return waits


def test_deframer(holds: Any) -> None:
    # The frame, the garbage before it, its body, and some cycles of waiting.
    depth = len(FRAME) + DeframerProof.garbage + len(BODY) + 5
    holds(lambda: DeframerProof(Deframer(frame_bytes=8)), depth, "bmc")


@pytest.mark.parametrize(
    "old, new",
    [
        ("position + (_CRC_BYTES + 1) == count", "position + _CRC_BYTES == count"),
        (
            "read.en.eq(~self.o.valid | self.o.ready),\n            self.o.p.data.eq",
            "read.en.eq(1),\n            self.o.p.data.eq",
        ),
    ],
)
def test_deframer_with_a_defect(refutes: Any, old: str, new: str) -> None:
    module = mutant("ditto.hdl.framing", old, new)
    refutes(lambda: DeframerProof(module.Deframer(frame_bytes=8)), 24)
