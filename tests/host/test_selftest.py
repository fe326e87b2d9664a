import re
from typing import Any

import pytest

from ditto.hdl.config import Config
from ditto.hdl.protocol import Opcode
from ditto.host import boards, cli
from ditto.host.device import Accelerator, Device
from ditto.host.selftest import selftest
from ditto.sim.board import SimulatedBoard
from ditto.sim.faults import Defect, DefectiveDevice, FaultRates, FaultyTransport
from ditto.sim.golden import Golden
from ditto.sim.golden_board import GoldenBoard

SIZES: dict[str, Any] = dict(
    clusters=2,
    lanes=2,
    columns=3,
    accumulator_bits=20,
    weight_rows=123,
    accumulator_rows=90,
    item_depth=250,
    positions=30,
    channels=12,
    layers=7,
    frame_bytes=128,
    reference_depth=500,
)


def failures(device: Accelerator, **options: int) -> dict[str, str]:
    checks = list(selftest(device, **options))
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check.detail for check in checks if not check.passed}


@pytest.mark.parametrize(
    "change",
    [
        {},
        dict(clusters=1, lanes=1, columns=1, digit_bits=2, activation_bits=2, weight_bits=2),
        dict(digit_bits=9, skip=0),
        dict(weight_rows=20, accumulator_rows=12, channels=30, item_depth=130),
        dict(positions=2, layers=2, accumulator_bits=32),
        dict(reference_depth=5),
        dict(reference_depth=0),
    ],
)
def test_a_good_device_passes(change: dict[str, Any]) -> None:
    config = Config(**SIZES | change)
    for device in Golden(config), Device(GoldenBoard(config)):
        for seed in range(3):
            assert failures(device, seed=seed) == {}


def test_the_generated_hardware_passes() -> None:
    with Device(SimulatedBoard(Config(**SIZES))) as device:
        checks = list(selftest(device, rounds=12))
    assert [check.name for check in checks if not check.passed] == []
    assert " ms for a command, " in checks[0].detail and " kB/s written" in checks[0].detail
    assert len(checks) == 19


@pytest.mark.parametrize("defect", Defect)
@pytest.mark.parametrize("change", [{}, dict(clusters=1, columns=16, weight_rows=1000)])
def test_every_defect_is_found(defect: Defect, change: dict[str, Any]) -> None:
    config = Config(**SIZES | change)
    board = GoldenBoard(config)
    board.golden = DefectiveDevice(config, defect)
    found = failures(Device(board))
    expected = {
        Defect.ACCUMULATOR_BIT: ("weights", "in columns 0 and bits 9 of the accumulators"),
        Defect.ACCUMULATOR_CELL: ("accumulators", "is .* and should be"),
        Defect.ACCUMULATOR_ADDRESS: ("accumulators", "of .* accumulators are wrong"),
        Defect.WEIGHT_BIT: ("weights", f"in columns {config.columns - 1} and bits"),
        Defect.WEIGHT_CELL: ("weights", "1 of .* weights"),
        Defect.WEIGHT_ADDRESS: ("weights", "of .* weights"),
        Defect.LAYER_ADDRESS: ("layer table", ""),
        Defect.ITEMS: ("difference buffer", ""),
        Defect.WIDE_DELTA: ("array, layer 0", ""),
        Defect.STATE: ("accumulators", "of .* accumulators are wrong"),
        Defect.REFERENCE_ADDRESS: ("reference buffer", r"counter .* is \d+ and should be \d+"),
        Defect.COUNTER: ("weights", r"counter cycles is \d+ and should be \d+"),
    }
    name, pattern = expected[defect]
    assert name in found, found
    assert re.search(pattern, found[name]), found


def test_a_bad_cable_is_told_from_a_bad_device() -> None:
    config = Config(**SIZES)
    rates = FaultRates(flip=0.0002)
    cable = FaultyTransport(GoldenBoard(config), seed=1, to_device=rates, from_device=rates)
    found = failures(Device(cable, timeout=0.01, tries=50))
    assert list(found) == ["link, repeats"]
    assert "something is wrong with the cable" in found["link, repeats"]


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["selftest", "--board", "golden", "--rounds", "2"]) == 0
    output = capsys.readouterr().out
    assert "all 8 tests passed on golden" in output
    assert "array, layer 1" in output and "array, layer 2" not in output

    def defective(config: Config) -> Accelerator:
        return DefectiveDevice(config, Defect.COUNTER)

    monkeypatch.setitem(boards.BOARDS, "bad", boards.Board("a defective one", defective))
    assert cli.main(["selftest", "--board", "bad", "--rounds", "2"]) == 1
    output = capsys.readouterr().out
    assert "FAILED" in output and "tests failed: the device on bad is defective" in output


def test_a_device_that_falls_silent_ends_the_test(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Dying(GoldenBoard):
        def write(self, data: bytes) -> None:
            if Opcode.RUN not in self.executed:
                super().write(data)

    board = boards.Board("dies", lambda config: Device(Dying(config), timeout=0.01))
    monkeypatch.setitem(boards.BOARDS, "dying", board)
    assert cli.main(["selftest", "--board", "dying"]) == 1
    shown = capsys.readouterr()
    assert "link" in shown.out  # what was found until then
    assert "no answer to " in shown.err
