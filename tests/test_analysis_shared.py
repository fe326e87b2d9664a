"""Rates of models that others trained, against figures measured with an independent emulation."""

import functools
from collections.abc import Callable
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

# By steps and eta: zero, narrow, wide of temporal differences; and bit operations against dense
# 8-bit of activations, spatial and temporal differences; all in %.
SETTINGS = {
    "digits8-dit": {
        (20, 0): ((30.1, 64.1, 5.9), (79.2, 76.3, 40.1)),
        (50, 0): ((44.9, 53.7, 1.4), (79.3, 76.3, 30.0)),
        (50, 1): ((14.2, 64.3, 21.5), (79.5, 76.6, 56.8)),
    },
    "digits8-unet-attention": {
        (20, 0): ((31.7, 60.9, 7.5), (87.6, 68.2, 41.7)),
        (50, 0): ((45.4, 53.3, 1.4), (87.6, 68.2, 30.9)),
        (50, 1): ((16.7, 64.5, 18.8), (87.7, 68.4, 57.1)),
    },
}

# Zero, narrow, wide and bit operations in %, of temporal differences by tau; DDIM, 50 steps.
THRESHOLDS = {
    "digits8-dit": {
        1: (71.7, 26.7, 1.6, 15.8),
        2: (80.4, 17.7, 1.9, 11.4),
        3: (84.9, 12.7, 2.5, 9.3),
    },
    "digits8-unet-attention": {
        1: (70.3, 28.2, 1.5, 17.1),
        2: (79.2, 18.9, 1.9, 12.5),
        3: (83.9, 13.5, 2.6, 10.2),
    },
}

SMALL = ["digits8-dit", pytest.param("digits8-unet-attention", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def quantized() -> Callable[[str], onnx.ModelProto]:
    """Quantize a model, once."""
    pytest.importorskip("onnxruntime")

    @functools.cache
    def make(name: str) -> onnx.ModelProto:
        source = MODELS / f"{name}.onnx"
        if not source.is_file():
            pytest.skip(f"{source.name} is not there")
        return quantize(source, draw_calibration(source), method="percentile")

    return make


@pytest.mark.parametrize("name", RATES)
def test_rates(name: str, quantized: Callable[[str], onnx.ModelProto]) -> None:
    exact = onnx.load(MODELS / f"{name}.onnx")
    result = analyze(quantized(name), [Setting(50)], config=demo, samples=16, exact=exact)
    (run,) = result.facts["runs"]
    for kind, wanted in zip(("temporal", "activation", "spatial"), RATES[name], strict=True):
        for part, want in zip(CLASSES, wanted, strict=False):
            assert 100 * run["means"][kind][part] == pytest.approx(want, abs=1), (kind, part)
    assert run["quality"]["float"]["psnr"] > 20


@pytest.mark.parametrize("name", SMALL)
def test_steps_and_fresh_noise(name: str, quantized: Callable[[str], onnx.ModelProto]) -> None:
    settings = [Setting(steps, eta) for steps, eta in SETTINGS[name]]
    result = analyze(quantized(name), settings, config=demo, samples=16)
    for run, wanted in zip(result.facts["runs"], SETTINGS[name].values(), strict=True):
        means, (rates, bits) = run["means"], wanted
        for part, want in zip(CLASSES, rates, strict=False):
            assert 100 * means["temporal"][part] == pytest.approx(want, abs=1), part
        for kind, want in zip(("activation", "spatial", "temporal"), bits, strict=True):
            assert 100 * means["bit_operations"][kind] == pytest.approx(want, abs=1), kind


@pytest.mark.parametrize("name", SMALL)
def test_thresholds(name: str, quantized: Callable[[str], onnx.ModelProto]) -> None:
    """Here layers that do not depend on the sample have a threshold too, so rates differ more."""
    wanted = THRESHOLDS[name]
    settings = [Setting(50, tau=tau) for tau in (0, *wanted)]
    runs = analyze(quantized(name), settings, config=demo, samples=16).facts["runs"][1:]
    for run, (*rates, bits) in zip(runs, wanted.values(), strict=True):
        for part, want in zip(CLASSES, rates, strict=False):
            assert 100 * run["means"]["temporal"][part] == pytest.approx(want, abs=1.5), part
        assert 100 * run["means"]["bit_operations"]["temporal"] == pytest.approx(bits, abs=1)
    ratios = [run["quality"]["lossless"]["psnr"] for run in runs]
    assert ratios == sorted(ratios, reverse=True)
