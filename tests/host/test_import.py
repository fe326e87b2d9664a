"""Layers of every kind, against an independent evaluation of the whole file."""

from typing import Any

import numpy as np
import onnx
import pytest

from ditto.hdl.config import Config
from ditto.hdl.protocol import Mode
from ditto.host.executor import Executor
from ditto.host.layers import Linear, Product
from ditto.host.model import Model, ModelError
from ditto.host.program import Program, suggest
from ditto.host.trace import evaluator_of
from ditto.sim.golden import Golden

CONFIG = Config(clusters=3, columns=5)
RNG = np.random.default_rng(11)


def integers(*shape: int) -> Any:
    return RNG.integers(-127, 128, shape).astype(np.int8)


def scales(count: int) -> Any:
    return RNG.uniform(0.01, 0.02, count).astype(np.float32)


def agrees(
    proto: onnx.ModelProto, shape: tuple[int, ...], layers: int = 1, config: Config = CONFIG
) -> Executor:
    """Compare four steps, dense and by differences, with onnx; nothing may stay on the host."""
    model = Model(proto)
    assert not model.on_host
    assert len(model.layers) == layers
    shapes = model.shapes()
    config = suggest(model.layers, shapes, config)
    program = Program(model.layers, shapes, config)
    dense = Executor(model, program, Golden(config), mode=Mode.DENSE)
    temporal = Executor(model, program, Golden(config), check=True)
    reference = evaluator_of(proto)
    x = RNG.standard_normal(shape).astype(np.float32) * 2
    for _ in range(4):
        (got,) = temporal.step({"x": x})
        assert got.tobytes() == dense.step({"x": x})[0].tobytes()
        (want,) = reference.run({"x": x})
        assert got.shape == want.shape and got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)
        x = x + RNG.standard_normal(shape).astype(np.float32) / 20
    for run in temporal.runs:
        if isinstance(model.layers[run.layer], Linear):
            assert run.mode is (Mode.TEMPORAL if run.step else Mode.DENSE)
    return temporal


