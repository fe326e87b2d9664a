import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.host import page
from ditto.host.advice import advice, thresholds
from ditto.host.analysis import CLASSES, Analysis, Setting, analyze, neighbour
from ditto.host.executor import Executor
from ditto.host.layers import Linear
from ditto.host.model import Model, ModelError
from ditto.host.program import Program, suggest
from ditto.host.samplers import DDIM, Schedule, denoise, inputs_of
from ditto.host.table import write_csv
from ditto.sim.golden import Golden

BASE = Config(clusters=2, columns=4, positions=64, channels=18, item_depth=4096)
SAMPLES, STEPS = 3, 5


def config_of(proto: onnx.ModelProto) -> Config:
    model = Model(proto)
    return suggest(model.layers, model.shapes(), BASE)


def on_the_device(
    proto: onnx.ModelProto, tau: int, extra: Mapping[str, NDArray[Any]]
) -> tuple[list[list[NDArray[np.int64]]], Executor, NDArray[np.float32]]:
    """Draw samples on the golden model; return what the accumulators of each layer stand for."""
    model, config = Model(proto), config_of(proto)
    executor = Executor(
        model, Program(model.layers, model.shapes(), config), Golden(config), tau=tau
    )
    shape, make = inputs_of(model, extra)
    seen: list[list[NDArray[np.int64]]] = [[] for _ in model.layers]
    images = []
    for sample in range(SAMPLES):
        executor.begin()

        def predict(x: NDArray[np.float32], t: int, label: int = sample) -> NDArray[np.float32]:
            result = executor.step(make(x, t, label))[0]
            for i, values in enumerate(executor._references):
                if values is not None:  # products keep both operands elsewhere
                    seen[i].append(values.copy())
            return result

        sampler = DDIM(Schedule(), steps=STEPS, eta=0.5)
        images.append(denoise(predict, sampler, shape, sample=sample))
    return seen, executor, np.concatenate(images)


@pytest.mark.parametrize("onnxruntime", [False, True])
@pytest.mark.parametrize("tau", [0, 2])
def test_figures_are_those_of_the_device(
    denoiser_proto: onnx.ModelProto, onnxruntime: bool, tau: int
) -> None:
    if onnxruntime:
        pytest.importorskip("onnxruntime")
    compare_with_the_device(denoiser_proto, onnxruntime, tau)


def attentive(make_graph: Any, *, context: bool) -> onnx.ModelProto:
    """Return a network with attention of two heads; on a fixed context, or on itself."""
    rng = np.random.default_rng(0)
    g = make_graph()
    x = g.input("sample", ["batch", 1, 4, 4])
    t = g.node("Cast", g.input("timestep", ["batch"], onnx.TensorProto.INT64), to=1)
    w = [rng.integers(-127, 128, shape).astype(np.int8) for shape in ((4, 1, 3, 3), (1, 4, 3, 3))]
    scales = np.full(4, 0.004)
    h = g.node("Conv", g.quantized(x, 0.03), g.weights(w[0], scales), name="in", pads=[1, 1, 1, 1])
    h = g.node(
        "Add",
        h,
        g.node(
            "Mul", g.node("Reshape", t, g.constant([-1, 1, 1, 1])), g.constant(5e-4, np.float32)
        ),
    )
    h = g.node("Reshape", h, g.constant([0, 2, 2, 16]))
    tokens = g.node("Transpose", h, perm=[0, 1, 3, 2])
    keys, values = h, tokens
    if context:
        given = g.input("context", ["batch", 2, 2, 5])
        keys, values = given, g.node("Transpose", given, perm=[0, 1, 3, 2])
    s = g.node("MatMul", g.quantized(tokens, 0.03), g.quantized(keys, 0.02), name="qk")
    p = g.quantized(g.node("Softmax", s, axis=-1), 1 / 255, -128)
    h = g.node("MatMul", p, g.quantized(values, 0.025), name="pv")
    h = g.node("Reshape", g.node("Transpose", h, perm=[0, 1, 3, 2]), g.constant([0, 4, 4, 4]))
    y = g.quantized(h, 0.02)
    y = g.node("Conv", y, g.weights(w[1], [0.004]), name="out", pads=[1, 1, 1, 1])
    return g.model(y)


