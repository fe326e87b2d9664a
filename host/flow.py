"""Where a difference can flow on from layer to layer: static analysis of a QDQ graph.

Between two layers, a sum is needed only if something nonlinear comes before the next quantizer. The
published scheme lets differences pass where there is nothing of the kind, and neither stores the
sum nor takes a new difference. A quantizer rounds, though, and ``round(a + d) - round(a)`` is not
``round(d)``: with integers, passing a difference through it changes the result. Three things are
exact:

- *shared*: layers that read the same quantized tensor take its difference once;
- *moved*: a quantized tensor that only rearranges others of the same scale has their differences,
  rearranged;
- *recomputed*: a tensor that follows element by element from the output of one layer needs no copy
  of its previous value: it follows from the previous accumulators, which a temporal run reads
  anyway.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ditto.host.trace import Tensor, TracedProduct
from ditto.sim.memory import Traffic

__all__ = ["Flow", "FlowGraph", "traffic"]

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Each element of the output is one of the input, or a constant.
_MOVES = frozenset(
    "Concat DepthToSpace Expand Flatten Gather Identity Pad Reshape Slice SpaceToDepth Split "
    "Squeeze Tile Transpose Unsqueeze".split()
)
# With one operand that varies, or several of the same shape, linear in what varies.
_SUMS = frozenset({"Add", "Neg", "Sub", "Sum"})
_SCALES = frozenset({"Div", "Mul"})
_MEANS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"})
# Element by element, but not linear.
_UNARY = frozenset(
    "Abs Cast Clip Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu Mish Pow Relu Sigmoid Softplus "
    "Sqrt Tanh".split()
)


class Flow(NamedTuple):
    """How the difference of a quantized tensor comes about."""

    #: What it rearranges, if it only does that: quantized tensors of the same scale.
    moved: tuple[str, ...] = ()
    #: The layers whose differences make it, through linear operators only, if nothing else does;
    #: in real numbers, that is: the quantizer rounds.
    forwarded: tuple[str, ...] = ()
    #: The layer from whose output it follows, element by element, if it does.
    recomputed: str = ""
    #: The operators in the way of the difference.
    barriers: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Origin:
    """What a float tensor is made of."""

    #: Outputs of layers, and quantized tensors, that reach it through linear operators.
    layers: frozenset[str] = frozenset()
    quantized: frozenset[str] = frozenset()
    barriers: frozenset[str] = frozenset()
    #: Whether the operators on the way only rearrange.
    is_move: bool = True
    #: Layers, and other things that vary, from which it follows element by element.
    elements: frozenset[str] = frozenset()


@dataclass
class FlowGraph:
    """The layers of a QDQ graph, and what is between them.

    Parameters
    ----------
    proto
        The model.
    constant
        Inputs that stay the same in all steps of a sample.

    Attributes
    ----------
    tensors : dict of str to Flow
        Of each quantized tensor that varies, by name.
    unsummed : set of str
        Output tensors of layers whose sum nothing needs, if differences pass quantizers.
    """

    proto: onnx.ModelProto
    constant: frozenset[str] = frozenset({"label"})
    tensors: dict[str, Flow] = field(init=False, default_factory=dict)
    unsummed: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        """Analyze the graph."""
        graph = self.proto.graph
        self._producers = {output: node for node in graph.node for output in node.output}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._varying = {
            value.name
            for value in graph.input
            if value.name not in self._initializers and value.name not in self.constant
        }
        for node in graph.node:
            # The shape of a tensor is the same in every step.
            if node.op_type != "Shape" and self._varying.intersection(node.input):
                self._varying.update(node.output)
        self._origins: dict[str, _Origin] = {}
        self._nonlinear: set[str] = set()
        for node in graph.node:  # in an order in which operands come first
            for output in node.output:
                if output in self._varying:
                    self._origins[output] = self._origin_of(node)
        for node in graph.node:
            if node.op_type == "QuantizeLinear" and node.input[0] in self._varying:
                self.tensors[node.output[0]] = self._flow(node)
        self._find_unsummed()

    def is_layer(self, node: onnx.NodeProto) -> bool:
        """Whether a node multiplies quantized operands, of which at least one varies."""
        if node.op_type not in _PRODUCTS:
            return False
        operands = [self._producers.get(name) for name in node.input[:2]]
        return all(o is not None and o.op_type == "DequantizeLinear" for o in operands) and any(
            name in self._varying for name in node.input[:2]
        )

    def _origin(self, name: str) -> _Origin:
        """Return what a tensor that varies is made of; an input is a thing of its own."""
        return self._origins.get(name) or _Origin(
            barriers=frozenset({f"input {name}"}), elements=frozenset({f"input {name}"})
        )

    def _origin_of(self, node: onnx.NodeProto) -> _Origin:
        if self.is_layer(node):
            own = frozenset({node.output[0]})
            return _Origin(layers=own, is_move=False, elements=own)
        if node.op_type == "QuantizeLinear":
            own = frozenset({node.output[0]})
            return _Origin(quantized=own, elements=self._origin(node.input[0]).elements)
        operands = [self._origin(name) for name in node.input if name in self._varying]
        elements = frozenset[str]().union(*(origin.elements for origin in operands))
        kind = node.op_type
        if kind == "DequantizeLinear":
            return operands[0]
        nearest = kind == "Resize" and self._text(node, "mode", "nearest") == "nearest"
        is_move = kind in _MOVES or nearest
        is_linear = (
            is_move
            or kind in _SUMS | _MEANS
            or kind == "Resize"
            or (kind in _SCALES and len(operands) == 1 and self._scales(node))
        )
        if is_move and any(name in self._varying for name in self._selectors(node)):
            is_move = is_linear = False
        by_element = is_move or kind in _UNARY | _SUMS | _SCALES
        if not by_element:
            elements = frozenset({f"{kind} {node.output[0]}"})
        if not is_linear:
            self._nonlinear.update(node.output)
            return _Origin(barriers=frozenset({kind}), is_move=False, elements=elements)
        return _Origin(
            layers=frozenset[str]().union(*(o.layers for o in operands)),
            quantized=frozenset[str]().union(*(o.quantized for o in operands)),
            barriers=frozenset[str]().union(*(o.barriers for o in operands)),
            is_move=is_move and all(o.is_move for o in operands),
            elements=elements,
        )

    def _scales(self, node: onnx.NodeProto) -> bool:
        """Whether a product or quotient scales what varies: a constant over it is no scale."""
        return node.op_type == "Mul" or node.input[0] in self._varying

    @staticmethod
    def _selectors(node: onnx.NodeProto) -> Sequence[str]:
        """Return the operands that say what is moved where."""
        return () if node.op_type == "Concat" else node.input[1:]

    @staticmethod
    def _text(node: onnx.NodeProto, name: str, default: str) -> str:
        values = [a for a in node.attribute if a.name == name]
        return helper.get_attribute_value(values[0]).decode() if values else default

    def _flow(self, node: onnx.NodeProto) -> Flow:
        origin = self._origin(node.input[0])
        barriers = tuple(sorted(origin.barriers))
        moved: tuple[str, ...] = ()
        forwarded: tuple[str, ...] = ()
        if not origin.barriers:
            if origin.is_move and not origin.layers:
                own = self._quantization(node)
                others = [self._quantization(self._producers[n]) for n in origin.quantized]
                if own is not None and all(other == own for other in others):
                    moved = tuple(sorted(origin.quantized))
            if not moved and origin.layers:
                forwarded = tuple(sorted(origin.layers))
        single = next(iter(origin.elements)) if len(origin.elements) == 1 else ""
        recomputed = single if not moved and self._is_output(single) else ""
        return Flow(moved, forwarded, recomputed, barriers)

    def _is_output(self, name: str) -> bool:
        node = self._producers.get(name)
        return node is not None and self.is_layer(node)

    def _quantization(self, node: onnx.NodeProto) -> tuple[float, int] | None:
        """Return scale and zero point of a quantizer, if they are constants."""
        values = []
        for name in node.input[1:3]:
            tensor = self._initializers.get(name)
            if tensor is None:
                return None
            values.append(numpy_helper.to_array(tensor))
        if any(np.size(value) != 1 for value in values):
            return None
        return float(values[0].item()), int(values[1].item()) if len(values) > 1 else 0

    def _find_unsummed(self) -> None:
        """Find the outputs of which nothing needs more than the difference."""
        graph = self.proto.graph
        needed = {output.name for output in graph.output}
        for node in graph.node:
            flow = self.tensors.get(node.output[0])
            if flow is not None and flow.barriers:  # a difference of whole values
                needed.add(node.input[0])
        # What a nonlinear operator reads is needed, and so is all that it is made of linearly.
        for node in reversed(graph.node):
            wanted = (needed | self._nonlinear).intersection(node.output)
            if wanted and not self.is_layer(node):
                needed.update(node.input)
        for node in graph.node:
            if self.is_layer(node) and node.output[0] not in needed:
                self.unsummed.add(node.output[0])


def traffic(
    flows: FlowGraph,
    products: Sequence[TracedProduct],
    tensors: Sequence[Tensor],
    *,
    accumulator_bytes: int = 3,
) -> dict[str, Traffic]:
    """Return what a temporal step of a sample moves, in bytes.

    Parameters
    ----------
    flows
        The graph.
    products, tensors
        Its layers and their quantized operands, as from :class:`ditto.host.trace.Traced`.
    accumulator_bytes
        Bytes of an accumulator.

    Returns
    -------
    dict of str to Traffic
        ``plain``: without differences; ``naive``: every layer reads and writes its previous inputs
        and accumulators; ``exact``: without the copies that :mod:`ditto.host.flow` shows to be
        needless in exact arithmetic; ``forwarded``: as if differences could pass quantizers, which
        changes the results.
    """
    plain = Traffic()
    naive = exact = forwarded = Traffic()
    seen: set[int] = set()
    for product in products:
        sizes = [int(np.prod(tensors[i].shape)) for i in product.operands]
        own = Traffic(inputs=sum(sizes), weights=product.weights, outputs=product.outputs)
        accumulators = product.outputs * accumulator_bytes
        state = Traffic(accumulators_read=accumulators, accumulators_written=accumulators)
        plain += own
        naive += own + state
        exact += own + state
        forwarded += own if product.output in flows.unsummed else own + state
        for index, size in zip(product.operands, sizes, strict=True):
            moves = Traffic(previous_inputs_read=size, previous_inputs_written=size)
            naive += moves
            if index in seen:
                continue
            seen.add(index)
            flow = flows.tensors.get(tensors[index].name)
            if flow is None or flow.moved:  # nothing varies, or nothing is new
                continue
            if not flow.recomputed:
                exact += moves
            if not flow.forwarded:
                forwarded += moves
    return {"plain": plain, "naive": naive, "exact": exact, "forwarded": forwarded}
