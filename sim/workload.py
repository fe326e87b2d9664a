"""Random layers and deltas, for tests of anything that runs layers."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.config import Config

__all__ = ["DELTAS", "Workload", "random_deltas", "random_workload"]

DELTAS = ("full", "extreme", "temporal", "sparse", "zero")
"""Kinds of deltas that :func:`random_deltas` makes."""


class Workload(NamedTuple):
    """A layer-table entry with what it needs in the memories.

    ``weights`` has shape (lanes, rows, columns) and begins at the entry's ``weight_base`` in each
    bank; ``biases`` has shape (tiles, columns) and begins at its ``bias_base``.
    """

    entry: dict[str, int]
    weights: NDArray[np.int64]
    biases: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Accumulator words that a run fills, from ``accumulator_base`` on."""
        return self.entry["tiles"] * self.entry["out_height"] * self.entry["out_width"]

    def load(self, accelerator: Any, number: int) -> None:
        """Write the layer to a device, as entry ``number``."""
        accelerator.write_layers(number, [self.entry])
        for bank, words in enumerate(self.weights):
            accelerator.write_weights(bank, self.entry["weight_base"], words)
        accelerator.write_accumulators(self.entry["bias_base"], self.biases)


def _signed(rng: np.random.Generator, bits: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
    return rng.integers(-(1 << bits - 1), 1 << bits - 1, shape)


def random_workload(rng: np.random.Generator, config: Config, *, rows: int = 200) -> Workload:
    """Make a random layer that fits a device, with at most ``rows`` output rows.

    Kernels, strides, paddings and dilations vary, also from axis to axis; channels and outputs lie
    around multiples of the lanes and columns.

    Raises
    ------
    ValueError
        If a thousand tries gave none that fits.
    """
    for _ in range(1000):
        kernel = rng.choice([(1, 1), (3, 3), (1, 3), (3, 2)])
        stride, dilation = rng.integers(1, 3, 2), rng.integers(1, 3, 2)
        pad = rng.integers(0, 2, 2)
        image = rng.integers(1, 8, 2)
        out = (image + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        channels = int(rng.integers(0, 3)) * config.lanes + int(rng.integers(-1, 2))
        outputs = int(rng.integers(0, 3)) * config.columns + int(rng.integers(-1, 2))
        if channels < 1 or outputs < 1 or (out < 1).any():
            continue
        channel_rows, tiles = -(-channels // config.lanes), -(-outputs // config.columns)
        positions, words = int(image.prod()), tiles * int(out.prod())
        weight_rows = tiles * int(kernel.prod()) * channel_rows
        free_weights = config.weight_rows - weight_rows
        free_words = config.accumulator_rows - words - tiles
        if (
            words > rows
            or int(kernel.prod()) > config.list_depth
            or channel_rows > config.channel_rows
            or positions > config.positions
            or positions * channel_rows * config.digits > config.item_depth
            or min(free_weights, free_words) < 0
        ):
            continue
        bias_base = int(rng.integers(0, free_words + 1))
        entry = {
            "in_height": int(image[0]),
            "in_width": int(image[1]),
            "positions": positions,
            "channels": channels,
            "channel_rows": channel_rows,
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
            "accumulator_base": bias_base + tiles,
            "bias_base": bias_base,
        }
        weights = _signed(rng, config.weight_bits, (config.lanes, weight_rows, config.columns))
        biases = _signed(rng, config.accumulator_bits, (tiles, config.columns))
        return Workload(entry, weights, biases)
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
        Gives the shape.
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
