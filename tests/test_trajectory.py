"""The demo model over a whole run: on the golden model in both modes, and on the compiled RTL."""

from importlib.resources import as_file, files
from typing import Any

import numpy as np
import pytest

from ditto.hdl.config import demo
from ditto.hdl.protocol import Mode
from ditto.host.boards import open_device
from ditto.host.executor import Executor
from ditto.host.layers import Linear, Product
from ditto.host.model import Model
from ditto.host.program import Program
from ditto.host.samplers import DDIM, Schedule, denoise, inputs_of
from ditto.host.session import Drawing, draw
from ditto.sim.golden import Golden

STEPS = 50


@pytest.fixture(scope="module")
def model() -> Model:
    with as_file(files("ditto.host.models").joinpath("digits16.int8.onnx")) as path:
        return Model.load(path)


@pytest.fixture(scope="module")
def program(model: Model) -> Program:
    return Program(model.layers, model.shapes(), demo)


class Recorder(Executor):
    """Remembers the output of every layer, which tells all accumulators: they have 24 bits."""

    seen: list[bytes]

    def evaluate(self, index: int, *operands: np.ndarray) -> np.ndarray:
        result = super().evaluate(index, *operands)
        self.seen.append(result.tobytes())
        return result


def run(model: Model, program: Program, board: str, mode: Mode) -> tuple[list[bytes], Drawing]:
    device = open_device(board, demo)
    sampler = DDIM(Schedule.from_metadata(model.metadata), steps=STEPS)
    seen: list[bytes] = []

    def executor(*arguments: Any, **options: Any) -> Executor:
        result = Recorder(*arguments, **options)
        result.seen = seen
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditto.host.session.Executor", executor)
        return seen, draw(model, program, lambda: device, sampler, samples=1, seed=1, mode=mode)


def test_fifty_steps_agree_in_every_layer(model: Model, program: Program) -> None:
    assert not model.on_host
    runs = {
        (board, mode): run(model, program, board, mode)
        for board, mode in [
            ("golden", Mode.DENSE),
            ("golden", Mode.TEMPORAL),
            ("sim", Mode.TEMPORAL),
        ]
    }
    (dense, drawn) = runs.pop(("golden", Mode.DENSE))
    assert len(dense) == STEPS * len(model.layers)
    for name, (seen, drawing) in runs.items():
        for index, (got, want) in enumerate(zip(seen, dense, strict=True)):
            step, layer = divmod(index, len(model.layers))
            assert got == want, f"{name}, step {step}, layer number {layer} of the step"
        assert drawing.images.tobytes() == drawn.images.tobytes()
    # The device took the cycles that the cycle model says, in every run of a layer.
    golden, sim = (
        [run.counters._replace(stall_link=0) for run in runs[board, Mode.TEMPORAL][1].runs[0]]
        for board in ("golden", "sim")
    )
    assert sim == golden
    products = [run for run in drawn.runs[0] if isinstance(model.layers[run.layer], Product)]
    assert len(products) == 2 * STEPS


def test_the_skip_saves_what_the_digits_say(model: Model, program: Program) -> None:
    _, drawing = run(model, program, "golden", Mode.TEMPORAL)
    (runs,) = drawing.runs
    later = [run for run in runs if run.step]
    assert 2.5 * sum(run.counters.cycles for run in later) < sum(run.dense_cycles for run in later)
    products = sum(run.products for run in runs)
    cycles = sum(run.counters.cycles for run in runs)
    assert products / (demo.multipliers * cycles) >= 0.6


def test_layers_agree_with_onnxruntime(model: Model, program: Program) -> None:
    ort = pytest.importorskip("onnxruntime")
    import onnx

    with as_file(files("ditto.host.models").joinpath("digits16.int8.onnx")) as path:
        proto = onnx.load(path)
    nodes = {node.name.strip("/"): node for node in proto.graph.node}
    producers = {output: node for node in proto.graph.node for output in node.output}
    inputs, outputs = [], []
    for layer in model.layers:
        node = nodes[layer.name]
        operands = node.input[: 1 if isinstance(layer, Linear) else 2]
        quantizers = [producers[producers[name].input[0]] for name in operands]
        assert {quantizer.op_type for quantizer in quantizers} == {"QuantizeLinear"}
        inputs.append([quantizer.input[0] for quantizer in quantizers])
        outputs.append(node.output[0])
    known = {value.name for value in [*proto.graph.input, *proto.graph.output]}
    for name in dict.fromkeys([*sum(inputs, []), *outputs]):
        if name not in known:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    # With optimizations, fused int8 kernels round elsewhere.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    executor = Executor(model, program, Golden(demo), mode=Mode.DENSE)
    shape, make_inputs = inputs_of(model)
    apart = total = 0

    def predict(x: np.ndarray, timestep: int) -> np.ndarray:
        nonlocal apart, total
        feeds = make_inputs(x, timestep, 3)
        tensors = dict(
            zip(
                [output.name for output in proto.graph.output],
                session.run(None, feeds),
                strict=True,
            )
        ) | {name: np.asarray(value) for name, value in feeds.items()}
        for index, layer in enumerate(model.layers):
            ours = executor.evaluate(index, *(tensors[name] for name in inputs[index]))
            theirs = tensors[outputs[index]]
            # One step of the accumulator, the finest that there is.
            is_conv = isinstance(layer, Linear) and layer.kind == "conv"
            step = np.asarray(layer.scale).reshape((-1, 1, 1) if is_conv else (-1,))
            apart += int(np.count_nonzero(np.abs(ours - theirs) > step))
            total += theirs.size
        return tensors[proto.graph.output[0].name]

    denoise(predict, DDIM(Schedule.from_metadata(model.metadata), steps=5), shape, seed=1, sample=0)
    assert total > 5 * 36_000
    assert apart <= total / 1000, f"{apart} of {total} elements differ by more than a step"
