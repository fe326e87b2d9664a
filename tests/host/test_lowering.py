from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ditto.hdl.config import Config
from ditto.host.layers import Product, Quantization
from ditto.host.lowering import lower
from ditto.host.model import Linear

CONFIG = Config(columns=16, channels=32)


def layer_of(outputs: int, channels: int, **geometry: Any) -> Linear:
    rng = np.random.default_rng(outputs)
    taps = int(np.prod(geometry.get("kernel", (1, 1))))
    return Linear(
        name="layer",
        kind="conv",
        weights=rng.integers(-127, 128, (outputs, taps, channels)).astype(np.int8),
        weight_scales=np.ones(outputs, np.float32),
        bias=rng.integers(-1000, 1000, outputs),
        input_scale=np.float32(1),
        zero_point=3,
        low=-128,
        high=127,
        **geometry,
    )


def kind_of(layer: Linear) -> str:
    (lowered,) = lower(layer, (1, layer.channels, 8, 8), CONFIG)
    if lowered.gather is not None:
        return "gather" if lowered.layer.taps == 1 else "pixels"
    return "as it is" if lowered.scatter is None else "scatter"


@pytest.mark.parametrize(
    ("outputs", "channels", "geometry", "kind"),
    [
        (16, 1, {"kernel": (3, 3)}, "gather"),
        (16, 2, {"kernel": (4, 4), "stride": (4, 4)}, "gather"),
        (16, 2, {"kernel": (5, 5)}, "as it is"),  # more channels than the device takes
        (16, 3, {"kernel": (3, 3)}, "as it is"),
        (1, 16, {"kernel": (3, 3)}, "scatter"),
        (5, 16, {"kernel": (3, 1)}, "scatter"),
        (6, 16, {"kernel": (3, 1)}, "as it is"),  # more than the columns
        (1, 16, {"kernel": (3, 3), "stride": (1, 2)}, "as it is"),  # taps that are not used
        (1, 1, {}, "as it is"),
        (20, 3, {"kernel": (2, 3), "spacing": (2, 3)}, "scatter"),  # outputs that do not overlap
        (20, 3, {"kernel": (2, 3), "spacing": (3, 4)}, "scatter"),
        (20, 3, {"kernel": (2, 3), "spacing": (2, 2)}, "pixels"),  # they do, in one axis
    ],
)
def test_what_is_lowered(outputs: int, channels: int, geometry: dict[str, Any], kind: str) -> None:
    assert kind_of(layer_of(outputs, channels, **geometry)) == kind


def test_a_scattered_layer_sums_its_taps_on_the_host() -> None:
    layer = layer_of(1, 16, kernel=(3, 3), pads=(1, 1, 1, 1))
    (lowered,) = lower(layer, (1, 16, 4, 4), CONFIG)
    assert (lowered.layer.outputs, lowered.layer.taps, lowered.shape) == (9, 1, (16, 16))
    ones = np.ones((16, 9), np.int64)
    # A corner has four taps inside the image, an edge six, the middle nine.
    taps = lowered.outputs(ones).reshape(4, 4)
    assert taps.tolist() == [[4, 6, 6, 4], [6, 9, 9, 6], [6, 9, 9, 6], [4, 6, 6, 4]]


def test_gathered_windows_are_zero_outside_the_image() -> None:
    layer = layer_of(16, 1, kernel=(3, 3), pads=(1, 1, 1, 1))
    (lowered,) = lower(layer, (1, 1, 4, 4), CONFIG)
    windows = lowered.deltas(np.arange(1, 17)[:, None])
    assert windows.shape == (16, 9)
    assert windows[0].tolist() == [0, 0, 0, 0, 1, 2, 0, 5, 6]
    assert windows[5].tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11]