@pytest.mark.parametrize("tau", [0, 2])
@pytest.mark.parametrize("context", [False, True])
def test_figures_of_attention(make_graph: Any, context: bool, tau: int) -> None:
    extra = {"context": np.random.default_rng(1).standard_normal((2, 2, 5))} if context else {}
    # The graph sums up floats, the device integers: a value may be rounded to another one.
    compare_with_the_device(attentive(make_graph, context=context), False, tau, extra, near=0.01)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("symmetric", [False, True])
def test_another_quantizer(float_file: Path, tmp_path: Path, symmetric: bool) -> None:
    """Asymmetric uint8 activations, outputs quantized too, one scale for all weights of a layer."""
    pytest.importorskip("onnxruntime")
    from onnxruntime import quantization

    feeds = [
        {"sample": np.full((1, 1, 6, 6), v, np.float32), "timestep": np.array([t])}
        for v, t in ((-2, 0), (1.5, 500), (1, 999))
    ]

    class Reader(quantization.CalibrationDataReader):
        rest = iter(feeds)

        def get_next(self) -> Any:
            return next(self.rest, None)

    quantization.quantize_static(
        str(float_file),
        str(tmp_path / "int8.onnx"),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=symmetric,
        extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
    )
    proto = onnx.load(tmp_path / "int8.onnx")
    points = [layer.zero_point for layer in Model(proto).layers if isinstance(layer, Linear)]
    assert len(points) == 2 and (points == [128, 128] if symmetric else 128 not in points)
    compare_with_the_device(proto, True, 0)


def compare_with_the_device(
    denoiser_proto: onnx.ModelProto,
    onnxruntime: bool,
    tau: int,
    extra: Mapping[str, NDArray[Any]] | None = None,
    *,
    near: float = 1e-5,
) -> None:
    seen, executor, images = on_the_device(denoiser_proto, tau, extra or {})
    setting = Setting(STEPS, 0.5, tau)
    result = analyze(
        denoiser_proto,
        [setting],
        config=config_of(denoiser_proto),
        samples=SAMPLES,
        extra=extra,
        onnxruntime=onnxruntime,
    )
    np.testing.assert_allclose(result.images[setting], images, atol=1e-4)
    layers = {layer["name"]: layer for layer in result.facts["runs"][0]["layers"]}
    model = executor.model
    assert list(layers) == [layer.name for layer in model.layers]
    for i, layer in enumerate(model.layers):
        entry = layers[layer.name]
        runs = [run for run in executor.runs if run.layer == i]
        cycles = sum(run.counters.cycles for run in runs) / (SAMPLES * STEPS)
        assert entry["cycles"]["temporal"] == pytest.approx(cycles, rel=near)
        dense = sum(run.dense_cycles for run in runs) / (SAMPLES * STEPS)
        if not isinstance(layer, Linear):
            assert entry["cycles"]["dense"] == pytest.approx(dense, rel=near)
            continue
        if not tau:  # with a threshold, the executor counts dense runs of what was not applied
            assert entry["cycles"]["dense"] == pytest.approx(dense, rel=near)
        values = np.stack(seen[i]).reshape(SAMPLES, STEPS, -1)
        for step in range(1, STEPS):
            deltas = values[:, step] - values[:, step - 1]
            zero = (deltas == 0).mean()
            narrow = ((deltas >= -8) & (deltas <= 7)).mean() - zero
            by_step = entry["by_step"]["temporal"]
            assert by_step["zero"][step] == pytest.approx(zero, abs=near)
            assert by_step["narrow"][step] == pytest.approx(narrow, abs=near)
            ends = min(deltas.min(), 0), max(deltas.max(), 0)
            found = by_step["min"][step], by_step["max"][step]
            assert np.abs(np.subtract(found, ends)).max() <= (1 if near > 1e-5 else 0)
        raw = values - layer.zero_point
        assert entry["activation"]["zero"] == pytest.approx((raw == 0).mean(), abs=near)


