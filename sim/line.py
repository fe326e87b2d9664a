"""A serial line to a simulated device, and a serial port before it.

:func:`line_verilog` puts the host's UART at the other end of the line: every bit of it is clocked,
in both directions, and what is simulated takes and gives bytes like any
:class:`~ditto.sim.board.SimulatedBoard`. :class:`Pty` makes a serial port of such a board, which
the shipping driver opens by pyserial.
"""

import os
import select
import threading
import time
from typing import Any, Self

from amaranth.hdl import Assert, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from ditto.fpga import generate
from ditto.fpga.uart import UartReceiver, UartTransmitter
from ditto.host.transport import LinkError, Transport

__all__ = ["Line", "Pty", "line_verilog"]

# After this many seconds without a byte, the simulated time passes slowly.
_BUSY_SECONDS = 1.0
_IDLE_SECONDS = 0.02
_BYTES = 1 << 12


class Line(wiring.Component):
    """A device with a UART, and the host's UART at the other end of its line.

    The simulation stops with an error when a byte is lost in either receiver.

    Parameters
    ----------
    device
        A component with the pins ``rx`` and ``tx``, such as
        :class:`ditto.fpga.uart.SerialDevice`.
    frequency
        Clock frequency, in Hz.
    baud
        Bits per second of the host; those of the device may differ a little.

    Members
    -------
    i : In(stream.Signature(8))
        Bytes that the host sends.
    o : Out(stream.Signature(8))
        Bytes that the host gets.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, device: Any, *, frequency: int, baud: int) -> None:
        self.device = device
        self.frequency = frequency
        self.baud = baud
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform: object) -> Module:
        """Build the line."""
        m = Module()
        rates = {"frequency": self.frequency, "baud": self.baud}
        m.submodules.device = device = self.device
        m.submodules.receiver = receiver = UartReceiver(**rates)
        m.submodules.transmitter = transmitter = UartTransmitter(**rates)
        connect(m, flipped(self.i), transmitter.i)
        connect(m, receiver.o, flipped(self.o))
        m.d.comb += [device.rx.eq(transmitter.tx), receiver.rx.eq(device.tx)]
        for end in device, receiver:
            for name in "overrun", "framing_error":
                flag: Signal | None = getattr(end, name, None)
                if flag is not None:
                    m.d.sync += Assert(~flag, f"{name} on the line")
        return m


def line_verilog(device: Any, *, frequency: int, baud: int) -> str:
    """Return the Verilog of a device at the end of a :class:`Line`, for a simulated board."""
    return generate.convert(Line(device, frequency=frequency, baud=baud))


class Pty:
    """A serial port, by a pseudo-terminal, with a simulated board at its other end.

    A thread of its own moves the bytes and lets the board's time pass, until :meth:`unplug`. Not
    on Windows, which has no pseudo-terminals.

    Parameters
    ----------
    board
        The board. Closed with this object.

    Attributes
    ----------
    name : str
        Name of the port.
    """

    def __init__(self, board: Transport) -> None:
        import tty

        self._board = board
        self._end, port = os.openpty()
        self.name = os.ttyname(port)
        tty.setraw(port)
        # Held open, or the terminal would hang up whenever a driver closes the port.
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"board at {self.name}")
        self._thread.start()

    def unplug(self) -> None:
        """End the port and the board; a driver that has the port open sees it vanish."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Self:
        """Return the port."""
        return self

    def __exit__(self, *_: object) -> None:
        """Unplug."""
        self.unplug()

    def _work(self) -> None:
        last = time.monotonic()
        waiting = b""  # for the driver
        try:
            while not self._stop.is_set():
                is_idle = time.monotonic() - last > _BUSY_SECONDS
                readable, writable, _ = select.select(
                    [self._end], [self._end] if waiting else [], [], _IDLE_SECONDS * is_idle
                )
                if readable:
                    self._board.write(os.read(self._end, _BYTES))
                if writable:
                    waiting = waiting[os.write(self._end, waiting) :]
                waiting += self._board.read(_BYTES, 0)
                if readable or waiting:
                    last = time.monotonic()
        except LinkError:
            pass  # the board is gone, and so is its port
        finally:
            os.close(self._end)
            os.close(self._port)
            self._board.close()
