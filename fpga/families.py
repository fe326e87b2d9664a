"""The families of FPGAs, and how the open tools build for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ditto.fpga.clock import Clock, Ecp5Clock, GowinClock, Ice40Clock, XilinxClock
from ditto.fpga.ecp5 import Ecp5
from ditto.fpga.ice40 import Ice40

__all__ = ["ECP5", "GOWIN", "ICE40", "INTEL", "XILINX", "Family"]


class Plain:
    """A platform that has nothing special for the gateware."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of FPGAs; without :attr:`nextpnr`, one that needs its vendor's tools.

    Parameters
    ----------
    name
        Its name.
    gateware
        Class whose methods the gateware finds on its platform.
    clock
        Its clock.
    synthesis
        Yosys' command, but for the name of the top.
    nextpnr
        Name of the tool that places and routes.
    adapt
        Makes its options from those that Amaranth has for it.
    constraints, routed, product
        The files of pins, of what place and route makes, and of the bitstream, as Amaranth names
        them.
    cells
        The cells that there are only so many of, by nextpnr's name, and what they are.
    """

    name: str
    gateware: type
    clock: type[Clock]
    synthesis: str = ""
    nextpnr: str = ""
    constraints: str = ""
    routed: str = ""
    product: str = ""
    adapt: Callable[[list[str]], list[str]] = list
    cells: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_vendor(self) -> bool:
        """Whether only the vendor's tools build for it."""
        return not self.nextpnr


def _gowin_options(words: list[str]) -> list[str]:
    """Translate the options of nextpnr-gowin, which Amaranth still calls."""
    options = dict(zip(words[::2], words[1::2], strict=True))
    return [
        *("--device", options["--device"]),
        *("--vopt", f"family={options['--family']}"),
        *("--vopt", f"cst={options['--cst']}"),
        *("--write", options["--write"]),
    ]


ECP5 = Family(
    name="ECP5",
    gateware=Ecp5,
    clock=Ecp5Clock,
    # Wide multiplexers and the mapper's second version take more LUTs than they save here.
    synthesis="synth_ecp5 -nowidelut -noabc9",
    nextpnr="nextpnr-ecp5",
    constraints="top.lpf",
    routed="top.config",
    product="top.bit",
    cells={
        "TRELLIS_COMB": "LUTs",
        "TRELLIS_FF": "flip-flops",
        "TRELLIS_RAMW": "distributed memories",
        "DP16KD": "block memories",
        "MULT18X18D": "multiplier blocks",
    },
)

ICE40 = Family(
    name="iCE40 UltraPlus",
    gateware=Ice40,
    clock=Ice40Clock,
    # Yosys drops the top bit of the lanes' sums, and then does not take what is left of their
    # initial value into a multiplier block. Nothing depends on it. The FPGA is full: fewer LUTs are
    # worth more than paths (in ps, without the wires) that are shorter than the clock needs. The
    # eight flip-flops of a tile share an enable: one of few would leave the rest of a tile unused.
    synthesis="setattr -unset init */w:total; scratchpad -set abc9.D 30000; "
    "scratchpad -copy abc9.script.flow3 abc9.script; synth_ice40 -device u -dsp -dffe_min_ce_use 4",
    nextpnr="nextpnr-ice40",
    constraints="top.pcf",
    routed="top.asc",
    product="top.bin",
    cells={
        "ICESTORM_LC": "logic cells",
        "ICESTORM_RAM": "block memories",
        "ICESTORM_SPRAM": "single-port memories",
        "ICESTORM_DSP": "multiplier blocks",
    },
)

GOWIN = Family(
    name="Gowin",
    gateware=Plain,
    clock=GowinClock,
    synthesis="synth_gowin -nowidelut -noabc9",
    nextpnr="nextpnr-himbaechel-gowin",
    constraints="top.cst",
    routed="top.pnr.json",
    product="top.fs",
    adapt=_gowin_options,
    cells={
        "LUT4": "LUTs",
        "DFF": "flip-flops",
        "BSRAM": "block memories",
        "MULT9X9": "multiplier blocks of 9 x 9 bits",
        "MULT18X18": "multiplier blocks of 18 x 18 bits",
    },
)

XILINX = Family(name="Xilinx 7 series", gateware=Plain, clock=XilinxClock)

INTEL = Family(name="Intel Cyclone V", gateware=Plain, clock=Clock)
