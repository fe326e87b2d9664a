"""UART: the byte link of most boards, 8 data bits, no parity, 1 stop bit.

Why there is no flow control
----------------------------
Neither RTS/CTS nor credits are needed, since the protocol bounds what is under way: the host sends
a command and waits for its answer (:mod:`ditto.hdl.protocol`).

- A command's frame meets a deframer that waits for it and takes a byte a cycle, while a byte lasts
  40 cycles or more. So without a repeat no byte waits, however long the frame.
- A host that has waited in vain for the answer sends the frame again, four times at most. Only a
  run keeps the device busy for longer than such a time limit. Then the deframer holds the first
  repeat, and the queue of :class:`Uart` the three others: 19 bytes each at most, 57 in all.
- Answers wait in the command machine, which takes the next command only when they have left. The
  next command waits in the deframer meanwhile.

If a host does send more, the bytes that find the queue full are lost and ``overrun`` tells. Their
frame then fails its check, leaves no trace, and the host repeats it: an overrun costs time and
never changes a result. Towards the host it is the operating system that has to take what comes; a
loss there is repaired by a repeat, too.
"""

from math import gcd

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, connect, flipped

from ditto.hdl.config import Config
from ditto.hdl.top import Top

__all__ = ["LEAST_CYCLES", "BitClock", "SerialDevice", "Uart", "UartReceiver", "UartTransmitter"]

LEAST_CYCLES = 4
"""Least clock cycles that a bit must last."""

_QUEUE = 64
_FLAGS = dict.fromkeys(["framing_error", "line_break", "overrun"], Out(1))


