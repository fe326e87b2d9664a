"""Small networks with attention: on the golden model, on the compiled RTL, and in onnxruntime.

A U-Net with self-attention, a transformer (DiT), and a network with cross-attention on a context;
and the classes of diffusers that they stand for, exported by torch, where these are installed.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ditto.hdl.config import Config, demo
from ditto.hdl.protocol import Mode
from ditto.host.boards import open_device
from ditto.host.conditioning import Conditioning
from ditto.host.executor import Executor
from ditto.host.layers import Linear, Product
from ditto.host.model import Model
from ditto.host.program import Program
from ditto.host.quantize import quantize
from ditto.host.samplers import DDIM, Schedule, denoise
from ditto.host.session import Drawing, draw
from ditto.sim.golden import Golden

STEPS = 8
LARGER = replace(demo, weight_rows=8192, accumulator_rows=8192, channels=256, layers=256)
"""A device for the networks of diffusers."""

WIDTH = 16
HEADS = 2


@dataclass
class Network:
    """Builds a float network."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        node = helper.make_node(op, list(inputs), [f"{name}.out"], name=name, **attributes)
        self.nodes.append(node)
        return node.output[0]

    def weights(self, *shape: int) -> str:
        return self.constant(self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])))

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        w = self.constant(self.rng.standard_normal((inputs, outputs)) / np.sqrt(inputs))
        return self.node("Add", self.node("MatMul", x, w), self.constant(np.zeros(outputs)))

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3, **attributes: Any) -> str:
        w = self.weights(outputs, inputs // attributes.get("group", 1), kernel, kernel)
        bias = self.constant(self.rng.standard_normal(outputs) / 10)
        attributes.setdefault("pads", [kernel // 2] * 4)
        return self.node("Conv", x, w, bias, **attributes)

    def silu(self, x: str) -> str:
        return self.node("Mul", x, self.node("Sigmoid", x))

    def reshape(self, x: str, *shape: int) -> str:
        return self.node("Reshape", x, self.constant(shape, np.int64))

    def norm(self, x: str) -> str:
        ones, zeros = self.constant(np.ones(WIDTH)), self.constant(np.zeros(WIDTH))
        return self.node("LayerNormalization", x, ones, zeros)

    def time(self, t: str) -> str:
        t = self.node(
            "Unsqueeze", self.node("Cast", t, to=TensorProto.FLOAT), self.constant([1], np.int64)
        )
        waves = self.node("Mul", t, self.constant([[0.001, 0.003, 0.01, 0.03]]))
        w = self.constant(self.rng.standard_normal((4, WIDTH)) / 2)
        return self.node("Gemm", self.node("Sin", waves), w, self.constant(np.zeros(WIDTH)))

    def tokens(self, x: str, count: int) -> str:
        return self.node("Transpose", self.reshape(x, 1, WIDTH, count), perm=[0, 2, 1])

    def attention(self, x: str, context: str, queries: int, keys: int, inner: int = WIDTH) -> str:
        def heads(y: str, count: int, perm: Sequence[int]) -> str:
            return self.node(
                "Transpose", self.reshape(y, 1, count, HEADS, WIDTH // HEADS), perm=perm
            )

        q = heads(self.linear(x, WIDTH, WIDTH), queries, [0, 2, 1, 3])
        k = heads(self.linear(context, inner, WIDTH), keys, [0, 2, 3, 1])
        v = heads(self.linear(context, inner, WIDTH), keys, [0, 2, 1, 3])
        scores = self.node("Mul", self.node("MatMul", q, k), self.constant((WIDTH / HEADS) ** -0.5))
        y = self.node("MatMul", self.node("Softmax", scores, axis=-1), v)
        y = self.reshape(self.node("Transpose", y, perm=[0, 2, 1, 3]), 1, queries, WIDTH)
        return self.linear(y, WIDTH, WIDTH)

    def model(self, y: str, **inputs: tuple[int, list[int]]) -> onnx.ModelProto:
        values = [
            helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()
        ]
        output = helper.make_tensor_value_info(y, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "test", values, [output], self.constants)
        result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
        result.ir_version = 9
        return onnx.shape_inference.infer_shapes(result)


SAMPLE = (TensorProto.FLOAT, [1, 1, 8, 8])
TIME = (TensorProto.INT64, [1])
CONTEXT = (TensorProto.FLOAT, [1, 5, 6])


def unet() -> onnx.ModelProto:
    """Down, self-attention, up again by a transposed convolution; a depthwise convolution."""
    n = Network(np.random.default_rng(1))
    first = n.conv("sample", 1, WIDTH)
    time = n.node("Unsqueeze", n.time("timestep"), n.constant([2, 3], np.int64))
    h = n.conv(n.silu(n.node("Add", first, time)), WIDTH, WIDTH, strides=[2, 2])
    x = n.tokens(h, 16)
    y = n.norm(x)
    x = n.node("Add", x, n.attention(y, y, 16, 16))
    h = n.reshape(n.node("Transpose", x, perm=[0, 2, 1]), 1, WIDTH, 4, 4)
    h = n.conv(h, WIDTH, WIDTH, group=WIDTH)
    h = n.node("ConvTranspose", h, n.weights(WIDTH, WIDTH, 4, 4), strides=[2, 2], pads=[1] * 4)
    h = n.silu(n.conv(n.node("Concat", h, first, axis=1), 2 * WIDTH, WIDTH, kernel=1))
    return n.model(n.conv(h, WIDTH, 1), sample=SAMPLE, timestep=TIME)


def transformer() -> onnx.ModelProto:
    """Patches, a block with adaptive normalization, self-attention and an MLP, pixels."""
    n = Network(np.random.default_rng(2))
    x = n.tokens(n.conv("sample", 1, WIDTH, kernel=2, strides=[2, 2], pads=[0] * 4), 16)
    x = n.node("Add", x, n.constant(n.rng.standard_normal((1, 16, WIDTH)) / 2))
    time = n.silu(n.time("timestep"))
    scale = n.node("Gemm", time, n.weights(WIDTH, WIDTH), transB=1)
    scale = n.node("Add", n.node("Unsqueeze", scale, n.constant([1], np.int64)), n.constant(1.0))
    y = n.node("Mul", n.norm(x), scale)
    x = n.node("Add", x, n.attention(y, y, 16, 16))
    y = n.silu(n.linear(n.norm(x), WIDTH, 4 * WIDTH))
    x = n.node("Add", x, n.linear(y, 4 * WIDTH, WIDTH))
    x = n.reshape(n.linear(n.norm(x), WIDTH, 4), 1, 4, 4, 2, 2)
    x = n.reshape(n.node("Transpose", x, perm=[0, 1, 3, 2, 4]), 1, 1, 8, 8)
    return n.model(x, sample=SAMPLE, timestep=TIME)


def conditional() -> onnx.ModelProto:
    """Cross-attention on a context, such as an encoded text."""
    n = Network(np.random.default_rng(3))
    h = n.conv("sample", 1, WIDTH)
    time = n.node("Unsqueeze", n.time("timestep"), n.constant([2, 3], np.int64))
    h = n.conv(n.silu(n.node("Add", h, time)), WIDTH, WIDTH, strides=[2, 2])
    x = n.tokens(h, 16)
    x = n.node("Add", x, n.attention(n.norm(x), "context", 16, 5, inner=6))
    y = n.silu(n.linear(n.norm(x), WIDTH, 2 * WIDTH))
    x = n.node("Add", x, n.linear(y, 2 * WIDTH, WIDTH))
    h = n.reshape(n.node("Transpose", x, perm=[0, 2, 1]), 1, WIDTH, 4, 4)
    h = n.node("Resize", h, "", n.constant([1, 1, 2, 2]), mode="nearest")
    return n.model(n.conv(h, WIDTH, 1), sample=SAMPLE, timestep=TIME, context=CONTEXT)


def exported(network: Any, path: Path, **conditions: Any) -> None:
    """Write a network of diffusers to an ONNX file."""
    torch = pytest.importorskip("torch")

    class Denoiser(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, sample: Any, timestep: Any, *given: Any) -> Any:
            names = dict(zip(conditions, given, strict=True))
            return self.network(sample, timestep=timestep, return_dict=False, **names)[0]

    example = (torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, of what it meets in foreign code
        torch.onnx.export(
            Denoiser().eval(),
            (*example, *(torch.as_tensor(values) for values in conditions.values())),
            str(path),
            input_names=["sample", "timestep", *conditions],
            output_names=["noise"],
            opset_version=19,
            dynamo=False,
        )


def unet2d(path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    exported(network, path)


def unet2d_condition(path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=6,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    exported(network, path, encoder_hidden_states=context()[:1])


def dit(path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        out_channels=1,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
    )
    exported(network, path, class_labels=np.array([3]))


def built(build: Callable[[], onnx.ModelProto]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        onnx.save(build(), path)

    write.__name__ = build.__name__
    return write


def context() -> NDArray[np.float32]:
    """Without and with a condition."""
    values = np.random.default_rng(4).standard_normal((2, 5, 6)).astype(np.float32)
    return values * np.array([0.3, 1], np.float32).reshape(2, 1, 1)


CONDITIONS = {
    "context": context(),
    "encoder_hidden_states": context(),
    "class_labels": np.array([1, 7]),
}


def quantized(write: Callable[[Path], None], folder: Path) -> onnx.ModelProto:
    """Quantize a network by onnxruntime."""
    pytest.importorskip("onnxruntime")
    path = folder / "float.onnx"
    write(path)
    rng = np.random.default_rng(0)
    names = {value.name for value in onnx.load(path).graph.input}
    count = 20
    given = {name: values[np.arange(count) % 2] for name, values in CONDITIONS.items()}
    given["sample"] = rng.standard_normal((count, 1, 8, 8)).astype(np.float32)
    given["timestep"] = np.linspace(999, 900, count).astype(np.int64)
    return quantize(path, {name: values for name, values in given.items() if name in names})


WRITERS = [built(unet), built(transformer), built(conditional), unet2d, unet2d_condition, dit]


@pytest.fixture(scope="module", params=WRITERS, ids=lambda f: f.__name__)
def proto(request: pytest.FixtureRequest, tmp_path_factory: Any) -> onnx.ModelProto:
    return quantized(request.param, tmp_path_factory.mktemp("network"))


def conditioning_of(model: Model, guidance: float | None = None) -> Conditioning:
    inputs = {name: CONDITIONS[name] for name in model.inputs if name in CONDITIONS}
    if guidance is None:
        inputs = {name: values[1:] for name, values in inputs.items()}
    return Conditioning(model, inputs, guidance=guidance)


def config_of(model: Model) -> Config:
    """Return a device that the model fits: one for all small networks, one for the others."""
    return demo if len(model.layers) < 20 else LARGER


def sampler() -> DDIM:
    """Return the first steps of many: networks that know nothing change fast in few."""
    result = DDIM(Schedule(), steps=200)
    result.timesteps = result.timesteps[:STEPS]
    return result


class Recorder(Executor):
    """Remembers the output of every layer."""

    seen: list[bytes]

    def evaluate(self, index: int, *operands: NDArray[np.float32]) -> NDArray[np.float32]:
        result = super().evaluate(index, *operands)
        self.seen.append(result.tobytes())
        return result


def run(
    model: Model, board: str, mode: Mode, guidance: float | None = None
) -> tuple[list[bytes], Drawing]:
    """Draw a sample; return the output of every layer in every step, and the drawing."""
    given = conditioning_of(model, guidance)
    config = config_of(model)
    program = Program(model.layers, model.shapes(), config, states=given.states)
    seen: list[bytes] = []

    def executor(*arguments: Any, **options: Any) -> Executor:
        result = Recorder(*arguments, **options)
        result.seen = seen
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditto.host.session.Executor", executor)
        drawing = draw(
            model,
            program,
            lambda: open_device(board, config),
            sampler(),
            samples=1,
            seed=1,
            mode=mode,
            conditioning=given,
        )
    return seen, drawing


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dense_equals_temporal_equals_the_hardware(proto: onnx.ModelProto) -> None:
    model = Model(proto)
    assert not model.on_host
    assert sum(isinstance(layer, Product) for layer in model.layers) >= 2
    dense, drawn = run(model, "golden", Mode.DENSE)
    assert len(dense) == STEPS * len(model.layers)
    golden, by_differences = run(model, "golden", Mode.TEMPORAL)
    assert golden == dense
    assert by_differences.images.tobytes() == drawn.images.tobytes()
    hardware, sim = run(model, "sim", Mode.TEMPORAL)
    assert hardware == dense
    # The device took the cycles that the cycle model says, in every run of a layer.
    assert [
        run._replace(counters=run.counters._replace(stall_link=0)) for run in sim.runs[0]
    ] == by_differences.runs[0]
    later = [run for run in by_differences.runs[0] if run.step]
    assert sum(run.counters.cycles for run in later) < sum(run.dense_cycles for run in later)
    if config_of(model) is demo:
        # Of the networks of diffusers, products are too small for two runs to pay.
        modes = {run.mode for run in later if isinstance(model.layers[run.layer], Product)}
        assert Mode.TEMPORAL in modes


def test_fixed_keys_and_values_take_one_run(tmp_path: Path) -> None:
    model = Model(quantized(built(conditional), tmp_path))
    products = [layer for layer in model.layers if isinstance(layer, Product)]
    assert [layer.fixed for layer in products] == [True, True]
    program = Program(model.layers, model.shapes(), demo)
    parts = [p.parts for p in program.layers if isinstance(p.layer, Product)]
    assert [len(part) for part in parts] == [HEADS, HEADS]


def test_guidance_keeps_two_states(tmp_path: Path) -> None:
    model = Model(quantized(built(conditional), tmp_path))
    dense, drawn = run(model, "golden", Mode.DENSE, guidance=3.0)
    temporal, by_differences = run(model, "golden", Mode.TEMPORAL, guidance=3.0)
    assert temporal == dense
    assert by_differences.images.tobytes() == drawn.images.tobytes()
    assert len(temporal) == 2 * STEPS * len(model.layers)
    hardware, sim = run(model, "sim", Mode.TEMPORAL, guidance=3.0)
    assert hardware == dense
    assert sum(run.counters.cycles for run in sim.runs[0]) == sum(
        run.counters.cycles for run in by_differences.runs[0]
    )
    # By hand: the two predictions of each step, and the way from one along the other.
    program = Program(model.layers, model.shapes(), demo)
    executors = [Executor(model, program, Golden(demo)) for _ in range(2)]
    alone = [Conditioning(model, {"context": values}) for values in context()]

    def predict(x: NDArray[np.float32], timestep: int) -> NDArray[np.float32]:
        without, condition = (
            executor.step(given.inputs(0, x, timestep, 0))[0]
            for executor, given in zip(executors, alone, strict=True)
        )
        return without + np.float32(3) * (condition - without)

    image = denoise(predict, sampler(), alone[0].shape, seed=1, sample=0)
    assert image.tobytes() == drawn.images.tobytes()


def sources(proto: onnx.ModelProto, model: Model) -> list[list[str]]:
    """Return the tensors that each layer quantizes."""
    producers = {output: node for node in proto.graph.node for output in node.output}
    nodes = {node.name.strip("/") or node.output[0]: node for node in proto.graph.node}
    result = []
    for layer in model.layers:
        operands = nodes[layer.name].input[: 1 if isinstance(layer, Linear) else 2]
        result.append([producers[producers[name].input[0]].input[0] for name in operands])
    return result


def test_layers_agree_with_onnxruntime(proto: onnx.ModelProto) -> None:
    ort = pytest.importorskip("onnxruntime")
    model = Model(proto)
    given = conditioning_of(model)
    nodes = {node.name.strip("/") or node.output[0]: node for node in proto.graph.node}
    inputs = sources(proto, model)
    outputs = [nodes[layer.name].output[0] for layer in model.layers]
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    known = {value.name for value in [*proto.graph.input, *proto.graph.output]}
    for name in dict.fromkeys([*sum(inputs, []), *outputs]):
        if name not in known:
            shown.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    # With optimizations, fused int8 kernels round elsewhere.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    config = config_of(model)
    executor = Executor(model, Program(model.layers, model.shapes(), config), Golden(config))
    apart = total = 0

    def predict(x: NDArray[np.float32], timestep: int) -> NDArray[np.float32]:
        nonlocal apart, total
        feeds = given.inputs(0, x, timestep, 0)
        names = [output.name for output in shown.graph.output]
        tensors = dict(zip(names, session.run(None, feeds), strict=True)) | feeds
        for index, layer in enumerate(model.layers):
            ours = executor.evaluate(index, *(tensors[name] for name in inputs[index]))
            theirs = tensors[outputs[index]]
            assert ours.shape == theirs.shape
            # One step of the accumulator, the finest that there is.
            is_conv = isinstance(layer, Linear) and layer.kind == "conv"
            step = np.asarray(layer.scale).reshape((-1, 1, 1) if is_conv else (-1,))
            apart += int(np.count_nonzero(np.abs(ours - theirs) > step))
            total += theirs.size
        return tensors[proto.graph.output[0].name]

    denoise(predict, DDIM(Schedule(), steps=5), given.shape, seed=1, sample=0)
    assert total > 5_000
    assert apart <= total / 1000, f"{apart} of {total} elements differ by more than a step"


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_other_quantizers(kind: str, per_channel: bool, symmetric: bool, tmp_path: Path) -> None:
    """Asymmetric activations and weights, one scale for all weights, and quantized outputs."""
    pytest.importorskip("onnxruntime")
    from onnxruntime import quantization

    activations = {"int8": "QInt8", "uint8": "QUInt8"}[kind]
    onnx.save(unet(), tmp_path / "float.onnx")
    data = iter(
        {
            "sample": np.random.default_rng(i).standard_normal((1, 1, 8, 8)).astype(np.float32),
            "timestep": np.array([999 - 90 * i]),
        }
        for i in range(12)
    )

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> Any:
            return next(data, None)

    quantization.quantize_static(
        str(tmp_path / "float.onnx"),
        str(tmp_path / "int8.onnx"),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "MatMul", "ConvTranspose"],
        per_channel=per_channel,
        activation_type=quantization.QuantType[activations],
        # Asymmetric weights are of the activations' type: other pairs are refused.
        weight_type=quantization.QuantType[activations if not symmetric else "QInt8"],
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": symmetric},
    )
    model = Model.load(tmp_path / "int8.onnx")
    assert not model.on_host
    points = {layer.zero_point for layer in model.layers if isinstance(layer, Linear)}
    assert len(points) > 3
    dense, _ = run(model, "golden", Mode.DENSE)
    temporal, _ = run(model, "golden", Mode.TEMPORAL)
    assert temporal == dense
    from ditto.host.trace import evaluator_of

    evaluator = evaluator_of(onnx.load(tmp_path / "int8.onnx"))
    x = np.random.default_rng(50).standard_normal((1, 1, 8, 8)).astype(np.float32)
    feeds = {"sample": x, "timestep": np.array([500])}
    executor = Executor(model, Program(model.layers, model.shapes(), demo), Golden(demo))
    got, want = executor.step(feeds)[0], evaluator.run(feeds)[0]
    assert np.abs(want).max() > 0.5
    # A value between two steps of a quantizer may fall to either side.
    assert np.abs(got - want).max() < 0.05
