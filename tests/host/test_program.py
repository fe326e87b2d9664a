from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto.hdl.config import Config
from ditto.hdl.protocol import Mode
from ditto.host.model import Linear
from ditto.host.program import PlacementError, Program, suggest
from ditto.sim.golden import Golden, taps

CONFIG = Config(lanes=3, columns=4)


def layer_of(
    outputs: int = 4, channels: int = 3, seed: int = 0, kind: str = "conv", **geometry: Any
) -> Linear:
    rng = np.random.default_rng(seed)
    kernel = geometry.setdefault("kernel", (1, 1))
    return Linear(
        name=f"layer{seed}",
        kind=kind,
        weights=rng.integers(-127, 128, (outputs, kernel[0] * kernel[1], channels)).astype(np.int8),
        weight_scales=np.ones(outputs, np.float32),
        bias=rng.integers(-1000, 1000, outputs),
        input_scale=np.float32(1),
        zero_point=0,
        low=-128,
        high=127,
        **geometry,
    )


def plain(layer: Linear, q: np.ndarray, image: tuple[int, int]) -> np.ndarray:
    """Compute accumulators by the definition: loops over taps, all in integers."""
    top, left, bottom, right = layer.pads
    x = (q - layer.zero_point).reshape(*image, layer.channels)
    x = np.pad(x, ((top, bottom), (left, right), (0, 0)))
    height, width = layer.output_image(image)
    result = np.zeros((height, width, layer.outputs), np.int64) + layer.bias
    for i in range(layer.kernel[0]):
        for j in range(layer.kernel[1]):
            w = layer.weights[:, i * layer.kernel[1] + j].astype(np.int64)
            for y in range(height):
                for k in range(width):
                    at = x[
                        y * layer.stride[0] + i * layer.dilation[0],
                        k * layer.stride[1] + j * layer.dilation[1],
                    ]
                    result[y, k] += w @ at
    return result.reshape(-1, layer.outputs)


def shape_of(layer: Linear, image: tuple[int, int]) -> tuple[int, ...]:
    if layer.kind == "linear":
        return (1, image[0] * image[1], layer.channels)
    return (1, layer.channels, *image)


def run(program: Program, device: Golden, index: int, q: np.ndarray) -> np.ndarray:
    placement = program.layers[index]
    columns = program.config.columns
    layer = placement.layer
    height, width = layer.output_image(layer.image(placement.shape))
    result = np.zeros((height * width, placement.tiles * columns), np.int64)
    for band in placement.bands:
        device.write_deltas(band.number, q[band.inputs] - layer.zero_point)
        device.run(band.number, Mode.DENSE)
        n = band.outputs.stop - band.outputs.start
        words = device.read_accumulators(band.entry["accumulator_base"], n * placement.tiles)
        result[band.outputs] = words.reshape(-1, n, columns).transpose(1, 0, 2).reshape(n, -1)
    return result[:, : layer.outputs]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_placed_layers_compute_what_they_mean(data: st.DataObject) -> None:
    draw = data.draw
    small = st.integers(1, 3)
    layers, shapes = [], []
    for seed in range(draw(st.integers(1, 3))):
        kernel = (draw(small), draw(small))
        dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        pads = tuple(draw(st.integers(0, reach[i % 2] - 1)) for i in range(4))
        image = tuple(reach[i] + draw(st.integers(0, 6)) for i in range(2))
        kind = draw(st.sampled_from(["conv", "linear"]))
        geometry: dict[str, Any] = {}
        if kind == "conv":
            geometry = {"kernel": kernel, "dilation": dilation, "pads": pads}
            geometry["stride"] = (draw(small), draw(small))
        layer = layer_of(draw(st.integers(1, 9)), draw(st.integers(1, 7)), seed, kind, **geometry)
        layers.append(layer)
        shapes.append(shape_of(layer, (image[0], image[1])))
    # As small a difference buffer as there can be, so that there are bands.
    config = suggest(layers, shapes, replace(CONFIG, positions=2, item_depth=96))
    config = replace(config, positions=config.positions + draw(st.integers(0, 20)), layers=64)
    program = Program(layers, shapes, config)
    device = Golden(config)
    program.load(device)
    rng = np.random.default_rng(1)
    for index, (layer, shape) in enumerate(zip(layers, shapes, strict=True)):
        for band in program.layers[index].bands:
            assert band.entry["positions"] <= config.positions
            items = band.entry["positions"] * band.entry["channel_rows"] * config.digits
            assert items <= config.item_depth
        q = rng.integers(-128, 128, (int(np.prod(layer.image(shape))), layer.channels))
        got = run(program, device, index, q)
        np.testing.assert_array_equal(got, plain(layer, q, layer.image(shape)))


