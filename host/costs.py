"""Cycles of a model's layers on a device, for the deltas of many samples at once.

The same cycle model as :meth:`ditto.sim.golden.Golden.count`, vectorized over samples.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.host.layers import Linear
from ditto.host.program import Placement
from ditto.sim.cycles import LIST_LATENCY, RUN_LATENCY, START_LATENCY, row_lengths
from ditto.sim.golden import items, shares, taps

__all__ = ["LayerCosts"]

_REACH = 512  # deltas are -511..511, whatever the types of the operands


class LayerCosts:
    """Counts the cycles of a layer.

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

    def cycles(self, deltas: NDArray[np.int16]) -> NDArray[np.int64]:
        """Return the cycles of a run for each of some samples.

        Parameters
        ----------
        deltas
            Of shape (samples, ...): the samples' input tensors as the model has them.
        """
        layer = self._placement.layer
        assert isinstance(layer, Linear)
        axis = 1 if layer.kind == "conv" else layer.axes[0]
        values = np.moveaxis(self._items[deltas + np.int16(_REACH)], axis, -1)
        total = np.zeros(len(deltas), np.int64)
        for part in self._placement.parts:
            counts = values[..., part.lowered.takes].sum(axis=-1, dtype=np.int64)
            counts = counts.reshape(len(deltas), -1)  # of every sample and position
            if part.lowered.gather is not None:
                counts = _pad(counts)[:, part.lowered.gather].sum(axis=-1)
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
