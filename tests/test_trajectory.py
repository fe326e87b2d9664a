"""The demo model over a whole run: on the golden model in both modes, and on the compiled RTL."""

from importlib.resources import as_file, files
from typing import Any, cast

import numpy as np
import pytest

from ditto.hdl.config import demo
from ditto.hdl.protocol import Mode
from ditto.host.boards import open_device
from ditto.host.device import Accelerator
from ditto.host.executor import Executor
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


class Recorder:
    """A device that remembers every accumulator that was read from it."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.seen: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device, name)

    def read_accumulators(self, *arguments: Any) -> np.ndarray:
        self.seen.append(self.device.read_accumulators(*arguments))
        return self.seen[-1]


def run(model: Model, program: Program, board: str, mode: Mode) -> tuple[Recorder, Drawing]:
    recorder = Recorder(open_device(board, demo))
    sampler = DDIM(Schedule.from_metadata(model.metadata), steps=STEPS)
    device = cast(Accelerator, recorder)
    return recorder, draw(model, program, lambda: device, sampler, samples=1, seed=1, mode=mode)


def test_fifty_steps_agree_in_every_accumulator(model: Model, program: Program) -> None:
    runs = {
        (board, mode): run(model, program, board, mode)
        for board, mode in [
            ("golden", Mode.DENSE),
            ("golden", Mode.TEMPORAL),
            ("sim", Mode.TEMPORAL),
        ]
    }
    reads = sum(
        len(placement.bands)
        * ((placement.layer.outputs >= demo.columns) + bool(placement.layer.outputs % demo.columns))
        for placement in program.layers
    )
    (dense, drawn) = runs.pop(("golden", Mode.DENSE))
    assert len(dense.seen) == STEPS * reads
    for name, (recorder, drawing) in runs.items():
        assert len(recorder.seen) == len(dense.seen)
        for index, (got, want) in enumerate(zip(recorder.seen, dense.seen, strict=True)):
            step, read = divmod(index, reads)
            np.testing.assert_array_equal(got, want, f"{name}, step {step}, read {read}")
        assert drawing.images.tobytes() == drawn.images.tobytes()
    # The device took the cycles that the cycle model says, in every run of a layer.
    golden, sim = (
        [run.counters._replace(stall_link=0) for run in runs[board, Mode.TEMPORAL][1].runs[0]]
        for board in ("golden", "sim")
    )
    assert sim == golden


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
        quantize = producers[producers[node.input[0]].input[0]]
        assert quantize.op_type == "QuantizeLinear"
        inputs.append(quantize.input[0])
        outputs.append(node.output[0])
    known = {value.name for value in [*proto.graph.input, *proto.graph.output]}
    for name in dict.fromkeys([*inputs, *outputs]):
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
            ours = executor.evaluate(index, tensors[inputs[index]])
            theirs = tensors[outputs[index]]
            # One step of the accumulator, the finest that there is.
            step = layer.scale.reshape((-1, 1, 1) if layer.kind == "conv" else (-1,))
            apart += int(np.count_nonzero(np.abs(ours - theirs) > step))
            total += theirs.size
        return tensors[proto.graph.output[0].name]

    denoise(predict, DDIM(Schedule.from_metadata(model.metadata), steps=5), shape, seed=1, sample=0)
    assert total > 5 * 36_000
    assert apart <= total / 1000, f"{apart} of {total} elements differ by more than a step"
