from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from ditto.host.layers import Linear
from ditto.host.model import Model
from ditto.host.quantize import QuantizeError, load_calibration, quantize

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore")


def network(make_graph: Any, weight: float = 1.0, dtype: Any = np.float32) -> onnx.ModelProto:
    g = make_graph()
    x = g.input("sample", ["batch", 2, 4, 4])
    rng = np.random.default_rng(0)
    w = rng.uniform(-weight, weight, (3, 2, 3, 3))
    w[0, 0, 0, 0] = -2.0  # the largest magnitude of its channel is negative
    w = g.constant(w, dtype)
    return g.model(g.node("Conv", x, w, name="first", pads=[1, 1, 1, 1]))


@pytest.fixture
def source(make_graph: Any, tmp_path: Path) -> Path:
    path = tmp_path / "float.onnx"
    onnx.save(network(make_graph), path)
    return path


def samples(count: int = 20) -> dict[str, NDArray[Any]]:
    return {"sample": np.random.default_rng(1).standard_normal((count, 2, 4, 4), np.float32)}


def test_scales(source: Path) -> None:
    data = samples()
    magnitudes = np.abs(data["sample"])
    done: list[tuple[int, int]] = []
    exact = quantize(source, data, batch=8, on_feed=lambda a, b: done.append((a, b)))
    layer = Model(exact).layers[0]
    assert isinstance(layer, Linear)
    assert layer.input_scale == pytest.approx(magnitudes.max() / 127, rel=1e-5)
    assert layer.weights.min() == -127 and layer.zero_point == 0
    assert layer.weight_scales[0] == pytest.approx(2 / 127, rel=1e-5)
    assert done == [(8, 20), (16, 20), (20, 20)]
    cut = Model(quantize(source, data, method="percentile"))
    assert cut.metadata["ditto.scales"] == "99.9th percentile"
    want = np.percentile(magnitudes, 99.9) / 127
    closer = cut.layers[0]
    assert isinstance(closer, Linear)
    assert closer.input_scale == pytest.approx(want, rel=0.02)
    assert closer.input_scale < layer.input_scale


def test_int8_is_close_to_float(source: Path) -> None:
    import onnxruntime as ort

    data = samples()
    result = quantize(source, data)
    outputs = [
        ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, data)[0]
        for model in (source.read_bytes(), result.SerializeToString())
    ]
    error = np.abs(np.asarray(outputs[0]) - np.asarray(outputs[1])).max()
    assert 0 < error < 0.2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": np.zeros((1, 2, 4, 4), np.float32)}, "sample is missing; x is no input"),
        ({"sample": np.zeros((5, 2, 4, 5), np.float32)}, r"shape \(samples, 2, 4, 4\), not \(5,"),
        ({"sample": np.zeros((0, 2, 4, 4), np.float32)}, "at least one, not 0 of sample"),
        ({"sample": np.zeros((1, 2, 4, 4), complex)}, "is of type complex128, but the input is"),
        ({"sample": np.full((1, 2, 4, 4), np.nan)}, "sample contains values that are no numbers"),
    ],
)
def test_calibration_that_does_not_fit(source: Path, data: Any, message: str) -> None:
    with pytest.raises(QuantizeError, match=message):
        quantize(source, data)


def test_models_that_cannot_be_quantized(make_graph: Any, tmp_path: Path, source: Path) -> None:
    path = tmp_path / "other.onnx"
    proto = network(make_graph)
    proto.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.full((3, 2, 3, 3), np.inf, np.float32), "constant0")
    )
    onnx.save(proto, path)
    with pytest.raises(QuantizeError, match=r"tensor constant0 of .* values that are no numbers"):
        quantize(path, samples())
    onnx.save(quantize(source, samples()), path)
    with pytest.raises(QuantizeError, match="is quantized already"):
        quantize(path, samples())
    with pytest.raises(QuantizeError, match=r"cannot read model .*none\.onnx: No such file"):
        quantize(tmp_path / "none.onnx", samples())


def test_older_operators_are_converted(make_graph: Any, tmp_path: Path) -> None:
    proto = network(make_graph)
    proto.opset_import[0].version = 13
    onnx.save(proto, tmp_path / "old.onnx")
    result = quantize(tmp_path / "old.onnx", samples())
    assert [o.version for o in result.opset_import if o.domain in ("", "ai.onnx")] == [19]


def test_files_of_calibration_data(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, sample=samples()["sample"])
    assert load_calibration(path)["sample"].shape == (20, 2, 4, 4)
    path.write_bytes(b"no archive")
    with pytest.raises(QuantizeError, match=r"data\.npz is not a usable \.npz file: "):
        load_calibration(path)
    with pytest.raises(QuantizeError, match="no such file"):
        load_calibration(tmp_path / "none.npz")
