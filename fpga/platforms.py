"""Pins of boards that ``amaranth_boards`` lacks."""

from amaranth.build import Attrs, Clock, Pins, Resource
from amaranth.vendor import GowinPlatform
from amaranth_boards.resources import ButtonResources, LEDResources, UARTResource

__all__ = ["TangNano20kPlatform"]

_LVCMOS33 = Attrs(IO_TYPE="LVCMOS33")


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
