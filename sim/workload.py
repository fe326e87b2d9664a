"""Random layers and deltas, for tests of anything that runs layers."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.sim.golden import shares
from ditto.sim.spatial import edges, has_room

__all__ = [
    "DELTAS",
    "Workload",
    "clearing_entry",
    "random_deltas",
    "random_weights",
    "random_workload",
]

DELTAS = ("full", "extreme", "temporal", "sparse", "zero")
"""Kinds of deltas that :func:`random_deltas` makes."""


class Workload(NamedTuple):
    """A layer-table entry with what it needs in the memories.

    ``weights`` has shape (clusters, rows, columns) and begins at the entry's ``weight_base``.
    """

    entry: dict[str, int]
    weights: NDArray[np.int64]

    @property
    def filled(self) -> list[int]:
        """Accumulator words that a run fills in each cluster, from ``accumulator_base`` on."""
        parts = shares(self.entry, self.weights.shape[0])
        return [self.entry["tiles"] * len(part.positions) for part in parts]

    @property
    def rows(self) -> int:
        """Accumulator words that a run fills in a cluster at most."""
        return max(self.filled)

    def load(self, accelerator: Any, number: int) -> None:
        """Write the layer to a device, as entry ``number``."""
        accelerator.write_layers(number, [self.entry])
        for cluster, words in enumerate(self.weights):
            accelerator.write_weights(cluster, self.entry["weight_base"], words)


def clearing_entry(config: Config) -> dict[str, int]:
    """Make the fields of an entry whose dense run fills every accumulator with zero.

    Its output positions but the first lie outside its image of one position, whose delta is to be
    zero.
    """
    width = config.clusters * config.accumulator_rows
    ones = "in_height in_width positions channels out_height kernel_height kernel_width tiles"
    return dict.fromkeys(ones.split(), 1) | {"out_width": width, "split": config.clusters}


def random_weights(
    rng: np.random.Generator, config: Config, shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """Make weights over the whole range that a device takes."""
    return rng.integers(config.min_weight, 1 << config.weight_bits - 1, shape)


def random_workload(rng: np.random.Generator, config: Config, *, rows: int = 200) -> Workload:
    """Make a random layer that fits a device, with at most ``rows`` output rows.

    Kernels, strides, paddings and dilations vary, also from axis to axis, and so do the shares of
    the clusters. It may be spatial if its lines with their margins fit, and its neighbours on a
    device that takes differences itself.

    Raises
    ------
    ValueError
        If twenty thousand tries gave none that fits.
    """
    for _ in range(20_000):
        kernel = rng.choice([(1, 1), (3, 3), (1, 3), (3, 2)])
        stride, dilation = rng.integers(1, 3, 2), rng.integers(1, 3, 2)
        pad = rng.integers(0, 2, 2)
        image = rng.integers(1, 8, 2)
        out = (image + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        if (out < 1).any():
            continue
        channels, tiles = int(rng.integers(1, 10)), int(rng.integers(1, 4))
        split = int(rng.integers(1, config.clusters + 1))
        # A share has at most one position more in every output row than the smallest.
        words = tiles * int(out[0]) * -(-int(out[1]) // split)
        positions = int(image.prod())
        weight_rows = tiles * int(kernel.prod()) * channels
        free_weights = config.weight_rows - weight_rows
        free_words = config.accumulator_rows - words
        if (
            words > rows
            or int(kernel.prod()) > config.list_depth
            or channels > config.channels
            or positions > config.positions
            or positions * channels * config.digits > config.item_depth
            or min(free_weights, free_words) < 0
        ):
            continue
        entry = {
            "in_height": int(image[0]),
            "in_width": int(image[1]),
            "positions": positions,
            "channels": channels,
            "out_height": int(out[0]),
            "out_width": int(out[1]),
            "kernel_height": int(kernel[0]),
            "kernel_width": int(kernel[1]),
            "stride_y": int(stride[0]),
            "stride_x": int(stride[1]),
            "dilation_y": int(dilation[0]),
            "dilation_x": int(dilation[1]),
            "pad_top": int(pad[0]),
            "pad_left": int(pad[1]),
            "tiles": tiles,
            "weight_base": int(rng.integers(0, free_weights + 1)),
            "accumulator_base": int(rng.integers(0, free_words + 1)),
            "split": split,
            "skew": int(rng.integers(0, split)),
        }
        margin, lead = edges(entry)
        entry |= {"margin": margin, "lead": lead}
        entry["spatial"] = int(has_room(entry, config))
        weights = random_weights(rng, config, (config.clusters, weight_rows, config.columns))
        return Workload(entry, weights)
    raise ValueError(f"no layer of at most {rows} rows fits {config}")


def random_deltas(
    rng: np.random.Generator, config: Config, entry: dict[str, int], kind: str
) -> NDArray[np.int64]:
    """Make deltas for an entry, of shape (positions, channels).

    Parameters
    ----------
    rng
        Source of randomness.
    config
        Gives the range of a delta.
    entry
        Gives the shape: that of :func:`ditto.sim.spatial.stretched` for a spatial run.
    kind
        ``full``: uniform over the range; ``extreme``: only its ends and those of a digit's range;
        ``temporal``: mostly zero or narrow; ``sparse``: few that are not zero; ``zero``: none.
    """
    shape = (entry["positions"], entry["channels"])
    top = config.max_delta
    match kind:
        case "full":
            return rng.integers(-top, top + 1, shape)
        case "extreme":
            half = 1 << config.digit_bits - 1
            ends = [-top, top, -half - 1, -half, half - 1, half, 0, -1, 1]
            return rng.choice([end for end in ends if -top <= end <= top], shape)
        case "temporal":
            spread = rng.laplace(0, top / 64, shape)
            return np.clip(np.rint(spread), -top, top).astype(np.int64)
        case "sparse":
            return rng.integers(-top, top + 1, shape) * (rng.random(shape) < 0.03)
        case "zero":
            return np.zeros(shape, np.int64)
    raise ValueError(f"deltas are one of {', '.join(DELTAS)}, not {kind!r}")
