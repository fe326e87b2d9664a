"""Quantized tensors of a QDQ model, step by step, for many samples at once.

The model's own graph is evaluated, by onnxruntime where it is installed and by ``onnx.reference``
otherwise, with the quantized inputs of its convolutions and matrix products as further outputs.
Nothing but the latest step is kept.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ditto.host.check import foreign, label
from ditto.host.model import Model, ModelError
from ditto.host.samplers import Sampler, inputs_of, noise_of
from ditto.host.windows import Windows, activation_scales

__all__ = [
    "Evaluator",
    "TracedProduct",
    "Step",
    "Tensor",
    "Traced",
    "draw_batch",
    "evaluator_of",
    "predictor",
]

_OPERATORS = ("Conv", "Gemm", "MatMul", "ConvTranspose")


class Tensor(NamedTuple):
    """A quantized activation that some products read."""

    #: Name of the quantized tensor in the graph.
    name: str
    scale: float
    zero_point: int
    low: int
    high: int
    #: Of one sample.
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TracedProduct:
    """A convolution or matrix product with quantized operands.

    Parameters
    ----------
    name
        As :class:`ditto.host.model.Model` names it.
    kind
        Such as ``conv 3x3/2``, ``linear``, ``attention``.
    sizes
        Input and output sizes, to show.
    operands
        Indices of the activations among :attr:`Traced.tensors`: two where both are activations.
    macs
        Multiply-accumulates for one sample.
    weights
        Elements of the weights; 0 if there are none.
    outputs
        Elements of the output of one sample.
    depends
        Whether it depends on the sample. What doesn't can be tabulated for all samples.
    output
        Name of the output tensor in the graph.
    """

    name: str
    kind: str
    sizes: str
    operands: tuple[int, ...]
    macs: int
    weights: int
    outputs: int
    depends: bool
    output: str


class Step(NamedTuple):
    """A step of some samples."""

    step: int
    timestep: int
    #: For each tensor, of shape (samples, ...).
    values: list[NDArray[Any]]
    #: The same in the step before; None where nothing is kept: in the first, and where a window
    #: with other scales begins.
    before: list[NDArray[Any]] | None


class Evaluator(Protocol):
    """Evaluates a graph."""

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the outputs, in the order of the graph."""
        ...


class _Onnxruntime:
    def __init__(self, proto: onnx.ModelProto) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        # Its fused int8 kernels round otherwise than the operators of the file.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = False
        self._session = ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        outputs: Any = self._session.run(None, dict(feed))
        return list(outputs)


class _FastConv(OpRun):
    """A convolution as one matrix product; the reference one is several times slower."""

    op_domain = ""

    def _run(self, x: Any, w: Any, b: Any = None, **attributes: Any) -> tuple[Any]:
        kernel = w.shape[2:]
        stride = attributes.get("strides") or [1] * len(kernel)
        dilation = attributes.get("dilations") or [1] * len(kernel)
        pads = attributes.get("pads") or [0] * 2 * len(kernel)
        groups = attributes.get("group") or 1
        rank = len(kernel)
        x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        axes = tuple(range(2, 2 + rank))
        windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=axes)
        steps = [slice(None), slice(None), *(slice(None, None, s) for s in stride)]
        steps += [slice(None, None, d) for d in dilation]
        windows = windows[tuple(steps)]
        parts = []
        for part, weights in zip(
            np.split(windows, groups, axis=1), np.split(w, groups), strict=True
        ):
            taps = [1, *range(2 + rank, 2 + 2 * rank)]
            parts.append(np.tensordot(part, weights, (taps, list(range(1, 2 + rank)))))
        y = np.moveaxis(np.concatenate(parts, axis=-1), -1, 1)
        if b is not None:
            y = y + b.reshape(-1, *[1] * rank)
        return (np.ascontiguousarray(y.astype(x.dtype)),)


_FastConv.__name__ = "Conv"  # an operator's class is found by its name


class _Reference:
    def __init__(self, proto: onnx.ModelProto) -> None:
        auto = any(
            attribute.name == "auto_pad" and attribute.s not in (b"", b"NOTSET")
            for node in proto.graph.node
            for attribute in node.attribute
        )
        self._evaluator = ReferenceEvaluator(proto, new_ops=[] if auto else [_FastConv])

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        with np.errstate(all="ignore"):
            outputs: Any = self._evaluator.run(None, dict(feed))
        return list(outputs)


