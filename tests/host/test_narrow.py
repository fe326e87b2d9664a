"""What a device's weights leave out, and what the host adds, is nothing less than the layer."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto.hdl.config import Config
from ditto.host.layers import Linear, Quantization
from ditto.host.lowering import windows
from ditto.host.narrow import Rest, narrow_activation, narrow_layer, times

CONFIG = Config(columns=4)
quick = settings(deadline=None, max_examples=60)


def layer_of(weights: np.ndarray, **geometry: object) -> Linear:
    return Linear(
        name="layer",
        kind="conv",
        weights=weights.astype(np.int16),
        weight_scales=np.ones(len(weights), np.float32),
        bias=np.zeros(len(weights), np.int64),
        input_scale=np.float32(1),
        zero_point=0,
        low=-128,
        high=127,
        **geometry,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("bits", "given_", "want"),
    [
        (8, [-127, 127], [-127, 127]),
        (8, [-100, 128], [-101, 127]),  # just over: moved by what is over
        (8, [-200, -100], [-128, -28]),
        (8, [0, 255], [-128, 127]),  # as wide as can be: around the middle
        (8, [-255, 255], [-128, 127]),  # wider: both ends are cut
        (4, [7, -8], [7, -8]),
        (4, [8, 0], [7, -1]),
        (4, [100, 110], [-3, 7]),
    ],
)
def test_weights_are_moved_as_little_as_can_be(
    bits: int, given_: list[int], want: list[int]
) -> None:
    config = replace(CONFIG, weight_bits=bits)
    want = [max(w, config.min_weight) for w in want]
    weights = np.array(given_).reshape(1, 2, 1)
    found = narrow_layer(layer_of(weights, kernel=(2, 1)), config).weights.reshape(-1)
    low, high = config.min_weight, (1 << bits - 1) - 1
    assert low <= found.min() and found.max() <= high
    moved = weights.reshape(-1) - found
    if max(given_) - min(given_) <= high - low:
        assert moved[0] == moved[1]  # one number, which is quick to add
        assert abs(moved[0]) == max(max(given_) - high, low - min(given_), 0)
    assert abs(found - np.array(want)).max() <= 1


def test_each_output_is_moved_by_itself_and_fitting_layers_are_the_same() -> None:
    fits = layer_of(np.array([[[1, -127]], [[127, 0]]]))
    assert narrow_layer(fits, CONFIG) is fits
    mixed = layer_of(np.array([[[1, 5]], [[130, 0]], [[0, -140]]]))
    found = narrow_layer(mixed, CONFIG)
    low = CONFIG.min_weight
    assert found.weights[:, 0].tolist() == [[1, 5], [127, -3], [140 + low, low]]
    assert found.weights.dtype == np.int8


@pytest.mark.parametrize(("most", "middle"), [(255, 3), (254, 2), (253, 2)])
def test_what_is_not_cut_off_of_wide_weights_is_moved_by_one_number(most: int, middle: int) -> None:
    weights = np.array([-250, 10, -3, most]).reshape(1, 4, 1)
    found = narrow_layer(layer_of(weights, kernel=(4, 1)), CONFIG).weights.reshape(-1)
    assert found.tolist() == [CONFIG.min_weight, 10 - middle, -3 - middle, 127]


@quick
@given(st.integers(0, 1 << 30), st.sampled_from([2, 4, 8]), st.sampled_from([1, 2, 3]))
def test_the_device_and_the_rest_make_the_layer(seed: int, bits: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    config = replace(CONFIG, weight_bits=bits)
    weights = rng.integers(-255, 256, (6, 6, 3))
    if rng.random() < 0.5:
        weights = np.clip(weights // 3 + 100, -255, 255)
    layer = layer_of(weights, kernel=(3, 2), pads=(1, 1, 1, 0), groups=groups)
    seen = windows(layer, (1, 3 * groups, 4, 5))
    narrow = narrow_layer(layer, config)
    assert narrow.weights.min() >= config.min_weight
    assert narrow.weights.max() < 1 << bits - 1
    values = rng.integers(-255, 256, (20, 3 * groups))
    padded = np.append(values, np.zeros_like(values[:1]), axis=0)

    def sums(of: Linear) -> np.ndarray:
        taken = padded[seen].reshape(20, 6, groups, 3)
        split = of.weights.astype(np.int64).reshape(groups, -1, 6, 3)
        return np.einsum("ptgc,gotc->pgo", taken, split).reshape(20, 6)

    rest = Rest(layer, narrow, seen).sums(values)
    np.testing.assert_array_equal(sums(narrow) + rest, sums(layer))


def test_an_activation_is_taken_around_the_middle_of_its_range() -> None:
    operand = np.array([[-128, 0, 127]])
    signed = Quantization(scale=np.float32(1), zero_point=3, low=-128, high=127)
    found = narrow_activation(operand, signed, CONFIG)
    assert found.tolist() == [[max(-128, CONFIG.min_weight), 0, 127]]
    unsigned = Quantization(scale=np.float32(1), zero_point=3, low=0, high=255)
    assert narrow_activation(operand + 128, unsigned, CONFIG).tolist() == found.tolist()
    odd = Quantization(scale=np.float32(1), zero_point=0, low=0, high=254)
    assert narrow_activation(np.array([127]), odd, CONFIG).tolist() == [0]


@quick
@given(st.integers(0, 1 << 30))
def test_times_is_the_product(seed: int) -> None:
    rng = np.random.default_rng(seed)
    deltas = rng.integers(-255, 256, (3, 6))
    rest = np.full((6, 4), int(rng.integers(-9, 9)))
    for _ in range(rng.integers(0, 5)):
        rest[rng.integers(6), rng.integers(4)] += int(rng.integers(-1, 2))
    np.testing.assert_array_equal(times(deltas, rest), deltas @ rest)
