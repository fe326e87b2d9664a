"""Inputs besides sample and timestep, and guidance by them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from ditto.host import cli
from ditto.host.conditioning import Conditioning
from ditto.host.model import Model, ModelError

TEXT = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
SMALL = ["--steps", "4", "--samples", "2", "--board", "golden", "--check", "--jobs", "1"]


def network(make_graph: Any, *, tokens: int | str = 3, label: bool = False, **metadata: str) -> Any:
    """Return a network whose pixels attend to a text; an odd layer stays on the host."""
    rng = np.random.default_rng(1)
    g = make_graph()
    x = g.input("sample", ["batch", 1, 4, 4])
    time = g.input("timestep", ["batch"], TensorProto.INT64)
    text = g.input("text", ["batch", tokens, 4])

    def linear(y: str, inputs: int, outputs: int) -> str:
        w = rng.integers(-127, 128, (inputs, outputs)).astype(np.int8)
        return g.node("MatMul", g.quantized(y, 0.03), g.weights(w, [0.01] * outputs, axis=1))

    tokens_of = g.node("Reshape", x, g.constant([1, 16, 1], np.int64))
    keys = g.node("Transpose", linear(text, 4, 4), perm=[0, 2, 1])
    scores = g.node("MatMul", g.quantized(linear(tokens_of, 1, 4)), g.quantized(keys, 0.05))
    weights = g.quantized(g.node("Softmax", scores, axis=-1), 0.004, -128)
    values = g.quantized(linear(text, 4, 4), 0.05)
    y = linear(g.node("MatMul", weights, values, name="/pv"), 4, 1)
    y = g.node("Reshape", y, g.constant([1, 1, 4, 4], np.int64))
    odd = g.constant(rng.standard_normal((1, 1, 3, 3)), np.float32)
    y = g.node("Conv", y, odd, name="/odd", pads=[1, 1, 1, 1])
    time = g.node("Mul", g.node("Cast", time, to=TensorProto.FLOAT), g.constant(0.001, np.float32))
    y = g.node("Add", y, time)
    if label:
        number = g.node(
            "Cast", g.input("label", ["batch"], TensorProto.INT64), to=TensorProto.FLOAT
        )
        y = g.node("Add", y, number)
    return g.model(y, **metadata)


def denoise(proto: onnx.ModelProto, folder: Path, *words: object, **arrays: Any) -> int:
    onnx.save(proto, folder / "m.onnx")
    np.savez(folder / "text.npz", **arrays)
    options = [*SMALL, "-o", folder / "a.png", *words]
    if arrays:
        options += ["--inputs", folder / "text.npz"]
    try:
        return cli.main(["denoise", *map(str, [folder / "m.onnx", *options])])
    except SystemExit as leave:
        assert isinstance(leave.code, int)
        return leave.code


def test_further_inputs_and_guidance(
    make_graph: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = network(make_graph)
    counts = tmp_path / "a.json"
    assert denoise(proto, tmp_path, text=TEXT[1:]) == 0
    plain = (tmp_path / "a.png").read_bytes()
    # With or without the batch.
    assert denoise(proto, tmp_path, text=TEXT[1]) == 0
    assert (tmp_path / "a.png").read_bytes() == plain
    capsys.readouterr()
    words = ["--guidance", "4", "--json", counts]
    assert denoise(proto, tmp_path, *words, text=TEXT) == 0
    assert (tmp_path / "a.png").read_bytes() != plain
    output = capsys.readouterr().out
    assert "% of the time in its own operators: " in output
    assert "on the host: odd (its input is not quantized)" in output
    facts = json.loads(counts.read_text())
    assert facts["guidance"] == 4
    assert facts["host"]["layers"] == {"odd": "its input is not quantized"}
    operators = facts["host"]["operators"]
    assert {"Softmax", "Conv", "Add"} <= set(operators)
    assert 0 < facts["host"]["share"] < 1
    assert sum(operators.values()) == pytest.approx(facts["host"]["share"])
    # Two evaluations in each step.
    runs = json.loads(counts.read_text())["layers"][0]["counters"]
    assert denoise(proto, tmp_path, "--json", counts, text=TEXT[1]) == 0
    once = json.loads(counts.read_text())["layers"][0]["counters"]
    deltas = [sum(own[name] for name in ("zero", "narrow", "wide")) for own in (runs, once)]
    assert deltas[0] == 2 * deltas[1]


def test_sizes_that_the_file_leaves_open_come_from_the_inputs(
    make_graph: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = network(make_graph, tokens="tokens")
    assert denoise(proto, tmp_path, text=TEXT[1]) == 0
    with pytest.raises(ModelError, match=r"size of its input text open at axis 1 \(tokens\); exp"):
        Model(proto).shapes()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "also takes text of shape (1, 3, 4): give them in a file (--inputs NPZ)"),
        ({"words": TEXT}, "also takes text of shape (1, 3, 4)"),
        ({"text": TEXT[1], "words": TEXT}, "the file of inputs has words, which"),
        ({"text": TEXT}, "input text must have the shape (1, 3, 4), with or without the batch"),
        ({"text": TEXT[1, :, :2]}, "input text must have the shape (1, 3, 4), with or without"),
        ({"text": TEXT[1] * np.nan}, "input text contains values that are no numbers"),
        ({"text": TEXT[1] * 1j}, "input text is of type complex64, but the model takes float32"),
    ],
)
def test_inputs_that_do_not_fit(
    make_graph: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arrays: dict[str, Any],
    message: str,
) -> None:
    assert denoise(network(make_graph), tmp_path, **arrays) == 1
    assert message in capsys.readouterr().err


def test_nothing_to_guide_by(
    make_graph: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--guidance", "2"]
    assert denoise(network(make_graph), tmp_path, *words, text=TEXT[1]) == 1
    assert "guidance needs to know what" in capsys.readouterr().err
    assert denoise(network(make_graph), tmp_path, "--guidance", "nan", text=TEXT) == 2


def test_two_states_that_do_not_fit(
    make_graph: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--guidance", "2", "--accumulator-rows", "20", "--layers", "10"]
    assert denoise(network(make_graph), tmp_path, *words, text=TEXT) == 1
    error = capsys.readouterr().err
    assert "the model with 2 states of every layer does not fit the device: it has" in error
    assert "accumulator_rows = 20, but" in error and "layers = 10, but" in error


@pytest.mark.parametrize("said", ["metadata", "option"])
def test_the_label_of_no_condition(make_graph: Any, said: str) -> None:
    metadata = {"ditto.null_label": "10"} if said == "metadata" else {}
    model = Model(network(make_graph, label=True, **metadata))
    null = None if said == "metadata" else 10
    given = Conditioning(model, {"text": TEXT[1]}, guidance=2.0, null_label=null)
    x = np.zeros((1, 1, 4, 4), np.float32)
    labels = [given.inputs(state, x, 5, 3)["label"].tolist() for state in range(2)]
    assert labels == [[10], [3]]
    a, b = np.array([1, 2], np.float32), np.array([2, 0], np.float32)
    assert given.combine([a, b]).tolist() == [3, -2]
    # Without guidance, the label is the sample's.
    alone = Conditioning(model, {"text": TEXT[1]})
    assert alone.inputs(0, x, 5, 3)["label"].tolist() == [3]
    with pytest.raises(ModelError, match="property ditto.null_label = 'ten' is no number"):
        bad = Model(network(make_graph, label=True, **{"ditto.null_label": "ten"}))
        Conditioning(bad, {"text": TEXT[1]}, guidance=2.0)
