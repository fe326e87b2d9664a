"""Import of int8 ONNX models: which layers the device takes, and the rest of the graph.

A model is a QDQ file, as ``onnxruntime.quantization.quantize_static`` writes it. Every Conv, Gemm
and MatMul whose input is a dequantized activation and whose weights are dequantized constants
becomes a :class:`Linear` layer for the device; ``onnx.reference`` evaluates everything else.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

__all__ = ["Accelerate", "Linear", "Model", "ModelError", "read"]

_log = logging.getLogger(__name__)

_DOMAIN = "ditto"
_OPERATORS = {"Conv", "Gemm", "MatMul"}
_LONGEST = 15  # kernel, stride, dilation and padding, from the fields of a layer-table entry

Accelerate = Callable[[int, NDArray[np.float32]], NDArray[np.float32]]
"""Evaluates the layer of an index on its float input, and returns its float output."""


class ModelError(Exception):
    """A model file that cannot be used, or inputs that do not fit it."""


class _Unsupported(Exception):
    """The reason why a node stays on the host."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """A layer for the device: a convolution, or a matrix product by a constant.

    ``output = (sum(weights * (q - zero_point)) + bias) * input_scale * weight_scales``, where the
    sum is over kernel taps and input channels.

    Parameters
    ----------
    name
        Name of the node in the file.
    kind
        ``"conv"`` or ``"linear"``.
    weights
        Of shape (output channels, kernel taps, input channels).
    weight_scales
        One for each output channel.
    bias
        One for each output channel, in units of ``input_scale * weight_scales``.
    input_scale, zero_point
        Quantization of the input.
    low, high
        Range of the quantized input.
    kernel, stride, dilation
        Vertical and horizontal.
    pads
        Zeros at the top, left, bottom and right.
    """

    name: str
    kind: str
    weights: NDArray[np.int8]
    weight_scales: NDArray[np.float32]
    bias: NDArray[np.int64]
    input_scale: np.float32
    zero_point: int
    low: int
    high: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    scale: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Derive the scale of an accumulator."""
        object.__setattr__(self, "scale", self.input_scale * self.weight_scales)

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return self.weights.shape[0]

    @property
    def taps(self) -> int:
        """Number of kernel taps."""
        return self.weights.shape[1]

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return self.weights.shape[2]

    @property
    def is_pointwise(self) -> bool:
        """Whether an output position depends on the same input position only."""
        return self.taps == 1 and self.stride == (1, 1) and not any(self.pads)

    @property
    def largest(self) -> int:
        """Largest magnitude that an accumulator can have, for any input in the input's range."""
        weights = self.weights.astype(np.int64)
        ends = [weights * (end - self.zero_point) for end in (self.low, self.high)]
        high = np.maximum(*ends).sum(axis=(1, 2))
        low = np.minimum(*ends).sum(axis=(1, 2))
        return int(max(np.abs(high).max(), np.abs(low).max()))

    def image(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return height and width of an input of a shape; tokens are an image of height 1.

        Raises
        ------
        ModelError
            If the shape is not one that the layer can take.
        """
        if self.kind == "conv":
            if len(shape) != 4 or shape[0] != 1 or shape[1] != self.channels:
                raise ModelError(
                    f"layer {self.name} takes inputs of shape (1, {self.channels}, height, width), "
                    f"not {tuple(shape)}"
                )
            return shape[2], shape[3]
        if len(shape) < 2 or shape[-1] != self.channels:
            raise ModelError(
                f"layer {self.name} takes inputs of shape (..., {self.channels}), "
                f"not {tuple(shape)}"
            )
        return 1, math.prod(shape[:-1])

    def output_image(self, image: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the output for those of the input."""
        result = []
        for axis in (0, 1):
            reach = (self.kernel[axis] - 1) * self.dilation[axis] + 1
            room = image[axis] + self.pads[axis] + self.pads[axis + 2] - reach
            result.append(room // self.stride[axis] + 1)
        return result[0], result[1]

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the output tensor for that of the input tensor."""
        image = self.image(shape)
        if self.kind == "conv":
            return (1, self.outputs, *self.output_image(image))
        return (*shape[:-1], self.outputs)

    def quantize(self, x: NDArray[np.float32]) -> NDArray[np.int64]:
        """Quantize an input tensor.

        Returns
        -------
        array of shape (positions, channels)
            ``q``, rounded half to even and clipped to ``low..high``.

        Raises
        ------
        ModelError
            If a value is not a number.
        """
        q = np.rint(x / self.input_scale) + np.float32(self.zero_point)
        q = np.clip(q, self.low, self.high)
        if np.isnan(q).any():
            raise ModelError(f"the input of layer {self.name} contains values that are no numbers")
        if self.kind == "conv":
            q = q.transpose(0, 2, 3, 1)
        return q.reshape(-1, self.channels).astype(np.int64)

    def dequantize(
        self, accumulators: NDArray[np.int64], shape: Sequence[int]
    ) -> NDArray[np.float32]:
        """Make the output tensor from accumulators, and the bias.

        Parameters
        ----------
        accumulators
            Of shape (output positions, output channels).
        shape
            Shape of the input tensor.
        """
        y = (accumulators + self.bias).astype(np.float32) * self.scale
        target = self.output_shape(shape)
        if self.kind == "conv":
            y = y.reshape(1, *target[2:], self.outputs).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(y.reshape(target))


def read(path: Path | str) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises
    ------
    ModelError
        If there is no such file, or it is no valid model.
    """
    from ditto.host.check import check, load

    try:
        proto = load(path)
        check(proto, str(path))
        onnx.checker.check_model(proto)
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"cannot read model {path}: {error.strerror or error}") from error
    except Exception as error:  # the parser and the checker have a family each
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"{path} is not a valid ONNX file: {reason}") from error
    return proto


