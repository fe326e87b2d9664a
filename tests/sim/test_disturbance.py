import pytest

from ditto.hdl.config import Config, demo
from ditto.hdl.protocol import Opcode, Space
from ditto.host.cli_common import demo_model
from ditto.host.device import Device
from ditto.host.model import Model
from ditto.host.program import Program
from ditto.host.samplers import DDIM, Schedule
from ditto.host.session import draw
from ditto.sim.board import SimulatedBoard
from ditto.sim.disturbance import CONFIG, REFERENCES, Tally, counted_time, disturb
from ditto.sim.faults import Defect, DefectiveDevice, FaultRates, FaultyTransport
from ditto.sim.golden import Golden
from ditto.sim.golden_board import GoldenBoard

KINDS = set("drop flip duplicate insert swap cut stall".split()) | {
    "reset of the board",
    "reset of the driver",
}


def expect_harmless(tally: Tally) -> None:
    assert tally.wrong == 0 and tally.unsynchronized == 0
    assert set(tally.faults) == KINDS
    assert tally.runs > 0 and tally.resent > 0


@pytest.mark.parametrize("config", [CONFIG, REFERENCES], ids=["deltas", "references"])
def test_faults_change_no_result(config: Config) -> None:
    board = GoldenBoard(config)
    expect_harmless(disturb(board, 5000, seed=0, config=config))
    written = {body[4] for body in board.bodies if body[2] == Opcode.WRITE.value}
    assert (Space.INPUTS.value in written) == (config is REFERENCES)


@pytest.mark.parametrize("config", [CONFIG, REFERENCES], ids=["deltas", "references"])
def test_faults_change_no_result_of_the_gateware(config: Config) -> None:
    with SimulatedBoard(config) as board:
        expect_harmless(disturb(board, 2000, seed=2, config=config))


def test_a_wrong_result_is_noticed() -> None:
    board = GoldenBoard(CONFIG)
    board.golden = DefectiveDevice(CONFIG, Defect.ACCUMULATOR_BIT)
    assert disturb(board, 300, seed=0).wrong > 0


def test_a_board_that_loses_the_frame_after_a_bad_one_is_noticed() -> None:
    class Slow(GoldenBoard):
        def write(self, data: bytes) -> None:
            before = self._decoder.dropped
            super().write(data)
            if self._decoder.dropped > before:
                self.write = self.lose  # type: ignore[method-assign]

        def lose(self, data: bytes) -> None:
            del self.write

    assert disturb(Slow(CONFIG), 500, seed=0).unsynchronized > 0


def image(config: Config, device: Device | Golden, steps: int = 2) -> bytes:
    model = Model.load(demo_model())
    program = Program(model.layers, model.shapes(), config)
    sampler = DDIM(Schedule.from_metadata(model.metadata), steps=steps)
    return draw(model, program, lambda: device, sampler, samples=1).images.tobytes()


@pytest.mark.parametrize("rate", [1e-4])
def test_the_image_is_that_of_a_good_link(rate: float) -> None:
    rates = FaultRates(drop=rate, flip=rate, duplicate=rate, insert=rate, swap=rate, cut=rate)
    with counted_time():
        link = FaultyTransport(
            GoldenBoard(demo), seed=3, to_device=rates, from_device=rates, stall=0.01
        )
        got = image(demo, Device(link, expect=demo, timeout=0.05, tries=400))
    assert link.faults > 300
    assert got == image(demo, Golden(demo))