def _check(frequency: int, baud: int) -> None:
    for name, value in ("Clock frequency", frequency), ("Baud rate", baud):
        if not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, not {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be positive, not {value!r}")
    if frequency < LEAST_CYCLES * baud:
        raise ValueError(
            f"Baud rate must be at most 1/{LEAST_CYCLES} of the clock frequency: {baud} Bd "
            f"leave {frequency / baud:.2f} cycles of {frequency} Hz for a bit"
        )


class BitClock(wiring.Component):
    """Tell where bits end.

    A bit need not last a whole number of cycles: each end after ``start`` is rounded up to whole
    cycles by itself, so that errors do not add up.

    Parameters
    ----------
    frequency
        Clock frequency, in Hz.
    baud
        Bits per second.

    Members
    -------
    start : In(1)
        A bit begins with the next cycle.
    half : In(1)
        With ``start``: it is half a bit, less a cycle.
    tick : Out(1)
        The last cycle of a bit; the next one follows.

    Raises
    ------
    TypeError
        If a rate is not an integer.
    ValueError
        If a rate is not positive, or a bit lasts less than :data:`LEAST_CYCLES`.
    """

    start: Signal
    half: Signal
    tick: Signal

    def __init__(self, *, frequency: int, baud: int) -> None:
        _check(frequency, baud)
        self.frequency = frequency
        self.baud = baud
        super().__init__({"start": In(1), "half": In(1), "tick": Out(1)})

    def elaborate(self, platform: object) -> Module:
        """Build the bit clock."""
        m = Module()
        # In units of time in which both a cycle and a bit are whole numbers.
        unit = gcd(self.frequency, self.baud)
        cycle, bit = self.baud // unit, self.frequency // unit

        left = Signal(range(bit + 1), reset_less=True)  # of the bit, from this cycle on
        m.d.comb += self.tick.eq(left <= cycle)
        m.d.sync += left.eq(left - cycle)
        with m.If(self.tick):
            m.d.sync += left.eq(left + (bit - cycle))
        with m.If(self.start):
            m.d.sync += left.eq(bit)
            with m.If(self.half):
                m.d.sync += left.eq(bit // 2 - cycle)
        return m


class UartReceiver(wiring.Component):
    """Make bytes of what comes on a line.

    Each bit is sampled in its middle, within a cycle, counted from the start bit's edge: clocks may
    differ by 2 % and more. A start bit that is over by its middle is taken for a disturbance. A
    byte whose stop bit is low is dropped, and the line has to be high before the next one.

    A byte is on ``o`` in the middle of its stop bit, and waits there until the next one's.

    Parameters
    ----------
    frequency, baud
        See :class:`BitClock`, also for the errors.

    Members
    -------
    rx : In(1)
        The line, asynchronous.
    o : Out(stream.Signature(8))
        Bytes.
    framing_error : Out(1)
        For a cycle: a byte was dropped, for its stop bit was low.
    line_break : Out(1)
        With ``framing_error``: so were all of its bits.
    overrun : Out(1)
        For a cycle: a byte was dropped, for the one before it still waited.
    """

    rx: Signal
    o: stream.Interface
    framing_error: Signal
    line_break: Signal
    overrun: Signal

    def __init__(self, *, frequency: int, baud: int) -> None:
        _check(frequency, baud)
        self.frequency = frequency
        self.baud = baud
        super().__init__(
            {
                "rx": In(1),
                "o": Out(stream.Signature(8)),
                **_FLAGS,
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the receiver."""
        m = Module()
        m.submodules.clock = clock = BitClock(frequency=self.frequency, baud=self.baud)
        rx = Signal(init=1)
        m.submodules.synchronizer = FFSynchronizer(self.rx, rx, init=1)

        bits = Signal(8, reset_less=True)
        count = Signal(range(8))
        m.d.comb += clock.half.eq(1)
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)

        with m.FSM():
            with m.State("Idle"), m.If(~rx):
                m.d.comb += clock.start.eq(1)
                m.next = "Start bit"

            with m.State("Start bit"), m.If(clock.tick):
                m.next = "Data bits"
                with m.If(rx):
                    m.next = "Idle"

            with m.State("Data bits"), m.If(clock.tick):
                m.d.sync += [bits.eq(Cat(bits[1:], rx)), count.eq(count + 1)]
                with m.If(count == 7):
                    m.next = "Stop bit"

            with m.State("Stop bit"), m.If(clock.tick):
                m.next = "Idle"
                with m.If(~rx):
                    m.d.comb += [self.framing_error.eq(1), self.line_break.eq(bits == 0)]
                    m.next = "Wait for high"
                with m.Elif(self.o.valid & ~self.o.ready):
                    m.d.comb += self.overrun.eq(1)
                with m.Else():
                    m.d.sync += [self.o.payload.eq(bits), self.o.valid.eq(1)]

            with m.State("Wait for high"), m.If(rx):
                m.next = "Idle"

        return m


class UartTransmitter(wiring.Component):
    """Send bytes on a line, back to back while there are any.

    Parameters
    ----------
    frequency, baud
        See :class:`BitClock`, also for the errors.

    Members
    -------
    i : In(stream.Signature(8))
        Bytes; the start bit is on the line in the cycle after the transfer.
    tx : Out(1)
        The line, from a register; high in reset.
    """

    i: stream.Interface
    tx: Signal

    def __init__(self, *, frequency: int, baud: int) -> None:
        _check(frequency, baud)
        self.frequency = frequency
        self.baud = baud
        super().__init__({"i": In(stream.Signature(8)), "tx": Out(1)})

    def elaborate(self, platform: object) -> Module:
        """Build the transmitter."""
        m = Module()
        m.submodules.clock = clock = BitClock(frequency=self.frequency, baud=self.baud)

        bits = Signal(9, init=-1)  # on the line and after it; ones follow
        left = Signal(range(11))  # bits that have not ended
        m.d.comb += [
            self.tx.eq(bits[0]),
            self.i.ready.eq((left == 0) | (left == 1) & clock.tick),
            clock.start.eq(self.i.valid & self.i.ready),
        ]
        with m.If(clock.tick & (left != 0)):
            m.d.sync += [bits.eq(Cat(bits[1:], Const(1, 1))), left.eq(left - 1)]
        with m.If(clock.start):
            m.d.sync += [bits.eq(Cat(Const(0, 1), self.i.payload)), left.eq(10)]
        return m


class Uart(wiring.Component):
    """Receiver and transmitter, with the queue that the head of this page accounts for.

    Parameters
    ----------
    frequency, baud
        See :class:`BitClock`, also for the errors.

    Members
    -------
    rx : In(1)
        Line from the host, asynchronous.
    tx : Out(1)
        Line to the host.
    o : Out(stream.Signature(8))
        Bytes from the host.
    i : In(stream.Signature(8))
        Bytes to the host.
    framing_error, line_break, overrun : Out(1)
        For a cycle: a byte was dropped, see :class:`UartReceiver`.
    """

    rx: Signal
    tx: Signal
    o: stream.Interface
    i: stream.Interface
    framing_error: Signal
    line_break: Signal
    overrun: Signal

    def __init__(self, *, frequency: int, baud: int) -> None:
        _check(frequency, baud)
        self.frequency = frequency
        self.baud = baud
        super().__init__(
            {
                "rx": In(1),
                "tx": Out(1),
                "o": Out(stream.Signature(8)),
                "i": In(stream.Signature(8)),
                **_FLAGS,
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the UART."""
        m = Module()
        rates = {"frequency": self.frequency, "baud": self.baud}
        m.submodules.receiver = receiver = UartReceiver(**rates)
        m.submodules.transmitter = transmitter = UartTransmitter(**rates)
        m.submodules.queue = queue = SyncFIFOBuffered(width=8, depth=_QUEUE)
        connect(m, flipped(self.i), transmitter.i)
        m.d.comb += [
            queue.w_data.eq(receiver.o.payload),
            queue.w_en.eq(receiver.o.valid),
            receiver.o.ready.eq(queue.w_rdy),
            self.o.payload.eq(queue.r_data),
            self.o.valid.eq(queue.r_rdy),
            queue.r_en.eq(self.o.ready),
            receiver.rx.eq(self.rx),
            self.tx.eq(transmitter.tx),
            *(getattr(self, flag).eq(getattr(receiver, flag)) for flag in _FLAGS),
        ]
        return m


class SerialDevice(wiring.Component):
    """A device behind a UART; it knows no board, only the frequency of its clock.

    Parameters
    ----------
    config
        The device.
    frequency, baud
        See :class:`BitClock`, also for the errors.

    Members
    -------
    rx : In(1)
        Line from the host, asynchronous.
    tx : Out(1)
        Line to the host.
    framing_error, line_break, overrun : Out(1)
        For a cycle: a byte was dropped, see :class:`UartReceiver`.
    """

    rx: Signal
    tx: Signal
    framing_error: Signal
    line_break: Signal
    overrun: Signal

    def __init__(self, config: Config, *, frequency: int, baud: int) -> None:
        _check(frequency, baud)
        self.config = config
        self.frequency = frequency
        self.baud = baud
        super().__init__(
            {
                "rx": In(1),
                "tx": Out(1),
                **_FLAGS,
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the device and its UART."""
        m = Module()
        m.submodules.uart = uart = Uart(frequency=self.frequency, baud=self.baud)
        m.submodules.device = device = Top(self.config)
        connect(m, uart.o, device.i)
        connect(m, device.o, uart.i)
        m.d.comb += [
            uart.rx.eq(self.rx),
            self.tx.eq(uart.tx),
            *(getattr(self, flag).eq(getattr(uart, flag)) for flag in _FLAGS),
        ]
        return m
