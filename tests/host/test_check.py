"""Models that cannot be used: the message names node, tensor and remedy."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ditto.host.cli import main
from ditto.host.model import ModelError, read
from ditto.host.quantize import QuantizeError, quantize


def save(proto: onnx.ModelProto, tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    return path


def replaced(proto: onnx.ModelProto, name: str, values: Any) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(values), name))
    return result


def network(make_graph: Any, op: str = "Relu", dtype: Any = np.float32, domain: str = "") -> Any:
    g = make_graph()
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = g.input("sample", ["batch", 1, 4, 4], kind)
    g.input("timestep", ["batch"], TensorProto.INT64)
    w = g.constant(np.full((1, 1, 3, 3), 0.2), dtype)
    h = g.node("Conv", x, w, name="/first/Conv", pads=[1, 1, 1, 1])
    y = g.node(op, h, name="/odd", **({"domain": domain} if domain else {}))
    y = g.node("Conv", y, w, name="/last/Conv", pads=[1, 1, 1, 1])
    values = [helper.make_tensor_value_info(y, kind, ["batch", 1, 4, 4])]
    graph = helper.make_graph(g.nodes, "test", g.inputs, values, g.constants)
    opsets = [helper.make_opsetid("", 19)] + [helper.make_opsetid(domain, 1)] * bool(domain)
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def test_unknown_operators(
    make_graph: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(network(make_graph, "Frobnicate"), tmp_path)
    message = r"node /odd \(Frobnicate\) of .*m\.onnx is of an operator that ONNX does not have; "
    with pytest.raises(ModelError, match=message):
        read(path)
    path = save(network(make_graph, "Swish", domain="my.ops"), tmp_path)
    words = ["quantize", str(path), "-o", str(tmp_path / "a.onnx")]
    pytest.importorskip("onnxruntime")
    assert main(words) == 1
    want = "node /odd (Swish) is of the domain my.ops; export the model with ONNX's own operators"
    assert want in capsys.readouterr().err


def test_16_bit_floats(make_graph: Any, tmp_path: Path) -> None:
    path = save(network(make_graph, dtype=np.float16), tmp_path)
    message = (
        r"tensor sample of .*m\.onnx, read by node /first/Conv \(Conv\), is of type float16; "
        "export the model in float32"
    )
    with pytest.raises(ModelError, match=message):
        read(path)
    with pytest.raises(QuantizeError, match=message):
        quantize(path, {})


def test_constants_that_are_no_numbers(make_graph: Any, tmp_path: Path) -> None:
    message = r"tensor constant0 of .*m\.onnx, read by node /first/Conv .* contains values that are"
    for value in (np.nan, np.inf):
        bad = np.full((1, 1, 3, 3), value, np.float32)
        with pytest.raises(ModelError, match=message):
            read(save(replaced(network(make_graph), "constant0", bad), tmp_path))
    g = make_graph()
    mask = g.constant([[0, -np.inf]], np.float32)
    proto = g.model(g.node("Add", g.input("x", [1, 2]), mask))
    assert read(save(proto, tmp_path)) == proto  # masks may be infinite


@pytest.mark.parametrize("value", [0.0, -0.1])
def test_scales_that_are_not_above_zero(
    denoiser_proto: onnx.ModelProto, tmp_path: Path, value: float
) -> None:
    scale = next(n.input[1] for n in denoiser_proto.graph.node if n.op_type == "QuantizeLinear")
    path = save(replaced(denoiser_proto, scale, np.float32(value)), tmp_path)
    message = (
        rf"tensor sample of .*m\.onnx, read by node .* \(QuantizeLinear\), has the scale {value:g}"
    )
    with pytest.raises(ModelError, match=message):
        read(path)


@pytest.mark.parametrize("onnxruntime", [False, True])
def test_values_that_stop_being_numbers(denoiser_proto: onnx.ModelProto, onnxruntime: bool) -> None:
    """A quantizer makes numbers of them, so the result alone would not tell."""
    from ditto.hdl.config import demo
    from ditto.host.analysis import Setting, analyze

    if onnxruntime:
        pytest.importorskip("onnxruntime")
    proto = onnx.ModelProto()
    proto.CopyFrom(denoiser_proto)
    (node,) = (node for node in proto.graph.node if node.op_type == "Sin")
    node.op_type = "Log"
    message = (
        r"m\.onnx makes values that are no numbers at timestep 999: first in tensor "
        rf"{node.output[0]} of node {node.output[0]} \(Log\); check the weights before it"
    )
    with pytest.raises(ModelError, match=message):
        analyze(proto, [Setting(3)], config=demo, samples=1, name="m.onnx", onnxruntime=onnxruntime)


def test_a_float_model_that_diverges(
    make_graph: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    path = save(network(make_graph, "Log"), tmp_path)
    assert main(["quantize", str(path), "-o", str(tmp_path / "a.onnx")]) == 1
    said = capsys.readouterr().err
    assert "makes values that are no numbers at timestep 999: first in tensor" in said
    assert "of node /odd (Log)" in said


def test_open_sizes(
    denoiser_proto: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(denoiser_proto)
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    path = save(proto, tmp_path)
    assert main(["analyze", str(path), "-o", str(tmp_path / "a.html")]) == 1
    want = "input sample of .* fixed sizes, not (1, 1, ?, 6); export it with fixed sizes"
    said = capsys.readouterr().err
    assert want.split(" .* ")[0] in said and want.split(" .* ")[1] in said


@pytest.mark.filterwarnings("ignore")
def test_calibration_that_moves_nothing(
    make_graph: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxruntime")
    path = save(network(make_graph), tmp_path)
    zeros = {"sample": np.zeros((3, 1, 4, 4), np.float32), "timestep": np.arange(3)}
    quantize(path, zeros)
    assert "tensor sample, read by node /first/Conv (Conv) of" in caplog.text
    assert "is zero in all calibration data, and got the scale 1; calibrate with" in caplog.text


def test_models_bigger_than_memory(
    denoiser_proto: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ditto.host import check

    path = save(denoiser_proto, tmp_path)
    monkeypatch.setattr(check, "available_memory", lambda: 1000)
    with pytest.raises(ModelError, match="times that to read them, and only 1,000 bytes of memory"):
        read(path)
    monkeypatch.setattr(check, "available_memory", lambda: None)
    assert read(path) == denoiser_proto


def test_constants_in_a_file_beside_the_model(
    denoiser_proto: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ditto.host import check

    path, copy = tmp_path / "m.onnx", onnx.ModelProto()
    copy.CopyFrom(denoiser_proto)
    onnx.save(copy, path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").is_file()
    sizes = {len(tensor.raw_data): tensor.name for tensor in denoiser_proto.graph.initializer}
    largest, name = max(sizes.items())
    read(path)
    monkeypatch.setattr(check, "_LIMIT", path.stat().st_size + 100)
    message = f"the largest tensor is {name} with {largest}, but only models below"
    with pytest.raises(ModelError, match=message):
        read(path)
    (tmp_path / "m.data").unlink()
    monkeypatch.undo()
    with pytest.raises(ModelError, match=r"m\.onnx"):
        read(path)
