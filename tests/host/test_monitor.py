import io
import json
from typing import Any

import numpy as np
import onnx
import pytest

from ditto.hdl.config import Config
from ditto.hdl.protocol import Counters, Mode
from ditto.host.executor import LayerRun
from ditto.host.model import Model
from ditto.host.monitor import LimitError, Monitor, wide_share
from ditto.host.program import Program, suggest
from ditto.sim.memory import Traffic


@pytest.fixture(scope="module")
def program(denoiser_proto: onnx.ModelProto) -> Program:
    model = Model(denoiser_proto)
    config = suggest(model.layers, model.shapes(), Config())
    return Program(model.layers, model.shapes(), config)


def run(layer: int, mode: Mode, zero: int, wide: int, **others: Any) -> LayerRun:
    counters = Counters(cycles=9, zero=zero, wide=wide)
    return LayerRun(3, layer, mode, counters, 9, 1)._replace(**others)


def test_a_line_for_each_layer(program: Program) -> None:
    lines = io.StringIO()
    monitor = Monitor(program, lines=lines)
    runs = [
        run(0, Mode.DENSE, 1, 2, digits={"dense": 4}, traffic=Traffic(inputs=7), stall_memory=5),
        run(2, Mode.TEMPORAL, 5, 0, digits={"dense": 6, "temporal": 1}),
    ]
    monitor(1, 3, 940, runs)
    got = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [line["layer"] for line in got] == ["first/Conv", "last/Conv"]
    first = got[0]
    assert (first["sample"], first["step"], first["timestep"]) == (1, 3, 940)
    assert (first["mode"], first["cycles"], first["wide"], first["stall_memory"]) == (
        ("dense", 9, 2, 5)
    )
    assert first["traffic"]["inputs"] == 7 and first["digits"] == {"dense": 4}
    assert got[1]["digits"] == {"dense": 6, "temporal": 1}


def test_limit(program: Program) -> None:
    lines = io.StringIO()
    monitor = Monitor(program, lines=lines, max_wide=0.2)
    # Dense runs have many wide deltas, and do not count.
    monitor(0, 3, 940, [run(0, Mode.DENSE, 0, 100), run(1, Mode.TEMPORAL, 80, 20)])
    with pytest.raises(LimitError) as caught:
        monitor(0, 3, 940, [run(1, Mode.TEMPORAL, 80, 20), run(2, Mode.TEMPORAL, 60, 20)])
    error = caught.value
    assert (error.sample, error.step) == (0, 3)
    assert str(error).startswith(
        "sample 0, step 3: 22.2 % of the temporal deltas are wide, more than 20 %; most in layer "
        "last/Conv, 25.0 %. Take more steps"
    )
    assert len(lines.getvalue().splitlines()) == 4  # those of the step itself, too


def test_share_of_nothing() -> None:
    assert wide_share([]) == 0.0
    assert np.isclose(wide_share([run(0, Mode.TEMPORAL, 3, 1)]), 0.25)
