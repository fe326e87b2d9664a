from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto.hdl.config import Config, Multiplier
from ditto.hdl.protocol import Mode
from ditto.host.model import Linear
from ditto.host.program import PlacementError, Program, _cut, suggest
from ditto.sim.golden import Golden, shares, taps

CONFIG = Config(clusters=4, columns=4)


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
    result = np.zeros((height, width, layer.outputs), np.int64)
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
    layer = placement.layer
    assert isinstance(layer, Linear)
    outputs = []
    for part in placement.parts:
        deltas = part.lowered.deltas(q - layer.zero_point)
        rows = []
        for band in part.bands:
            device.write_deltas(band.number, deltas[band.inputs])
            device.run(band.number, Mode.DENSE)
            rows.append(part.read(device, band))
        outputs.append(part.lowered.outputs(np.concatenate(rows)))
    return np.concatenate(outputs, axis=1)


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
    array = replace(
        CONFIG,
        clusters=draw(st.integers(1, 6)),
        positions=draw(st.integers(2, 22)),
        channels=1,
        item_depth=96,
    )
    config = suggest(layers, shapes, array)
    program = Program(layers, shapes, config)
    device = Golden(config)
    program.load(device)
    rng = np.random.default_rng(1)
    for index, (layer, shape) in enumerate(zip(layers, shapes, strict=True)):
        for band in program.layers[index].bands:
            assert band.entry["positions"] <= config.positions
            items = band.entry["positions"] * band.entry["channels"] * config.digits
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


