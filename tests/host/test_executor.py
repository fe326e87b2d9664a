import threading
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.hdl.protocol import Counters, Mode
from ditto.host.executor import Executor, MismatchError, Stopped
from ditto.host.layers import Linear
from ditto.host.model import Model, ModelError
from ditto.host.program import Program, suggest
from ditto.sim.golden import Golden

CONFIG = Config(clusters=3, columns=4, positions=20, channels=8, item_depth=96)


class Recording(Golden):
    """Keeps the accumulators that are read, and can be faulty."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.seen: list[NDArray[np.int64]] = []
        self.fault: tuple[int, int, int] | None = None
        self.miscount = ""
        self.reads = 0

    def read_accumulators(
        self, row: int, count: int, columns: int | None = None
    ) -> NDArray[np.int64]:
        words = super().read_accumulators(row, count, columns)
        if self.fault is not None and self.fault[0] == self.reads:
            words[0, self.fault[1], self.fault[2]] ^= 1
        self.reads += 1
        self.seen.append(words)
        return words

    def run(self, entry: int, mode: Mode) -> Counters:
        counters = super().run(entry, mode)._replace(stall_link=17)
        if self.miscount:
            wrong = getattr(counters, self.miscount) + 1
            counters = counters._replace(**{self.miscount: wrong})
        return counters


def executor_of(proto: onnx.ModelProto, **options: Any) -> tuple[Executor, Recording]:
    model = Model(proto)
    shapes = model.shapes()
    config = suggest(model.layers, shapes, CONFIG)
    device = Recording(config)
    return Executor(model, Program(model.layers, shapes, config), device, **options), device


def steps(count: int, seed: int = 0, drift: float = 0.2) -> list[dict[str, NDArray[Any]]]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, 1, 6, 6)).astype(np.float32)
    result = []
    for i in range(count):
        result.append({"sample": x, "timestep": np.array([900 - i]), "label": np.array([3])})
        x = x + drift * rng.standard_normal(x.shape).astype(np.float32)
    return result


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 5))
def test_temporal_equals_dense_equals_the_definition(
    denoiser_proto: onnx.ModelProto, seed: int, drift: float
) -> None:
    inputs = steps(4, seed, drift)
    dense, dense_device = executor_of(denoiser_proto, mode=Mode.DENSE)
    temporal, device = executor_of(denoiser_proto, mode=Mode.TEMPORAL)
    for feed in inputs:
        np.testing.assert_array_equal(dense.step(feed)[0], temporal.step(feed)[0])
    for a, b in zip(dense_device.seen, device.seen, strict=True):
        np.testing.assert_array_equal(a, b)
    # The cycles that dense mode would have taken are those that it takes.
    assert [run.dense_cycles for run in temporal.runs] == [
        run.counters.cycles for run in dense.runs
    ]
    assert {run.mode for run in temporal.runs if run.step} == {Mode.TEMPORAL}
    assert {run.mode for run in temporal.runs if not run.step} == {Mode.DENSE}


def test_the_accumulators_are_the_integer_convolution(denoiser_proto: onnx.ModelProto) -> None:
    executor, _ = executor_of(denoiser_proto)
    layer = executor.model.layers[0]
    assert isinstance(layer, Linear)
    rng = np.random.default_rng(3)
    for _ in range(3):
        x = rng.standard_normal((1, 1, 6, 6)).astype(np.float32)
        q = np.clip(np.rint(x / layer.input_scale), -128, 127).astype(np.int64)
        padded = np.pad(q[0, 0], 1)
        want = np.zeros((layer.outputs, 6, 6), np.int64) + layer.bias[:, None, None]
        for tap in range(9):
            i, j = divmod(tap, 3)
            weights = layer.weights[:, tap, 0].astype(np.int64)
            want += weights[:, None, None] * padded[i : i + 6, j : j + 6]
        got = executor.evaluate(0, x)[0]
        scale = (layer.input_scale * layer.weight_scales)[:, None, None]
        np.testing.assert_array_equal(got, want.astype(np.float32) * scale)


def test_a_new_sample_begins_dense(denoiser_proto: onnx.ModelProto) -> None:
    executor, _ = executor_of(denoiser_proto)
    feeds = steps(3)
    first = [executor.step(feed)[0] for feed in feeds]
    executor.begin()
    runs, executor.runs = executor.runs, []
    again = [executor.step(feed)[0] for feed in feeds]
    np.testing.assert_array_equal(first, again)
    assert executor.runs == runs


def test_counts(denoiser_proto: onnx.ModelProto) -> None:
    executor, _ = executor_of(denoiser_proto)
    for feed in steps(2):
        executor.step(feed)
    config = executor.program.config
    for run in executor.runs:
        placement = executor.program.layers[run.layer]
        counters = run.counters
        assert (
            counters.items + counters.stall_row + counters.stall_item + counters.stall_cluster
            == config.clusters * config.lanes * counters.cycles
        )
        # Bands share rows, so there may be more deltas than inputs.
        entries = [band.entry for band in placement.bands]
        deltas = sum(entry["positions"] * entry["channels"] for entry in entries)
        assert counters.zero + counters.narrow + counters.wide == deltas
        (part,) = placement.parts
        copies = part.copies(config)
        assert run.products * copies == counters.items * part.lowered.layer.outputs
        assert run.products <= config.multipliers * counters.cycles


def test_check_passes_on_a_good_device(denoiser_proto: onnx.ModelProto) -> None:
    executor, _ = executor_of(denoiser_proto, check=True)
    for feed in steps(3):
        executor.step(feed)


def test_check_names_the_first_accumulator_that_differs(denoiser_proto: onnx.ModelProto) -> None:
    executor, device = executor_of(denoiser_proto, check=True)
    feeds = steps(3)
    executor.step(feeds[0])
    placement = executor.program.layers[0]
    assert placement.layer.name == "first/Conv"
    assert [band.outputs.start // 6 for band in placement.bands] == [0, 1, 2, 3, 4]
    # The fault is in the third band.
    device.fault = (device.reads + 2, 1, 1)
    with pytest.raises(MismatchError) as caught:
        executor.step(feeds[1])
    error = caught.value
    assert (error.step, error.layer, error.got ^ error.want) == (1, "first/Conv", 1)
    assert error.element == "accumulator of channel 1, row 2, column 3"
    assert str(error).startswith("step 1, layer first/Conv, accumulator of channel 1, row 2, col")


def test_check_compares_counters(denoiser_proto: onnx.ModelProto) -> None:
    executor, device = executor_of(denoiser_proto, check=True)
    device.miscount = "stall_row"
    with pytest.raises(MismatchError, match=r"step 0, layer .*counter stall_row of layer-table"):
        executor.step(steps(1)[0])


def test_another_shape_than_the_placed_one(denoiser_proto: onnx.ModelProto) -> None:
    executor, _ = executor_of(denoiser_proto)
    index = [p.layer.name for p in executor.program.layers].index("first/Conv")
    with pytest.raises(ModelError, match=r"was placed for inputs of shape \(1, 1, 6, 6\), and now"):
        executor.evaluate(index, np.zeros((1, 1, 5, 6), np.float32))


def test_stop(denoiser_proto: onnx.ModelProto) -> None:
    stop = threading.Event()
    executor, _ = executor_of(denoiser_proto, stop=stop)
    stop.set()
    with pytest.raises(Stopped):
        executor.step(steps(1)[0])


def test_threshold_leaves_small_differences_in_the_residual(
    denoiser_proto: onnx.ModelProto,
) -> None:
    executor, _ = executor_of(denoiser_proto, tau=2, check=True)
    layer = executor.model.layers[0]
    assert isinstance(layer, Linear)
    rng = np.random.default_rng(5)
    x = rng.standard_normal((1, 1, 6, 6), np.float32)
    taken = layer.quantize(x)  # the first step is dense: everything counts
    held = 0
    for _ in range(6):
        got = executor.evaluate(0, x)
        exact = layer.quantize(x)
        change = exact - taken
        taken = taken + np.where(np.abs(change) <= 2, 0, change)
        held += int((taken != exact).sum())
        assert np.abs(taken - exact).max() <= 2  # however many steps it is held back
        # What comes out is the convolution of what has been taken over, and of nothing else.
        plain, _ = executor_of(denoiser_proto)
        image = taken.reshape(1, 6, 6, 1).transpose(0, 3, 1, 2)
        want = plain.evaluate(0, image.astype(np.float32) * layer.input_scale)
        np.testing.assert_array_equal(got, want)
        x = (x + 0.04 * rng.standard_normal(x.shape)).astype(np.float32)
    assert held > 20
    runs = [run.counters for run in executor.runs]
    assert sum(run.zero for run in runs[1:]) > 60


def test_threshold_must_not_be_negative(denoiser_proto: onnx.ModelProto) -> None:
    with pytest.raises(ValueError, match="tau must be at least 0, not -1"):
        executor_of(denoiser_proto, tau=-1)
