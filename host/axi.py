"""Transports to a device behind AXI, as on a Zynq: its registers, or a DMA engine.

Both take what PYNQ has, ``pynq.MMIO`` and ``pynq.lib.dma.DMA``, or anything like it::

    from pynq import Overlay, allocate
    overlay = Overlay("ditto.bit")
    link = RegisterLink(overlay.ditto.mmio)             # byte by byte
    link = DmaLink(overlay.ditto.mmio, overlay.dma, lambda size: allocate(size, "u1"))
    device = Device(link)
"""

import time
from collections.abc import Callable
from enum import IntEnum, IntFlag
from typing import Any, Protocol

from ditto.host.transport import LinkError

__all__ = ["EMPTY", "IDENT", "Control", "DmaLink", "Mmio", "Register", "RegisterLink", "State"]

IDENT = int.from_bytes(b"DITT", "little")
"""What :attr:`Register.IDENT` reads as."""

EMPTY = 1 << 31
"""What :attr:`Register.DATA` reads as, without a byte to read."""


class Register(IntEnum):
    """Addresses of the registers, in bytes; each has 32 bits."""

    #: Always :data:`IDENT`.
    IDENT = 0x0
    #: :class:`State`.
    STATE = 0x4
    #: Write: a byte for the device. Read: a byte of the device, or :data:`EMPTY`.
    DATA = 0x8
    #: :class:`Control`.
    CONTROL = 0xC


class State(IntFlag):
    """Bits of :attr:`Register.STATE`."""

    #: A byte may be written to :attr:`Register.DATA`.
    CAN_WRITE = 1
    #: A byte can be read from it.
    CAN_READ = 2
    #: A byte was written while it could not, and is lost. Ends with a reset.
    LOST = 4


class Control(IntFlag):
    """Bits of :attr:`Register.CONTROL`."""

    #: The device is at the streams and not at :attr:`Register.DATA`.
    STREAMS = 1


class Mmio(Protocol):
    """Registers, such as ``pynq.MMIO``."""

    def read(self, offset: int) -> int:
        """Return the register at an offset in bytes."""
        ...

    def write(self, offset: int, data: int) -> None:
        """Write the register at an offset in bytes."""
        ...


_PATIENCE = 10.0  # seconds that a device may take no byte
_NAP = 20e-6


class RegisterLink:
    """A :class:`~ditto.host.transport.Transport` through the registers.

    Parameters
    ----------
    mmio
        The registers.

    Raises
    ------
    LinkError
        If they are not those of a Ditto.
    """

    def __init__(self, mmio: Mmio) -> None:
        self._mmio: Mmio | None = mmio
        _open(mmio, Control(0))

    def write(self, data: bytes) -> None:
        """Send all of ``data``.

        Raises
        ------
        LinkError
            If the link is closed, or the device takes nothing for seconds.
        """
        mmio = _opened(self._mmio)
        for byte in data:
            end = time.monotonic() + _PATIENCE
            while not mmio.read(Register.STATE) & State.CAN_WRITE:
                if time.monotonic() > end:
                    raise LinkError(f"the device has taken no byte for {_PATIENCE:g} s; reset it")
                time.sleep(_NAP)
            mmio.write(Register.DATA, byte)

    def read(self, size: int, timeout: float) -> bytes:
        """Return the bytes that have come, see :class:`~ditto.host.transport.Transport`."""
        mmio = _opened(self._mmio)
        got = bytearray()
        end = time.monotonic() + timeout
        while len(got) < size:
            word = mmio.read(Register.DATA)
            if not word & EMPTY:
                got.append(word & 0xFF)
            elif got or time.monotonic() > end:
                break
            else:
                time.sleep(_NAP)
        return bytes(got)

    def close(self) -> None:
        """Give up the link."""
        self._mmio = None


class DmaLink:
    """A :class:`~ditto.host.transport.Transport` through a DMA engine and the streams.

    The device ends a packet with every frame, so one transfer brings one frame.

    Parameters
    ----------
    mmio
        The registers.
    dma
        The engine, such as ``pynq.lib.dma.DMA``, whose length register has at least 17 bits.
    allocate
        Makes a buffer of bytes that the engine can reach, given its size, such as
        ``lambda size: pynq.allocate(size, "u1")``.

    Raises
    ------
    LinkError
        If the registers are not those of a Ditto.
    """

    _BUFFER = 1 << 16  # the longest frame of an answer

    def __init__(self, mmio: Mmio, dma: Any, allocate: Callable[[int], Any]) -> None:
        self._dma: Any | None = dma
        _open(mmio, Control.STREAMS)
        self._out, self._in = allocate(self._BUFFER), allocate(self._BUFFER)
        self._held = bytearray()
        dma.recvchannel.transfer(self._in)

    def write(self, data: bytes) -> None:
        """Send all of ``data``.

        Raises
        ------
        LinkError
            If the link is closed, or the device takes nothing for seconds.
        """
        channel = _opened(self._dma).sendchannel
        for at in range(0, len(data), self._BUFFER):
            piece = data[at : at + self._BUFFER]
            self._out[: len(piece)] = list(piece)
            channel.transfer(self._out, nbytes=len(piece))
            end = time.monotonic() + _PATIENCE
            while not channel.idle:
                if time.monotonic() > end:
                    raise LinkError(f"the device has not taken a frame in {_PATIENCE:g} s")
                time.sleep(_NAP)

    def read(self, size: int, timeout: float) -> bytes:
        """Return the bytes that have come, see :class:`~ditto.host.transport.Transport`."""
        channel = _opened(self._dma).recvchannel
        end = time.monotonic() + timeout
        while not self._held:
            if channel.idle:
                self._held += bytes(self._in[: channel.transferred])
                channel.transfer(self._in)
            elif time.monotonic() > end:
                break
            else:
                time.sleep(_NAP)
        data = bytes(self._held[:size])
        del self._held[:size]
        return data

    def close(self) -> None:
        """Give up the link."""
        self._dma = None


def _open(mmio: Mmio, control: Control) -> None:
    found = mmio.read(Register.IDENT)
    if found != IDENT:
        raise LinkError(
            f"there is no Ditto at these registers: they identify as {found:#010x} instead of "
            f"{IDENT:#010x} (is the bitstream loaded, and the address right?)"
        )
    mmio.write(Register.CONTROL, control)


def _opened(link: Any) -> Any:
    if link is None:
        raise LinkError("the link is closed")
    return link
