# amaranth: UnusedElaboratable=no
"""UART: bytes that come on the line leave in their order, and bytes that are sent are on it."""

from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.hdl._ast import AnyValue
from amaranth.lib.wiring import Out

from ditto.fpga import uart
from ditto.sim.formal import Proof, mutant

RATES = {"frequency": 4, "baud": 1}
BIT = 4
"""Cycles of a bit: the least."""
QUEUE = 4
"""Bytes of a queue that is small enough to prove; as with the real one, its memory has one less."""


class TransmitterProof(Proof):
    """Bytes come at any time. Each is on the line, bit by bit, from the cycle after it is taken."""

    def specify(self, m: Module) -> None:
        dut = self.dut
        self.stable(dut.i, assume=True)
        # The frame that is on the line, and for how many cycles it has been.
        frame, at, sends = Signal(10, init=-1), Signal(range(10 * BIT)), Signal()
        takes = dut.i.valid & dut.i.ready
        is_last = at == 10 * BIT - 1
        m.d.sync += at.eq(at + 1)
        with m.If(takes):
            m.d.sync += [frame.eq(Cat(Const(0, 1), dut.i.payload, Const(1, 1))), at.eq(0)]
            m.d.sync += sends.eq(1)
        with m.Elif(is_last):
            m.d.sync += sends.eq(0)
        self.require(dut.i.ready == (~sends | is_last))
        self.require(dut.tx == Mux(sends, frame.bit_select(at[2:], 1), 1))
        self.frame, self.at, self.sends = frame, at, sends
        self.cover(takes & sends & (frame[1:9] == 0x5A))

    def support(self, m: Module) -> None:
        bits, left = self.internal(9, "dut.bits"), self.internal(4, "dut.left")
        rest = self.internal(3, "dut.clock.left")
        bit = self.at[2:]
        self.require(left == Mux(self.sends, 10 - bit, 0))
        self.require(self.frame[9])
        self.require(bits == Mux(self.sends, ((self.frame | (0x3FF << 10)) >> bit)[:9], 0x1FF))
        self.require(~self.sends | ((rest == BIT - self.at[:2]) & (self.at < 10 * BIT)))


class ReceiverProof(Proof):
    """A line that does anything. What is sampled as a byte comes out, in order, or is told of.

    A byte waits until it is taken; while it does, the next one is dropped.
    """

    def specify(self, m: Module) -> None:
        dut = self.dut
        self.stable(dut.o)
        # The line, two cycles late; at first, the synchronizer has seen anything.
        line = self.internal(1, "dut.synchronizer.stage1")
        seen, known = Signal(2), Signal(2)
        m.d.sync += [seen.eq(Cat(dut.rx, seen)), known.eq(Cat(Const(1, 1), known))]
        self.require(~known.all() | (line == seen[1]))
        # A frame, and for how many cycles it has been seen.
        sees, waits = Signal(), Signal()
        at = Signal(range(10 * BIT))
        byte = Signal(8)
        ends, good = Signal(), Signal()
        # The frame's first cycle is the one after the edge.
        middle = BIT // 2 - 2
        with m.If(sees):
            m.d.sync += at.eq(at + 1)
            with m.If((at == middle) & line):
                m.d.sync += sees.eq(0)
            for number in range(8):
                with m.If(at == middle + BIT * (number + 1)):
                    m.d.sync += byte.bit_select(number, 1).eq(line)
            with m.If(at == middle + BIT * 9):
                m.d.comb += [ends.eq(1), good.eq(line)]
                m.d.sync += [sees.eq(0), waits.eq(~line)]
        with m.Elif(waits):
            m.d.sync += waits.eq(~line)
        with m.Elif(~line):
            m.d.sync += [sees.eq(1), at.eq(0)]
        stuck = dut.o.valid & ~dut.o.ready
        self.require(dut.framing_error == (ends & ~good))
        self.require(dut.line_break == (ends & ~good & (byte == 0)))
        self.require(dut.overrun == (ends & good & stuck))
        comes = ends & good & ~stuck
        push, kept = Signal(), Signal(8)
        m.d.sync += [push.eq(comes), kept.eq(byte)]
        # It is there in the next cycle, and nothing else is.
        self.require(~push | (dut.o.valid & (dut.o.payload == kept)))
        held = Signal()
        m.d.sync += held.eq(comes | stuck)
        self.require(dut.o.valid == held)
        self.seen, self.known = seen, known
        self.sees, self.waits, self.at, self.byte = sees, waits, at, byte
        self.cover(push & (kept == 0x5A))
        self.cover(dut.overrun)
        self.cover(dut.line_break)

    def support(self, m: Module) -> None:
        state, count = self.internal(3, "dut.fsm_state"), self.internal(3, "dut.count")
        bits, left = self.internal(8, "dut.bits"), self.internal(3, "dut.clock.left")
        stage = self.internal(1, "dut.synchronizer.stage0")
        self.require(~self.known[0] | (stage == self.seen[0]))
        self.require(self.known[0] | ~self.known[1])
        at, sees = self.at, self.sees
        had = Signal(range(9))  # bits of the byte
        m.d.comb += had.eq(Mux(at == 0, 0, (at - 1) >> 2))
        self.require(~(sees & self.waits))
        self.require(sees | (state == Mux(self.waits, 4, 0)))
        self.require(count == Mux(sees, had[:3], 0))
        with m.If(sees):
            self.require(at <= 9 * BIT)
            self.require(state == Mux(at == 0, 1, Mux(at <= 8 * BIT, 2, 3)))
            self.require(left == Mux(at[:2] == 0, 1, BIT + 1 - at[:2]))
            for number in range(1, 9):
                self.require((had != number) | (bits[8 - number :] == self.byte[:number]))


