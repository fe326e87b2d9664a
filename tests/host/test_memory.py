"""Memory that an analysis takes: bounded for large models, whatever the number of steps."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

WIDTH, LAYERS = 4096, 6


@pytest.fixture(scope="module")
def large_file(make_graph: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 100 million parameters: linear layers, of 16 tokens."""
    rng = np.random.default_rng(0)
    g = make_graph()
    x = g.input("sample", ["batch", 1, 256, 256])
    t = g.node("Cast", g.input("timestep", ["batch"], TensorProto.INT64), to=TensorProto.FLOAT)
    t = g.node("Mul", g.node("Reshape", t, g.constant([-1, 1, 1])), g.constant(1e-3, np.float32))
    h = g.node("Reshape", x, g.constant([0, 16, WIDTH]))
    for i in range(LAYERS):
        w = rng.integers(-127, 128, (WIDTH, WIDTH), np.int8)
        scales = np.full(WIDTH, 1 / (73 * WIDTH**0.5), np.float32)
        h = g.node("Add", h, t)
        h = g.node("MatMul", g.quantized(h, 0.04), g.weights(w, scales, axis=1), name=f"layer{i}")
    path = tmp_path_factory.mktemp("large") / "large.onnx"
    onnx.save(g.model(g.node("Reshape", h, g.constant([0, 1, 256, 256]))), path)
    return path


def peak(path: Path, steps: int, samples: int) -> float:
    """Return the largest resident set of an analysis, in MB."""
    code = (
        "import resource, sys; from ditto.host.cli import main; status = main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
    )
    words = ["analyze", path, "--steps", steps, "--samples", samples, "-o", path.with_suffix(".h")]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) / 1024


@pytest.mark.slow
def test_peak(large_file: Path) -> None:
    size = large_file.stat().st_size / 1e6
    assert size > 100
    few, many = peak(large_file, 2, 1), peak(large_file, 6, 4)
    assert few < 16 * size
    assert many < 1.1 * few
