import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from ditto.hdl.config import Config
from ditto.host.executor import Executor
from ditto.host.layers import Linear
from ditto.host.model import Model, ModelError
from ditto.host.program import Program, suggest
from ditto.sim.golden import Golden

CONFIG = Config(clusters=3, columns=5)
RNG = np.random.default_rng(7)


def integers(*shape: int) -> Any:
    return RNG.integers(-127, 128, shape).astype(np.int8)


def executor_of(proto: onnx.ModelProto, config: Config = CONFIG) -> Executor:
    model = Model(proto)
    shapes = model.shapes()
    config = suggest(model.layers, shapes, config)
    return Executor(model, Program(model.layers, shapes, config), Golden(config))


def agrees(proto: onnx.ModelProto, shape: tuple[int, ...], layers: int = 1) -> Executor:
    """Check two steps against the evaluation of the whole file by onnx."""
    executor = executor_of(proto)
    assert len(executor.model.layers) == layers
    reference = ReferenceEvaluator(proto)
    for _ in range(2):
        x = RNG.standard_normal(shape).astype(np.float32) * 3
        (got,) = executor.step({"x": x})
        want: Any = reference.run(None, {"x": x})
        (want,) = want
        assert got.shape == want.shape and got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)
    return executor


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1]},
        {"pads": [2, 0, 1, 1]},
        {"strides": [2, 1], "pads": [1, 1, 1, 1]},
        {"dilations": [2, 1], "pads": [0, 1, 2, 0]},
        {"auto_pad": "VALID"},
    ],
)
@pytest.mark.parametrize(("dtype", "zero_point"), [(np.int8, 0), (np.int8, -77), (np.uint8, 130)])
def test_convolution(
    make_graph: Any, attributes: dict[str, Any], dtype: Any, zero_point: int
) -> None:
    g = make_graph()
    x = g.quantized(g.input("x", [1, 4, 7, 6]), 0.04, zero_point, dtype)
    scales = RNG.uniform(0.01, 0.02, 7).astype(np.float32)
    bias = g.bias(RNG.integers(-9999, 9999, 7), np.float32(0.04) * scales)
    y = g.node("Conv", x, g.weights(integers(7, 4, 3, 2), scales), bias, **attributes)
    agrees(g.model(y), (1, 4, 7, 6))


def test_convolution_with_float_bias_rounds_it(make_graph: Any) -> None:
    g = make_graph()
    x = g.quantized(g.input("x", [1, 2, 3, 3]), 0.5)
    bias = g.constant([1.24, -7.3], np.float32)
    y = g.node("Conv", x, g.weights(integers(2, 2, 1, 1), [0.5, 0.25]), bias)
    (layer,) = Model(g.model(y)).layers
    assert isinstance(layer, Linear) and layer.bias.tolist() == [5, -58]


def test_bias_of_another_scale_is_converted(make_graph: Any) -> None:
    g = make_graph()
    x = g.quantized(g.input("x", [1, 2, 3, 3]), 0.5)
    bias = g.bias(np.array([100, -100]), 0.125)
    y = g.node("Conv", x, g.weights(integers(2, 2, 1, 1), [0.5, 0.25]), bias)
    (layer,) = Model(g.model(y)).layers
    assert isinstance(layer, Linear) and layer.bias.tolist() == [50, -100]


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(make_graph: Any, transposed: int) -> None:
    g = make_graph()
    x = g.quantized(g.input("x", [1, 11]), 0.05, 3)
    w, scales = integers(*((8, 11) if transposed else (11, 8))), RNG.uniform(0.01, 0.02, 8)
    weights = g.weights(w, scales, axis=1 - transposed)
    bias = g.constant(RNG.standard_normal(8), np.float32)
    y = g.node("Gemm", x, weights, bias, transB=transposed)
    agrees(g.model(y), (1, 11))


@pytest.mark.parametrize("shape", [(1, 9, 5), (1, 2, 3, 5), (4, 5)])
def test_matmul_by_a_constant(make_graph: Any, shape: tuple[int, ...]) -> None:
    g = make_graph()
    x = g.node("Reshape", g.input("x", [1, int(np.prod(shape))]), g.constant(shape, np.int64))
    y = g.node("MatMul", g.quantized(x), g.weights(integers(5, 6), np.full(6, 0.01), axis=1))
    agrees(g.model(y), (1, int(np.prod(shape))))


