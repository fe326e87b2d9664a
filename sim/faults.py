"""A bad cable: loses, changes, repeats and invents bytes between driver and device."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields

from ditto.host.transport import Transport

__all__ = ["FaultRates", "FaultyTransport"]


@dataclass(frozen=True, kw_only=True)
class FaultRates:
    """Probability of each fault at each byte of one direction; at most one happens to a byte.

    Parameters
    ----------
    drop
        The byte is lost.
    flip
        One bit of the byte changes.
    duplicate
        The byte comes twice.
    insert
        A random byte comes before the byte.

    Raises
    ------
    ValueError
        If a probability is negative or their sum exceeds 1.
    """

    drop: float = 0.0
    flip: float = 0.0
    duplicate: float = 0.0
    insert: float = 0.0

    def __post_init__(self) -> None:
        """Check the probabilities."""
        rates = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, rate in rates.items():
            if not rate >= 0:
                raise ValueError(f"{name} must be a probability, not {rate!r}")
        if sum(rates.values()) > 1:
            raise ValueError(f"fault rates must add up to at most 1, not {sum(rates.values())!r}")


_NO_FAULTS = FaultRates()


class FaultyTransport:
    """A transport with faults; a :class:`Transport`.

    Which bytes suffer depends only on the seed and the position of the byte in its direction, not
    on how the calls cut the stream.

    Parameters
    ----------
    inner
        The transport that works; closed with this one.
    seed
        Two transports with the same seed do the same.
    to_device
        What happens to the bytes that are written.
    from_device
        What happens to the bytes that are read.

    Attributes
    ----------
    faults
        Number of faults so far.
    """

    def __init__(
        self,
        inner: Transport,
        *,
        seed: int,
        to_device: FaultRates = _NO_FAULTS,
        from_device: FaultRates = _NO_FAULTS,
    ) -> None:
        self.faults = 0
        self._inner = inner
        self._rates = to_device, from_device
        self._random = random.Random(f"{seed} to"), random.Random(f"{seed} from")
        self._kept = bytearray()  # read and not yet asked for

    def write(self, data: bytes) -> None:
        """Send what the faults leave of ``data``."""
        self._inner.write(bytes(self._spoil(0, data)))

    def read(self, size: int, timeout: float) -> bytes:
        """Return at most ``size`` bytes of what the faults leave, ``b""`` after the timeout."""
        deadline = time.monotonic() + timeout
        while True:
            raw = self._inner.read(size, 0 if self._kept else max(0, deadline - time.monotonic()))
            self._kept += bytes(self._spoil(1, raw))
            if self._kept or size < 1 or time.monotonic() >= deadline:
                result = bytes(self._kept[:size])
                del self._kept[:size]
                return result

    def close(self) -> None:
        """Close the inner transport."""
        self._inner.close()

    def _spoil(self, direction: int, data: bytes) -> Iterator[int]:
        rates, source = self._rates[direction], self._random[direction]
        for byte in data:
            # The same draws for every byte: faults do not move those that follow.
            chance, bit, invented = source.random(), source.randrange(8), source.randrange(256)
            for field in fields(rates):
                chance -= getattr(rates, field.name)
                if chance < 0:
                    break
            else:
                yield byte
                continue
            self.faults += 1
            match field.name:
                case "flip":
                    yield byte ^ 1 << bit
                case "duplicate":
                    yield byte
                    yield byte
                case "insert":
                    yield invented
                    yield byte
