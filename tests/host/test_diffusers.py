"""Models of diffusers, exported, quantized and analyzed."""

# Torch and diffusers come with an extra.
# pyright: reportMissingImports=false

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ditto.hdl.config import demo
from ditto.host import diffusers as exporter
from ditto.host.analysis import Setting, analyze
from ditto.host.cli import main
from ditto.host.model import ModelError
from ditto.host.quantize import draw_calibration, quantize

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
# What transformers and the tracer say; whether results are right is tested.
pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = 5


def network(kind: str, **options: Any) -> Any:
    import diffusers

    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
    }
    if kind == "UNet2DModel":
        blocks |= {
            "in_channels": 1,
            "out_channels": 1,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "num_class_embeds": 10,
        }
    elif kind == "UNet2DConditionModel":
        blocks |= {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 12,
            "attention_head_dim": 4,
        }
    else:
        blocks = {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 2,
            "out_channels": 4,  # the noise and its variance
            "num_layers": 2,
            "sample_size": 8,
            "num_embeds_ada_norm": 10,
        }
    return getattr(diffusers, kind)(**(blocks | options)).eval()


def pipeline(kind: str, folder: Path, **scheduler: Any) -> Path:
    """Write what the folder of a pipeline has of interest."""
    import diffusers

    part = "transformer" if "Transformer" in kind else "unet"
    network(kind).save_pretrained(folder / part)
    diffusers.DDIMScheduler(**scheduler).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({part: ["diffusers", kind]}))
    return folder


@pytest.mark.parametrize("kind", exporter.MODELS)
def test_from_a_pipeline_to_a_report(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ort = pytest.importorskip("onnxruntime")
    folder = pipeline(kind, tmp_path / "pipeline", beta_schedule="scaled_linear", beta_end=0.012)
    source, target = tmp_path / "unet.onnx", tmp_path / "int8.onnx"
    words = [str(folder), "-o", str(source), "--tokens", str(TOKENS)]
    assert exporter.main(words) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert f"wrote {source}" in said and "no scheduler" not in said

    # The file does what the network does, whatever the batch.
    own = network(kind)
    rng = np.random.default_rng(0)
    text = rng.standard_normal((TOKENS, 12)).astype(np.float32)
    session = ort.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    inputs = [value.name for value in session.get_inputs()]
    want_inputs = {"UNet2DConditionModel": "encoder_hidden_states"}.get(kind, "label")
    assert inputs == ["sample", "timestep", want_inputs]
    channels = own.config.in_channels
    for batch in (1, 3):
        feed: dict[str, Any] = {
            "sample": rng.standard_normal((batch, channels, 8, 8)).astype(np.float32),
            "timestep": rng.integers(0, 1000, batch),
            "label": rng.integers(0, 10, batch),
            "encoder_hidden_states": np.stack([text] * batch),
        }
        given = {name: torch.from_numpy(feed[name]) for name in inputs}
        given["hidden_states" if "Transformer" in kind else "sample"] = given.pop("sample")
        if "label" in given:
            given["class_labels"] = given.pop("label")
        with torch.no_grad():
            want = own(**given, return_dict=False)[0][:, :channels].numpy()
        got: Any = session.run(None, {name: feed[name] for name in inputs})[0]
        np.testing.assert_allclose(got, want, atol=1e-5)

    options = []
    if "encoder_hidden_states" in inputs:
        np.savez(tmp_path / "text.npz", encoder_hidden_states=text)
        options = ["--inputs", str(tmp_path / "text.npz")]
    facts = tmp_path / "facts.json"
    assert main(["quantize", str(source), "-o", str(target), "-q", *options]) == 0
    words = ["analyze", str(target), "--float", str(source), "--steps", "3", "--samples", "2"]
    words += ["-o", str(tmp_path / "report.html"), "--json", str(facts), "-q", *options]
    assert main(words) == 0, capsys.readouterr().err
    result = json.loads(facts.read_text())
    (run,) = result["runs"]
    layers = run["layers"]
    assert not result["in_float"]
    assert sum(layer["kind"] == "attention" for layer in layers) >= 4
    assert run["quality"]["float"]["psnr"] > 25
    # Keys and values of a fixed text don't change from step to step.
    fixed = [e for e in layers if not e["counted"] and e["sizes"].startswith(f"{TOKENS} x 12")]
    assert bool(fixed) == (kind == "UNet2DConditionModel")
    assert all(e["temporal"]["zero"] == 1 for e in fixed)
    words += ["--scheduler", str(folder)]
    assert main(words) == 0, capsys.readouterr().err
    run = json.loads(facts.read_text())["runs"][0]
    assert run["sampler"] == "DDIMScheduler of diffusers, 3 steps"
    properties = {p.key: p.value for p in onnx.load(target).metadata_props}
    assert properties["ditto.schedule"] == "scaled_linear"
    assert properties["ditto.beta_end"] == "0.012" and properties["ditto.clip_sample"] == "1"
    assert properties.get("ditto.classes") == (None if options else "10")


def test_a_network_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network("UNet2DModel", num_class_embeds=None, out_channels=2).save_pretrained(tmp_path / "unet")
    path = tmp_path / "unet.onnx"
    assert exporter.main([str(tmp_path / "unet"), "-o", str(path)]) == 0
    said = capsys.readouterr().out
    assert "no scheduler: Ditto's samplers assume" in said and "input sample: batch x 1 x 8" in said
    model = onnx.load(path)
    assert [value.name for value in model.graph.input] == ["sample", "timestep"]
    shape = model.graph.output[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim][1:] == [1, 8, 8]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("UNet2DModel", {"sample_size": None}, r"has no sample_size; .*\(--size N\)"),
        ("UNet2DModel", {"in_channels": 3}, "makes 1 channels of 3: it does not predict the noise"),
        ("UNet2DModel", {"class_embed_type": "timestep"}, "class_embed_type is timestep"),
        (
            "UNet2DConditionModel",
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 64,
            },
            "addition_embed_type is set",
        ),
    ],
)
def test_networks_that_are_refused(kind: str, options: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        exporter.to_onnx(network(kind, **options))


def test_folders_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def says(text: str) -> None:
        assert exporter.main([str(tmp_path), "-o", str(tmp_path / "a.onnx")]) == 1
        assert text in capsys.readouterr().err

    says("there is neither model_index.json nor config.json in")
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    says("holds a AutoencoderKL; UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel can")
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    says("diffusers cannot load the UNet2DModel in")
    (tmp_path / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderKL"]}')
    says("has neither a unet nor a transformer")
    (tmp_path / "model_index.json").write_text("{")
    says("holds no model of diffusers: JSONDecodeError")
    assert not (tmp_path / "a.onnx").exists()


def test_schedulers_in_the_place_of_samplers(tmp_path: Path) -> None:
    """A scheduler of diffusers draws what is analyzed, also one that looks twice in a step."""
    import diffusers

    pytest.importorskip("onnxruntime")
    source = tmp_path / "unet.onnx"
    onnx.save(exporter.to_onnx(network("UNet2DModel", num_class_embeds=None)), source)
    model = quantize(source, draw_calibration(source, samples=1, steps=5))
    settings = [
        Setting(4, kind=diffusers.HeunDiscreteScheduler()),
        Setting(4, kind=diffusers.UniPCMultistepScheduler()),
    ]
    result = analyze(model, settings, config=demo, samples=2)
    json.dumps(result.facts)
    assert [len(run["by_step"]) for run in result.facts["runs"]] == [7, 4]
    assert result.facts["runs"][0]["kind"] == "HeunDiscreteScheduler"
    assert all(np.isfinite(images).all() for images in result.images.values())
