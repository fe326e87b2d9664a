"""The device of a board after synthesis: its netlist, with models of the FPGA's cells, simulated.

The netlist is what place and route gets, from the same Yosys with the same options; it is reached
through the board's pins. Yosys puts the models in place of the cells, so that any simulator of
Verilog takes the result.
"""

import re
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from amaranth.hdl import ClockSignal, Const, Instance, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ditto.fpga.boards import Board, board_of
from ditto.fpga.families import ECP5, ICE40, Family
from ditto.fpga.generate import for_yosys
from ditto.fpga.tools import ToolError, find
from ditto.fpga.top import BoardTop
from ditto.hdl.config import Config
from ditto.sim import verilate
from ditto.sim.cells import ECP5_CELLS, ICE40_CELLS
from ditto.sim.line import line_verilog

__all__ = ["map_cells", "netlist_verilog"]

_NAME = "netlist"

_CELLS = {
    ECP5.name: (ECP5_CELLS, "read_verilog -nooverwrite +/ecp5/cells_sim.v"),
    ICE40.name: (
        ICE40_CELLS,
        "read_verilog -nooverwrite -DNO_ICE40_DEFAULT_ASSIGNMENTS -DICE40_U +/ice40/cells_sim.v",
    ),
}


class _Pins(wiring.Component):
    """A netlist by the two pins of its serial line; its clock is that of the simulation."""

    rx: Signal
    tx: Signal

    def __init__(self, board: Board, platform: Any) -> None:
        self.board, self.platform = board, platform
        super().__init__({"rx": In(1), "tx": Out(1)})

    def elaborate(self, platform: object) -> Module:
        """Build the connections."""
        m = Module()
        name, number = self.board.uart
        ports: dict[str, Any] = {
            f"i_{self.platform.default_clk}_0__io": ClockSignal(),
            f"i_{name}_{number}__rx__io": self.rx,
            f"o_{name}_{number}__tx__io": self.tx,
        }
        if self.platform.default_rst is not None:
            (pins,) = self.platform.lookup(self.platform.default_rst, 0).ios
            ports[f"i_{self.platform.default_rst}_0__io"] = Const(pins.invert, 1)
        m.submodules.netlist = Instance(_NAME, **ports)
        return m


def netlist_verilog(
    name: str,
    config: Config | None = None,
    *,
    baud: int | None = None,
    timeout: float = 3600.0,
    progress: Callable[[str], None] | None = None,
) -> str:
    """Return the Verilog of a board's netlist at the end of a serial line, for a simulated board.

    Parameters
    ----------
    name
        Name of the board.
    config
        The device; the board's default if absent.
    baud
        Bits per second; the board's if absent.
    timeout
        Most seconds for Yosys.
    progress
        Called with a line of text for each step that the cache does not have.

    Raises
    ------
    UnknownBoardError
        If there is no such board.
    MissingToolError, ToolError
        If Yosys is missing, fails or takes too long; or there are no models of the FPGA's cells.
    """
    board = board_of(name)
    config = config or board.config
    baud = baud or board.baud
    top = BoardTop(board, config, frequency=board.frequency, baud=baud)
    platform = board.open_platform(config)
    files = platform.prepare(top, name="top", emit_src=False).files
    text = files["top.il"]
    rtlil = text.decode() if isinstance(text, bytes) else text
    netlist = map_cells(
        for_yosys(rtlil, "top.device"), board.family, timeout=timeout, progress=progress
    )
    line = line_verilog(_Pins(board, platform), frequency=board.frequency, baud=baud)
    return line + netlist


def map_cells(
    rtlil: str,
    family: Family,
    *,
    timeout: float = 3600.0,
    progress: Callable[[str], None] | None = None,
) -> str:
    """Synthesize a design for a family; return its netlist with models for cells, in Verilog.

    Parameters
    ----------
    rtlil
        The design, whose top is ``top``. That of the netlist is ``netlist``.
    family
        The family.
    timeout
        Most seconds for Yosys.
    progress
        Called with a line of text if the cache does not have the result.

    Raises
    ------
    MissingToolError, ToolError
        If Yosys is missing, fails or takes too long; or there are no models of its cells.
    """
    if family.name not in _CELLS:
        raise ToolError(f"there are no models of all cells of {family.name}")
    models, more = _CELLS[family.name]
    yosys = find("yosys")
    script = (
        f"read_rtlil top.il; {family.synthesis} -top top; "
        f"delete =A:blackbox =A:whitebox; read_verilog cells.v; {more}; "
        "hierarchy -top top -check; proc; flatten; opt -full; splitnets; clean -purge; "
        f"memory_collect; rename top {_NAME}; write_verilog -noattr netlist.v"
    )

    def make() -> str:
        if progress is not None:
            progress("Synthesizing the device")
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            (folder / "top.il").write_text(rtlil, encoding="utf-8")
            (folder / "cells.v").write_text(models, encoding="utf-8")
            yosys.run(["-q", "-p", script], folder, timeout)
            return _directed((folder / "netlist.v").read_text(encoding="utf-8"))

    key = sha256("\0".join([rtlil, models, script, yosys.version]).encode()).hexdigest()
    return verilate.remember(f"netlist-{key[:32]}.v", make)


def _directed(verilog: str) -> str:
    """Turn each pin of a netlist into an output if it is driven, and else into an input."""
    driven = set(re.findall(r"^  assign (\w+) =", verilog, re.MULTILINE))
    return re.sub(
        r"^  inout (\w+);",
        lambda pin: f"  {'output' if pin[1] in driven else 'input'} {pin[1]};",
        verilog,
        flags=re.MULTILINE,
    )
