from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto.sim.golden import shares, taps
from ditto.sim.spatial import edges, spatial, stretched


def random_entry(draw: Callable[[int, int], int]) -> dict[str, int]:
    kernel = draw(1, 3), draw(1, 4)
    stride = draw(1, 2), draw(1, 3)
    dilation = draw(1, 2), draw(1, 3)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    before = draw(0, reach[0] - 1), draw(0, reach[1] - 1)
    after = draw(0, reach[0] - 1), draw(0, reach[1] - 1)
    size = [draw(max(r - b - a, 1), 12) for r, b, a in zip(reach, before, after, strict=True)]
    out = [
        (n + a + b - r) // s + 1
        for n, a, b, r, s in zip(size, before, after, reach, stride, strict=True)
    ]
    split = draw(1, 4)
    entry = {
        "in_height": size[0],
        "in_width": size[1],
        "positions": size[0] * size[1],
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
        "split": split,
        "skew": draw(0, split - 1),
    }
    margin, lead = edges(entry)
    return entry | {"margin": margin, "lead": lead}


def windows(values: np.ndarray, entry: dict[str, int]) -> np.ndarray:
    """Return what each output position reads, of shape (output positions, taps * channels)."""
    padded = np.append(values, np.zeros_like(values[:1]), axis=0)
    tap = taps(entry)
    return padded[tap].reshape(len(tap), -1)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_carried_accumulators_are_those_of_the_windows(data: st.DataObject) -> None:
    entry = random_entry(lambda low, high: data.draw(st.integers(low, high)))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    channels = data.draw(st.integers(1, 3))
    values = rng.integers(-128, 128, (2, entry["positions"], channels))
    weights = rng.integers(-128, 128, (windows(values[0], entry).shape[1], 4))
    deltas = spatial(values, entry)
    assert np.abs(deltas).max(initial=0) <= 255
    width, wide = entry["out_width"], stretched(entry)["out_width"]
    for sample in range(2):
        changes = windows(deltas[sample], stretched(entry)) @ weights
        want = windows(values[sample], entry) @ weights
        # Each cluster goes through its rows as a sequencer does.
        walks = shares(entry, entry["split"], entry["lead"])
        for walk, share in zip(walks, shares(entry, entry["split"]), strict=True):
            line, accumulator, written = -1, np.zeros(4, int), []
            for y, x in zip(*np.divmod(walk.positions, wide), strict=True):
                accumulator = changes[y * wide + x] + (accumulator if y == line else 0)
                line = y
                if x >= wide - width:
                    written.append(y * width + x - (wide - width))
                    np.testing.assert_array_equal(accumulator, want[written[-1]])
            assert written == share.positions.tolist()


def test_a_constant_image_costs_its_edges_only() -> None:
    entry = {"in_height": 1, "in_width": 8, "out_height": 1, "out_width": 8, "positions": 8}
    entry |= {"kernel_height": 1, "kernel_width": 3, "stride_y": 1, "stride_x": 1}
    entry |= {"dilation_y": 1, "dilation_x": 1, "pad_top": 0, "pad_left": 1, "split": 1}
    margin, lead = edges(entry)
    assert (margin, lead) == (1, 1)
    entry |= {"margin": margin, "lead": lead}
    deltas = spatial(np.full((8, 1), 7), entry)
    assert deltas[:, 0].tolist() == [7, 0, 0, 0, 0, 0, 0, 0, -7]
    read = np.count_nonzero(windows(deltas, stretched(entry)), axis=1)
    # The first column comes in tap by tap, from the virtual row on; the last one goes.
    assert read.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    "kernel, pad, stride, split, want",
    [
        (1, 0, 1, 1, (0, 0)),
        (1, 0, 1, 4, (0, 0)),
        (3, 1, 1, 1, (1, 1)),
        (3, 1, 1, 2, (1, 1)),
        (3, 1, 2, 1, (0, 0)),
        (5, 2, 1, 1, (1, 2)),
        (5, 2, 1, 4, (2, 1)),
        (3, 0, 1, 1, (0, 2)),
    ],
)
def test_edges(kernel: int, pad: int, stride: int, split: int, want: tuple[int, int]) -> None:
    entry = {"in_width": 16, "out_width": (16 + 2 * pad - kernel) // stride + 1}
    entry |= {"kernel_width": kernel, "stride_x": stride, "dilation_x": 1}
    assert edges(entry | {"pad_left": pad, "split": split}) == want