def test_one_scale_for_all_weights(make_graph: Any) -> None:
    g = make_graph()
    x = g.quantized(g.input("x", [1, 9, 5]))
    agrees(g.model(g.node("MatMul", x, g.weights(integers(5, 6), 0.02))), (1, 9, 5))


def test_quantized_output_and_shared_input(make_graph: Any) -> None:
    g = make_graph()
    x = g.quantized(g.input("x", [1, 3, 4, 4]))
    # No multiple of 0.05 * 0.01 is in the middle of two of 0.3001: rounding there may differ.
    a = g.quantized(g.node("Conv", x, g.weights(integers(3, 3, 1, 1), [0.01] * 3)), 0.3001, 5)
    b = g.node("Conv", x, g.weights(integers(3, 3, 3, 3), [0.01] * 3), pads=[1, 1, 1, 1])
    c = g.node("Conv", a, g.weights(integers(3, 3, 1, 1), [0.01] * 3))
    d = g.node("Add", g.node("Add", a, b), g.node("Add", x, c))
    agrees(g.model(d), (1, 3, 4, 4), layers=3)


def unsupported(g: Any, kind: str) -> tuple[str, str]:
    """Add a layer that the device cannot take; return its output and the reason."""
    x = g.quantized(g.input("x", [1, 4, 6, 6]))
    scales = [0.01] * 4
    if kind == "cubes":
        w = g.weights(integers(4, 4, 3, 3, 3), scales)
        x = g.node("Unsqueeze", x, g.constant([2]))
        y = g.node("Conv", x, w, name="odd", pads=[1] * 6)
        return g.node("Squeeze", y, g.constant([2])), "over 3 dimensions"
    if kind == "same":
        w = g.weights(integers(4, 4, 3, 3), scales)
        return g.node("Conv", x, w, name="odd", auto_pad="SAME_UPPER"), "padding is SAME_UPPER"
    if kind == "float":
        w = g.constant(RNG.standard_normal((4, 4, 1, 1)), np.float32)
        return g.node("Conv", x, w, name="odd"), "weights are not quantized"
    if kind == "wide":
        w = g.weights(integers(4, 4, 1, 17), scales)
        return g.node("Conv", x, w, name="odd", pads=[0, 8, 0, 8]), "kernel"
    if kind == "padded":
        w = g.weights(integers(4, 4, 1, 1), scales)
        return g.node("Conv", x, w, name="odd", pads=[1, 1, 1, 1]), "padding"
    if kind == "shaped":
        w = g.weights(integers(4, 4, 2, 2), [0.01] * 4, axis=1)
        return g.node("ConvTranspose", x, w, name="odd", output_shape=[7, 7]), "output_shape"
    assert kind == "input axis"
    w = g.weights(integers(6, 6), [0.01] * 6, axis=0)
    return g.node("MatMul", x, w, name="odd"), "axis 0"


@pytest.mark.parametrize(
    "kind",
    "cubes same float wide padded shaped".split() + ["input axis"],
)
def test_unsupported_layers_run_on_the_host_and_say_so_once(
    make_graph: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ditto")
    g = make_graph()
    odd, reason = unsupported(g, kind)
    inner = g.node("GlobalAveragePool", odd)
    inner = g.node("Reshape", inner, g.constant([1, -1], np.int64))
    y = g.node("Gemm", g.quantized(inner), g.weights(integers(4, 3), 0.02))
    executor = agrees(g.model(y), (1, 4, 6, 6))
    assert list(executor.model.on_host) == ["odd"]
    messages = [m for m in caplog.messages if m.startswith("odd runs on the host: ")]
    assert len(messages) == 1 and reason in messages[0]


def test_missing_corrupt_and_float_files(tmp_path: Path, make_graph: Any) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ModelError, match=r"cannot read model .*model\.onnx: No such file"):
        Model.load(path)
    path.write_bytes(b"PNG, not a model")
    with pytest.raises(ModelError, match=r"model\.onnx is not a valid ONNX file: \S"):
        Model.load(path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match=r"model\.onnx is not a valid ONNX file: \S"):
        Model.load(path)
    g = make_graph()
    w = g.constant(np.zeros((2, 2, 1, 1)), np.float32)
    onnx.save(g.model(g.node("Conv", g.input("x", [1, 2, 3, 3]), w)), path)
    with pytest.raises(ModelError, match=r"not a quantized \(QDQ\) model: it has no QuantizeL"):
        Model.load(path)


