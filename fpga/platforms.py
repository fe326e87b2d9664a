"""Pins of boards that ``amaranth_boards`` lacks."""

from amaranth.build import Attrs, Clock, Pins, Resource
from amaranth.vendor import GowinPlatform, XilinxPlatform
from amaranth_boards.resources import ButtonResources, LEDResources, UARTResource

__all__ = ["PynqZ2Platform", "TangNano20kPlatform", "ZyboZ720Platform"]

_LVCMOS33 = Attrs(IO_TYPE="LVCMOS33")
_XILINX33 = Attrs(IOSTANDARD="LVCMOS33")


class TangNano20kPlatform(GowinPlatform):
    """Sipeed Tang Nano 20K."""

    part = "GW2AR-LV18QN88C8/I7"
    family = "GW2AR-18C"
    # The memory beside the die in the package is no matter for the tools.
    _chipdb_device = "GW2A-18C"
    default_clk = "clk27"
    resources = [
        Resource("clk27", 0, Pins("4", dir="i"), Clock(27e6), _LVCMOS33),
        *LEDResources(pins="15 16 17 18 19 20", invert=True, attrs=_LVCMOS33),
        *ButtonResources(pins="88 87", attrs=_LVCMOS33),
        UARTResource(0, rx="70", tx="69", attrs=Attrs(PULL_MODE="UP", IO_TYPE="LVCMOS33")),
    ]
    connectors = []


class _Zynq7020(XilinxPlatform):
    """A board with an XC7Z020-1CLG400C whose serial line is at a Pmod."""

    device = "xc7z020"
    package = "clg400"
    speed = "1"
    default_clk = "clk125"
    connectors = []


class ZyboZ720Platform(_Zynq7020):
    """Digilent Zybo Z7-20; serial line at Pmod JE."""

    resources = [
        Resource("clk125", 0, Pins("K17", dir="i"), Clock(125e6), _XILINX33),
        *LEDResources(pins="M14 M15 G14 D18", attrs=_XILINX33),
        UARTResource(0, rx="W16", tx="V12", attrs=_XILINX33),
    ]


class PynqZ2Platform(_Zynq7020):
    """TUL PYNQ-Z2; serial line at Pmod A."""

    resources = [
        Resource("clk125", 0, Pins("H16", dir="i"), Clock(125e6), _XILINX33),
        *LEDResources(pins="R14 P14 N16 M14", attrs=_XILINX33),
        UARTResource(0, rx="Y19", tx="Y18", attrs=_XILINX33),
    ]