class Model:
    """A QDQ model, split into layers for the device and the graph around them.

    Parameters
    ----------
    proto
        The model as read from its file.
    name
        How messages call the model, e.g. its path.

    Attributes
    ----------
    layers : tuple of Linear
        The layers for the device, in the order of the graph.
    on_host : dict of str to str
        Layers that stay on the host, and why.
    metadata : dict of str to str
        Metadata properties of the file.
    inputs : dict of str to (shape, dtype)
        Inputs with a batch of 1; a size that the file leaves open is 0.
    outputs : tuple of str
        Names of the outputs.

    Raises
    ------
    ModelError
        If the model is not a QDQ model, or the host cannot evaluate it.
    """

    def __init__(self, proto: onnx.ModelProto, name: str = "model") -> None:
        self.name = name
        self._proto = proto
        self.metadata = {entry.key: entry.value for entry in proto.metadata_props}
        try:
            importer = _Importer(proto, name)
        except ModelError:
            raise
        except Exception as error:  # a damaged file can be wrong in any way
            raise ModelError(
                f"{name} cannot be understood: {type(error).__name__}: {error}"
            ) from error
        self.layers = tuple(importer.layers)
        self.on_host = dict(importer.on_host)
        self.inputs = importer.inputs
        self.outputs = tuple(output.name for output in proto.graph.output)
        self._proto = importer.rewritten
        self._accelerate: Accelerate | None = None
        self._evaluator = self._evaluate()
        for layer, reason in self.on_host.items():
            _log.info("%s runs on the host: %s", layer, reason)

    @classmethod
    def load(cls, path: Path | str) -> "Model":
        """Read a model from a file.

        Raises
        ------
        ModelError
            If there is no such file, or it is no usable QDQ model.
        """
        return cls(read(path), str(path))

    def clone(self) -> "Model":
        """Return an equal model that another thread can run."""
        other = object.__new__(Model)
        other.__dict__.update(self.__dict__)
        other._evaluator = other._evaluate()
        return other

    def run(self, inputs: Mapping[str, NDArray[Any]], accelerate: Accelerate) -> list[NDArray[Any]]:
        """Evaluate the model.

        Parameters
        ----------
        inputs
            One array for each input, with a batch of 1.
        accelerate
            Evaluates the layers for the device.

        Returns
        -------
        list of arrays
            The outputs.

        Raises
        ------
        ModelError
            If the inputs do not fit the model, or the host cannot evaluate an operator.
        """
        if set(inputs) != set(self.inputs):
            raise ModelError(
                f"{self.name} takes the inputs {', '.join(self.inputs)}, not {', '.join(inputs)}"
            )
        for name, (shape, dtype) in self.inputs.items():
            got = np.shape(inputs[name])
            if len(got) != len(shape) or any(w and w != g for w, g in zip(shape, got, strict=True)):
                wanted = ", ".join(str(size) if size else "?" for size in shape)
                raise ModelError(f"input {name} of {self.name} has shape ({wanted}), not {got}")
            if inputs[name].dtype != dtype:
                raise ModelError(
                    f"input {name} of {self.name} is of type {dtype}, not {inputs[name].dtype}"
                )
        failure: list[BaseException] = []

        def guarded(index: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
            try:
                return accelerate(index, x)
            except BaseException as error:
                failure.append(error)
                raise

        self._accelerate = guarded
        try:
            with np.errstate(all="ignore"):
                outputs: Any = self._evaluator.run(None, dict(inputs))
                return list(outputs)
        except Exception as error:
            if failure:
                raise failure[0] from None
            raise ModelError(f"the host cannot evaluate {self.name}: {error}") from error
        finally:
            self._accelerate = None

    def shapes(
        self, inputs: Mapping[str, NDArray[Any]] | None = None
    ) -> tuple[tuple[int, ...], ...]:
        """Return the shape of the input tensor of every layer, by a run on zeros.

        Parameters
        ----------
        inputs
            Run on these instead.

        Raises
        ------
        ModelError
            If the model leaves more than the batch open and no inputs are given, or if a layer is
            not evaluated exactly once in a run.
        """
        if inputs is None:
            for name, (shape, _) in self.inputs.items():
                if 0 in shape:
                    raise ModelError(
                        f"{self.name} leaves the size of its input {name} open; "
                        "export it with fixed sizes"
                    )
            inputs = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self.inputs.items()}
        found: dict[int, tuple[int, ...]] = {}

        def record(index: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
            if index in found:
                raise ModelError(f"layer {self.layers[index].name} is evaluated twice in a run")
            found[index] = x.shape
            layer = self.layers[index]
            height, width = layer.output_image(layer.image(x.shape))
            if height < 1 or width < 1:
                raise ModelError(f"layer {layer.name} has no output for an input of {x.shape}")
            return np.zeros(layer.output_shape(x.shape), np.float32)

        self.run(inputs, record)
        missing = [layer.name for i, layer in enumerate(self.layers) if i not in found]
        if missing:
            raise ModelError(f"layer {missing[0]} of {self.name} is not evaluated in a run")
        return tuple(found[i] for i in range(len(self.layers)))

    def _evaluate(self) -> ReferenceEvaluator:
        model = self

        class Accelerated(OpRun):
            op_domain = _DOMAIN

            def _run(self, x: Any, layer: int | None = None) -> tuple[Any]:
                assert layer is not None and model._accelerate is not None
                return (model._accelerate(layer, x),)

        try:
            return ReferenceEvaluator(self._proto, new_ops=[Accelerated])
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(
                f"the host cannot evaluate {self.name}: {reason} (quantize at opset 19, which "
                "onnx.reference knows best)"
            ) from error


class _Importer:
    """Splits the graph of a model."""

    def __init__(self, proto: onnx.ModelProto, name: str) -> None:
        graph = proto.graph
        self.layers: list[Linear] = []
        self.on_host: dict[str, str] = {}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t
        self._producers = {output: node for node in graph.node for output in node.output}
        if not any(node.op_type == "QuantizeLinear" for node in graph.node):
            raise ModelError(
                f"{name} is not a quantized (QDQ) model: it has no QuantizeLinear node; quantize "
                "it with onnxruntime's quantize_static and QuantFormat.QDQ"
            )
        self.inputs = {
            value.name: self._describe(value, name)
            for value in graph.input
            if value.name not in self._constants
        }

        nodes = []
        names: Counter[str] = Counter()
        for node in graph.node:
            if node.op_type not in {*_OPERATORS, "ConvTranspose"} or node.domain not in (
                "",
                "ai.onnx",
            ):
                nodes.append(node)
                continue
            label = node.name.strip("/") or node.output[0]
            names[label] += 1
            if names[label] > 1:
                label = f"{label}#{names[label]}"
            try:
                layer, source = self._layer(node, label)
            except _Unsupported as reason:
                self.on_host[label] = str(reason)
                nodes.append(node)
                continue
            nodes.append(
                helper.make_node(
                    "Accelerated",
                    [source],
                    [node.output[0]],
                    name=node.name,
                    domain=_DOMAIN,
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

    @staticmethod
    def _describe(value: onnx.ValueInfoProto, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        tensor = value.type.tensor_type
        shape = [dim.dim_value for dim in tensor.shape.dim]
        if shape and shape[0] not in (0, 1):
            raise ModelError(
                f"input {value.name} of {name} has a batch of {shape[0]}; "
                "export the model with a batch that is open or 1"
            )
        if shape:
            shape[0] = 1
        return tuple(shape), np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))

    @staticmethod
    def _rewrite(proto: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
        """Return the model with other nodes, without what nothing uses any more."""
        used = {output.name for output in proto.graph.output}
        kept = []
        for node in reversed(nodes):
            if used.intersection(node.output):
                kept.append(node)
                used.update(node.input)
                for attribute in node.attribute:  # subgraphs see the names around them
                    for graph in (attribute.g, *attribute.graphs):
                        used.update(name for inner in graph.node for name in inner.input)
        result = onnx.ModelProto()
        result.CopyFrom(proto)
        del result.graph.node[:]
        result.graph.node.extend(reversed(kept))
        initializers = [tensor for tensor in proto.graph.initializer if tensor.name in used]
        del result.graph.initializer[:]
        result.graph.initializer.extend(initializers)
        del result.graph.value_info[:]
        result.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
        return result

    def _layer(self, node: onnx.NodeProto, label: str) -> tuple[Linear, str]:
        """Describe a node as a layer; return the layer and the name of its float input."""
        if node.op_type not in _OPERATORS:
            raise _Unsupported(f"{node.op_type} is not an operator of the device")
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        source, scale, zero_point = self._activation(node.input[0])
        raw, weight_scales, axis = self._weights(node.input[1])
        geometry: dict[str, Any] = {}
        if node.op_type == "Conv":
            geometry = self._geometry(attributes, raw)
            out_axis = 0
            weights = raw.reshape(raw.shape[0], raw.shape[1], -1).transpose(0, 2, 1)
        else:
            if raw.ndim != 2:
                raise _Unsupported(f"its weights have {raw.ndim} dimensions")
            if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
                raise _Unsupported("it scales its operands (alpha, beta)")
            if attributes.get("transA", 0):
                raise _Unsupported("it transposes its input (transA)")
            out_axis = 0 if attributes.get("transB", 0) else 1
            weights = (raw if out_axis == 0 else raw.T)[:, None, :]
        if weight_scales.size > 1 and axis % raw.ndim != out_axis:
            raise _Unsupported(f"its weights are scaled along axis {axis}, not by output channel")
        outputs = weights.shape[0]
        if weight_scales.size not in (1, outputs):
            raise _Unsupported(f"it has {weight_scales.size} scales for {outputs} output channels")
        weight_scales = np.broadcast_to(weight_scales.reshape(-1), (outputs,)).copy()
        bias = node.input[2] if len(node.input) > 2 and node.op_type != "MatMul" else ""
        info = np.iinfo(zero_point.dtype)
        layer = Linear(
            name=label,
            kind="conv" if node.op_type == "Conv" else "linear",
            weights=np.ascontiguousarray(weights),
            weight_scales=weight_scales,
            bias=self._bias(bias, outputs, scale * weight_scales),
            input_scale=scale,
            zero_point=int(zero_point),
            low=int(info.min),
            high=int(info.max),
            **geometry,
        )
        return layer, source

    @staticmethod
    def _geometry(attributes: Mapping[str, Any], weights: NDArray[np.int8]) -> dict[str, Any]:
        if weights.ndim != 4:
            raise _Unsupported(f"it is a convolution over {weights.ndim - 2} dimensions")
        if attributes.get("group", 1) != 1:
            raise _Unsupported(f"it is a convolution of {attributes['group']} groups")
        auto = attributes.get("auto_pad", b"NOTSET")
        if auto not in (b"NOTSET", b"VALID"):
            raise _Unsupported(f"its padding is {auto.decode()}")
        kernel = weights.shape[2:]
        stride = tuple(attributes.get("strides", (1, 1)))
        dilation = tuple(attributes.get("dilations", (1, 1)))
        pads = tuple(attributes.get("pads", (0, 0, 0, 0))) if auto == b"NOTSET" else (0, 0, 0, 0)
        for what, values in (
            ("kernel", kernel),
            ("stride", stride),
            ("dilation", dilation),
            ("padding", pads),
        ):
            if max(values) > _LONGEST or min(values) < (what != "padding"):
                raise _Unsupported(f"its {what} {values} is out of 1..{_LONGEST}")
        for axis in (0, 1):
            reach = (kernel[axis] - 1) * dilation[axis] + 1
            if max(pads[axis], pads[axis + 2]) >= reach:
                raise _Unsupported(f"its padding {pads} is wider than its kernel")
        return {"kernel": kernel, "stride": stride, "dilation": dilation, "pads": pads}

    def _constant(self, name: str) -> NDArray[Any] | None:
        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

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
            zero_point = np.zeros_like(scale, np.uint8)
        for attribute in node.attribute:
            if attribute.name == "block_size" and attribute.i:
                raise _Unsupported("it is quantized in blocks")
        return scale, zero_point

    def _activation(self, name: str) -> tuple[str, np.float32, NDArray[Any]]:
        """Follow DequantizeLinear and QuantizeLinear back to the float tensor."""
        after = self._producers.get(name)
        if after is None or after.op_type != "DequantizeLinear":
            raise _Unsupported("its input is not quantized")
        before = self._producers.get(after.input[0])
        if before is None or before.op_type != "QuantizeLinear":
            raise _Unsupported("its input is not quantized from float")
        scale, zero_point = self._scale(after)
        if scale.size != 1:
            raise _Unsupported("its input has more than one scale")
        first = self._scale(before)
        if first[0] != scale or first[1] != zero_point or first[1].dtype != zero_point.dtype:
            raise _Unsupported("its input is dequantized otherwise than quantized")
        if zero_point.dtype not in (np.int8, np.uint8):
            raise _Unsupported(f"its input is quantized to {zero_point.dtype}")
        return before.input[0], np.float32(scale.reshape(())), zero_point.reshape(())

    def _weights(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32], int]:
        """Follow DequantizeLinear back to constant weights."""
        after = self._producers.get(name)
        if after is None or after.op_type != "DequantizeLinear":
            raise _Unsupported("its weights are not quantized")
        weights = self._constant(after.input[0])
        if weights is None:
            raise _Unsupported("it multiplies two activations")
        scale, zero_point = self._scale(after)
        if np.any(zero_point):
            raise _Unsupported("its weights have a zero point")
        if weights.dtype != np.int8:
            raise _Unsupported(f"its weights are of type {weights.dtype}")
        axis = next((int(a.i) for a in after.attribute if a.name == "axis"), 1)
        return weights, scale, axis

    def _bias(self, name: str, outputs: int, scale: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the bias of every output channel in units of ``scale``."""
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
            if np.allclose(bias_scale, scale, rtol=1e-5, atol=0):
                return raw
            values = raw * np.broadcast_to(bias_scale.reshape(-1), (outputs,)).astype(np.float64)
        if values is None:
            raise _Unsupported("its bias is no constant")
        if values.size not in (1, outputs):
            raise _Unsupported(f"its bias has shape {values.shape}")
        flat = np.broadcast_to(values.reshape(-1), (outputs,)).astype(np.float64)
        return np.rint(flat / scale.astype(np.float64)).astype(np.int64)
