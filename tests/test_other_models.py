"""Models that others trained: they lie beside the checkout, where the maintainers have them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditto.hdl.config import Config
from ditto.hdl.protocol import Mode
from ditto.host.boards import open_device
from ditto.host.layers import Product
from ditto.host.model import Model
from ditto.host.program import Program, suggest
from ditto.host.quantize import draw_calibration, quantize
from ditto.host.samplers import DDIM, Schedule
from ditto.host.session import draw
from ditto.sim.golden import Golden

MODELS = Path(__file__).parents[2] / "shared" / "models"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not MODELS.is_dir(), reason="the models are not there"),
]


@pytest.mark.parametrize("name", ["digits8-dit", "digits8-unet-attention"])
# The quantizer warns of what it meets in the exported graphs.
@pytest.mark.filterwarnings("ignore")
def test_quantized_by_onnxruntime_and_run_by_differences(name: str, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, target = MODELS / f"{name}.onnx", tmp_path / "int8.onnx"
    if not source.is_file():
        pytest.skip(f"{source.name} is not there")
    inputs = ort.InferenceSession(str(source), providers=["CPUExecutionProvider"]).get_inputs()
    rng = np.random.default_rng(0)

    def feeds() -> Iterator[dict[str, np.ndarray]]:
        """Noise at every strength stands for the steps of a run."""
        for timestep in range(999, 0, -37):
            known = {"timestep": timestep, "label": timestep % 10}
            yield {
                value.name: np.array(
                    [known[value.name]], np.int64 if "int64" in value.type else np.float32
                )
                if value.name in known
                else rng.normal(size=(1, *value.shape[1:])).astype(np.float32)
                for value in inputs
            }

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = feeds()

        def get_next(self) -> Any:
            return next(self.rest, None)

    prepared = tmp_path / "prepared.onnx"
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        per_channel=True,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    model = Model.load(target)
    assert len(model.layers) > 10
    assert not model.on_host
    assert sum(isinstance(layer, Product) for layer in model.layers) >= 6
    shapes = model.shapes()
    config = suggest(model.layers, shapes, Config(clusters=2, columns=16, item_depth=4096))
    program = Program(model.layers, shapes, config)
    sampler = DDIM(Schedule.from_metadata(model.metadata), steps=4)
    images = [
        draw(model, program, lambda: Golden(config), sampler, samples=1, mode=mode).images
        for mode in (Mode.DENSE, Mode.TEMPORAL)
    ]
    assert images[0].tobytes() == images[1].tobytes()
    assert np.abs(images[0]).max() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits8-dit", "mnist16-unet-attention"])
def test_hardware_computes_and_counts_what_the_golden_model_does(name: str) -> None:
    pytest.importorskip("onnxruntime")
    source = MODELS / f"{name}.onnx"
    if not source.is_file():
        pytest.skip(f"{source.name} is not there")
    model = Model(quantize(source, draw_calibration(source, samples=1)))
    assert not model.on_host
    shapes = model.shapes()
    config = suggest(model.layers, shapes, Config(clusters=2, columns=16, item_depth=4096))
    program = Program(model.layers, shapes, config)
    sampler = DDIM(Schedule.from_metadata(model.metadata), steps=50)
    sampler.timesteps = sampler.timesteps[:8]

    def run(board: str, mode: Mode) -> Any:
        device = open_device(board, config)
        return draw(model, program, lambda: device, sampler, samples=1, mode=mode)

    dense, golden = run("golden", Mode.DENSE), run("golden", Mode.TEMPORAL)
    hardware = run("sim", Mode.TEMPORAL)
    assert hardware.images.tobytes() == golden.images.tobytes() == dense.images.tobytes()
    assert [
        run._replace(counters=run.counters._replace(stall_link=0)) for run in hardware.runs[0]
    ] == golden.runs[0]
    modes = [r.mode for r in golden.runs[0] if isinstance(model.layers[r.layer], Product)]
    assert 2 * modes.count(Mode.TEMPORAL) > len(modes)
