"""Exactness of products of two activations across every change of mode."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto.hdl.config import Config
from ditto.host.defo import Choice, Observation
from ditto.host.executor import Executor
from ditto.host.model import Model
from ditto.host.program import Program, suggest
from ditto.sim.golden import Golden

CONFIG = Config(clusters=3, columns=4, positions=20, channels=8, item_depth=96)


class Random:
    """Chooses by chance."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._choice = Choice("dense")

    def choose(self, layer: int, has_state: bool) -> Choice:
        is_temporal = has_state and self._rng.random() < 0.6
        keep, watch = (bool(bit) for bit in self._rng.random(2) < 0.7)
        self._choice = Choice("temporal" if is_temporal else "dense", keep, watch and has_state)
        return self._choice

    def observe(self, layer: int, seen: Observation) -> None:
        # A product that is told to be temporal may be dense where that takes fewer cycles.
        assert seen.mode in (self._choice.mode, "dense")
        assert "dense" in seen.digits


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([0.0, 0.3, 30.0]))
def test_any_sequence_of_modes_is_exact(make_graph: Any, seed: int, spread: float) -> None:
    g = make_graph()
    shapes = (1, 2, 4, 5), (1, 2, 5, 3)
    names = "sample", "timestep"
    operands = [g.quantized(g.input(n, s), 1.0) for n, s in zip(names, shapes, strict=True)]
    model = Model(g.model(g.node("MatMul", *operands)))
    config = suggest(model.layers, model.shapes(), CONFIG)
    program = Program(model.layers, model.shapes(), config)
    executor = Executor(model, program, Golden(config), check=True)
    rng = np.random.default_rng(seed)
    policy = Random(rng)
    executor.begin(policy)
    now = [rng.integers(-128, 128, shape) for shape in shapes]
    for _ in range(8):
        feed = {name: q.astype(np.float32) for name, q in zip(names, now, strict=True)}
        np.testing.assert_array_equal(executor.step(feed)[0], now[0] @ now[1])
        if rng.random() < 0.15:
            executor.begin(policy)
        change = [np.rint(rng.laplace(0, 1, q.shape) * spread).astype(int) for q in now]
        now = [np.clip(q + d, -128, 127) for q, d in zip(now, change, strict=True)]
