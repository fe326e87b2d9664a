"""Finds the layers for the device in the graph of a QDQ model, and what is wrong with the model.

Every Conv, ConvTranspose, Gemm and MatMul with quantized operands becomes a layer, unless a reason
is given why it stays on the host.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ditto.host.layers import Layer, Linear, ModelError, Product, Quantization

__all__ = ["DOMAIN", "Imported", "import_graph"]

DOMAIN = "ditto"
"""Domain of the operator that stands for a layer, ``Accelerated``."""

_OPERATORS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_LONGEST = 15  # kernel, stride, dilation and padding, from the fields of a layer-table entry
_CHANGING = {"sample", "timestep"}  # inputs that are another in each step

# Operators that only move values, so that their outputs are quantized as their inputs are.
_MOVES = {
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}


class _Unsupported(Exception):
    """The reason why a node stays on the host."""


class Imported(NamedTuple):
    """A model's graph, split."""

    layers: tuple[Layer, ...]
    #: Convolutions and matrix products that stay on the host, and why.
    on_host: dict[str, str]
    #: Inputs with a batch of 1; a size that the file leaves open is 0.
    inputs: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
    #: Axes of the inputs that the file leaves open, and their names.
    open_axes: dict[str, dict[int, str]]
    #: The graph with ``Accelerated`` nodes in place of the layers.
    rewritten: onnx.ModelProto


def import_graph(proto: onnx.ModelProto, name: str) -> Imported:
    """Split the graph of a QDQ model.

    Parameters
    ----------
    proto
        The model as read from its file.
    name
        How messages call the model.

    Raises
    ------
    ModelError
        If it is no QDQ model, or a tensor cannot be used.
    """
    importer = _Importer(proto, name)
    return Imported(
        tuple(importer.layers),
        importer.on_host,
        importer.inputs,
        importer.open_axes,
        importer.rewritten,
    )


