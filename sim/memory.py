"""The memory behind the buffers: what a run moves, and how long the array waits for it.

The model: one channel that moves a burst at a time, each after a latency. Inputs, weights and old
accumulators come in, outputs and new accumulators go out, while the array computes: only a run's
first burst cannot overlap with its own computing. Nothing overlaps with another run, whose inputs
are this run's outputs.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["MEMORIES", "Memory", "Traffic"]

Cycles = TypeVar("Cycles", int, NDArray[np.int64])


class Traffic(NamedTuple):
    """Bytes that a run moves between the buffers of the array and what is behind them."""

    inputs: int = 0
    weights: int = 0
    outputs: int = 0
    #: The reference that the accumulators stand for, to take a difference from.
    previous_inputs_read: int = 0
    previous_inputs_written: int = 0
    accumulators_read: int = 0
    accumulators_written: int = 0

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self)

    def __add__(self, other: "Traffic") -> "Traffic":  # type: ignore[override]
        """Add the bytes of two runs."""
        return Traffic(*(a + b for a, b in zip(self, other, strict=True)))


_STATE = frozenset(Traffic._fields[3:])


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A memory, and what is in it.

    Parameters
    ----------
    name
        How reports call it.
    holds
        Fields of :class:`Traffic` that are kept in this memory. The rest is on chip, and moves
        without cost.
    bandwidth
        Bytes in a cycle, within a burst.
    burst
        Bytes of a burst. What is moved of each field is rounded up to whole bursts.
    latency
        Cycles from the request of a burst to its first byte.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    name: str
    holds: frozenset[str] = frozenset()
    bandwidth: float = 2.0
    burst: int = 64
    latency: int = 8

    def __post_init__(self) -> None:
        """Refuse what is no memory."""
        if not self.bandwidth > 0 or self.burst < 1 or self.latency < 0:
            raise ValueError(f"there is no memory like {self}")
        unknown = self.holds - set(Traffic._fields)
        if unknown:
            raise ValueError(f"there is no traffic called {', '.join(sorted(unknown))}")

    def with_bandwidth(self, bandwidth: float) -> "Memory":
        """Return the same memory with so many bytes in a cycle."""
        return replace(self, bandwidth=bandwidth)

    @property
    def burst_cycles(self) -> int:
        """Cycles of a burst, latency included."""
        return self.latency + math.ceil(self.burst / self.bandwidth)

    def cycles(self, traffic: Traffic) -> int:
        """Return the cycles that a run's transfers take.

        >>> MEMORIES["sdram"].cycles(Traffic(inputs=65, outputs=64))
        120
        """
        moved = [count for name, count in traffic._asdict().items() if name in self.holds]
        return sum(-(-count // self.burst) for count in moved) * self.burst_cycles

    def stall(self, compute: Cycles, transfers: int) -> Cycles:
        """Return the cycles of a run in which the array waits for the memory.

        Parameters
        ----------
        compute
            Cycles of the run without a wait; or an array of them.
        transfers
            Cycles that the run's transfers take, as from :meth:`cycles`.
        """
        if not transfers:
            return compute * 0
        if isinstance(compute, int):
            return max(transfers - compute, self.burst_cycles)
        return np.maximum(transfers - compute, self.burst_cycles)


MEMORIES = {
    memory.name: memory
    for memory in (
        Memory(name="chip"),
        Memory(name="sdram-state", holds=_STATE),
        Memory(name="sdram", holds=frozenset(Traffic._fields)),
    )
}
"""Everything on chip; the state between steps in one 16-bit SDRAM at the array's clock; all in it.

A burst is 32 words. 8 cycles of latency: row activate 2, read 3, precharge 2, turnaround 1.
"""
