"""Cycles of a model's layers on a device, for the deltas of many samples at once.

The same cycle model as :meth:`ditto.sim.golden.Golden.count`, vectorized over samples.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.host.layers import Linear, Product
from ditto.host.program import Part, Placement
from ditto.sim.cycles import LIST_LATENCY, RUN_LATENCY, START_LATENCY, row_lengths
from ditto.sim.golden import items, shares, taps

__all__ = ["LayerCosts", "ProductCosts"]

_REACH = 512  # deltas are -511..511, whatever the types of the operands


class _Costs:
    """Counts the cycles of the parts of a layer.

    Parameters
    ----------
    placement
        The layer on the device.
    config
        The device.
    """

    def __init__(self, placement: Placement, config: Config) -> None:
        self._placement = placement
        self._config = config
        # Items of a value: those of the low digit, and 65536 times the others.
        top = config.max_delta
        low, high = items(np.arange(-top, top + 1), config)
        self._items = np.zeros(2 * _REACH, np.int32)
        self._items[_REACH - top : _REACH + top + 1] = low + (high << 16)

    def _of(self, part: Part, deltas: NDArray[np.int16]) -> NDArray[np.int64]:
        """Return the cycles of a run of a part for samples: (samples, positions..., channels)."""
        values = self._items[deltas[..., part.lowered.takes] + np.int16(_REACH)]
        counts = values.sum(axis=-1, dtype=np.int64).reshape(len(deltas), -1)
        if part.lowered.gather is not None:
            counts = _pad(counts)[:, part.lowered.gather].sum(axis=-1)
        total = np.zeros(len(deltas), np.int64)
        for band in part.bands:
            total += self._band(band.entry, counts[:, band.inputs])
        return total

    def _band(self, entry: dict[str, int], counts: NDArray[np.int64]) -> NDArray[np.int64]:
        tap = taps(entry)
        rows = _pad(counts)[:, tap].sum(axis=-1)
        lengths = row_lengths(rows & 0xFFFF, rows >> 16, self._config)
        result = np.zeros(len(counts), np.int64)
        for share in shares(entry, self._config.clusters)[: entry["split"]]:
            tiles, count = entry["tiles"], len(share.positions)
            gaps = np.tile(share.gaps, tiles)
            gaps[count :: max(count, 1)] += share.rest
            own = np.tile(lengths[:, share.positions], tiles)
            result = np.maximum(result, _schedule(own, gaps.tolist(), tap.shape[1], self._config))
        return result


class LayerCosts(_Costs):
    """Counts the cycles of a layer with constant weights."""

    def cycles(self, deltas: NDArray[np.int16]) -> NDArray[np.int64]:
        """Return the cycles of a run for each of some samples.

        Parameters
        ----------
        deltas
            Of shape (samples, ...): the samples' input tensors as the model has them.
        """
        layer = self._placement.layer
        assert isinstance(layer, Linear)
        values = np.moveaxis(deltas, 1 if layer.kind == "conv" else layer.axes[0], -1)
        total = np.zeros(len(deltas), np.int64)
        for part in self._placement.parts:
            total += self._of(part, values)
        return total


class ProductCosts(_Costs):
    """Counts the cycles of a product of two activations."""

    def dense(self, left: NDArray[np.int16], right: NDArray[np.int16]) -> NDArray[np.int64]:
        """Return the cycles for each of some samples, with the better operand as items.

        Parameters
        ----------
        left, right
            Of shapes (samples, ..., rows, inner size) and (samples, ..., inner size, columns).
        """
        ways = [self._side(left, 0)]
        if not self._is_fixed:
            ways.append(self._side(right, 1))
        return np.min([way.sum(axis=1) for way in ways], axis=0)

    def temporal(
        self, left: NDArray[np.int16], right: NDArray[np.int16], dense: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the cycles of both runs by changes, or those of dense runs where they are fewer.

        Parameters
        ----------
        left, right
            The changes of the operands.
        dense
            Cycles of dense runs.
        """
        changes = np.zeros(len(left), np.int64)
        for side, values in enumerate((left, right)):
            moved = values.any(axis=(-2, -1)).reshape(len(values), -1)
            if side and self._is_fixed:  # placed for a right operand that stays as it is
                return np.where(moved.any(axis=1), dense, np.minimum(changes, dense))
            changes += (self._side(values, side) * moved).sum(axis=1)
        return np.minimum(changes, dense)

    @property
    def _is_fixed(self) -> bool:
        assert isinstance(self._placement.layer, Product)
        return self._placement.layer.fixed

    def _side(self, values: NDArray[np.int16], side: int) -> NDArray[np.int64]:
        """Return the cycles of the runs with an operand as items: (samples, heads)."""
        if side:
            values = np.swapaxes(values, -2, -1)
        heads = values.reshape(len(values), -1, *values.shape[-2:])
        runs = [
            self._of(self._placement.of_product(head, side), heads[:, head])
            for head in range(heads.shape[1])
        ]
        return np.stack(runs, axis=1)


def _pad(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add a position without items, for taps outside of the image."""
    return np.concatenate([counts, np.zeros_like(counts[:, :1])], axis=1)


def _schedule(
    lengths: NDArray[np.int64], gaps: Sequence[int], taps: int, config: Config
) -> NDArray[np.int64]:
    """Do what :func:`ditto.sim.cycles.schedule` does, for rows of shape (samples, rows)."""
    if not len(gaps):
        return np.zeros(len(lengths), np.int64)
    ahead = config.rows_ahead(taps)
    if len(gaps) <= ahead:
        return lengths.sum(axis=1) + START_LATENCY + RUN_LATENCY
    columns = np.ascontiguousarray(lengths.T)
    done = np.empty_like(columns)
    ended = np.full(len(lengths), START_LATENCY, np.int64)
    walked = np.zeros_like(ended)
    for row, gap in enumerate(gaps):
        if row >= ahead:
            skipped = gap if row > ahead else 0
            walked = np.maximum(walked + skipped, done[row - ahead]) + taps
            ended = np.maximum(ended, walked + LIST_LATENCY)
        ended = ended + columns[row]
        done[row] = ended
    return ended + RUN_LATENCY