class _Importer:
    """Splits the graph of a model."""

    def __init__(self, proto: onnx.ModelProto, name: str) -> None:
        graph = proto.graph
        self._name = name
        self.layers: list[Layer] = []
        self.on_host: dict[str, str] = {}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t
        self._producers = {output: node for node in graph.node for output in node.output}
        if not any(node.op_type == "QuantizeLinear" for node in graph.node):
            raise ModelError(
                f"{name} is not a quantized (QDQ) model: it has no QuantizeLinear node; quantize "
                "it with `ditto quantize`, or with onnxruntime's quantize_static and "
                "QuantFormat.QDQ"
            )
        self.open_axes: dict[str, dict[int, str]] = {}
        self.inputs = {
            value.name: self._describe(value)
            for value in graph.input
            if value.name not in self._constants
        }
        self._changing = self._find_changing(graph)

        nodes = []
        names: Counter[str] = Counter()
        for node in graph.node:
            if node.op_type not in _OPERATORS or node.domain not in ("", "ai.onnx"):
                nodes.append(node)
                continue
            label = node.name.strip("/") or node.output[0]
            names[label] += 1
            if names[label] > 1:
                label = f"{label}#{names[label]}"
            try:
                layer, sources = self._layer(node, label)
            except _Unsupported as reason:
                self.on_host[label] = str(reason)
                nodes.append(node)
                continue
            nodes.append(
                helper.make_node(
                    "Accelerated",
                    sources,
                    [node.output[0]],
                    name=node.name,
                    domain=DOMAIN,
                    layer=len(self.layers),
                )
            )
            self.layers.append(layer)
        if not self.layers:
            detail = "; ".join(f"{key}: {value}" for key, value in list(self.on_host.items())[:3])
            raise ModelError(
                f"{name} has no layer that the device can take" + (f" ({detail})" if detail else "")
            )
        self.rewritten = self._rewrite(proto, nodes)

    def _describe(self, value: onnx.ValueInfoProto) -> tuple[tuple[int, ...], np.dtype[Any]]:
        tensor = value.type.tensor_type
        shape = [dim.dim_value for dim in tensor.shape.dim]
        if shape and shape[0] not in (0, 1):
            raise ModelError(
                f"input {value.name} of {self._name} has a batch of {shape[0]}; "
                "export the model with a batch that is open or 1"
            )
        if shape:
            shape[0] = 1
        found = {axis: dim.dim_param for axis, dim in enumerate(tensor.shape.dim)}
        self.open_axes[value.name] = {axis: found[axis] for axis, n in enumerate(shape) if not n}
        return tuple(shape), np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))

    def _find_changing(self, graph: onnx.GraphProto) -> set[str]:
        """Return the tensors that depend on what is another in each step."""
        changing = _CHANGING.intersection(self.inputs) or set(self.inputs)
        for node in graph.node:
            if changing.intersection(_inputs_of(node)):
                changing.update(node.output)
        return changing

    @staticmethod
    def _rewrite(proto: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
        """Return the model with other nodes, without what nothing uses any more."""
        used = {output.name for output in proto.graph.output}
        kept = []
        for node in reversed(nodes):
            if used.intersection(node.output):
                kept.append(node)
                used.update(_inputs_of(node))
        result = onnx.ModelProto()
        result.ir_version = proto.ir_version
        result.opset_import.extend(proto.opset_import)
        result.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        result.functions.extend(proto.functions)
        graph = result.graph
        graph.name = proto.graph.name
        graph.node.extend(reversed(kept))
        graph.input.extend(proto.graph.input)
        graph.output.extend(proto.graph.output)
        # Not the weights of the layers: they are in these already.
        graph.initializer.extend(t for t in proto.graph.initializer if t.name in used)
        graph.sparse_initializer.extend(proto.graph.sparse_initializer)
        return result

    def _layer(self, node: onnx.NodeProto, label: str) -> tuple[Layer, list[str]]:
        """Describe a node as a layer; return the layer and the names of its float inputs."""
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in ("Conv", "ConvTranspose"):
            return self._convolution(node, label, attributes)
        if node.op_type == "MatMul":
            is_constant = [self._is_constant(name) for name in node.input]
            if not any(is_constant):
                return self._product(node, label)
            if is_constant[0] and not is_constant[1]:
                return self._matrix(node, label, weights=0)
            if self._rank(node.input[1]) > 2:
                return self._product(node, label)
        return self._matrix(node, label, **attributes)

    def _product(self, node: onnx.NodeProto, label: str) -> tuple[Layer, list[str]]:
        sources, operands = zip(*(self._activation(name) for name in node.input), strict=True)
        left, right = operands
        fixed = node.input[1] not in self._changing
        return Product(name=label, left=left, right=right, fixed=fixed), list(sources)

    def _matrix(
        self,
        node: onnx.NodeProto,
        label: str,
        weights: int = 1,
        transA: int = 0,
        transB: int = 0,
        alpha: float = 1.0,
        beta: float = 1.0,
    ) -> tuple[Layer, list[str]]:
        """Describe a product by a constant, which is the operand ``weights``."""
        source, given = self._activation(node.input[1 - weights])
        raw, scales, axis = self._weights(node.input[weights])
        while raw.ndim > 2 and raw.shape[0] == 1:
            raw, axis = raw[0], axis % raw.ndim - 1
        if raw.ndim != 2:
            raise _Unsupported(f"its weights have {raw.ndim} dimensions")
        # A constant on the left has output channels by row; a transposed one on the right as well.
        by_row = weights == 0 or bool(transB)
        axes = (-2, -2) if weights == 0 else (-2 if transA else -1, -1)
        values = raw if by_row else raw.T
        scales = _by_channel(scales, axis % 2, 0 if by_row else 1, len(values)) * np.float32(alpha)
        bias = node.input[2] if len(node.input) > 2 else ""
        layer = Linear(
            name=label,
            kind="linear",
            weights=np.ascontiguousarray(values[:, None, :]),
            weight_scales=scales,
            bias=self._bias(bias, len(values), given.scale * scales, beta),
            input_scale=given.scale,
            zero_point=given.zero_point,
            low=given.low,
            high=given.high,
            axes=axes,
        )
        return layer, [source]

    def _convolution(
        self, node: onnx.NodeProto, label: str, attributes: Mapping[str, Any]
    ) -> tuple[Layer, list[str]]:
        source, given = self._activation(node.input[0])
        raw, scales, axis = self._weights(node.input[1])
        if raw.ndim not in (3, 4):
            raise _Unsupported(f"it is a convolution over {raw.ndim - 2} dimensions")
        groups = attributes.get("group", 1)
        geometry = _geometry(attributes, raw.shape[2:])
        out_axis = 0
        if node.op_type == "ConvTranspose":
            geometry = _transposed(attributes, geometry)
            out_axis = 1
            if scales.size == raw.shape[1]:
                scales = np.tile(scales.reshape(-1), groups)
            # (inputs, outputs of a group, ...) -> (outputs, inputs of a group, ...), turned
            raw = raw.reshape(groups, -1, *raw.shape[1:]).swapaxes(1, 2)
            raw = raw.reshape(-1, *raw.shape[2:])
            raw = np.flip(raw, axis=tuple(range(2, raw.ndim)))
        scales = _by_channel(scales, axis % raw.ndim, out_axis, len(raw))
        bias = node.input[2] if len(node.input) > 2 else ""
        layer = Linear(
            name=label,
            kind="conv",
            weights=np.ascontiguousarray(raw.reshape(*raw.shape[:2], -1).swapaxes(1, 2)),
            weight_scales=scales,
            bias=self._bias(bias, len(raw), given.scale * scales),
            input_scale=given.scale,
            zero_point=given.zero_point,
            low=given.low,
            high=given.high,
            groups=groups,
            **geometry,
        )
        return layer, [source]

    def _constant(self, name: str) -> NDArray[Any] | None:
        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def _moved(self, name: str) -> Iterator[str]:
        """Yield a tensor, and those that it is a part or another order of."""
        while True:
            yield name
            node = self._producers.get(name)
            if node is None or node.op_type not in _MOVES:
                return
            name = node.input[0]

    def _is_constant(self, name: str) -> bool:
        """Whether a tensor is made of nothing but constants."""
        *_, origin = self._moved(name)
        after = self._producers.get(origin)
        if after is None or after.op_type != "DequantizeLinear":
            return False
        before = self._producers.get(after.input[0])
        if before is not None and before.op_type == "QuantizeLinear":
            return before.input[0] in self._constants
        return after.input[0] in self._constants

    def _rank(self, name: str) -> int:
        """Return the dimensions of constant weights, without those of size 1 in front."""
        raw, _, _ = self._weights(name)
        shape = list(raw.shape)
        while len(shape) > 2 and shape[0] == 1:
            del shape[0]
        return len(shape)

    def _scale(self, node: onnx.NodeProto) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Return scale and zero point of a QuantizeLinear or DequantizeLinear."""
        scale = self._constant(node.input[1])
        if scale is None or scale.dtype != np.float32:
            raise _Unsupported("its scales are no float32 constants")
        zero_point: NDArray[Any] | None
        if len(node.input) > 2 and node.input[2]:
            zero_point = self._constant(node.input[2])
            if zero_point is None:
                raise _Unsupported("its zero points are no constants")
        else:
            zero_point = np.zeros_like(scale, self._kind(node))
        for attribute in node.attribute:
            if attribute.name == "block_size" and attribute.i:
                raise _Unsupported("it is quantized in blocks")
        return scale, zero_point

    def _kind(self, node: onnx.NodeProto) -> Any:
        """Return the integer type of a quantizer without zero point."""
        if node.op_type == "DequantizeLinear":
            raw = self._constants.get(node.input[0])
            if raw is not None:
                return helper.tensor_dtype_to_np_dtype(raw.data_type)
            *_, origin = self._moved(node.input[0])
            before = self._producers.get(origin)
            if before is not None and before.op_type == "QuantizeLinear":
                return self._scale(before)[1].dtype
        kinds = [a.i for a in node.attribute if a.name == "output_dtype" and a.i]
        return helper.tensor_dtype_to_np_dtype(kinds[0]) if kinds else np.uint8

    def _activation(self, name: str) -> tuple[str, Quantization]:
        """Return the float tensor to quantize for an operand, and how."""
        *_, origin = self._moved(name)
        after = self._producers.get(origin)
        if after is None or after.op_type != "DequantizeLinear":
            raise _Unsupported("its input is not quantized")
        scale, zero_point = self._scale(after)
        if scale.size != 1:
            raise _Unsupported("its input has more than one scale")
        if zero_point.dtype not in (np.int8, np.uint8):
            raise _Unsupported(f"its input is quantized to {zero_point.dtype}")
        info = np.iinfo(zero_point.dtype)
        given = Quantization(
            scale=np.float32(scale.reshape(())),
            zero_point=int(zero_point.reshape(())),
            low=int(info.min),
            high=int(info.max),
        )
        before = self._producers.get(after.input[0])
        if origin == name and before is not None and before.op_type == "QuantizeLinear":
            first = self._scale(before)
            if first[0] == scale and first[1] == zero_point and first[1].dtype == zero_point.dtype:
                return before.input[0], given
        # What is dequantized gives the same integers when it is quantized once more.
        return name, given

    def _weights(self, name: str) -> tuple[NDArray[Any], NDArray[np.float32], int]:
        """Return constant weights without zero point, their scales, and the axis of these."""
        moved = list(self._moved(name))
        after = self._producers.get(moved[-1])
        if after is None or after.op_type != "DequantizeLinear":
            raise _Unsupported("its weights are not quantized")
        scale, zero_point = self._scale(after)
        axis = next((int(a.i) for a in after.attribute if a.name == "axis"), 1)
        weights = self._constant(after.input[0])
        before = self._producers.get(after.input[0])
        if weights is None and before is not None and before.op_type == "QuantizeLinear":
            exact = self._constant(before.input[0])
            if exact is not None:
                weights = _quantized(exact, *self._scale(before), axis)
        if weights is None:
            raise _Unsupported("its weights are no constants")
        if weights.dtype not in (np.int8, np.uint8):
            raise _Unsupported(f"its weights are of type {weights.dtype}")
        if weights.dtype != np.int8 or np.any(zero_point):
            points = _along(zero_point, weights.ndim, axis).astype(np.int16)
            weights = weights.astype(np.int16) - points
        for mover in reversed([self._producers[at] for at in moved[:-1]]):
            if mover.op_type == "Identity":
                continue
            if mover.op_type != "Transpose" or weights.ndim != 2:
                raise _Unsupported(f"its weights come through {mover.op_type}")
            weights, axis = weights.T, 1 - axis % 2
        return weights, scale, axis

    def _bias(
        self, name: str, outputs: int, scale: NDArray[np.float32], factor: float = 1.0
    ) -> NDArray[np.int64]:
        """Return ``factor`` times the bias of every output channel, in units of ``scale``."""
        if not name:
            return np.zeros(outputs, np.int64)
        values = self._constant(name)
        after = self._producers.get(name)
        if values is None and after is not None and after.op_type == "DequantizeLinear":
            raw = self._constant(after.input[0])
            bias_scale, zero_point = self._scale(after)
            if raw is None or np.any(zero_point):
                raise _Unsupported("its bias is no constant")
            raw = np.broadcast_to(raw.reshape(-1), (outputs,)).astype(np.int64)
            if factor == 1.0 and np.allclose(bias_scale, scale, rtol=1e-5, atol=0):
                return raw
            values = raw * np.broadcast_to(bias_scale.reshape(-1), (outputs,)).astype(np.float64)
        if values is None:
            raise _Unsupported("its bias is no constant")
        if values.size not in (1, outputs):
            raise _Unsupported(f"its bias has shape {values.shape}")
        flat = factor * np.broadcast_to(values.reshape(-1), (outputs,)).astype(np.float64)
        return np.rint(flat / scale.astype(np.float64)).astype(np.int64)


def _inputs_of(node: onnx.NodeProto) -> set[str]:
    """Return the tensors that a node reads; its subgraphs see the names around them."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                names |= _inputs_of(inner)
            names.update(output.name for output in graph.output)
    return names


def _along(values: NDArray[Any], dimensions: int, axis: int) -> NDArray[Any]:
    """Shape scales or zero points so that they lie along an axis."""
    if values.size == 1:
        return values.reshape([1] * dimensions)
    return values.reshape([-1 if i == axis % dimensions else 1 for i in range(dimensions)])


def _quantized(
    exact: NDArray[np.float32], scale: NDArray[np.float32], zero_point: NDArray[Any], axis: int
) -> NDArray[Any]:
    """Quantize constant weights."""
    info = np.iinfo(zero_point.dtype)
    scale, point = (_along(values, exact.ndim, axis) for values in (scale, zero_point))
    values = np.rint(exact / scale) + point.astype(np.float32)
    return np.clip(values, info.min, info.max).astype(zero_point.dtype)


def _by_channel(
    scales: NDArray[np.float32], axis: int, out_axis: int, outputs: int
) -> NDArray[np.float32]:
    """Return a scale for every output channel."""
    if scales.size > 1 and axis != out_axis:
        raise _Unsupported(f"its weights are scaled along axis {axis}, not by output channel")
    if scales.size not in (1, outputs):
        raise _Unsupported(f"it has {scales.size} scales for {outputs} output channels")
    return np.broadcast_to(scales.reshape(-1), (outputs,)).copy()


def _geometry(attributes: Mapping[str, Any], kernel: tuple[int, ...]) -> dict[str, Any]:
    """Return kernel, stride, dilation and padding, vertical and horizontal."""
    auto = attributes.get("auto_pad", b"NOTSET")
    if auto not in (b"NOTSET", b"VALID"):
        raise _Unsupported(f"its padding is {auto.decode()}")
    rank = len(kernel)
    stride = tuple(attributes.get("strides", (1,) * rank))
    dilation = tuple(attributes.get("dilations", (1,) * rank))
    pads = (0,) * 2 * rank if auto == b"VALID" else tuple(attributes.get("pads", (0,) * 2 * rank))
    if (len(stride), len(dilation), len(pads)) != (rank, rank, 2 * rank):
        raise _Unsupported(f"its kernel {kernel} has other axes than its strides or padding")
    if rank == 1:  # an image of height 1
        kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
        pads = (0, pads[0], 0, pads[1])
    for what, values in (
        ("kernel", kernel),
        ("stride", stride),
        ("dilation", dilation),
        ("padding", pads),
    ):
        if max(values) > _LONGEST or min(values) < (what != "padding"):
            raise _Unsupported(f"its {what} {values} is out of 1..{_LONGEST}")
    for axis in (0, 1):
        if max(pads[axis], pads[axis + 2]) > (kernel[axis] - 1) * dilation[axis]:
            raise _Unsupported(f"its padding {pads} is wider than its kernel")
    return {"kernel": kernel, "stride": stride, "dilation": dilation, "pads": pads}


def _transposed(attributes: Mapping[str, Any], geometry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a transposed convolution as one over an image with zeros between its pixels."""
    if attributes.get("output_shape"):
        raise _Unsupported("its output has a prescribed shape (output_shape)")
    kernel, dilation, pads = (geometry[name] for name in ("kernel", "dilation", "pads"))
    more = tuple(attributes.get("output_padding", ()))
    tail = (0,) * (2 - len(more)) + more
    ends = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    around = tuple(ends[i % 2] - pads[i] for i in range(4))
    if max(around) > _LONGEST:
        raise _Unsupported(f"its padding {around} is out of 0..{_LONGEST}")
    return {
        "kernel": kernel,
        "dilation": dilation,
        "pads": around,
        "spacing": geometry["stride"],
        "tail": tail,
    }
