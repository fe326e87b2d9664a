from typing import Any

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto.hdl.config import Config
from ditto.host.costs import LayerCosts
from ditto.host.layers import Linear
from ditto.host.model import Model
from ditto.host.program import Program, suggest
from ditto.sim.golden import Golden


def network(make_graph: Any) -> onnx.ModelProto:
    """Return convolutions of all kinds, and a matrix product."""
    rng = np.random.default_rng(0)
    g = make_graph()
    x = g.input("sample", ["batch", 2, 7, 6])
    weights = rng.integers(-127, 128, (5, 2, 3, 3)).astype(np.int8)
    scales = np.full(5, 0.01)
    h = g.node("Conv", g.quantized(x), g.weights(weights, scales), name="taps", pads=[1, 1, 1, 1])
    weights = rng.integers(-127, 128, (9, 5, 3, 3)).astype(np.int8)
    scales = np.full(9, 0.01)
    h = g.node(
        "Conv",
        g.quantized(h),
        g.weights(weights, scales),
        name="strided",
        strides=[2, 1],
        pads=[1, 1, 1, 0],
    )
    h = g.node("Reshape", h, g.constant([0, 9, -1]))
    h = g.node("Transpose", h, perm=[0, 2, 1])
    weights = rng.integers(-127, 128, (9, 4)).astype(np.int8)
    y = g.node("MatMul", g.quantized(h), g.weights(weights, np.full(4, 0.01), axis=1), name="last")
    return g.model(y)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.02, 0.5, 1.0]),
    clusters=st.integers(1, 3),
    lanes=st.integers(1, 2),
    digit_bits=st.sampled_from([3, 4, 5]),
    list_depth=st.sampled_from([9, 20, 225]),
    positions=st.sampled_from([14, 60]),
)
def test_cycles_are_those_of_the_golden_model(
    make_graph: Any,
    seed: int,
    share: float,
    clusters: int,
    lanes: int,
    digit_bits: int,
    list_depth: int,
    positions: int,
) -> None:
    model = Model(network(make_graph))
    shapes = model.shapes()
    config = suggest(
        model.layers,
        shapes,
        Config(
            clusters=clusters,
            lanes=lanes,
            columns=2,
            digit_bits=digit_bits,
            list_depth=list_depth,
            positions=positions,
            channels=18,
            item_depth=18 * 60 * 4,
        ),
    )
    rng = np.random.default_rng(seed)
    golden = Golden(config)
    for placement in Program(model.layers, shapes, config).layers:
        layer = placement.layer
        assert isinstance(layer, Linear)
        samples = rng.integers(-255, 256, (3, *placement.shape[1:]), np.int16)
        samples *= rng.random(samples.shape) < share
        got = LayerCosts(placement, config).cycles(samples)
        for sample, cycles in zip(samples, got, strict=True):
            rows = np.moveaxis(sample, 0, -1) if layer.kind == "conv" else sample
            rows = rows.reshape(-1, layer.channels).astype(np.int64)
            want = sum(
                golden.count(band.entry, part.lowered.deltas(rows)[band.inputs]).cycles
                for part in placement.parts
                for band in part.bands
            )
            assert cycles == want, layer.name


def test_a_layer_is_gathered_where_the_device_does_so(make_graph: Any) -> None:
    # The test above covers both forms only if both occur.
    model = Model(network(make_graph))
    config = suggest(model.layers, model.shapes(), Config(channels=18, item_depth=4320))
    placements = Program(model.layers, model.shapes(), config).layers
    gathered = [part.lowered.gather is not None for p in placements for part in p.parts]
    assert gathered == [True, False, False]