def evaluator_of(proto: onnx.ModelProto, *, onnxruntime: bool | None = None) -> Evaluator:
    """Return an evaluator of a graph.

    Parameters
    ----------
    proto
        The model.
    onnxruntime
        Whether to take onnxruntime; by default where it is installed.

    Raises
    ------
    ModelError
        If the graph cannot be evaluated.
    """
    if onnxruntime is None:
        import importlib.util

        onnxruntime = importlib.util.find_spec("onnxruntime") is not None
    try:
        return _Onnxruntime(proto) if onnxruntime else _Reference(proto)
    except Exception as error:  # each has a family of its own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"the model cannot be evaluated: {foreign(proto) or reason}") from error


class Traced:
    """A QDQ model that shows the quantized inputs of its products.

    Parameters
    ----------
    proto
        The model as read from its file.
    model
        The same, imported.
    extra
        Inputs beyond sample, timestep and label, see :func:`ditto.host.samplers.inputs_of`.
    onnxruntime
        Whether to evaluate by onnxruntime; by default where it is installed.

    Attributes
    ----------
    tensors : tuple of Tensor
        The quantized activations.
    products : tuple of TracedProduct
        What reads them, in the order of the graph.
    in_float : dict of str to str
        Convolutions and matrix products without quantized operands, and why.
    evaluator : Evaluator
        Evaluates the graph.
    batch : int or None
        Samples that the graph takes at once; None if any number.
    windows : Windows
        Parts of the trajectory with scales of their own.

    Raises
    ------
    ModelError
        If it cannot be evaluated, or is no network for denoising.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        model: Model,
        *,
        extra: Mapping[str, NDArray[Any]] | None = None,
        onnxruntime: bool | None = None,
    ) -> None:
        self.name = model.name
        self._shape, self._make = inputs_of(model, extra)
        self._onnxruntime = onnxruntime
        self._proto = proto
        self.in_float: dict[str, str] = {}
        graph = proto.graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t
        self._producers = {output: node for node in graph.node for output in node.output}
        self.windows = Windows.of(proto, model.name)
        shapes = {name: tuple(self._constants[name].dims) for name in self.windows.names}
        base = activation_scales(proto)
        self._scales = [
            {name: np.full(shapes[name], own.get(name, base[name]), np.float32) for name in shapes}
            for own in self.windows.scales
        ]
        found = list(self._find())
        self._names = list(dict.fromkeys(name for _, _, names in found for name in names))
        if not self._names:
            raise ModelError(f"{self.name} has no layer with a quantized activation")
        self._outputs = [node.output[0] for _, node, _ in found]
        self.evaluator = self._rewritten(lossy=False)
        self._lossy: Evaluator | None = None
        self.batch = self._probe(found)

    def run(
        self,
        sampler: Sampler,
        samples: Sequence[int],
        *,
        seed: int = 0,
        classes: int = 10,
        tau: int = 0,
        on_step: Callable[[Step], None] | None = None,
    ) -> NDArray[np.float32]:
        """Draw some samples at once.

        Parameters
        ----------
        sampler
            The sampler.
        samples
            Numbers of the samples; each has its own noise, whatever else is drawn.
        seed
            Seed of the noise.
        classes
            Sample ``i`` gets the label ``i % classes``.
        tau
            Differences of at most this magnitude are left in the residual.
        on_step
            Called in each step with the tensors.

        Returns
        -------
        array of shape (samples, channels, height, width)
        """
        if tau and self._lossy is None:
            self._lossy = self._rewritten(lossy=True)
        before: list[NDArray[Any]] | None = None
        step = window = 0

        def predict(feed: dict[str, NDArray[Any]], timestep: int) -> NDArray[np.float32]:
            nonlocal before, step, window
            last, window = window, self.windows.at(timestep)
            if window != last:
                before = None
            feed = feed | self._scales[window]
            if tau and self._lossy is not None:
                # In the first step everything counts as a large difference.
                old = before or [
                    np.zeros((len(samples), *tensor.shape[1:]), np.int8) for tensor in self.tensors
                ]
                feed = feed | {
                    f"{name}/before": values.astype(self._dtype(i))
                    for i, (name, values) in enumerate(zip(self._names, old, strict=True))
                }
                feed["ditto/tau"] = np.array(tau if before is not None else -1, np.int32)
                outputs = self._lossy.run(feed)
            else:
                outputs = self.evaluator.run(feed)
            count = len(self._names)
            sums = outputs[1 + count : 1 + 2 * count]
            if not np.isfinite(outputs[0]).all() or np.isnan(sums).any():
                own = self.windows.apply(self._proto, window)
                raise ModelError(_diverged(own, self.name, feed, timestep))
            values = outputs[1 : 1 + count]
            if on_step is not None:
                on_step(Step(step, timestep, values, before))
            before, step = values, step + 1
            return outputs[0]

        return draw_batch(
            predict, self._make, self._shape, sampler, samples, seed=seed, classes=classes
        )

    def scales(self, index: int) -> list[float]:
        """Return the scale of a tensor in each window."""
        name = self._producers[self._names[index]].input[1]
        return [own.get(name, self.tensors[index].scale) for own in self.windows.scales]

    def _dtype(self, index: int) -> Any:
        return np.int8 if self.tensors[index].low < 0 else np.uint8

    def _find(self) -> Iterator[tuple[str, onnx.NodeProto, tuple[str, ...]]]:
        """Yield the products: label, node, and the names of its quantized activations."""
        names: Counter[str] = Counter()
        for node in self._proto.graph.node:
            if node.op_type not in _OPERATORS or node.domain not in ("", "ai.onnx"):
                continue
            label = node.name.strip("/") or node.output[0]
            names[label] += 1
            if names[label] > 1:
                label = f"{label}#{names[label]}"
            activations = []
            for name in node.input[:2]:
                after = self._producers.get(name)
                if after is None or after.op_type != "DequantizeLinear":
                    self.in_float[label] = "its operands are not quantized"
                    break
                if after.input[0] in self._constants:
                    continue
                before = self._producers.get(after.input[0])
                if before is None or before.op_type != "QuantizeLinear":
                    self.in_float[label] = "its operands are not quantized from float"
                    break
                activations.append(before.output[0])
            else:
                yield label, node, tuple(activations)

    def _rewritten(self, *, lossy: bool) -> Evaluator:
        """Return an evaluator of the graph with the quantized tensors as further outputs.

        After them come the sums of their float sources, and the shapes of the products' outputs.
        If lossy, a tensor keeps the value of the step before wherever it changed by at most tau.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        graph = proto.graph
        if lossy:
            nodes = []
            for node in graph.node:
                nodes.append(node)
                if node.output[0] in self._names:
                    nodes += self._hold(graph, node)
            del graph.node[:]
            graph.node.extend(nodes)
            graph.input.append(helper.make_tensor_value_info("ditto/tau", TensorProto.INT32, []))
        self._open_scales(graph)
        for name in self._names:
            info = onnx.ValueInfoProto(name=name)
            info.type.tensor_type.elem_type = self._kind(name)
            graph.output.append(info)
        # Quantizers turn what is no number into one: their inputs are summed up to see it.
        for name in self._names:
            source = self._producers[name].input[0]
            graph.node.append(helper.make_node("ReduceSum", [source], [f"{name}/sum"], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(f"{name}/sum", TensorProto.FLOAT, []))
        for name in self._outputs:
            graph.node.append(helper.make_node("Shape", [name], [f"{name}/shape"]))
            graph.output.append(
                helper.make_tensor_value_info(f"{name}/shape", TensorProto.INT64, None)
            )
        return evaluator_of(proto, onnxruntime=self._onnxruntime)

    def _open_scales(self, graph: onnx.GraphProto) -> None:
        """Turn the scales that differ between windows into inputs."""
        names = self.windows.names
        kept = [tensor for tensor in graph.initializer if tensor.name not in names]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        for name in names:
            shape = list(self._constants[name].dims)
            graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def _kind(self, name: str) -> int:
        points = self._producers[name].input[2:]
        return self._constants[points[0]].data_type if points else TensorProto.UINT8

    def _hold(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Redirect a quantizer's output, and return the nodes that make what is applied of it."""
        name = node.output[0]
        kind = self._kind(name)
        graph.input.append(helper.make_tensor_value_info(f"{name}/before", kind, None))
        node.output[0] = f"{name}/exact"

        new, old = f"{name}/new", f"{name}/old"
        delta, magnitude, counts = f"{name}/delta", f"{name}/magnitude", f"{name}/counts"
        wide: dict[str, Any] = {"to": TensorProto.INT32}
        back: dict[str, Any] = {"to": kind}
        return [
            helper.make_node("Cast", [f"{name}/exact"], [new], **wide),
            helper.make_node("Cast", [f"{name}/before"], [old], **wide),
            helper.make_node("Sub", [new, old], [delta]),
            helper.make_node("Abs", [delta], [magnitude]),
            helper.make_node("Greater", [magnitude, "ditto/tau"], [counts]),
            helper.make_node("Where", [counts, new, old], [f"{name}/applied"]),
            helper.make_node("Cast", [f"{name}/applied"], [name], **back),
        ]

    def _probe(self, found: list[tuple[str, onnx.NodeProto, tuple[str, ...]]]) -> int | None:
        """Evaluate one sample for the shapes, and two to see whether the graph takes them."""
        one = self._make(np.zeros(self._shape, np.float32), 0, 0)
        try:
            values = self.evaluator.run(one | self._scales[0])
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(f"{self.name} cannot be evaluated: {reason}") from error
        count = len(self._names)
        shapes = {n: np.shape(v) for n, v in zip(self._names, values[1 : 1 + count], strict=True)}
        for (_, node, _), shape in zip(found, values[1 + 2 * count :], strict=True):
            shapes[node.output[0]] = tuple(int(size) for size in shape)
        self.tensors = tuple(self._tensor(name, shapes[name]) for name in self._names)
        dependent = {"sample"}
        for node in self._proto.graph.node:
            if dependent.intersection(node.input):
                dependent.update(node.output)
        self.products = tuple(
            self._product(label, node, names, shapes, node.output[0] in dependent)
            for label, node, names in found
        )
        try:
            pair = {name: np.concatenate([values, values]) for name, values in one.items()}
            two = self.evaluator.run(pair | self._scales[0])
            if all(
                np.shape(value) == (2 * shapes[name][0], *shapes[name][1:])
                for name, value in zip(self._names, two[1:], strict=False)
            ):
                return None
        except Exception:  # whatever is fixed in the graph
            pass
        return 1

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        node = self._producers[name]
        scale = numpy_helper.to_array(self._constants[node.input[1]]).reshape(-1)
        points = node.input[2:]
        point = numpy_helper.to_array(self._constants[points[0]]).reshape(-1) if points else [0]
        if scale.size != 1 or not (np.isfinite(scale).all() and scale[0] > 0):
            raise ModelError(
                f"tensor {node.input[0]} of {self.name} has the scale {scale.min():g} "
                f"({scale.size} values), but one positive scale is needed; quantize it again"
            )
        info = np.iinfo(np.uint8 if self._kind(name) == TensorProto.UINT8 else np.int8)
        return Tensor(name, float(scale[0]), int(point[0]), info.min, info.max, shape)

    def _product(
        self,
        label: str,
        node: onnx.NodeProto,
        names: tuple[str, ...],
        shapes: Mapping[str, tuple[int, ...]],
        depends: bool,
    ) -> TracedProduct:
        output = shapes[node.output[0]]
        operands = tuple(self._names.index(name) for name in names)
        source = shapes[names[0]]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        count = int(np.prod(output))
        weight: tuple[int, ...] = ()
        for name in node.input[:2]:
            raw = self._producers[name].input[0]
            if raw in self._constants:
                weight = tuple(self._constants[raw].dims)
        if node.op_type in ("Conv", "ConvTranspose"):
            spatial = (count if node.op_type == "Conv" else int(np.prod(source))) // 1
            macs = spatial * int(np.prod(weight[1:]))
            stride = attributes.get("strides", [1])[0]
            kind = "conv" if node.op_type == "Conv" else "transposed conv"
            kind += " " + "x".join(str(k) for k in weight[2:])
            kind += f"/{stride}" if stride != 1 else ""
            kind += f" g{attributes['group']}" if attributes.get("group", 1) != 1 else ""
            sizes = f"{'x'.join(map(str, source[2:]))} x {source[1]} -> {output[1]}"
        else:
            inner = source[0] if attributes.get("transA", 0) else source[-1]
            macs = count * inner
            kind = "attention" if len(names) == 2 else "linear"
            sizes = f"{int(np.prod(source)) // inner} x {inner} -> {output[-1]}"
        return TracedProduct(
            name=label,
            kind=kind,
            sizes=sizes,
            operands=operands,
            macs=macs,
            weights=int(np.prod(weight)) if weight else 0,
            outputs=count,
            depends=depends,
            output=node.output[0],
        )


def predictor(
    proto: onnx.ModelProto, name: str, *, onnxruntime: bool | None = None
) -> Callable[..., NDArray[np.float32]]:
    """Return a model's first output as a function of its inputs, and of the timestep if any.

    Parameters
    ----------
    proto
        The model.
    name
        How messages call it.
    onnxruntime
        Whether to evaluate by onnxruntime; by default where it is installed.

    Raises
    ------
    ModelError
        If it cannot be evaluated; in calls also if it makes values that are no numbers.
    """
    evaluator = evaluator_of(proto, onnxruntime=onnxruntime)

    def predict(
        feed: Mapping[str, NDArray[Any]], timestep: int | None = None
    ) -> NDArray[np.float32]:
        try:
            result = evaluator.run(feed)[0]
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(f"{name} cannot be evaluated: {reason}") from error
        if not np.isfinite(result).all():
            raise ModelError(_diverged(proto, name, feed, timestep))
        return result

    return predict


def _diverged(
    proto: onnx.ModelProto, name: str, feed: Mapping[str, NDArray[Any]], timestep: int | None
) -> str:
    """Say where the values of a model stop being numbers."""
    every = onnx.ModelProto()
    every.CopyFrom(proto)
    nodes = [node for node in every.graph.node if node.op_type != "Constant"]
    del every.graph.output[:]
    every.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in nodes)
    inputs = {value.name for value in every.graph.input}
    text = f"{name} makes values that are no numbers"
    text += f" at timestep {timestep}" if timestep is not None else ""
    try:
        given = {key: values for key, values in feed.items() if key in inputs}
        outputs = _Reference(every).run(given)
    except Exception:  # what can't be evaluated here is no news beside the other
        return text
    for node, values in zip(nodes, outputs, strict=True):
        if np.asarray(values).dtype.kind == "f" and not np.isfinite(values).all():
            return (
                f"{text}: first in tensor {node.output[0]} of node {label(node)}; check the "
                "weights before it, and that the inputs are what it was trained with"
            )
    return text


def draw_batch(
    predict: Callable[[dict[str, NDArray[Any]], int], NDArray[np.float32]],
    make: Callable[..., dict[str, NDArray[Any]]],
    shape: Sequence[int],
    sampler: Sampler,
    samples: Sequence[int],
    *,
    seed: int = 0,
    classes: int = 10,
) -> NDArray[np.float32]:
    """Draw some samples at once: each equals the one that is drawn alone.

    Parameters
    ----------
    predict
        Predicts the noise from the inputs of the network, with the samples along the first axis.
    make
        Makes the inputs for one sample, timestep and label.
    shape
        Shape of a sample, with the batch of 1.
    sampler, samples, seed, classes
        As for :meth:`Traced.run`.
    """
    sources = [noise_of(seed, sample) for sample in samples]
    # A sampler may keep what it likes from step to step of a sample.
    samplers = [copy.deepcopy(sampler) for _ in samples]
    x = [
        own.begin(rng.standard_normal(tuple(shape)).astype(np.float32))
        for own, rng in zip(samplers, sources, strict=True)
    ]
    estimates: list[NDArray[np.float32] | None] = [None] * len(x)
    for index, timestep in enumerate(sampler.timesteps):
        made = [
            make(values, timestep, sample % max(classes, 1))
            for values, sample in zip(x, samples, strict=True)
        ]
        feed = {name: np.concatenate([one[name] for one in made]) for name in made[0]}
        noise = predict(feed, timestep)
        for i, (own, rng) in enumerate(zip(samplers, sources, strict=True)):
            x[i], estimates[i] = own.step(index, noise[i : i + 1], x[i], rng, estimates[i])
    return np.concatenate(x)
