"""Small QDQ models, made by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


@dataclass
class Graph:
    """Collects nodes and constants of a model."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def input(self, name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def constant(self, value: Any, dtype: Any = None) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def quantized(
        self, x: str, scale: float = 0.05, zero_point: int = 0, dtype: Any = np.int8
    ) -> str:
        """Add QuantizeLinear and DequantizeLinear."""
        facts = self.constant(scale, np.float32), self.constant(zero_point, dtype)
        return self.node("DequantizeLinear", self.node("QuantizeLinear", x, *facts), *facts)

    def weights(self, w: NDArray[np.int8], scales: Any, axis: int = 0, zero: int = 0) -> str:
        scales = np.asarray(scales, np.float32)
        points = self.constant(np.full(scales.shape, zero, np.int8))
        attributes: dict[str, Any] = {"axis": axis} if scales.ndim else {}
        raw = self.constant(w, np.int8)
        return self.node("DequantizeLinear", raw, self.constant(scales), points, **attributes)

    def bias(self, values: NDArray[Any], scales: Any) -> str:
        """Add a bias as onnxruntime quantizes it."""
        scales = np.asarray(scales, np.float32)
        points = self.constant(np.zeros(scales.shape, np.int32))
        attributes: dict[str, Any] = {"axis": 0} if scales.ndim else {}
        raw = self.constant(values, np.int32)
        return self.node("DequantizeLinear", raw, self.constant(scales), points, **attributes)

    def model(self, *outputs: str, domains: Sequence[str] = (), **metadata: str) -> onnx.ModelProto:
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "test", self.inputs, values, self.constants)
        opsets = [helper.make_opsetid("", 19), *(helper.make_opsetid(d, 1) for d in domains)]
        model = helper.make_model(graph, opset_imports=opsets)
        model.ir_version = 9
        helper.set_model_props(model, metadata)
        return onnx.shape_inference.infer_shapes(model)


def denoiser(seed: int = 0, size: int = 6, channels: int = 6) -> onnx.ModelProto:
    """Return a network that takes sample, timestep and label: three layers and some host work."""
    rng = np.random.default_rng(seed)
    g = Graph()
    x = g.input("sample", ["batch", 1, size, size])
    t = g.input("timestep", ["batch"], TensorProto.INT64)
    label = g.input("label", ["batch"], TensorProto.INT64)

    def weights(*shape: int) -> NDArray[np.int8]:
        return rng.integers(-127, 128, shape).astype(np.int8)

    scales = rng.uniform(0.001, 0.003, channels)
    h = g.node(
        "Conv",
        g.quantized(x, 0.03),
        g.weights(weights(channels, 1, 3, 3), scales),
        g.bias(rng.integers(-500, 500, channels), 0.03 * scales),
        name="/first/Conv",
        pads=[1, 1, 1, 1],
    )
    time = g.node("Cast", t, to=TensorProto.FLOAT)
    rates = g.constant([[0.001, -0.002]], np.float32)
    time = g.node("Sin", g.node("Mul", g.node("Unsqueeze", time, g.constant([1])), rates))
    time = g.node(
        "Gemm",
        g.quantized(time, 0.008),
        g.weights(weights(channels, 2), np.full(channels, 0.01)),
        name="/time/Gemm",
        transB=1,
    )
    table = g.constant(rng.standard_normal((10, channels)), np.float32)
    time = g.node("Add", time, g.node("Gather", table, label))
    h = g.node("Add", h, g.node("Unsqueeze", time, g.constant([2, 3])))
    h = g.node("Mul", h, g.node("Sigmoid", h))
    y = g.node(
        "Conv",
        g.quantized(h, 0.04, -60),
        g.weights(weights(1, channels, 3, 3), [0.002]),
        name="/last/Conv",
        pads=[1, 1, 1, 1],
    )
    return g.model(y)


def float_denoiser(seed: int = 0, size: int = 6, channels: int = 4) -> onnx.ModelProto:
    """Return a float network that takes sample and timestep; its activations grow with it."""
    rng = np.random.default_rng(seed)
    g = Graph()
    x = g.input("sample", ["batch", 1, size, size])
    t = g.node("Cast", g.input("timestep", ["batch"], TensorProto.INT64), to=TensorProto.FLOAT)

    def weights(*shape: int) -> str:
        return g.constant(rng.standard_normal(shape) / 4, np.float32)

    h = g.node("Conv", x, weights(channels, 1, 3, 3), name="first", pads=[1, 1, 1, 1])
    t = g.node("Mul", g.node("Reshape", t, g.constant([-1, 1, 1, 1])), g.constant(0.01, np.float32))
    h = g.node("Mul", h, g.node("Add", t, g.constant(1.0, np.float32)))
    h = g.node("Mul", h, g.node("Sigmoid", h))
    y = g.node("Conv", h, weights(1, channels, 3, 3), name="second", pads=[1, 1, 1, 1])
    return g.model(y)


@pytest.fixture
def float_file(tmp_path: Any) -> Any:
    path = tmp_path / "float.onnx"
    onnx.save(float_denoiser(), path)
    return path


@pytest.fixture(scope="session")
def make_graph() -> type[Graph]:
    return Graph


@pytest.fixture(scope="session")
def denoiser_proto() -> onnx.ModelProto:
    return denoiser()


@pytest.fixture
def denoiser_file(denoiser_proto: onnx.ModelProto, tmp_path: Any) -> Any:
    path = tmp_path / "denoiser.onnx"
    onnx.save(denoiser_proto, path)
    return path
