"""The overlay's script, run by Tcl with commands that stand for Vivado's."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ditto.fpga.axi import PORTS
from ditto.fpga.overlay import overlay_files
from ditto.hdl.config import Config

tkinter = pytest.importorskip("tkinter", reason="needs Python's Tcl")

TINY = Config(
    clusters=1,
    lanes=1,
    columns=2,
    weight_rows=64,
    accumulator_rows=64,
    item_depth=64,
    positions=16,
    channels=8,
    list_depth=4,
    layers=4,
    frame_bytes=128,
)

# What Xilinx's blocks have, by the name of the block: clocks, resets and interfaces.
INTERFACES = {
    "processing_system7": {"M_AXI_GP0", "S_AXI_HP0"},
    "axi_dma": {"S_AXI_LITE", "M_AXIS_MM2S", "S_AXIS_S2MM", "M_AXI_MM2S", "M_AXI_S2MM"},
    "smartconnect": {"S00_AXI", "S01_AXI", "M00_AXI", "M01_AXI"},
    "proc_sys_reset": set(),
    "ditto_axi": {"s_axi", "s_axis", "m_axis"},
}
INPUTS = {
    "processing_system7": {"M_AXI_GP0_ACLK", "S_AXI_HP0_ACLK"},
    "axi_dma": {"s_axi_lite_aclk", "m_axi_mm2s_aclk", "m_axi_s2mm_aclk", "axi_resetn"},
    "smartconnect": {"aclk", "aresetn"},
    "proc_sys_reset": {"slowest_sync_clk", "ext_reset_in"},
    "ditto_axi": {"aclk", "aresetn"},
}


class Vivado:
    """Notes what a script does."""

    def __init__(self, *, boards: str, slack: float) -> None:
        self.slack = slack
        self.blocks: dict[str, str] = {}
        self.settings: dict[str, str] = {}
        self.wires: list[tuple[str, str]] = []
        self.buses: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.tcl: Any = tkinter.Tcl()
        for name in (
            "create_project update_compile_order read_verilog create_bd_design assign_bd_address "
            "apply_bd_automation validate_bd_design save_bd_design add_files make_wrapper "
            "get_files current_project current_fileset launch_runs wait_on_run get_runs open_run "
            "report_timing_summary report_utilization get_timing_paths"
        ).split():
            self.tcl.createcommand(name, lambda *words: " ".join(words))
        for name in "get_bd_cells", "get_bd_pins", "get_bd_intf_pins":
            self.tcl.createcommand(name, lambda path: path)
        self.tcl.createcommand("get_board_parts", lambda *words: boards)
        self.tcl.createcommand("get_property", self.get_property)
        self.tcl.createcommand("set_property", self.set_property)
        self.tcl.createcommand("create_bd_cell", self.create)
        self.tcl.createcommand("connect_bd_net", lambda *ends: self.wires.append(ends))
        self.tcl.createcommand("connect_bd_intf_net", lambda *ends: self.buses.append(ends))
        self.tcl.createcommand("puts", lambda *words: self.said.append(words[-1]))
        self.tcl.eval("proc exit {status} {error exit}")

    def get_property(self, name: str, of: str = "") -> str:
        return {"PROGRESS": "100%", "SLACK": str(self.slack)}.get(name, "a part")

    def set_property(self, *words: str) -> None:
        if words[0] == "-dict":
            pairs = self.tcl.splitlist(words[1])
            for name, value in zip(pairs[::2], pairs[1::2], strict=True):
                self.settings[f"{words[2]}.{name.removeprefix('CONFIG.')}"] = value

    def create(self, *words: str) -> None:
        kind = words[words.index("-vlnv") + 1] if "-vlnv" in words else words[-2]
        self.blocks[words[-1]] = kind.split(":")[-1]


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Vivado:
    files = overlay_files("pynq-z2", TINY, frequency=50_000_000, build=bytes(8))
    assert set(files) == {"ditto_axi.v", "overlay.tcl"}
    runs = tmp_path / "overlay/overlay.runs/impl_1"
    described = tmp_path / "overlay/overlay.gen/sources_1/bd/system/hw_handoff"
    for folder in runs, described:
        folder.mkdir(parents=True)
    (runs / "system_wrapper.bit").write_text("bits")
    (described / "system.hwh").write_text("description")
    monkeypatch.chdir(tmp_path)
    vivado = Vivado(**options)
    try:
        vivado.tcl.eval(files["overlay.tcl"])
    except tkinter.TclError as error:
        assert str(error) == "exit"
    return vivado


BOARD = "tul.com.tw:pynq-z2:part0:1.0"


def test_everything_is_connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vivado = made(tmp_path, monkeypatch, boards=BOARD, slack=0.1)
    assert vivado.said == []
    assert (tmp_path / "ditto.bit").read_text() == "bits"
    assert (tmp_path / "ditto.hwh").read_text() == "description"
    # The driver finds the device and the engine by these names.
    assert vivado.blocks["ditto"] == "ditto_axi" and vivado.blocks["dma"] == "axi_dma"

    ends = Counter(end for bus in vivado.buses for end in bus)
    known = {f"{b}/{name}" for b, kind in vivado.blocks.items() for name in INTERFACES[kind]}
    assert set(ends) <= known and set(ends.values()) == {1}
    for block, kind in vivado.blocks.items():
        if kind != "smartconnect":
            assert {f"{block}/{name}" for name in INTERFACES[kind]} <= set(ends)
    for block in "control", "memory":
        for side, letter in ("NUM_SI", "S"), ("NUM_MI", "M"):
            used = {end for end in ends if re.match(rf"{block}/{letter}\d", end)}
            count = int(vivado.settings[f"{block}.{side}"])
            assert used == {f"{block}/{letter}{n:02}_AXI" for n in range(count)}

    wired = Counter(target for _, target in vivado.wires)
    inputs = {f"{b}/{name}" for b, kind in vivado.blocks.items() for name in INPUTS[kind]}
    assert set(wired) == inputs and set(wired.values()) == {1}
    for source, target in vivado.wires:
        assert (source == "ps7/FCLK_CLK0") == ("clk" in target.lower())

    assert vivado.settings["ps7.PCW_FPGA0_PERIPHERAL_FREQMHZ"] == "50"
    # The driver's transfers have up to 64 KiB, of bytes.
    assert 1 << int(vivado.settings["dma.c_sg_length_width"]) > 1 << 16
    assert vivado.settings["dma.c_m_axis_mm2s_tdata_width"] == "8"
    assert PORTS.keys() >= {"aclk", "aresetn", "s_axi_awaddr", "s_axis_tdata", "m_axis_tdata"}


@pytest.mark.parametrize(
    ("boards", "slack", "message"),
    [
        ("", 0.1, "Vivado does not know the board pynq-z2: install its files"),
        (BOARD, -0.25, "timing is not met by 0.25 ns: see timing.rpt"),
    ],
)
def test_what_ends_it(
    boards: str, slack: float, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vivado = made(tmp_path, monkeypatch, boards=boards, slack=slack)
    assert message in vivado.said[0]
    assert not (tmp_path / "ditto.bit").exists()
