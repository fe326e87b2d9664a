"""Rates of models that others trained, against figures measured with an independent emulation."""

from pathlib import Path

import onnx
import pytest

from ditto.hdl.config import demo
from ditto.host.analysis import CLASSES, Setting, analyze
from ditto.host.quantize import draw_calibration, quantize

MODELS = Path(__file__).parents[2] / "shared" / "models"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not MODELS.is_dir(), reason="the models are not there"),
]

# Zero, narrow, wide in %, of temporal differences, activations, spatial differences; scales are the
# 99.9th percentile. The means depend on which trajectories calibrate, by less than one point.
RATES = {
    "mnist28-dit": ((43.8, 55.1, 1.1), (8.6, 23.6, 67.8), (9.3, 32.2, 58.1)),
    "digits8-dit": ((44.9, 53.7, 1.4), (3.5, 34.3, 62.3), (5.3, 36.5, 57.9)),
    "mnist28-unet-conv": ((43.6, 49.9, 6.5), (25.1, 12.6, 62.3), (24.7, 30.7, 44.6)),
    "mnist16-unet-attention": ((43.4, 54.9, 1.7), (1.8, 29.1, 69.1), (20.1, 38.0, 41.8)),
    "digits8-unet-attention": ((45.4, 53.3, 1.4), (1.3, 21.7, 77.0), (15.1, 32.4, 52.3)),
}


@pytest.mark.parametrize("name", RATES)
def test_rates(name: str) -> None:
    pytest.importorskip("onnxruntime")
    source = MODELS / f"{name}.onnx"
    if not source.is_file():
        pytest.skip(f"{source.name} is not there")
    model = quantize(source, draw_calibration(source), method="percentile")
    result = analyze(model, [Setting(50)], config=demo, samples=16, exact=onnx.load(source))
    (run,) = result.facts["runs"]
    for kind, wanted in zip(("temporal", "activation", "spatial"), RATES[name], strict=True):
        for part, want in zip(CLASSES, wanted, strict=False):
            assert 100 * run["means"][kind][part] == pytest.approx(want, abs=1), (kind, part)
    assert run["quality"]["float"]["psnr"] > 20
