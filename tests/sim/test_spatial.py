import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto.sim.golden import taps
from ditto.sim.spatial import spatial


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_carried_accumulators_are_those_of_the_windows(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    kernel = draw(1, 3), draw(1, 3)
    stride = draw(1, 2), draw(1, 3)
    dilation = draw(1, 2), draw(1, 2)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    before = draw(0, reach[0] - 1), draw(0, reach[1] - 1)
    after = draw(0, reach[0] - 1), draw(0, reach[1] - 1)
    size = draw(reach[0], 6), draw(reach[1], 9)
    out = [
        (n + a + b - r) // s + 1
        for n, a, b, r, s in zip(size, before, after, reach, stride, strict=True)
    ]
    entry = {
        "in_height": size[0],
        "in_width": size[1],
        "out_height": out[0],
        "out_width": out[1],
        "kernel_height": kernel[0],
        "kernel_width": kernel[1],
        "stride_y": stride[0],
        "stride_x": stride[1],
        "dilation_y": dilation[0],
        "dilation_x": dilation[1],
        "pad_top": before[0],
        "pad_left": before[1],
        "split": draw(1, 4),
    }
    rng = np.random.default_rng(draw(0, 1 << 30))
    channels = draw(1, 3)
    values = rng.integers(-128, 128, (2, size[0] * size[1], channels))
    weights = rng.integers(-128, 128, (kernel[0] * kernel[1] * channels, 4))

    deltas, index = spatial(values, entry)
    assert np.abs(deltas).max(initial=0) <= 255
    split = entry["split"]
    for sample in range(2):
        padded = np.append(values[sample], np.zeros((1, channels), int), axis=0)
        windows = padded[taps(entry)].reshape(len(index), -1)
        got = np.zeros((len(index), 4), int)
        for position in range(len(index)):
            change = deltas[sample, index[position]].reshape(-1) @ weights
            is_first = position % out[1] < split
            got[position] = change if is_first else got[position - split] + change
        np.testing.assert_array_equal(got, windows @ weights)


def test_a_constant_image_costs_its_edges_only() -> None:
    entry = {"in_height": 1, "in_width": 8, "out_height": 1, "out_width": 8}
    entry |= {"kernel_height": 1, "kernel_width": 3, "stride_y": 1, "stride_x": 1}
    entry |= {"dilation_y": 1, "dilation_x": 1, "pad_top": 0, "pad_left": 1, "split": 1}
    deltas, index = spatial(np.full((8, 1), 7), entry)
    read = np.count_nonzero(deltas[index], axis=(1, 2))
    # Two taps of the first window are in the image; then one more comes in, and at last one leaves.
    assert read.tolist() == [2, 1, 0, 0, 0, 0, 0, 1]