def test_neighbours() -> None:
    values = np.array([[[1, 4, 4], [0, -3, 2]]], np.int16)
    assert neighbour(values, -1).tolist() == [[[1, 3, 0], [0, -3, 5]]]
    assert neighbour(values, -2).tolist() == [[[1, 4, 4], [-1, -7, -2]]]
    assert neighbour(values, None).tolist() == values.tolist()


@pytest.fixture(scope="module")
def result(denoiser_proto: onnx.ModelProto) -> Analysis:
    settings = [Setting(4, 0.0, tau) for tau in (0, 1, 60)] + [Setting(3, 1.0, 0)]
    found = analyze(
        denoiser_proto, settings, config=config_of(denoiser_proto), samples=2, name="<model>"
    )
    found.facts["threshold"] = thresholds(found.facts, 20)
    found.facts["advice"] = advice(found.facts)
    return found


def test_facts(result: Analysis) -> None:
    facts = result.facts
    json.dumps(facts, allow_nan=False)
    assert facts["scales"] == "not said in the file"
    layers = {layer["name"]: layer for layer in facts["runs"][0]["layers"]}
    first, time = layers["first/Conv"], layers["time/Gemm"]
    assert first["macs"] == 6 * 36 * 9 and time["macs"] == 2 * 6
    # Only the time embedding does not depend on the sample.
    assert [name for name, layer in layers.items() if not layer["counted"]] == ["time/Gemm"]
    assert first["share"] == pytest.approx(0.5) and time["share"] == 0
    traffic = first["traffic"]
    assert (traffic["inputs"], traffic["weights"], traffic["outputs"]) == (36, 54, 216)
    total = facts["runs"][0]["traffic"]["elements"]
    inputs, weights, outputs = 36 + 2 + 216, 54 + 12 + 54, 216 + 6 + 36
    assert total["plain"] == inputs + weights + outputs
    assert total["naive"] == 3 * inputs + weights + 3 * outputs
    assert total["naive_ratio_without_weights"] == 3
    for run in facts["runs"]:
        for kind in ("activation", "temporal", "spatial"):
            assert sum(run["means"][kind].values()) == pytest.approx(1)
        shares = run["means"]["temporal"]
        want = 0.5 * shares["narrow"] + shares["wide"] + 1.5 * shares["over"]
        assert run["means"]["bit_operations"]["temporal"] == pytest.approx(want)
        histogram = run["layers"][0]["temporal"]["histogram"]
        assert sum(histogram["counts"]) == 2 * 36 * (run["steps"] - 1)


def test_frechet_distance_by_a_network(denoiser_proto: onnx.ModelProto, make_graph: Any) -> None:
    g = make_graph()
    x = g.input("pixels", ["batch", 1, 6, 6])
    mean = g.node("ReduceMean", x, g.constant([1, 2, 3]), keepdims=0)
    net = g.model(g.node("Unsqueeze", mean, g.constant([1])))

    def found(samples: int, features: onnx.ModelProto | None) -> Any:
        facts = analyze(
            denoiser_proto,
            [Setting(2)],
            config=config_of(denoiser_proto),
            samples=samples,
            exact=denoiser_proto,
            features=features,
        ).facts
        return facts["frechet"], facts["runs"][0]["quality"]["float"]["frechet"]

    given = {"features": 1, "net": "given", "images_needed": 4}
    # The network that is compared with itself.
    assert found(4, net) == (given, pytest.approx(0, abs=1e-9))
    assert found(3, net) == (given, None)
    assert found(3, None) == ({"features": 16, "net": "random", "images_needed": 64}, None)
    with pytest.raises(ModelError, match="the feature network must have one input, not sample, t"):
        found(4, denoiser_proto)


def test_thresholds(result: Analysis) -> None:
    (entry,) = result.facts["threshold"]
    assert (entry["steps"], entry["against"]) == (4, "lossless")
    costs = [point["bit_operations"] for point in entry["curve"]]
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1]
    ratios = [point["psnr"] for point in entry["curve"][1:]]
    good = [p["tau"] for p in entry["curve"][1:] if p["psnr"] >= 20]
    assert entry["suggested"] == max([0, *good])
    (strict,) = thresholds(result.facts, max(ratios) + 1)
    assert strict["suggested"] == 0
    assert any(
        "leave the threshold at 0" in x for x in advice({**result.facts, "threshold": [strict]})
    )