def test_cut_file(denoiser_file: Path) -> None:
    data = denoiser_file.read_bytes()
    denoiser_file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="is not a valid ONNX file"):
        Model.load(denoiser_file)


def test_no_layer_for_the_device(make_graph: Any) -> None:
    g = make_graph()
    odd, _ = unsupported(g, "float")
    with pytest.raises(ModelError, match=r"no layer that the device can take \(odd: .*not quantiz"):
        Model(g.model(odd))


@pytest.mark.parametrize(
    "attributes", [{"strides": [1]}, {"dilations": [1, 1, 1]}, {"pads": [1, 1]}]
)
def test_a_convolution_with_too_few_or_too_many_axes_is_no_layer(
    make_graph: Any, attributes: dict[str, list[int]]
) -> None:
    g = make_graph()
    x = g.quantized(g.input("x", [1, 2, 6, 5]))
    w = g.weights(np.ones((3, 2, 3, 3), np.int8), 0.1)
    proto = g.model(g.node("Conv", x, w, name="odd", **attributes))
    with pytest.raises(ModelError, match=r"odd: its kernel \(3, 3\) has other axes than"):
        Model(proto)


def test_operator_that_the_host_does_not_know(make_graph: Any) -> None:
    g = make_graph()
    x = g.input("x", [1, 5])
    y = g.node("Gemm", g.quantized(x), g.weights(integers(5, 6), 0.02))
    model = g.model(g.node("Mystery", y, domain="some.where"), domains=["some.where"])
    with pytest.raises(ModelError, match="the host cannot evaluate model: .*Mystery"):
        Model(model)


def test_wrong_inputs(denoiser_proto: onnx.ModelProto) -> None:
    model = Model(denoiser_proto, "m.onnx")
    one = np.zeros(1, np.int64)
    good = {"sample": np.zeros((1, 1, 6, 6), np.float32), "timestep": one, "label": one}

    def run(**changes: Any) -> None:
        model.run(good | changes, lambda index, x: x)

    with pytest.raises(ModelError, match=r"sample of m.onnx has shape \(1, 1, 6, 6\), not \(1, 1"):
        run(sample=np.zeros((1, 1, 8, 8), np.float32))
    with pytest.raises(ModelError, match="timestep of m.onnx is of type int64, not float32"):
        run(timestep=np.zeros(1, np.float32))
    with pytest.raises(ModelError, match="takes the inputs sample, timestep, label, not "):
        model.run({"x": one}, lambda index, x: x)


def test_open_sizes_and_batches(make_graph: Any) -> None:
    g = make_graph()
    x = g.quantized(g.input("x", ["batch", 2, "height", "width"]))
    y = g.node("Conv", x, g.weights(integers(3, 2, 1, 1), [0.01] * 3))
    model = Model(g.model(y))
    with pytest.raises(ModelError, match="leaves the size of its input x open"):
        model.shapes()
    assert model.shapes({"x": np.zeros((1, 2, 4, 3), np.float32)}) == ((1, 2, 4, 3),)
    g = make_graph()
    x = g.quantized(g.input("x", [4, 2]))
    with pytest.raises(ModelError, match="input x of model has a batch of 4"):
        Model(g.model(g.node("Gemm", x, g.weights(integers(2, 2), 0.01))))


def test_values_that_are_no_numbers(make_graph: Any) -> None:
    g = make_graph()
    x = g.input("x", [1, 5], TensorProto.FLOAT)
    y = g.node("Gemm", g.quantized(x), g.weights(integers(5, 6), 0.02), name="poor")
    executor = executor_of(g.model(y))
    with pytest.raises(ModelError, match="the input of layer poor contains values that are no"):
        executor.step({"x": np.full((1, 5), np.nan, np.float32)})
    executor.step({"x": np.full((1, 5), np.inf, np.float32)})


@pytest.mark.parametrize("seed", range(60))
def test_damaged_files_are_refused_in_one_sentence_or_work(denoiser_file: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(denoiser_file.read_bytes())
    for at in rng.integers(0, len(data), rng.integers(1, 5)):
        data[at] ^= 1 << int(rng.integers(0, 8))
    denoiser_file.write_bytes(data)
    try:
        Model.load(denoiser_file).shapes()
    except ModelError as error:
        assert "\n" not in str(error)
