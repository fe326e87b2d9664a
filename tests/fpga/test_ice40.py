"""The gateware with the memories of an iCE40 UltraPlus, against the golden model."""

import pytest

from ditto.fpga.generate import verilog
from ditto.fpga.ice40 import Ice40
from ditto.hdl.config import Config
from ditto.host.device import Device
from ditto.host.selftest import selftest
from ditto.sim.board import SimulatedBoard
from ditto.sim.cells import SPRAM

# A block memory read at the falling edge, as Lattice FPGA-TN-02002 tells.
CELLS = (
    SPRAM
    + """
module SB_RAM40_4KNR #(parameter READ_MODE = 1, WRITE_MODE = 1) (
  output reg [15:0] RDATA, input RCLKN, RCLKE, RE, input [10:0] RADDR,
  input WCLK, WCLKE, WE, input [10:0] WADDR, input [15:0] MASK, WDATA);
  reg [15:0] words [0:255];
  initial if (READ_MODE != 0 || WRITE_MODE != 0) $fatal(1, "another mode than 256 x 16");
  always @(negedge RCLKN) if (RCLKE & RE) RDATA <= words[RADDR[7:0]];
  always @(posedge WCLK) if (WCLKE & WE)
    words[WADDR[7:0]] <= WDATA & ~MASK | words[WADDR[7:0]] & MASK;
endmodule
"""
)


@pytest.mark.parametrize(
    ("lanes", "digit_bits", "single_ports", "blocks"),
    [(1, 9, 3, 4), (2, 4, 6, 10)],
)
def test_device_with_these_memories(
    lanes: int, digit_bits: int, single_ports: int, blocks: int
) -> None:
    config = Config(
        clusters=1,
        lanes=lanes,
        columns=4,
        digit_bits=digit_bits,
        accumulator_bits=24,
        weight_rows=600,
        accumulator_rows=128,
        item_depth=512,
        positions=64,
        channels=16,
        list_depth=9,
        layers=8,
        frame_bytes=256,
    )
    platform = Ice40()
    platform.config = config
    text = verilog(config, platform)
    assert text.count("SB_SPRAM256KA ") == single_ports
    assert text.count("SB_RAM40_4KNR ") == blocks
    with Device(SimulatedBoard.from_verilog(CELLS + text), expect=config) as device:
        checks = list(selftest(device, seed=1, rounds=8))
    assert [check.detail for check in checks if not check.passed] == []
    assert len(checks) > 4