def test_table(result: Analysis) -> None:
    rows = list(csv.DictReader(io.StringIO(write_csv(result.facts))))
    assert len(rows) == 3 * (4 + 4 + 4 + 3)
    layer = result.facts["runs"][1]["layers"][2]
    row = rows[12 + 2 * 4 + 3]
    assert (row["layer"], row["tau"], row["step"]) == ("last/Conv", "1", "3")
    for name in CLASSES:
        assert float(row[f"temporal {name}"]) == layer["by_step"]["temporal"][name][3]


def test_page_is_whole_and_needs_nothing_else(result: Analysis, tmp_path: Path) -> None:
    from html.parser import HTMLParser

    text = page.render(result)
    opened: list[str] = []
    sources: list[str] = []

    class Check(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag not in ("meta", "img", "br"):
                opened.append(tag)
            sources.extend(v for k, v in attrs if k in ("src", "href") and v)

        def handle_startendtag(self, tag: str, attrs: Any) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    Check().feed(text)
    assert not opened
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in text and "<model>" not in text and "&lt;model&gt;" in text
    # Names of layers cannot end the script that holds the data.
    result.facts["runs"][0]["layers"][0]["name"] = "</script>first"
    try:
        assert page.render(result).count("</script>") == 2
    finally:
        result.facts["runs"][0]["layers"][0]["name"] = "first/Conv"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


def browse(page: Path, *words: str) -> str:
    """Open a page in a browser of its own; return what it prints."""
    assert CHROMIUM is not None
    quiet = ["first-run", "default-browser-check", "pdf-header-footer", "sandbox"]
    quiet = [f"--no-{name}" for name in quiet]
    quiet += [
        f"--disable-{n}" for n in ("gpu", "background-networking", "component-update", "sync")
    ]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, "--headless", *quiet, profile, *words, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_page_in_a_browser(result: Analysis, tmp_path: Path) -> None:
    """Sort the layers by zeros, twice; point at a heat map; nothing is wider than the window."""
    probe = """<script>
    const table = document.querySelector("details table.sortable");
    const button = table.querySelectorAll("thead button")[4], orders = [];
    for (const turn of [0, 1]) {
      button.click();
      orders.push([...table.tBodies[0].rows].map(row => row.cells[4].textContent).join(" "));
    }
    const image = document.querySelector("img[data-map]"), box = image.getBoundingClientRect();
    image.dispatchEvent(new PointerEvent("pointermove",
      {clientX: box.right - 2, clientY: box.bottom - 2}));
    const said = image.closest("figure").querySelector("output").textContent;
    const wide = document.documentElement.scrollWidth - innerWidth;
    document.body.innerHTML = `<p>[${orders.join("|")}][${said}][${wide}]</p>`;
    </script>"""
    path = tmp_path / "page.html"
    path.write_text(page.render(result).replace("</html>", probe + "</html>"), "utf-8")
    output = browse(path, "--window-size=500,800", "--dump-dom")
    found = re.search(r"\[([^\]]*)\|([^\]]*)\]\[([^\]]*)\]\[([^\]]*)\]", output)
    assert found is not None, output
    layers = result.facts["runs"][0]["layers"]
    zeros = sorted((layer["temporal"]["zero"] for layer in layers), reverse=True)
    texts = [f"{100 * zero:.1f}" for zero in zeros]
    assert found[1].split() == texts
    assert found[2].split() == texts[::-1]
    last = layers[-1]
    zero = round(100 * last["by_step"]["temporal"]["zero"][-1], 1)
    assert found[3] == f"{last['name']}, step 3: {zero:g} %"
    assert int(found[4]) <= 0


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_page_on_paper(result: Analysis, tmp_path: Path) -> None:
    """What is closed on the screen is not printed: a few pages, however many runs."""
    path, paper = tmp_path / "page.html", tmp_path / "page.pdf"
    path.write_text(page.render(result), "utf-8")
    browse(path, f"--print-to-pdf={paper}")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes())) <= 6
