"""A Zynq's design with its processor: the device behind AXI, as an overlay for PYNQ.

Vivado makes ``ditto.bit`` and ``ditto.hwh`` of it, which ``pynq.Overlay`` loads; see
:mod:`ditto.host.axi` for the driver.
"""

from ditto.fpga.axi import AxiDevice
from ditto.fpga.generate import AXI_NAME, convert
from ditto.hdl.config import Config

__all__ = ["overlay_files"]


def overlay_files(
    processor: str, config: Config, *, frequency: int, build: bytes
) -> dict[str, str]:
    """Return the files of an overlay, by name.

    Parameters
    ----------
    processor
        Name of the board among Vivado's board files.
    config
        The device.
    frequency
        Frequency of its clock, in Hz. The processor makes it.
    build
        What the device was made of, see :func:`ditto.hdl.protocol.identity`.
    """
    script = _SCRIPT.replace("@BOARD@", processor).replace("@MHZ@", f"{frequency / 1e6:g}")
    return {
        f"{AXI_NAME}.v": convert(AxiDevice(config, build), name=AXI_NAME),
        "overlay.tcl": script.replace("@MODULE@", AXI_NAME),
    }


_SCRIPT = """\
# Makes ditto.bit and ditto.hwh for PYNQ:  vivado -mode batch -source overlay.tcl
set boards [lsort -decreasing [get_board_parts -quiet *:@BOARD@:part0:*]]
if {[llength $boards] == 0} {
  puts stderr "Vivado does not know the board @BOARD@: install its files (Vivado Store, Boards)"
  exit 1
}
create_project -force overlay overlay -part [get_property PART_NAME [lindex $boards 0]]
set_property board_part [lindex $boards 0] [current_project]
read_verilog @MODULE@.v
update_compile_order -fileset sources_1

create_bd_design system
create_bd_cell -type ip -vlnv xilinx.com:ip:processing_system7 ps7
apply_bd_automation -rule xilinx.com:bd_rule:processing_system7 -config {
  make_external "FIXED_IO, DDR" apply_board_preset "1" Master "Disable" Slave "Disable"
} [get_bd_cells ps7]
set_property -dict [list \\
  CONFIG.PCW_USE_M_AXI_GP0 {1} \\
  CONFIG.PCW_USE_S_AXI_HP0 {1} \\
  CONFIG.PCW_EN_CLK0_PORT {1} \\
  CONFIG.PCW_FPGA0_PERIPHERAL_FREQMHZ {@MHZ@} \\
] [get_bd_cells ps7]
create_bd_cell -type ip -vlnv xilinx.com:ip:proc_sys_reset reset
create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect control
set_property -dict [list CONFIG.NUM_SI {1} CONFIG.NUM_MI {2}] [get_bd_cells control]
create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect memory
set_property -dict [list CONFIG.NUM_SI {2} CONFIG.NUM_MI {1}] [get_bd_cells memory]
create_bd_cell -type ip -vlnv xilinx.com:ip:axi_dma dma
set_property -dict [list \\
  CONFIG.c_include_sg {0} \\
  CONFIG.c_sg_include_stscntrl_strm {0} \\
  CONFIG.c_sg_length_width {26} \\
  CONFIG.c_m_axis_mm2s_tdata_width {8} \\
  CONFIG.c_s_axis_s2mm_tdata_width {8} \\
  CONFIG.c_m_axi_mm2s_data_width {32} \\
  CONFIG.c_m_axi_s2mm_data_width {32} \\
] [get_bd_cells dma]
create_bd_cell -type module -reference @MODULE@ ditto

foreach pin {
  ps7/M_AXI_GP0_ACLK ps7/S_AXI_HP0_ACLK reset/slowest_sync_clk control/aclk memory/aclk
  dma/s_axi_lite_aclk dma/m_axi_mm2s_aclk dma/m_axi_s2mm_aclk ditto/aclk
} {
  connect_bd_net [get_bd_pins ps7/FCLK_CLK0] [get_bd_pins $pin]
}
connect_bd_net [get_bd_pins ps7/FCLK_RESET0_N] [get_bd_pins reset/ext_reset_in]
foreach pin {control/aresetn memory/aresetn dma/axi_resetn ditto/aresetn} {
  connect_bd_net [get_bd_pins reset/peripheral_aresetn] [get_bd_pins $pin]
}
foreach {from to} {
  ps7/M_AXI_GP0 control/S00_AXI
  control/M00_AXI ditto/s_axi
  control/M01_AXI dma/S_AXI_LITE
  dma/M_AXIS_MM2S ditto/s_axis
  ditto/m_axis dma/S_AXIS_S2MM
  dma/M_AXI_MM2S memory/S00_AXI
  dma/M_AXI_S2MM memory/S01_AXI
  memory/M00_AXI ps7/S_AXI_HP0
} {
  connect_bd_intf_net [get_bd_intf_pins $from] [get_bd_intf_pins $to]
}
assign_bd_address
validate_bd_design
save_bd_design

add_files -norecurse [make_wrapper -files [get_files system.bd] -top]
set_property top system_wrapper [current_fileset]
update_compile_order -fileset sources_1
launch_runs impl_1 -to_step write_bitstream
wait_on_run impl_1
if {[get_property PROGRESS [get_runs impl_1]] ne "100%"} {
  puts stderr "the build failed: see overlay/overlay.runs/impl_1/runme.log"
  exit 1
}
open_run impl_1
report_timing_summary -file timing.rpt
report_utilization -file utilization.rpt
set slack [get_property SLACK [get_timing_paths -max_paths 1 -nworst 1 -setup]]
if {$slack < 0} {
  puts stderr "timing is not met by [expr {-$slack}] ns: see timing.rpt; choose a slower clock"
  exit 1
}
file copy -force overlay/overlay.runs/impl_1/system_wrapper.bit ditto.bit
# Vivado has changed the folder's name over its versions.
set described [glob overlay/overlay.{gen,srcs}/sources_1/bd/system/hw_handoff/system.hwh]
file copy -force [lindex $described 0] ditto.hwh
"""