@pytest.mark.parametrize(
    "outputs, positions, split, tiles",
    [
        (4, 10, 4, 1),  # one tile: every cluster takes a quarter of the positions
        (9, 10, 4, 3),  # three tiles: all of them, of a quarter of the positions
        (8, 10, 2, 1),
        (16, 10, 1, 1),  # four tiles: one for each cluster
        (24, 10, 2, 3),
        (12, 1, 1, 1),  # a single position cannot be split
    ],
)
def test_positions_and_tiles_are_spread_over_the_clusters(
    outputs: int, positions: int, split: int, tiles: int
) -> None:
    layer = layer_of(outputs=outputs, channels=7, kind="linear")
    program = Program([layer], [(1, positions, 7)], CONFIG)
    (placement,) = program.layers
    (part,) = placement.parts
    assert (part.split, part.tiles) == (split, tiles)
    entry = placement.bands[0].entry
    assert (entry["split"], entry["tiles"]) == (split, tiles)
    assert program.weight_rows == tiles * 7
    assert program.accumulator_rows == tiles * -(-positions // split)


@pytest.mark.parametrize(
    ("clusters", "image", "stride"),
    [(4, (8, 8), 1), (8, (16, 16), 1), (12, (28, 28), 1), (8, (16, 16), 2), (6, (14, 5), 1)],
)
def test_no_share_has_much_more_of_the_taps_or_of_a_border(
    clusters: int, image: tuple[int, int], stride: int
) -> None:
    layer = layer_of(channels=5, kernel=(3, 3), pads=(1, 1, 1, 1), stride=(stride, stride))
    config = replace(CONFIG, clusters=clusters, positions=1024, item_depth=1 << 15)
    (placement,) = Program([layer], [(1, 5, *image)], config).layers
    (part,) = placement.parts
    (band,) = part.bands
    assert part.split == clusters
    height, width = layer.output_image(image)
    parts = [share.positions for share in shares(band.entry, clusters)]
    inside = (taps(band.entry) >= 0).sum(axis=1)
    loads = [inside[own].sum() for own in parts]
    assert max(loads) <= 1.07 * np.mean(loads)
    y, x = np.divmod(np.arange(height * width), width)
    border = (y % (height - 1) == 0) | (x % (width - 1) == 0)
    borders = [border[own].sum() for own in parts]
    assert max(borders) - min(borders) <= 4


def test_what_does_not_fit_is_named_with_the_sizes() -> None:
    layers = [layer_of(8, 6, 0, kernel=(3, 3)), layer_of(12, 30, 1, kernel=(2, 2))]
    shapes = [(1, 6, 9, 9), (1, 30, 9, 20)]
    config = replace(
        CONFIG,
        weight_rows=100,
        accumulator_rows=50,
        channels=29,
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
        "weight_rows = 100, but 414 are needed, 360 of them by layer layer1",
        "channels = 29, but 30 is needed by layer layer1",
        "list_depth = 8, but 9 is needed by layer layer0",
        "positions = 30, but 40 is needed by layer layer1",
        "accumulator_bits = 17, but 2",
        "--weight-rows 414",
    ):
        assert part in message
    assert "\n" not in message
    fitting = suggest(layers, shapes, config)
    Program(layers, shapes, fitting)
    for name in ("weight_rows", "accumulator_rows", "channels", "accumulator_bits", "layers"):
        with pytest.raises(PlacementError, match=name):
            Program(layers, shapes, replace(fitting, **{name: getattr(fitting, name) - 1}))


def test_accumulators_cannot_overflow() -> None:
    layer = layer_of(1, 4, kind="linear")
    layer.weights[:] = 127
    # 4 * 127 * -128 = -65024 needs 17 bits, but a product of 9 and 8 bits needs as many.
    assert layer.largest == 65024
    assert suggest([layer], [(1, 1, 4)], CONFIG).accumulator_bits == 17
    layer = layer_of(1, 5, kind="linear")
    layer.weights[:] = 127
    assert suggest([layer], [(1, 1, 5)], CONFIG).accumulator_bits == 18


def test_weights_and_activations_must_fit_their_widths() -> None:
    config = replace(CONFIG, weight_bits=4, activation_bits=4, digit_bits=4)
    with pytest.raises(PlacementError, match="activation_bits = 4, but 8 is needed.*weight_bits"):
        Program([layer_of()], [(1, 3, 2, 2)], config)


def test_layer_that_no_device_takes() -> None:
    with pytest.raises(PlacementError, match="no device takes these layers: channels = 6000"):
        suggest([layer_of(1, 6000, kind="linear")], [(1, 1, 6000)], CONFIG)


@pytest.mark.parametrize("multiplier", list(Multiplier))
@pytest.mark.parametrize("groups", [1, 2])
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(-140, 140))
def test_weights_that_multipliers_cannot_take_are_added_by_the_host(
    multiplier: Multiplier, groups: int, seed: int, shift: int
) -> None:
    rng = np.random.default_rng(seed)
    layer = layer_of(4, 3, seed, kernel=(3, 2), stride=(2, 1), pads=(1, 1, 1, 0), groups=groups)
    wide = rng.integers(-128, 128, layer.weights.shape) + rng.integers(0, 2, (4, 1, 1)) * shift
    wide[0, 0, 0], wide[0, 0, 1] = -128, 127
    layer = replace(layer, weights=np.clip(wide, -255, 255).astype(np.int16), zero_point=-5)
    shape = (1, 3 * groups, 5, 4)
    config = suggest([layer], [shape], replace(CONFIG, multiplier=multiplier))
    program = Program([layer], [shape], config)
    device = Golden(config)
    program.load(device)
    q = rng.integers(-128, 128, (20, 3 * groups))
    got = run(program, device, 0, q)
    rest = program.layers[0].rest
    if rest is not None:
        got = got + rest.sums(q - layer.zero_point)
    want = [
        plain(replace(layer, weights=weights, groups=1), q[:, 3 * i : 3 * i + 3], (5, 4))
        for i, weights in enumerate(np.split(layer.weights, groups))
    ]
    np.testing.assert_array_equal(got, np.concatenate(want, axis=1))
    assert (rest is None) == (
        layer.weights.min() >= config.min_weight and layer.weights.max() <= 127
    )


def test_taps_of_a_band_stay_inside_it() -> None:
    layer = layer_of(kernel=(3, 2), stride=(2, 1), dilation=(2, 1), pads=(3, 1, 2, 0))
    program = Program([layer], [(1, 3, 11, 5)], replace(CONFIG, positions=35))
    assert len(program.layers[0].bands) > 1
    for band in program.layers[0].bands:
        tap = taps(band.entry)
        assert tap.max() < band.entry["positions"] and (tap >= 0).any()


def test_bands_of_a_large_image_are_found_without_looking_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All bands for each number of them would be half the square of their number."""
    looks = 0

    def counted(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        return _cut(*arguments)

    monkeypatch.setattr("ditto.host.program._cut", counted)
    layer = layer_of(2, 9)
    config = replace(CONFIG, accumulator_rows=1 << 16, layers=1 << 12)
    (placement,) = Program([layer], [(1, 9, 400, 400)], config).layers
    bands = [band.entry["positions"] for band in placement.bands]
    assert looks < len(bands) ** 2 // 16
    room = config.item_depth // (9 * config.digits)
    assert sum(bands) == 400 * 400 and len(bands) == -(-400 * 400 // room)
    assert room - 1 <= min(bands) <= max(bands) <= room