def sums(layer: Linear, values: np.ndarray[Any, Any], shape: tuple[int, ...]) -> Any:
    """Convolve by definition: (output positions, outputs) of (positions, channels)."""
    if layer.kind == "linear":
        return values @ layer.weights[:, 0].astype(np.int64).T
    height, width = (1, *shape[2:])[-2:]
    (top, left, bottom, right), (gap_y, gap_x) = layer.pads, layer.spacing
    seen = np.zeros(
        (
            (height - 1) * gap_y + 1 + layer.tail[0] + top + bottom,
            (width - 1) * gap_x + 1 + layer.tail[1] + left + right,
            layer.channels,
        ),
        np.int64,
    )
    rows, columns = (
        slice(p, p + (n - 1) * g + 1, g) for p, n, g in ((top, height, gap_y), (left, width, gap_x))
    )
    seen[rows, columns] = values.reshape(height, width, -1)
    outputs, inputs = layer.outputs // layer.groups, layer.channels // layer.groups
    reach = [(k - 1) * d + 1 for k, d in zip(layer.kernel, layer.dilation, strict=True)]
    found = []
    for y in range(0, seen.shape[0] - reach[0] + 1, layer.stride[0]):
        for x in range(0, seen.shape[1] - reach[1] + 1, layer.stride[1]):
            part = seen[y : y + reach[0] : layer.dilation[0], x : x + reach[1] : layer.dilation[1]]
            part = part.reshape(layer.taps, layer.channels)
            found.append(
                [
                    (
                        layer.weights[o] * part[:, (g := o // outputs) * inputs : (g + 1) * inputs]
                    ).sum()
                    for o in range(layer.outputs)
                ]
            )
    return np.array(found)


GEOMETRIES: list[tuple[int, int, dict[str, Any]]] = [
    (16, 1, {"kernel": (3, 3), "pads": (1, 0, 2, 1)}),
    (7, 2, {"kernel": (3, 2), "stride": (2, 1), "dilation": (1, 2), "pads": (0, 1, 1, 2)}),
    (1, 16, {"kernel": (3, 3), "pads": (2, 0, 1, 1), "dilation": (2, 1)}),
    (5, 16, {"kernel": (3, 1), "pads": (1, 0, 0, 0)}),
    (6, 5, {"kernel": (3, 3), "stride": (2, 2), "pads": (1, 1, 0, 0)}),
    (4, 3, {"kernel": (2, 2), "spacing": (2, 2), "pads": (1, 1, 1, 1)}),  # no overlap
    (9, 3, {"kernel": (4, 3), "spacing": (2, 3), "pads": (3, 2, 2, 1), "tail": (1, 1)}),
    (20, 3, {"kernel": (3, 3), "spacing": (2, 1), "pads": (1, 1, 1, 1), "tail": (0, 1)}),
    (20, 3, {"kernel": (3, 3), "spacing": (1, 2), "pads": (1, 1, 1, 1)}),
    (20, 3, {"kernel": (2, 3), "spacing": (2, 2), "pads": (1, 1, 1, 1)}),  # overlap in one axis
    (20, 1, {"kernel": (3, 2), "spacing": (2, 2), "pads": (1, 1, 1, 1)}),
]


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(("outputs", "channels", "geometry"), GEOMETRIES)
def test_lowered_layers_are_exact(
    outputs: int, channels: int, geometry: dict[str, Any], groups: int
) -> None:
    rng = np.random.default_rng(channels)
    layer = replace(layer_of(outputs * groups, channels, **geometry), groups=groups)
    shape = (1, channels * groups, 5, 4)
    values = rng.integers(-255, 256, (20, channels * groups))
    want = sums(layer, values, shape)
    got = np.full_like(want, 1 << 40)
    for part in lower(layer, shape, CONFIG):
        assert part.layer.groups == 1 and not part.layer.is_transposed
        # Of the groups side by side, an input channel belongs to one.
        count = groups * np.arange(layer.outputs)[part.makes].size // layer.outputs
        assert part.fan == part.layer.outputs // count
        image = part.layer.image(part.shape)
        assert not part.is_written and not part.is_kept
        # What is summed on the host has its bias there.
        bias = layer.bias[part.makes] if part.scatter is None else np.zeros(part.layer.outputs)
        np.testing.assert_array_equal(part.layer.bias, bias)
        own = sums(part.layer, part.deltas(values), (1, part.layer.channels, *image))
        got[:, part.makes] = part.outputs(own)
    np.testing.assert_array_equal(got, want)


def test_linear_layers_stay_as_they_are() -> None:
    layer = replace(layer_of(12, 7), kind="linear", axes=(-2, -1))
    (lowered,) = lower(layer, (1, 7, 9), CONFIG)
    assert lowered.layer.kind == "linear" and lowered.layer.axes == (-1, -1)
    assert lowered.shape == (9, 7) and lowered.fan == 12
    assert lowered.gather is None and lowered.scatter is None


@pytest.mark.parametrize("fixed", [False, True])
def test_products_have_a_part_for_each_side_of_each_head(fixed: bool) -> None:
    operand = Quantization(scale=np.float32(1), zero_point=0, low=-128, high=127)
    product = Product(name="qk", left=operand, right=operand, fixed=fixed)
    parts = lower(product, [(1, 3, 5, 4), (1, 3, 4, 6)], CONFIG)
    sides = [(5, 4, 6), (6, 4, 5)][: 2 - fixed] * 3
    assert [(*part.shape, part.layer.outputs) for part in parts] == sides
    for part in parts:
        layer = part.layer
        assert (part.is_written, part.is_kept, part.fan) == (True, fixed, layer.outputs)
        assert (layer.name, layer.kind, layer.zero_point) == ("qk", "linear", 0)
        assert (layer.low, layer.high, layer.input_scale) == (-128, 127, 1)
        assert layer.weights.shape == (layer.outputs, 1, layer.channels)
        assert layer.weights.dtype == np.int8 and not layer.weights.any() and not layer.bias.any()
        assert (layer.weight_scales == 1).all() and layer.weight_scales.dtype == np.float32
