"""Products of two activations by differences, against integer products."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ditto.hdl.config import Config, Multiplier
from ditto.hdl.protocol import Mode
from ditto.host.executor import Executor, MismatchError
from ditto.host.layers import Product, Quantization
from ditto.host.model import Model, ModelError
from ditto.host.program import PlacementError, Program, suggest
from ditto.sim.golden import Golden

CONFIG = Config(clusters=3, columns=4, positions=12, channels=8, item_depth=96)

Operands = tuple[NDArray[np.int64], NDArray[np.int64]]


def product(
    make_graph: Any,
    shapes: Sequence[Sequence[int]],
    *,
    dtypes: Sequence[Any] = (np.int8, np.int8),
    zero_points: Sequence[int] = (0, 0),
    right: str = "timestep",
) -> onnx.ModelProto:
    """Return a model that multiplies its inputs, which are quantized with a scale of 1."""
    g = make_graph()
    names = [
        g.input(name, [1, *shape[1:]])
        for name, shape in zip(("sample", right), shapes, strict=True)
    ]
    operands = [
        g.quantized(name, 1.0, zero_point, dtype)
        for name, zero_point, dtype in zip(names, zero_points, dtypes, strict=True)
    ]
    return g.model(g.node("MatMul", *operands, name="qk"))


def executor_of(proto: onnx.ModelProto, config: Config = CONFIG, **options: Any) -> Executor:
    model = Model(proto)
    shapes = model.shapes()
    states = options.pop("states", 1)
    config = suggest(model.layers, shapes, config, states=states)
    program = Program(model.layers, shapes, config, states=states)
    return Executor(model, program, options.pop("device", Golden)(config), **options)


def feed(executor: Executor, operands: Operands) -> dict[str, Any]:
    """Return inputs that are quantized to some integers."""
    (layer,) = executor.model.layers
    assert isinstance(layer, Product)
    names = list(executor.model.inputs)
    points = (layer.left.zero_point, layer.right.zero_point)
    return {
        name: (q - point).astype(np.float32)
        for name, q, point in zip(names, operands, points, strict=True)
    }


def exact(operands: Operands, zero_points: Sequence[int]) -> NDArray[np.float32]:
    left, right = (q - point for q, point in zip(operands, zero_points, strict=True))
    return (left @ right).astype(np.float32)


def walk(
    rng: np.random.Generator,
    shapes: Sequence[Sequence[int]],
    dtypes: Sequence[Any],
    spread: Sequence[float],
) -> list[Operands]:
    """Return the operands of some steps, which drift; extreme values are among them."""
    infos = [np.iinfo(dtype) for dtype in dtypes]
    now = [
        rng.integers(info.min, info.max + 1, shape)
        for shape, info in zip(shapes, infos, strict=True)
    ]
    steps: list[Operands] = []
    for _ in range(4):
        steps.append((now[0].copy(), now[1].copy()))
        for i, info in enumerate(infos):
            change = np.rint(rng.laplace(0, 1, now[i].shape) * spread[i]).astype(np.int64)
            now[i] = np.clip(now[i] + change, info.min, info.max)
            now[i][rng.random(now[i].shape) < 0.05] = info.min
    return steps


KINDS = st.sampled_from(
    [(np.int8, 0), (np.int8, -128), (np.int8, 9), (np.uint8, 0), (np.uint8, 131)]
)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_way_equals_the_integer_product(make_graph: Any, data: st.DataObject) -> None:
    draw = data.draw
    size = st.integers(1, 6)
    heads, rows, inner, columns = (draw(size) for _ in range(4))
    shapes = ((1, heads, rows, inner), (1, draw(st.sampled_from([1, heads])), inner, columns))
    kinds = draw(st.tuples(KINDS, KINDS))
    dtypes, points = [k[0] for k in kinds], [k[1] for k in kinds]
    config = Config(
        clusters=draw(st.integers(1, 3)),
        columns=draw(st.integers(1, 5)),
        positions=draw(st.integers(2, 9)),
        channels=1,
        item_depth=96,
        multiplier=draw(st.sampled_from(list(Multiplier))),
    )
    proto = product(
        make_graph,
        shapes,
        dtypes=dtypes,
        zero_points=points,
        right=draw(st.sampled_from(["timestep", "context"])),
    )
    temporal = executor_of(proto, config, check=True)
    dense = executor_of(proto, config, mode=Mode.DENSE)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    spread = [draw(st.sampled_from([0.0, 0.3, 30.0])) for _ in range(2)]
    for operands in walk(rng, shapes, dtypes, spread):
        want = exact(operands, points)
        for executor in (temporal, dense):
            np.testing.assert_array_equal(executor.step(feed(executor, operands))[0], want)
    # The dense cycles are those that dense mode takes, and nothing takes more.
    for a, b in zip(temporal.runs, dense.runs, strict=True):
        assert a.dense_cycles == b.counters.cycles == b.dense_cycles
        assert a.counters.cycles <= a.dense_cycles


def steps_of(executor: Executor, steps: Sequence[Operands]) -> list[Any]:
    """Run some steps; return what each took."""
    for operands in steps:
        executor.step(feed(executor, operands))
    return executor.runs


SHAPES = ((1, 2, 9, 16), (1, 2, 16, 8))


def test_differences_where_they_are_cheaper_and_dense_where_not(make_graph: Any) -> None:
    rng = np.random.default_rng(3)
    executor = executor_of(product(make_graph, SHAPES))
    still = walk(rng, SHAPES, (np.int8, np.int8), (0, 0))[0]
    near = (still[0], still[1].copy())
    near[1][0, 0, 3, 5] += 1
    far = (rng.permuted(still[0], axis=-1), rng.permuted(still[1], axis=-1))
    runs = steps_of(executor, [still, near, near, far, far])
    assert [run.mode.name for run in runs] == ["DENSE", "TEMPORAL", "TEMPORAL", "DENSE", "TEMPORAL"]
    # Where nothing changed, nothing runs.
    assert [run.counters.cycles for run in runs][2::2] == [0, 0]
    assert runs[1].counters.zero == 8 * 16 - 1 and runs[1].counters.narrow == 1


def test_a_fixed_operand_takes_no_second_run_and_is_written_once(make_graph: Any) -> None:
    written = []

    class Recording(Golden):
        def write_weights(self, cluster: int, row: int, words: NDArray[Any]) -> None:
            written.append(row)
            super().write_weights(cluster, row, words)

    proto = product(make_graph, SHAPES, right="context")
    executor = executor_of(proto, device=Recording)
    placement = executor.program.layers[0]
    assert isinstance(placement.layer, Product) and placement.layer.fixed
    changing = executor_of(product(make_graph, SHAPES))
    assert 2 * len(placement.parts) == len(changing.program.layers[0].parts)
    assert 2 * executor.program.accumulator_rows < 2 * changing.program.accumulator_rows
    rng = np.random.default_rng(1)
    steps = [
        (left, np.ones(SHAPES[1], int)) for left, _ in walk(rng, SHAPES, (np.int8,) * 2, (1, 1))
    ]
    written.clear()
    runs = steps_of(executor, steps)
    assert len(written) == 2 * CONFIG.clusters  # two heads
    words = sum(part.weight_words(executor.program.config) for part in placement.parts)
    assert [run.weight_bytes for run in runs] == [4 * words, 0, 0, 0]
    assert {run.mode for run in runs[1:]} == {Mode.TEMPORAL}
    # Another sample has another context; one that changes within a sample is still right.
    executor.begin()
    for operands in walk(rng, SHAPES, (np.int8,) * 2, (1, 1)):
        got = executor.step(feed(executor, operands))[0]
        np.testing.assert_array_equal(got, exact(operands, (0, 0)))


def test_activations_as_weights_share_one_place(make_graph: Any) -> None:
    one = executor_of(product(make_graph, SHAPES)).program.weight_rows
    g = make_graph()
    a, b = g.quantized(g.input("sample", SHAPES[0])), g.quantized(g.input("timestep", SHAPES[1]))
    c = g.node("MatMul", a, b)
    d = g.node("MatMul", g.quantized(c), g.quantized(g.node("Transpose", c, perm=[0, 1, 3, 2])))
    two = executor_of(g.model(d)).program
    assert len(two.layers) == 2
    assert two.weight_rows == max(one, executor_of(g.model(d)).program.weight_rows)
    assert two.weight_rows <= 2 * one


def test_two_states_share_weights_and_keep_apart(make_graph: Any) -> None:
    rng = np.random.default_rng(5)
    for right in ("timestep", "context"):
        proto = product(make_graph, SHAPES, right=right)
        executor = executor_of(proto, states=2, check=True)
        alone = executor_of(proto)
        assert executor.program.accumulator_rows == 2 * alone.program.accumulator_rows
        assert executor.program.entries == 2 * alone.program.entries
        both = [walk(rng, SHAPES, (np.int8,) * 2, (1, 1)) for _ in range(2)]
        for step in range(4):
            for state in range(2):
                got = executor.step(feed(executor, both[state][step]), state)[0]
                np.testing.assert_array_equal(got, exact(both[state][step], (0, 0)))


def test_threshold_holds_for_both_operands(make_graph: Any) -> None:
    rng = np.random.default_rng(2)
    steps = walk(rng, SHAPES, (np.int8,) * 2, (1.5, 1.5))
    executor = executor_of(product(make_graph, SHAPES), tau=2, check=True)
    taken = [steps[0][0].copy(), steps[0][1].copy()]
    for operands in steps:
        got = executor.step(feed(executor, operands))[0]
        for i in range(2):
            change = operands[i] - taken[i]
            taken[i] += np.where(np.abs(change) > 2, change, 0)
        np.testing.assert_array_equal(got, exact((taken[0], taken[1]), (0, 0)))


class Faulty(Golden):
    """Returns a wrong accumulator in its third read."""

    reads = 0

    def read_accumulators(
        self, row: int, count: int, columns: int | None = None
    ) -> NDArray[np.int64]:
        words = super().read_accumulators(row, count, columns)
        self.reads += 1
        if self.reads == 3:
            words[0, 0, 0] ^= 1
        return words


def test_a_mismatch_names_head_row_and_column(make_graph: Any) -> None:
    executor = executor_of(product(make_graph, SHAPES), check=True, device=Faulty)
    rng = np.random.default_rng(1)
    with pytest.raises(
        MismatchError, match=r"step 0, layer qk, accumulator of head 0, row 0, column 2, "
    ):
        executor.step(feed(executor, walk(rng, SHAPES, (np.int8,) * 2, (0, 0))[0]))


def test_what_does_not_fit(make_graph: Any) -> None:
    model = Model(product(make_graph, SHAPES))
    shapes = model.shapes()
    config = suggest(model.layers, shapes, CONFIG)
    with pytest.raises(PlacementError, match="accumulator_rows = .* needed, .* by layer qk"):
        Program(model.layers, shapes, config, states=2)
    for name in ("weight_rows", "accumulator_rows", "accumulator_bits", "layers", "channels"):
        with pytest.raises(PlacementError, match=name):
            Program(model.layers, shapes, replace(config, **{name: getattr(config, name) - 1}))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        [(3, 4), (4, 2)],
        [(2, 3, 4), (4, 2)],
        [(2, 3, 4), (2, 4, 5)],
        [(3, 4), (2, 4, 5)],
        [(1, 2, 3, 4), (3, 1, 4, 5)],
        [(2, 1, 2, 3, 4), (3, 1, 4, 5)],
    ],
)
def test_heads_are_the_operands_leading_axes(left: Sequence[int], right: Sequence[int]) -> None:
    rng = np.random.default_rng(1)
    operands = [rng.integers(-99, 99, shape).astype(np.float32) for shape in (left, right)]
    given_ = Quantization(scale=np.float32(1), zero_point=0, low=-128, high=127)
    layer = Product(name="qk", left=given_, right=given_)
    found = np.matmul(*layer.quantize(operands[0], operands[1]))
    np.testing.assert_array_equal(layer.dequantize(found, (left, right)), np.matmul(*operands))


def test_operands_that_do_not_fit(make_graph: Any) -> None:
    model = Model(product(make_graph, ((1, 2, 3, 4), (1, 2, 5, 6))))
    with pytest.raises(
        ModelError, match=r"qk cannot multiply operands of shapes \(1, 2, 3, 4\) an"
    ):
        model.shapes()
