"""Frames of the link, on the host's side: see :mod:`ditto.hdl.framing` for what a frame is."""

from zlib import crc32

__all__ = ["Decoder", "encode"]

_CRC_BYTES = 4
_LONGEST = 254  # bytes in a block
_CODES = [bytes([code]) for code in range(_LONGEST + 2)]


def encode(body: bytes) -> bytes:
    r"""Make a frame of a body, with a zero byte before and after.

    Examples
    --------
    >>> encode(b"\1\2\0").hex(" ")
    '00 03 01 02 05 a7 d1 b5 cc 00'
    """
    runs = (body + crc32(body).to_bytes(_CRC_BYTES, "little")).split(b"\0")
    blocks = [_CODES[len(run) + 1] + run if len(run) < _LONGEST else _split(run) for run in runs]
    # The last run is followed by no zero, which a full block says by itself.
    if runs[-1] and len(runs[-1]) % _LONGEST == 0:
        blocks[-1] = blocks[-1][:-1]
    return b"\0" + b"".join(blocks) + b"\0"


def _split(run: bytes) -> bytes:
    """Encode a long run of bytes that are not zero, and a zero behind it."""
    parts = [run[i : i + _LONGEST] for i in range(0, len(run), _LONGEST)]
    if len(parts[-1]) == _LONGEST:
        parts.append(b"")
    return b"".join(_CODES[len(part) + 1] + part for part in parts)


def _unstuff(stuffed: bytes) -> bytes | None:
    """Undo byte stuffing; None if the last block is cut."""
    parts = []
    at = 0
    while at < len(stuffed):
        code = stuffed[at]
        parts.append(stuffed[at + 1 : at + code])
        at += code
        if code <= _LONGEST:
            parts.append(b"\0")
    if at > len(stuffed):
        return None
    if parts and parts[-1] == b"\0":
        parts.pop()
    return b"".join(parts)


class Decoder:
    r"""Find the frames in the bytes of a link.

    Parameters
    ----------
    max_frame
        Longest frame, CRC included, before stuffing. Longer ones are dropped, and no more than that
        is ever held.

    Attributes
    ----------
    dropped : int
        Frames that were cut, garbled, too short or too long.

    Examples
    --------
    >>> decoder = Decoder()
    >>> decoder.feed(encode(b"first") + encode(b"second")[:-3])
    [b'first']
    >>> decoder.feed(b"\0" + encode(b"third")), decoder.dropped
    ([b'third'], 1)
    """

    def __init__(self, *, max_frame: int = 1 << 16) -> None:
        if max_frame <= _CRC_BYTES:
            raise ValueError(
                f"Frame size must be at least {_CRC_BYTES + 1} bytes, not {max_frame!r}"
            )
        self.max_frame = max_frame
        self.dropped = 0
        self._held = bytearray()
        self._is_too_long = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the link, in pieces of any size.

        Returns
        -------
        list of bytes
            Bodies of the frames that end in ``data`` and whose CRC is right, in their order.
        """
        *ends, rest = data.split(b"\0")
        bodies = []
        for end in ends:
            self._hold(end)
            if self._held or self._is_too_long:
                body = None if self._is_too_long else self._check(bytes(self._held))
                if body is None:
                    self.dropped += 1
                else:
                    bodies.append(body)
            self._held.clear()
            self._is_too_long = False
        self._hold(rest)
        return bodies

    def _hold(self, part: bytes) -> None:
        """Keep a part of a frame unless that makes it too long."""
        # A code byte for each block; some encoders put an empty one behind a full one.
        longest = self.max_frame + self.max_frame // _LONGEST + 1
        if self._is_too_long or len(self._held) + len(part) > longest:
            self._is_too_long = True
            self._held.clear()
        else:
            self._held += part

    def _check(self, stuffed: bytes) -> bytes | None:
        """Return the body of a frame; None if it is wrong."""
        frame = _unstuff(stuffed)
        if frame is None or not _CRC_BYTES < len(frame) <= self.max_frame:
            return None
        body = frame[:-_CRC_BYTES]
        return body if crc32(body).to_bytes(_CRC_BYTES, "little") == frame[-_CRC_BYTES:] else None
