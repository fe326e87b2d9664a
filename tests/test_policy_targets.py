"""What the adaptive policy is held to, on whole runs of real models."""

from importlib.resources import as_file, files
from pathlib import Path

import onnx
import pytest

from ditto.hdl.config import demo
from ditto.host.analysis import Setting
from ditto.host.model import Model
from ditto.host.policies import compare, record
from ditto.host.quantize import draw_calibration, quantize
from ditto.sim.memory import MEMORIES

MODELS = Path(__file__).parents[2] / "shared" / "models"


def check(proto: onnx.ModelProto, setting: Setting) -> None:
    recording = record(proto, Model(proto), demo, setting, samples=1)
    for memory in MEMORIES.values():
        found = compare(recording, memory)
        own, defo = found["adaptive"], found["defo"]
        assert own["to_oracle"] <= 1.02, memory.name
        assert own["to_fixed"] <= 1.01, memory.name
        assert own["to_oracle"] <= 1.005 * defo["to_oracle"], memory.name
        if memory.name != "chip":
            assert own["stall_memory"] < found["temporal"]["stall_memory"] / 2


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_demo(eta: float) -> None:
    with as_file(files("ditto.host.models").joinpath("digits16.int8.onnx")) as path:
        check(onnx.load(path), Setting(20, eta))


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore")  # the quantizer's, of what it meets in exported graphs
@pytest.mark.skipif(not MODELS.is_dir(), reason="the models are not there")
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", ["digits8-dit", "digits8-unet-attention", "mnist28-dit"])
def test_other_models(name: str, eta: float) -> None:
    pytest.importorskip("onnxruntime")
    source = MODELS / f"{name}.onnx"
    if not source.is_file():
        pytest.skip(f"{source.name} is not there")
    model = quantize(source, draw_calibration(source), method="percentile")
    check(model, Setting(20, eta))
