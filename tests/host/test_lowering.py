from typing import Any

import numpy as np
import pytest

from ditto.hdl.config import Config
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
        return "gather"
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