@pytest.mark.parametrize(
    ("groups", "inputs", "outputs"), [(2, 4, 6), (4, 4, 4), (3, 6, 3), (6, 6, 12), (2, 8, 14)]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_groups(make_graph: Any, groups: int, inputs: int, outputs: int, stride: int) -> None:
    g = make_graph()
    x = g.quantized(g.input("x", [1, inputs, 6, 5]), 0.04, 9)
    factors = scales(outputs)
    y = g.node(
        "Conv",
        x,
        g.weights(integers(outputs, inputs // groups, 3, 3), factors),
        g.bias(RNG.integers(-999, 999, outputs), np.float32(0.04) * factors),
        group=groups,
        pads=[1, 1, 1, 1],
        strides=[stride, stride],
    )
    agrees(g.model(y), (1, inputs, 6, 5))


def test_groups_share_columns_where_that_is_quicker(make_graph: Any) -> None:
    g = make_graph()
    x = g.quantized(g.input("x", [1, 12, 8, 8]))
    y = g.node("Conv", x, g.weights(integers(12, 1, 1, 1), scales(12)), group=12)
    executor = agrees(g.model(y), (1, 12, 8, 8), config=Config(clusters=1, columns=16))
    (placement,) = executor.program.layers
    (part,) = placement.parts
    assert (part.lowered.layer.channels, part.lowered.layer.outputs) == (12, 12)
    # Of the twelve products of an item, one is of a real weight.
    assert all(run.products == run.counters.items for run in executor.runs)


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 2]},
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"strides": [2, 3], "pads": [0, 1, 1, 0], "output_padding": [1, 2]},
        {"strides": [1, 1], "pads": [1, 1, 1, 1]},
        {"strides": [2, 1], "dilations": [2, 1], "output_padding": [1, 0]},
        {"strides": [3, 3]},
        {"strides": [4, 3]},
        {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"group": 4, "strides": [3, 3]},
    ],
)
@pytest.mark.parametrize("columns", [3, 24])
def test_transposed_convolution(make_graph: Any, attributes: dict[str, Any], columns: int) -> None:
    groups = attributes.get("group", 1)
    if groups > 1:  # which onnx.reference cannot
        pytest.importorskip("onnxruntime")
    g = make_graph()
    x = g.quantized(g.input("x", [1, 4, 4, 3]), 0.04, -7)
    factors = scales(8 // groups)
    y = g.node(
        "ConvTranspose",
        x,
        g.weights(integers(4, 8 // groups, 3, 3), factors, axis=1),
        g.bias(RNG.integers(-999, 999, 8), np.float32(0.04) * np.tile(factors, groups)),
        **attributes,
    )
    agrees(g.model(y), (1, 4, 4, 3), config=Config(clusters=3, columns=columns))


def test_transposed_convolution_without_overlap_is_pointwise(make_graph: Any) -> None:
    g = make_graph()
    x = g.quantized(g.input("x", [1, 6, 4, 4]))
    y = g.node(
        "ConvTranspose", x, g.weights(integers(6, 9, 2, 2), scales(9), axis=1), strides=[2, 2]
    )
    executor = agrees(g.model(y), (1, 6, 4, 4))
    (part,) = executor.program.layers[0].parts
    # No pixel between others crosses the link.
    assert (part.lowered.layer.taps, part.lowered.shape) == (1, (16, 6))


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_sequences(make_graph: Any, op: str) -> None:
    g = make_graph()
    x = g.quantized(g.input("x", [1, 3, 9]))
    shape, axis = ((4, 3, 5), 0) if op == "Conv" else ((3, 4, 5), 1)
    y = g.node(op, x, g.weights(integers(*shape), scales(4), axis=axis), strides=[2], pads=[2, 1])
    agrees(g.model(y), (1, 3, 9))


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_constant_on_the_left(make_graph: Any, batch: tuple[int, ...]) -> None:
    g = make_graph()
    x = g.quantized(g.input("x", [1, *batch[1:], 6, 7] if batch else [1, 7]), 0.04, 5)
    if not batch:
        x = g.node("Reshape", x, g.constant([7, 1], np.int64))
        agrees(g.model(g.node("MatMul", g.weights(integers(4, 7), scales(4)), x)), (1, 7))
        return
    y = g.node("MatMul", g.weights(integers(4, 6), scales(4)), x)
    agrees(g.model(y), (1, *batch[1:], 6, 7))


@pytest.mark.parametrize("transA", [0, 1])
@pytest.mark.parametrize("transB", [0, 1])
def test_gemm_with_factors_and_transposed_operands(
    make_graph: Any,
    transA: int,
    transB: int,  # noqa: N803
) -> None:
    g = make_graph()
    x = g.input("x", [1, 24])
    x = g.quantized(g.node("Reshape", x, g.constant([4, 6] if transA else [6, 4], np.int64)))
    w = g.weights(integers(*((8, 4) if transB else (4, 8))), scales(8), axis=1 - transB)
    bias = g.constant(RNG.standard_normal(8), np.float32)
    y = g.node("Gemm", x, w, bias, transA=transA, transB=transB, alpha=0.5, beta=3.0)
    agrees(g.model(y), (1, 24))


@pytest.mark.parametrize(("dtype", "zero"), [(np.uint8, 128), (np.uint8, 77), (np.int8, -20)])
@pytest.mark.parametrize("per_channel", [False, True])
def test_asymmetric_weights(make_graph: Any, dtype: Any, zero: int, per_channel: bool) -> None:
    g = make_graph()
    x = g.quantized(g.input("x", [1, 3, 5, 5]), 0.04, 9)
    info = np.iinfo(dtype)
    raw = RNG.integers(info.min, info.max + 1, (4, 3, 3, 3))
    raw[0, 0, 0, :2] = info.min, info.max
    raw = g.constant(raw, dtype)
    points = zero + RNG.integers(-5, 6, 4) if per_channel else zero
    factors = scales(4) if per_channel else np.float32(0.02)
    facts = g.constant(factors), g.constant(points, dtype)
    w = g.node("DequantizeLinear", raw, *facts, **({"axis": 0} if per_channel else {}))
    executor = agrees(g.model(g.node("Conv", x, w, pads=[1, 1, 1, 1])), (1, 3, 5, 5))
    assert executor.program.layers[0].rest is not None


def test_weights_that_are_quantized_in_the_graph_and_transposed(make_graph: Any) -> None:
    # As quantizers write them that keep float weights.
    g = make_graph()
    x = g.quantized(g.input("x", [1, 3, 6]))
    exact = g.constant(RNG.standard_normal((5, 6)), np.float32)
    facts = g.constant(0.03, np.float32), g.constant(0, np.int8)
    w = g.node("DequantizeLinear", g.node("QuantizeLinear", exact, *facts), *facts)
    y = g.node("MatMul", x, g.node("Transpose", w, perm=[1, 0]))
    agrees(g.model(y), (1, 3, 6))


def test_weights_of_several_heads(make_graph: Any) -> None:
    g = make_graph()
    x = g.quantized(g.input("x", [1, 3, 4, 6]))
    y = g.node("MatMul", x, g.weights(integers(3, 6, 5), 0.02))
    executor = agrees(g.model(y), (1, 3, 4, 6))
    (layer,) = executor.model.layers
    assert isinstance(layer, Product) and layer.fixed
    # The weights are written once: no run has them as items.
    assert len(executor.program.layers[0].parts) == 3


def test_operands_that_were_moved_after_quantization(make_graph: Any) -> None:
    g = make_graph()
    x = g.quantized(g.input("x", [1, 4, 6]), 0.05, 3, np.uint8)
    y = g.node("Reshape", x, g.constant([4, 2, 3], np.int64))
    y = g.node("MatMul", y, g.weights(integers(3, 5), 0.02))
    agrees(g.model(y), (1, 4, 6))


def test_quantizers_without_zero_point(make_graph: Any) -> None:
    g = make_graph()
    x = g.input("x", [1, 6])
    scale = g.constant(0.05, np.float32)
    x = g.node("DequantizeLinear", g.node("QuantizeLinear", x, scale), scale)
    w = g.node(
        "DequantizeLinear", g.constant(integers(6, 4), np.int8), g.constant(0.02, np.float32)
    )
    executor = agrees(g.model(g.node("MatMul", x, w)), (1, 6))
    (layer,) = executor.model.layers
    assert isinstance(layer, Linear)
    assert (layer.low, layer.high) == (0, 255)  # ONNX: unsigned, if nothing is said


def test_an_operator_that_fails_is_named(make_graph: Any) -> None:
    g = make_graph()
    x = g.input("x", [1, 6])
    y = g.node("Gemm", g.quantized(x), g.weights(integers(6, 4), scales(4), axis=1))
    y = g.node("Reshape", y, g.constant([5, 5], np.int64), name="wrong")
    model = Model(g.model(y), "m.onnx")
    with pytest.raises(ModelError, match=r"cannot evaluate node wrong \(Reshape\) of m.onnx: "):
        model.shapes()
