# amaranth: UnusedElaboratable=no

from pathlib import Path
from typing import Any

import pytest

from ditto.fpga.axi import AxiDevice
from ditto.hdl.config import Config
from ditto.sim.cocotb_runner import run_cocotb

pytest.importorskip("cocotbext.axi")

CONFIG: dict[str, Any] = dict(
    clusters=1,
    lanes=1,
    columns=2,
    accumulator_bits=24,
    weight_rows=64,
    accumulator_rows=64,
    item_depth=64,
    positions=16,
    channels=8,
    list_depth=4,
    layers=4,
    frame_bytes=128,
)


def test_axi() -> None:
    count = run_cocotb(
        AxiDevice(Config(**CONFIG)),
        top_name="ditto_axi",
        testbench=Path(__file__).with_name("tb_axi.py"),
        parameters={"config": CONFIG},
    )
    assert count == 4
