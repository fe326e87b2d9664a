"""What the driver asks of a link: bytes out, bytes in, and an end to waiting."""

from typing import Protocol

__all__ = ["LinkError", "Transport"]


class LinkError(Exception):
    """A link that is closed, lost or out of order; the message says which and what to do."""


class Transport(Protocol):
    """A byte stream to a device and one back, such as a serial port or a simulated board.

    Bytes may get lost or changed on the way, but never change their order. What was written
    reaches the device without further calls, except that the time of a simulated board passes only
    inside :meth:`write` and :meth:`read`. One thread at a time may read or write.
    """

    def write(self, data: bytes) -> None:
        """Send all of ``data``; what does not fit the link's buffers yet is kept and sent later.

        Raises
        ------
        LinkError
            If the link is closed or lost.
        """
        ...

    def read(self, size: int, timeout: float) -> bytes:
        """Return the bytes that have come, at least one and at most ``size``.

        Waits for the first byte only: what is there then is returned, ``b""`` if none comes within
        ``timeout`` seconds.

        Raises
        ------
        LinkError
            If the link is closed or lost.
        """
        ...

    def close(self) -> None:
        """Give up the link. Further calls of this method do nothing, others raise."""
        ...
