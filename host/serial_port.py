"""A link over a serial port, by pyserial: the boards with a UART."""

import errno
import time
from contextlib import suppress
from typing import Any

from ditto.host.transport import LinkError

__all__ = ["SerialPort"]

_BITS = 10  # of a byte on the line, start and stop bit included
_POLL = 0.1  # seconds after which a waiting call looks whether the port has been closed
_WRITE_SECONDS = 5.0  # more than a second's worth of bytes may take

_BUSY = (errno.EBUSY, errno.EAGAIN)


class SerialPort:
    """A serial port as a :class:`~ditto.host.transport.Transport`.

    8 data bits, no parity, 1 stop bit, no flow control: the protocol bounds what is under way. The
    port belongs to this object alone until it is closed.

    Parameters
    ----------
    port
        Name of the port, such as ``/dev/ttyUSB0`` or ``COM3``.
    baud
        Bits per second.

    Attributes
    ----------
    baud : int
        Bits per second.

    Raises
    ------
    LinkError
        If pyserial is missing, or the port does not exist, may not be used, is in use, or does not
        run at this rate.
    """

    def __init__(self, port: str, baud: int) -> None:
        try:
            import serial
        except ImportError:
            raise LinkError(
                "a serial port needs pyserial, which is missing; install it by: "
                "pip install 'ditto-accel[serial]'"
            ) from None
        self.baud = baud
        self._name = port
        # What a port raises when its device goes away differs between systems.
        self._errors = (serial.SerialException, OSError, TypeError)
        self._late = serial.SerialTimeoutException
        self._port: Any = None
        try:
            self._port = serial.Serial(
                port, baud, timeout=_POLL, write_timeout=_WRITE_SECONDS, exclusive=True
            )
            self._port.reset_input_buffer()
        except (OSError, ValueError) as error:
            self.close()
            raise LinkError(f"cannot open the port {port}: {_why(error, baud)}") from error
        # USB bridges may hold back short answers for 16 ms; not every port has this setting.
        with suppress(AttributeError, NotImplementedError, OSError, ValueError):
            self._port.set_low_latency_mode(True)

    def write(self, data: bytes) -> None:
        """Send all of ``data``.

        Raises
        ------
        LinkError
            If the port is closed or lost, or takes nothing.
        """
        piece = max(self.baud // _BITS, 1)
        for at in range(0, len(data), piece):
            port = self._open()
            try:
                port.write(data[at : at + piece])
            except self._late:
                raise LinkError(
                    f"the port {self._name} has taken nothing for {_WRITE_SECONDS:g} s; is "
                    "something else than the board's UART behind it?"
                ) from None
            except self._errors as error:
                raise self._lost(error) from error

    def read(self, size: int, timeout: float) -> bytes:
        """Return the bytes that have come, at least one and at most ``size``.

        Raises
        ------
        LinkError
            If the port is closed or lost.
        """
        deadline = time.monotonic() + timeout
        while size > 0:
            port = self._open()
            try:
                waiting = port.in_waiting
                if not waiting and time.monotonic() >= deadline:
                    break
                # Not more than what is there: pyserial would wait for all of it.
                data = port.read(min(size, max(waiting, 1)))
            except self._errors as error:
                raise self._lost(error) from error
            if data:
                return data
        return b""

    def close(self) -> None:
        """Close the port. Further calls of this method do nothing, others raise."""
        port, self._port = self._port, None
        if port is not None:
            # Only a port that is lost anyway can fail here.
            with suppress(*self._errors):
                port.close()

    def _open(self) -> Any:
        port = self._port
        if port is None:
            raise LinkError(f"the port {self._name} is closed")
        return port

    def _lost(self, error: Exception) -> LinkError:
        if self._port is None:
            return LinkError(f"the port {self._name} was closed in the middle of a transfer")
        return LinkError(
            f"the port {self._name} is lost ({error}); plug the board in again, check the cable "
            "and repeat the command"
        )


def _why(error: Exception, baud: int) -> str:
    """Return why a port does not open, and what to do."""
    number = getattr(error, "errno", None)
    text = str(error)
    if number == errno.ENOENT or "FileNotFoundError" in text:
        return f"it does not exist; {_ports()}"
    if number in _BUSY or "Could not exclusively lock" in text or "PermissionError" in text:
        return "another program uses it; end that one (a terminal, another ditto) and try again"
    if number in (errno.EACCES, errno.EPERM):
        return (
            "you may not use it; on Linux, join the group that owns it (mostly: sudo usermod -aG "
            "dialout $USER) and log in again"
        )
    if isinstance(error, ValueError) or "baud" in text.lower():
        return f"it does not run at {baud} Bd ({text})"
    return text


def _ports() -> str:
    from serial.tools.list_ports import comports

    found = sorted(port.device for port in comports())
    if not found:
        return "no port is there; is the board plugged in and powered?"
    return f"the ports here are {', '.join(found)}"