class AnyReceiver(uart.UartReceiver):
    """In the place of the receiver: bytes come at any time."""

    def elaborate(self, platform: object) -> Module:
        """Build the receiver."""
        m = Module()
        for _, member, value in self.signature.flatten(self):
            if member.flow is Out:
                value = Value.cast(value)
                m.d.comb += value.eq(AnyValue("anyseq", len(value)))  # pyright: ignore[reportCallIssue]
        return m


def queue_of(module: ModuleType) -> Any:
    """Make a UART with any receiver and a small queue."""

    class Control(module.Uart):
        def __init__(self) -> None:
            super().__init__(**RATES)
            self.receiver = AnyReceiver(**RATES)

        def elaborate(self, platform: object) -> Module:
            with mock.patch.multiple(module, UartReceiver=lambda **_: self.receiver, _QUEUE=QUEUE):
                return super().elaborate(platform)

    return Control()


class QueueProof(Proof):
    """Bytes of the receiver, at any time, leave whenever they are taken."""

    def specify(self, m: Module) -> None:
        dut = self.dut
        got = dut.receiver.o
        self.stable(got, assume=True)
        self.stable(dut.o)
        self.known = self.order(
            push=got.valid & got.ready,
            tail=got.payload,
            pop=dut.o.valid & dut.o.ready,
            head=dut.o.payload,
            most=QUEUE,
        )
        # A byte waits for no more than a cycle, and the receiver only if the queue is full.
        waits = Signal()
        m.d.sync += waits.eq((self.known.count != 0) & ~dut.o.valid)
        self.require(~waits | dut.o.valid)
        self.require(got.ready | (self.known.count >= QUEUE - 1))
        self.cover(self.known.count == QUEUE)

    def support(self, m: Module) -> None:
        known, head = self.known, self.dut.o
        last = QUEUE - 2
        words = [self.internal(8, f"dut.queue.storage[{at}]") for at in range(last + 1)]
        into, out_of = self.internal(2, "dut.queue.produce"), self.internal(2, "dut.queue.consume")
        level = self.internal(2, "dut.queue.inner_level")
        self.require((into <= last) & (out_of <= last) & (level <= last + 1))
        distance = Mux(into >= out_of, into - out_of, into + QUEUE - 1 - out_of)
        self.require((level == distance) | ((level == last + 1) & (distance == 0)))
        self.require(known.count == level + head.valid)
        with m.If(known.follows):
            place = Signal(4)
            m.d.comb += place.eq(out_of + known.ahead - head.valid)
            word = Array(words)[Mux(place > last, place - (last + 1), place)[:2]]
            is_out = head.valid & (known.ahead == 0)
            self.require(Mux(is_out, head.payload, word) == known.value)


def test_uart_transmitter(holds: Any) -> None:
    dut = uart.UartTransmitter
    holds(lambda: TransmitterProof(dut(**RATES)), 2, reach=44)


def test_uart_receiver(holds: Any) -> None:
    dut = uart.UartReceiver
    holds(lambda: ReceiverProof(dut(**RATES)), 2, reach=84)


@pytest.mark.parametrize(
    "old, new",
    [
        ("left.eq(10)", "left.eq(9)"),
        ("(left == 1) & clock.tick", "(left == 1)"),
    ],
)
def test_uart_transmitter_with_a_defect(refutes: Any, old: str, new: str) -> None:
    dut = mutant("ditto.fpga.uart", old, new).UartTransmitter
    refutes(lambda: TransmitterProof(dut(**RATES)), 44)


@pytest.mark.parametrize(
    "old, new",
    [
        ("with m.If(count == 7):", "with m.If(count == 6):"),
        ("with m.If(self.o.ready):", "with m.If(1):"),
        ("m.d.sync += left.eq(bit // 2 - cycle)", "m.d.sync += left.eq(bit - cycle)"),
    ],
)
def test_uart_receiver_with_a_defect(refutes: Any, old: str, new: str) -> None:
    dut = mutant("ditto.fpga.uart", old, new).UartReceiver
    refutes(lambda: ReceiverProof(dut(**RATES)), 44)


def test_uart_queue(holds: Any) -> None:
    holds(lambda: QueueProof(queue_of(uart)), 2, reach=10, registers=True)


@pytest.mark.parametrize(
    "old, new",
    [
        ("queue.w_en.eq(receiver.o.valid)", "queue.w_en.eq(1)"),
        ("receiver.o.ready.eq(queue.w_rdy)", "receiver.o.ready.eq(1)"),
        ("queue.r_en.eq(self.o.ready)", "queue.r_en.eq(1)"),
    ],
)
def test_uart_queue_with_a_defect(refutes: Any, old: str, new: str) -> None:
    module = mutant("ditto.fpga.uart", old, new)
    refutes(lambda: QueueProof(queue_of(module)), 10)
