"""Images one after another on one board are those of a board that has done nothing before."""

from typing import Any

import numpy as np
import onnx
import pytest

from ditto.hdl.config import demo
from ditto.host.device import Device
from ditto.host.model import Model
from ditto.host.program import Program
from ditto.host.samplers import DDIM, Schedule
from ditto.host.session import draw
from ditto.sim.board import SimulatedBoard
from ditto.sim.golden import Golden
from ditto.sim.golden_board import GoldenBoard


class Kept(Device):
    """A device that stays open between runs."""

    def close(self) -> None:
        pass


def images(model: Model, program: Program, device: Any, seed: int) -> bytes:
    sampler = DDIM(Schedule.from_metadata(model.metadata), steps=3)
    drawing = draw(model, program, lambda: device, sampler, samples=1, seed=seed)
    return drawing.images.tobytes()


def compare(proto: onnx.ModelProto, transport: Any, count: int) -> None:
    model = Model(proto)
    program = Program(model.layers, model.shapes(), demo)
    device = Kept(transport, expect=demo)
    seen = set()
    for seed in range(count):
        got = images(model, program, device, seed)
        assert got == images(model, program, Golden(demo), seed), f"image {seed}"
        seen.add(got)
    assert len(seen) == count and all(np.frombuffer(got, np.float32).any() for got in seen)


def test_images_on_the_golden_board(denoiser_proto: onnx.ModelProto) -> None:
    compare(denoiser_proto, GoldenBoard(demo), 10)


def test_images_on_the_gateware(denoiser_proto: onnx.ModelProto) -> None:
    with SimulatedBoard(demo) as board:
        compare(denoiser_proto, board, 5)
    # And those of the last of them on a board of its own.
    model = Model(denoiser_proto)
    program = Program(model.layers, model.shapes(), demo)
    with Device(SimulatedBoard(demo), expect=demo) as fresh:
        assert images(model, program, fresh, 4) == images(model, program, Golden(demo), 4)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["golden", "gateware"])
def test_a_hundred_images(denoiser_proto: onnx.ModelProto, kind: str) -> None:
    if kind == "golden":
        compare(denoiser_proto, GoldenBoard(demo), 100)
    else:
        with SimulatedBoard(demo) as board:
            compare(denoiser_proto, board, 100)
