from importlib.resources import files

import pytest

from ditto.hdl.config import demo
from ditto.hdl.protocol import Opcode
from ditto.host.framing import encode
from ditto.host.model import Model
from ditto.host.samplers import DDIM, Schedule
from ditto.host.traffic import measure, seconds
from ditto.sim.golden_board import GoldenBoard


def test_traffic_is_what_crosses_the_link() -> None:
    model = Model.load(str(files("ditto.host.models").joinpath("digits16.int8.onnx")))
    sampler = DDIM(Schedule.from_metadata(model.metadata), steps=2)
    board = GoldenBoard(demo)
    traffic = measure(model, demo, sampler, board)
    assert list(traffic) == [layer.name for layer in model.layers]
    # From the first deltas on, everything belongs to a layer; what came before loads the program.
    first = next(i for i, body in enumerate(board.bodies) if _writes_deltas(body))
    bodies = board.bodies[first:]
    assert sum(layer["exchanges"] for layer in traffic.values()) == len(bodies)
    sent = sum(len(encode(body)) for body in bodies)
    assert sum(layer["sent"] for layer in traffic.values()) == sent
    for layer in traffic.values():
        # Every command is answered by eight bytes and a frame's ends at least.
        assert layer["received"] >= 10 * layer["exchanges"]
        assert layer["cycles"] > 0


def _writes_deltas(body: bytes) -> bool:
    return body[2] == Opcode.WRITE.value and body[4] == 2


def test_seconds() -> None:
    traffic = {"sent": 1000, "received": 2000, "exchanges": 7, "cycles": 500}
    assert seconds(traffic, clock_hz=1_000_000, baud=100_000) == pytest.approx(0.3 + 0.0005)