def test_bands_touch_only_their_rows() -> None:
    layer = layer_of(kernel=(3, 3), pads=(1, 1, 1, 1))
    program = Program([layer], [(1, 3, 16, 8)], replace(CONFIG, positions=60))
    bands = program.layers[0].bands
    assert [band.entry["in_height"] for band in bands] == [6, 7, 7]
    assert [band.entry["pad_top"] for band in bands] == [1, 0, 0]
    assert [band.inputs for band in bands] == [slice(0, 48), slice(32, 88), slice(72, 128)]
    assert sum(band.outputs.stop - band.outputs.start for band in bands) == 128


def test_column_tiles_share_the_items() -> None:
    layer = layer_of(outputs=9, channels=7, kind="linear")
    program = Program([layer], [(1, 10, 7)], CONFIG)
    (placement,) = program.layers
    assert placement.tiles == 3
    assert placement.bands[0].entry["channel_rows"] == 3
    assert (program.weight_rows, program.accumulator_rows, program.entries) == (9, 33, 1)


def test_what_does_not_fit_is_named_with_the_sizes() -> None:
    layers = [layer_of(8, 6, 0, kernel=(3, 3)), layer_of(12, 30, 1, kernel=(2, 2))]
    shapes = [(1, 6, 9, 9), (1, 30, 9, 20)]
    config = replace(
        CONFIG,
        weight_rows=100,
        accumulator_rows=50,
        channel_rows=9,
        list_depth=8,
        positions=30,
        layers=2,
        accumulator_bits=17,
    )
    with pytest.raises(PlacementError) as caught:
        Program(layers, shapes, config)
    message = str(caught.value)
    for part in (
        "the model does not fit the device",
        "weight_rows = 100, but 156 are needed, 120 of them by layer layer1",
        "accumulator_rows = 50, but 559 are needed, 459 of them by layer layer1",
        "channel_rows = 9, but 10 is needed by layer layer1",
        "list_depth = 8, but 9 is needed by layer layer0",
        "positions = 30, but 40 is needed by layer layer1",
        "accumulator_bits = 17, but 2",
        "--weight-rows 156",
    ):
        assert part in message
    assert "\n" not in message
    fitting = suggest(layers, shapes, config)
    Program(layers, shapes, fitting)
    for name in ("weight_rows", "accumulator_rows", "channel_rows", "accumulator_bits", "layers"):
        with pytest.raises(PlacementError, match=name):
            Program(layers, shapes, replace(fitting, **{name: getattr(fitting, name) - 1}))


def test_accumulators_cannot_overflow() -> None:
    layer = layer_of(1, 4, kind="linear")
    layer.weights[:] = 127
    layer.bias[:] = 0
    # 4 * 127 * -128 = -65024 needs 17 bits, but a product of 9 and 8 bits needs as many.
    assert layer.largest == 65024
    assert suggest([layer], [(1, 1, 4)], CONFIG).accumulator_bits == 17
    layer.bias[:] = -513
    assert suggest([layer], [(1, 1, 4)], CONFIG).accumulator_bits == 18


def test_weights_and_activations_must_fit_their_widths() -> None:
    config = replace(CONFIG, weight_bits=4, activation_bits=4, digit_bits=4)
    with pytest.raises(PlacementError, match="activation_bits = 4, but 8 is needed.*weight_bits"):
        Program([layer_of()], [(1, 3, 2, 2)], config)


def test_layer_that_no_device_takes() -> None:
    with pytest.raises(PlacementError, match="no device takes these layers: channel_rows = 2000"):
        suggest([layer_of(1, 6000, kind="linear")], [(1, 1, 6000)], CONFIG)


def test_taps_of_a_band_stay_inside_it() -> None:
    layer = layer_of(kernel=(3, 2), stride=(2, 1), dilation=(2, 1), pads=(3, 1, 2, 0))
    program = Program([layer], [(1, 3, 11, 5)], replace(CONFIG, positions=35))
    assert len(program.layers[0].bands) > 1
    for band in program.layers[0].bands:
        tap = taps(band.entry)
        assert tap.max() < band.entry["positions"] and (tap >= 0).any()
