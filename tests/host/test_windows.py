import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from ditto.hdl.config import Config, demo
from ditto.hdl.protocol import Mode
from ditto.host.analysis import Setting, analyze
from ditto.host.cli import main
from ditto.host.layers import Linear
from ditto.host.model import Model, ModelError
from ditto.host.program import Program, suggest
from ditto.host.quantize import QuantizeError, quantize
from ditto.host.samplers import Schedule, inputs_of, sampler_of
from ditto.host.session import draw
from ditto.host.trace import draw_batch, evaluator_of
from ditto.host.windows import PROPERTY, Windows, activation_scales
from ditto.sim.golden import Golden


def with_windows(proto: onnx.ModelProto, parts: Any) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    text = parts if isinstance(parts, str) else json.dumps(parts)
    helper.set_model_props(result, {PROPERTY: text})
    return result


def halves(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Give a model a window from timestep 400 with scales that are a third larger."""
    larger = {name: 1.3 * value for name, value in activation_scales(proto).items()}
    return with_windows(proto, [{"from": 400, "scales": larger}, {"from": 0, "scales": {}}])


@pytest.mark.parametrize("onnxruntime", [False, True])
@pytest.mark.parametrize("tau", [0, 2])
def test_each_window_is_a_model_of_its_own(
    denoiser_proto: onnx.ModelProto, onnxruntime: bool, tau: int
) -> None:
    if onnxruntime:
        pytest.importorskip("onnxruntime")
    proto = halves(denoiser_proto)
    setting = Setting(6, tau=tau)
    result = analyze(proto, [setting], config=demo, samples=2, onnxruntime=onnxruntime)
    (run,) = result.facts["runs"]
    assert result.facts["windows"] == [400, 0]
    # 999, 799, 599, 400 | 200, 0
    assert [step["dense"] for step in run["by_step"]] == [True, False, False, False, True, False]
    for tensor in result.facts["tensors"]:
        large, small = tensor["scales_by_window"]
        assert small == tensor["scale"] and large == pytest.approx(1.3 * small)
    for layer in run["layers"]:
        by_step = layer["by_step"]
        for dense in (0, 4):
            bits = by_step["bit_operations"]
            assert bits["temporal"][dense] == bits["activation"][dense]
            assert by_step["temporal"]["zero"][dense] == 0
            assert by_step["cycles"]["temporal"][dense] == by_step["cycles"]["dense"][dense]
        # Means are over the steps with differences.
        zeros = [by_step["temporal"]["zero"][i] for i in (1, 2, 3, 5)]
        assert layer["temporal"]["zero"] == pytest.approx(np.mean(zeros), abs=1e-4)
    if tau:
        return

    windows = Windows.of(proto, "model")
    models = [evaluator_of(windows.apply(proto, i), onnxruntime=onnxruntime) for i in (0, 1)]
    shape, make = inputs_of(Model(denoiser_proto))

    def predict(feed: Mapping[str, NDArray[Any]], timestep: int) -> NDArray[np.float32]:
        return models[timestep < 400].run(feed)[0]

    sampler = sampler_of("ddim", Schedule(), steps=6)
    want = draw_batch(predict, make, shape, sampler, range(2))
    np.testing.assert_array_equal(result.images[setting], want)
    plain = analyze(denoiser_proto, [setting], config=demo, samples=2, onnxruntime=onnxruntime)
    assert np.abs(plain.images[setting] - want).max() > 1e-3


def test_windows_that_are_refused(denoiser_proto: onnx.ModelProto) -> None:
    name = next(iter(activation_scales(denoiser_proto)))
    for parts, message in (
        ("[", "m.onnx has a property ditto.windows that is none: JSONDecodeError"),
        ([{"scales": {}}], "that is none: KeyError"),
        ([], "must begin at falling timesteps, down to 0"),
        ([{"from": 5, "scales": {}}], "must begin at falling timesteps, down to 0"),
        ([{"from": 0, "scales": {"x": 1}}], "has windows for x, which is no scale of it"),
        ([{"from": 0, "scales": {name: 0}}], f"a window with the scale 0 for {name}; quantize"),
    ):
        with pytest.raises(ModelError, match=message):
            Windows.of(with_windows(denoiser_proto, parts), "m.onnx")


@pytest.mark.filterwarnings("ignore")
def test_quantize_with_windows(
    float_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    source = float_file
    rng = np.random.default_rng(1)
    data = {
        "sample": rng.standard_normal((40, 1, 6, 6)).astype(np.float32),
        "timestep": np.linspace(0, 999, 40).astype(np.int64),
    }
    plain, windowed = quantize(source, data), quantize(source, data, windows=4)
    windows = Windows.of(windowed, "int8")
    assert windows.first == (750, 500, 250, 0)
    base = activation_scales(plain)
    assert activation_scales(windowed) == base
    grown = [name for name in base if "sample" not in name]
    assert len(base) == 2 and len(grown) == 1
    scales = [own[grown[0]] for own in windows.scales]
    assert scales[0] == pytest.approx(base[grown[0]])  # the widest range is that of all steps
    assert max(scales) == scales[0] and min(scales) == scales[-1] < scales[0] / 2
    rule = {entry.key: entry.value for entry in windowed.metadata_props}["ditto.scales"]
    assert rule == "max-abs, 4 windows from timesteps 750, 500, 250, 0"
    # The weights are those of the model without windows.
    first, same = Model(windows.apply(windowed, 0)).layers[0], Model(plain).layers[0]
    assert isinstance(first, Linear) and isinstance(same, Linear)
    assert first.weights.tolist() == same.weights.tolist()
    with pytest.raises(QuantizeError, match="no calibration sample is of the timesteps 500 to 999"):
        few = {name: values[:20] for name, values in data.items()}
        quantize(source, few, windows=2)

    target = tmp_path / "int8.onnx"
    assert main(["quantize", str(source), "-o", str(target), "--windows", "2", "-q"]) == 0
    assert "scales: max-abs, 2 windows from timesteps 500, 0; over" in capsys.readouterr().out
    report = tmp_path / "report.html"
    words = ["analyze", str(target), "--steps", "4", "--samples", "2", "-o", str(report), "-q"]
    assert main(words) == 0
    assert "2 windows from timesteps 500, 0" in report.read_text("utf-8")


@pytest.mark.parametrize("tau", [0, 2])
def test_windows_on_a_device(denoiser_proto: onnx.ModelProto, tau: int) -> None:
    """The device draws what is analyzed, with a dense step where the window changes."""
    proto = halves(denoiser_proto)
    model = Model(proto)
    base = Config(clusters=2, columns=4, positions=64, channels=18, item_depth=4096)
    config = suggest(model.layers, model.shapes(), base)
    program = Program(model.layers, model.shapes(), config)
    sampler = sampler_of("ddim", Schedule(), steps=6)
    drawing = draw(
        model, program, lambda: Golden(config), sampler, samples=2, check=True, jobs=2, tau=tau
    )
    for runs in drawing.runs:
        dense = {run.step for run in runs if run.mode is Mode.DENSE}
        assert dense == {0, 4} and {run.step for run in runs} == set(range(6))
    setting = Setting(6, tau=tau)
    result = analyze(proto, [setting], config=config, samples=2, onnxruntime=False)
    np.testing.assert_allclose(result.images[setting], drawing.images, atol=1e-4)
    layers = result.facts["runs"][0]["layers"]
    for index, layer in enumerate(model.layers):
        (entry,) = (entry for entry in layers if entry["name"] == layer.name)
        cycles = sum(
            run.counters.cycles for runs in drawing.runs for run in runs if run.layer == index
        )
        # A device's biases are multiples of the window's scales; one value may fall elsewhere.
        assert entry["cycles"]["temporal"] == pytest.approx(cycles / 12, rel=0.01)


def test_denoise_with_windows(denoiser_proto: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(halves(denoiser_proto), tmp_path / "m.onnx")
    counts = tmp_path / "a.json"
    words = ["denoise", tmp_path / "m.onnx", "--board", "golden", "-o", tmp_path / "a.png", "-q"]
    words += ["--json", counts, "--steps", "4", "--samples", "1", "--check"]
    assert main([*map(str, words)]) == 0
    # 999, 666 | 333, 0
    steps = json.loads(counts.read_text())["steps"]
    assert [step["ratio"] == 1 for step in steps] == [True, False, True, False]
