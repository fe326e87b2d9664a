from typing import Any

import numpy as np
import onnx
import pytest

from ditto.host.flow import FlowGraph, traffic
from ditto.host.model import Model
from ditto.host.trace import Traced


class Net:
    """A graph of tokens of 4 channels, with matrix products in it."""

    def __init__(self, graph: Any) -> None:
        self.g = graph
        self.x = self.g.input("sample", [1, 1, 3, 4])
        self.t = self.g.input("timestep", [1])
        self.quantized: list[str] = []

    def layer(self, x: str, name: str = "", scale: float = 0.05) -> str:
        """Add a matrix product; note the quantized tensor that it reads."""
        weights = self.g.weights(np.eye(4, dtype=np.int8), np.full(4, 0.01), axis=1)
        return self.g.node("MatMul", self.take(x, scale), weights, name=name)

    def take(self, x: str, scale: float = 0.05) -> str:
        """Quantize, and note the quantized tensor."""
        taken = self.g.quantized(x, scale)
        self.quantized.append(self.g.nodes[-1].input[0])
        return taken

    def flows(self, *outputs: str) -> FlowGraph:
        return FlowGraph(self.g.model(*outputs))


@pytest.fixture
def net(make_graph: Any) -> Net:
    return Net(make_graph())


def test_linear_operators_forward_a_difference(net: Net) -> None:
    g = net.g
    a = net.layer(net.x)
    b = net.layer(net.x)
    h = g.node("Add", g.node("Mul", a, g.constant([0.5], np.float32)), b)
    h = g.node("Reshape", h, g.constant([1, 3, 1, 4]))
    h = g.node("Transpose", h, perm=[0, 2, 1, 3])
    y = net.layer(g.node("Concat", h, h, axis=1))
    flows = net.flows(y)
    flow = flows.tensors[net.quantized[2]]
    assert flow.forwarded == tuple(sorted([a, b]))
    assert flow.barriers == () and flow.moved == ()
    assert flow.recomputed == ""  # of two layers
    assert flows.unsummed == {a, b}
    assert flows.tensors[net.quantized[0]].barriers == ("input sample",)


@pytest.mark.parametrize("operator", ["Relu", "Sigmoid"])
def test_a_nonlinear_operator_needs_the_sum(net: Net, operator: str) -> None:
    a = net.layer(net.x)
    y = net.layer(net.g.node(operator, a))
    flows = net.flows(y)
    flow = flows.tensors[net.quantized[1]]
    assert flow.forwarded == () and flow.barriers == (operator,)
    assert flow.recomputed == a  # element by element, though
    assert flows.unsummed == set()


def test_a_norm_needs_whole_rows(net: Net) -> None:
    g = net.g
    a = net.layer(net.x)
    ones = g.constant(np.ones(4), np.float32)
    y = net.layer(g.node("LayerNormalization", a, ones, axis=-1))
    flow = net.flows(y).tensors[net.quantized[1]]
    assert flow.barriers == ("LayerNormalization",) and flow.recomputed == ""


def test_a_scale_that_changes_from_step_to_step_is_none(net: Net) -> None:
    g = net.g
    a = net.layer(net.x)
    scaled = net.layer(g.node("Mul", a, net.t))
    shifted = net.layer(g.node("Add", scaled, g.node("Sin", net.t)))
    flows = net.flows(shifted)
    assert flows.tensors[net.quantized[1]].barriers == ("Mul",)
    assert flows.tensors[net.quantized[2]].barriers == ("Sin",)
    assert flows.tensors[net.quantized[2]].recomputed == ""
    assert flows.unsummed == set()


def test_a_sum_that_anything_else_reads_is_needed(net: Net) -> None:
    g = net.g
    a = net.layer(net.x)
    h = g.node("Neg", a)
    y = net.layer(h)
    assert net.flows(y).unsummed == {a}
    other = g.node("Relu", h)
    assert net.flows(y, other).unsummed == set()
    assert net.flows(y, a).unsummed == set()  # the graph's own output


def test_a_rearrangement_of_the_same_scale_moves_differences(net: Net) -> None:
    g = net.g
    taken = net.take(net.x)
    turned = g.node("Reshape", taken, g.constant([1, 3, 1, 4]))
    y = net.layer(turned)
    same = net.quantized[-1]
    z = net.layer(turned, scale=0.04)
    flows = net.flows(y, z)
    assert flows.tensors[same].moved == (net.quantized[0],)
    assert flows.tensors[net.quantized[-1]].moved == ()  # another scale: it is rounded again


def test_products_of_activations_are_layers(net: Net) -> None:
    g = net.g
    query, key = net.layer(net.x), net.layer(net.x)
    turned = net.take(g.node("Transpose", key, perm=[0, 1, 3, 2]))
    scores = g.node("MatMul", net.take(query), turned)
    y = net.layer(g.node("Softmax", scores))
    flows = net.flows(y)
    assert flows.tensors[net.quantized[2]].forwarded == (key,)
    assert flows.tensors[net.quantized[3]].recomputed == query
    assert flows.unsummed == {query, key}  # but not the scores
    assert flows.tensors[net.quantized[4]].barriers == ("Softmax",)


def test_what_never_varies_is_left_out(net: Net) -> None:
    g = net.g
    label = g.input("label", [1, 1, 3, 4])
    fixed = net.layer(label)
    y = net.layer(g.node("Add", net.layer(net.x), fixed))
    flows = net.flows(y)
    assert net.quantized[0] not in flows.tensors
    assert fixed not in flows.unsummed
    assert len(flows.tensors[net.quantized[2]].forwarded) == 1


def test_traffic(net: Net) -> None:
    g = net.g
    shared = net.take(net.x)
    weights = g.weights(np.eye(4, dtype=np.int8), np.full(4, 0.01), axis=1)
    a, b = (g.node("MatMul", shared, weights, name=name) for name in ("a", "b"))
    hidden = net.layer(g.node("Relu", a), "hidden")
    y = net.layer(g.node("Add", hidden, b), "last")
    proto = g.model(y)
    model = Model(proto)
    traced = Traced(proto, model)
    got = traffic(FlowGraph(proto), traced.products, traced.tensors, accumulator_bytes=3)
    size, layers = 12, 4
    plain = layers * (2 * size + 16)
    accumulators = layers * 2 * 3 * size
    assert got["plain"].total == plain
    assert got["naive"].total == plain + accumulators + layers * 2 * size
    # Once for both readers of the shared tensor; hidden's follows from a; last's comes of two.
    assert got["exact"].total == plain + accumulators + 2 * 2 * size
    # Nothing between hidden, b and last: no sums of the two, and no copy.
    assert got["forwarded"].total == plain + accumulators // 2 + 2 * 2 * size


def test_of_a_network_with_a_time_embedding(denoiser_proto: onnx.ModelProto) -> None:
    net_tensors = FlowGraph(denoiser_proto).tensors
    nodes = {node.output[0]: node for node in denoiser_proto.graph.node}
    assert len(net_tensors) == 3
    names = {name: nodes[name].input[0] for name in net_tensors}
    last = next(name for name, source in names.items() if source.startswith("mul"))
    assert net_tensors[last].barriers == ("Mul",)
    assert net_tensors[last].recomputed == ""  # the time embedding changes, too
