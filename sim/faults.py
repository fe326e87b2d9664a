"""What can be wrong: a bad cable between driver and device, or a defect of the device."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.hdl.protocol import Counters, Mode
from ditto.host.transport import Transport
from ditto.sim.golden import Golden, wrap

__all__ = ["Defect", "DefectiveDevice", "FaultRates", "FaultyTransport"]


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


class Defect(StrEnum):
    """A defect of a :class:`DefectiveDevice`."""

    #: Bit 9 of every accumulator of the last cluster's column 0 is set.
    ACCUMULATOR_BIT = "accumulator bit"
    #: Bit 1 of the last accumulator word's last column is clear.
    ACCUMULATOR_CELL = "accumulator cell"
    #: Accumulator words whose numbers differ in bit 3 only are the same word.
    ACCUMULATOR_ADDRESS = "accumulator address"
    #: Bit 0 of the weights of the last cluster's last column is clear.
    WEIGHT_BIT = "weight bit"
    #: The last weight of the last bank cannot be written.
    WEIGHT_CELL = "weight cell"
    #: Bit 2 of the address of weights that are written is clear.
    WEIGHT_ADDRESS = "weight address"
    #: Bit 1 of the number of layer-table entries that are written is clear.
    LAYER_ADDRESS = "layer address"
    #: The items of the last quarter of the difference buffer are lost.
    ITEMS = "items"
    #: Deltas beyond seven bits are cut.
    WIDE_DELTA = "wide delta"
    #: A temporal run starts from zero.
    STATE = "state"
    #: Cycles are counted once too often.
    COUNTER = "counter"
    #: Bit 4 of the number of references that are read is clear.
    REFERENCE_ADDRESS = "reference address"


class DefectiveDevice(Golden):
    """A golden model with a defect.

    Parameters
    ----------
    config
        The device.
    defect
        What is wrong with it.
    """

    def __init__(self, config: Config, defect: Defect) -> None:
        super().__init__(config)
        self.defect = defect

    def write_layers(self, first: int, entries: Sequence[dict[str, int]]) -> None:
        """Write layer-table entries."""
        for number, entry in enumerate(entries, first):
            wrong = self.defect is Defect.LAYER_ADDRESS
            super().write_layers(number & ~2 if wrong else number, [entry])

    def begin_inputs(self, entry: int, mode: Mode) -> Mode:
        """Begin a tile of inputs."""
        if self.defect is Defect.REFERENCE_ADDRESS:
            self._references = self._references[np.arange(len(self._references)) & ~16]
        return super().begin_inputs(entry, mode)

    def write_weights(self, cluster: int, row: int, words: NDArray[Any]) -> None:
        """Write words into a weight bank."""
        last = self._weights[-1, -1, -1]
        for number, word in enumerate(words, row):
            wrong = self.defect is Defect.WEIGHT_ADDRESS
            super().write_weights(cluster, number & ~4 if wrong else number, word[None])
        if self.defect is Defect.WEIGHT_CELL:
            self._weights[-1, -1, -1] = last
        if self.defect is Defect.WEIGHT_BIT:
            self._weights[-1, :, -1] &= ~1

    def run(self, entry: int, mode: Mode) -> Counters:
        """Run a layer-table entry."""
        before = self._accumulators.copy()
        deltas = self._deltas
        if deltas is not None:
            if self.defect is Defect.WIDE_DELTA:
                self._deltas = wrap(deltas, 8)
            if self.defect is Defect.ITEMS:
                self._deltas = deltas.copy()
                self._deltas.flat[3 * self.config.item_depth // self.config.digits // 4 :] = 0
        counters = super().run(entry, Mode.DENSE if self.defect is Defect.STATE else mode)
        if self.defect is Defect.STATE:
            counters = counters._replace(mode=mode.value)
        words = self._accumulators
        match self.defect:
            case Defect.ACCUMULATOR_BIT:
                words[-1, :, 0] |= 1 << 9
            case Defect.ACCUMULATOR_CELL:
                words[-1, -1, -1] &= ~2
            case Defect.ACCUMULATOR_ADDRESS:
                changed = np.flatnonzero((words != before).any(axis=(0, 2)))
                other = changed ^ 8
                inside = other < self.config.accumulator_rows
                words[:, other[inside]] = words[:, changed[inside]]
            case Defect.COUNTER:
                counters = counters._replace(cycles=counters.cycles + 1)
        return counters
