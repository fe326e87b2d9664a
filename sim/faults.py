"""What can be wrong: a bad cable between driver and device, or a defect of the device."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from itertools import accumulate
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
    swap
        The byte comes after the one that follows it.
    cut
        The byte is lost, and the rest of its frame.

    Raises
    ------
    ValueError
        If a probability is negative or their sum exceeds 1.
    """

    drop: float = 0.0
    flip: float = 0.0
    duplicate: float = 0.0
    insert: float = 0.0
    swap: float = 0.0
    cut: float = 0.0

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
    stall
        Probability that nothing comes until the timeout of a :meth:`read`, whatever is there.

    Attributes
    ----------
    kinds : Counter of str
        Number of faults so far, by kind.
    """

    def __init__(
        self,
        inner: Transport,
        *,
        seed: int,
        to_device: FaultRates = _NO_FAULTS,
        from_device: FaultRates = _NO_FAULTS,
        stall: float = 0.0,
    ) -> None:
        self.kinds: Counter[str] = Counter()
        self._inner = inner
        self._to = _Line(to_device, f"{seed} to", self.kinds)
        self._from = _Line(from_device, f"{seed} from", self.kinds)
        self._stall = stall
        self._random = random.Random(f"{seed} stall")
        self._kept = bytearray()  # read and not yet asked for

    @property
    def faults(self) -> int:
        """Number of faults so far."""
        return self.kinds.total()

    def write(self, data: bytes) -> None:
        """Send what the faults leave of ``data``."""
        self._inner.write(self._to.carry(data))

    def read(self, size: int, timeout: float) -> bytes:
        """Return at most ``size`` bytes of what the faults leave, ``b""`` after the timeout."""
        if self._stall and self._random.random() < self._stall:
            self.kinds["stall"] += 1
            time.sleep(timeout)
            return b""
        deadline = time.monotonic() + timeout
        while True:
            raw = self._inner.read(size, 0 if self._kept else max(0, deadline - time.monotonic()))
            self._kept += self._from.carry(raw)
            if self._kept or size < 1 or time.monotonic() >= deadline:
                result = bytes(self._kept[:size])
                del self._kept[:size]
                return result

    def close(self) -> None:
        """Close the inner transport."""
        self._inner.close()


class _Line:
    """One direction of a link.

    Whether a byte suffers is drawn apart from what becomes of it: faults do not move those that
    follow.
    """

    def __init__(self, rates: FaultRates, seed: str, kinds: Counter[str]) -> None:
        self._kinds = kinds
        self._whether, self._how = random.Random(seed), random.Random(f"{seed}, how")
        names, values = zip(*vars(rates).items(), strict=True)
        self._ends = list(zip(names, accumulate(values), strict=True))
        self._held = b""  # to come after the next byte
        self._is_cut = False

    def carry(self, data: bytes) -> bytes:
        """Return what is left of the next bytes."""
        worst = self._ends[-1][1]
        if not worst:
            return data
        out = bytearray()
        draw = self._whether.random
        for byte in data:
            chance = draw()
            self._is_cut &= byte != 0
            if self._is_cut:
                continue
            if chance < worst:
                if not self._spoil(byte, chance, out):
                    continue
            else:
                out.append(byte)
            if self._held:
                # Counted where it arrives, which may be in the next frame.
                self._kinds["swap"] += len(self._held)
                out += self._held
                self._held = b""
        return bytes(out)

    def _spoil(self, byte: int, chance: float, out: bytearray) -> bool:
        """Do something to a byte; tell whether one is through."""
        kind = next(name for name, end in self._ends if chance < end)
        self._kinds[kind] += kind != "swap"
        match kind:
            case "flip":
                out.append(byte ^ 1 << self._how.randrange(8))
            case "duplicate":
                out += bytes([byte, byte])
            case "insert":
                out += bytes([self._how.randrange(256), byte])
            case "swap":
                self._held += bytes([byte])
            case "cut":
                self._is_cut = True
        return kind in ("flip", "duplicate", "insert")


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
