"""The boards that Ditto is built for: the one table that builds, commands and documents read."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from ditto.fpga.clock import ClockError
from ditto.fpga.families import ECP5, GOWIN, ICE40, INTEL, XILINX, Family
from ditto.fpga.tools import MissingToolError
from ditto.fpga.uart import LEAST_CYCLES
from ditto.hdl.config import Config, demo

__all__ = ["BOARDS", "Board", "UnknownBoardError", "board_of"]


class UnknownBoardError(Exception):
    """A board that is not in the table."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board.

    Parameters
    ----------
    title
        Its name, as people write it.
    platform
        Module and class of its pins, ``module:class``, as ``amaranth_boards`` has them.
    family
        What builds for it.
    frequency
        Frequency of the core's clock, in Hz; place and route aims a tenth above.
    baud
        Fastest rate of the serial line that its bridge is known to do and operating systems have a
        name for, in bits per second; these names end at 4,000,000.
    bridge
        What stands between the serial line and the computer.
    config
        A device that fits.
    leds
        Up to three lights: heartbeat, link, error. ``name/number``, or ``name/number/member``.
    uart
        Name and number of the serial line.
    loader
        Options of openFPGALoader; none if it does not know the board.
    processor
        Name of a board with a processor among Vivado's board files.
    note
        What else its user must know.
    is_simulated_as_netlist
        Whether the tests run its netlist, through the pins.
    """

    title: str
    platform: str
    family: Family
    frequency: int
    baud: int
    bridge: str
    config: Config
    leds: tuple[str, ...] = ()
    uart: tuple[str, int] = ("uart", 0)
    loader: tuple[str, ...] = ()
    processor: str = ""
    note: str = ""
    is_simulated_as_netlist: bool = False

    def open_platform(self, config: Config) -> Any:
        """Make the board's platform, with what its family adds for the gateware.

        Raises
        ------
        MissingToolError
            If ``amaranth_boards`` is missing.
        """
        module, name = self.platform.split(":")
        try:
            pins = getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            raise MissingToolError(
                f"the boards' pins are missing: there is no {error.name}; install them by: "
                f"{sys.executable} -m pip install 'ditto-accel[boards]'"
            ) from error
        platform = type(name, (self.family.gateware, pins), {"config": config})
        return platform()

    def check_rates(self, frequency: int, baud: int) -> None:
        """Check that a clock can be made, and that it is fast enough for the serial line.

        Raises
        ------
        ClockError
            If not.
        """
        platform = self.open_platform(self.config)
        self.family.clock.choose(round(platform.default_clk_frequency), frequency)
        if frequency < LEAST_CYCLES * baud:
            raise ClockError(
                f"a bit of {baud} Bd has {frequency / baud:.1f} cycles of {frequency / 1e6:g} MHz, "
                f"and the serial line needs {LEAST_CYCLES}; choose a slower rate or a faster clock"
            )


_SMALL = Config(
    clusters=1,
    lanes=2,
    columns=16,
    accumulator_bits=24,
    weight_rows=2048,
    accumulator_rows=512,
    item_depth=4096,
    positions=256,
    channels=64,
    layers=32,
)
_MIDDLE = replace(_SMALL, clusters=2)

_ULX3S = Board(
    title="ULX3S",
    platform="",
    family=ECP5,
    frequency=62_500_000,
    baud=3_000_000,
    bridge="FT231X",
    config=_SMALL,
    leds=("led/0", "led/1", "led/2"),
    loader=("-b", "ulx3s"),
)


def _ulx3s(size: str, config: Config) -> Board:
    return replace(
        _ULX3S,
        title=f"ULX3S {size}",
        platform=f"amaranth_boards.ulx3s:ULX3S_{size}_Platform",
        config=config,
    )


_WITH_PROCESSOR = (
    "For PYNQ, `ditto build` writes the device with AXI ports, too, and `overlay.tcl`, of which "
    "Vivado makes `ditto.bit` and `ditto.hwh`; `ditto.host.axi` drives it."
)

_UP5K = Config(
    clusters=1,
    lanes=1,
    columns=6,
    digit_bits=9,
    accumulator_bits=22,
    weight_rows=16384,
    accumulator_rows=256,
    item_depth=4096,
    positions=64,
    channels=32,
    list_depth=9,
    layers=8,
    frame_bytes=256,
)


_BL702_NOTE = (
    "The rate of the serial line is one at which a [user of this bridge]"
    "(https://github.com/sipeed/TangNano-9K-example/issues/7) had no errors; others had them. If "
    "the link is not sound, build with `--baud 1000000`, and give that to the driver, too."
)
_SLOW_NOTE = (
    "The rate of the serial line is that of other designs for this bridge: no source was found for "
    "a faster one. Try `--baud 1000000`, with `ditto build` and with the driver."
)
_GOWIN_SMALL = replace(_SMALL, lanes=1, columns=8, weight_rows=1024)

BOARDS: Mapping[str, Board] = {
    "ulx3s-12f": _ulx3s("12F", _SMALL),
    "ulx3s-25f": _ulx3s("25F", _SMALL),
    "ulx3s-45f": _ulx3s("45F", _MIDDLE),
    "ulx3s-85f": replace(_ulx3s("85F", demo), is_simulated_as_netlist=True),
    "ecpix5-45f": Board(
        title="ECPIX-5 45F",
        platform="amaranth_boards.ecpix5:ECPIX545Platform",
        family=ECP5,
        frequency=75_000_000,
        baud=4_000_000,
        bridge="FT2232H",
        config=_MIDDLE,
        leds=("rgb_led/0/g", "rgb_led/1/b", "rgb_led/2/r"),
        loader=("-b", "ecpix5"),
    ),
    "ecpix5-85f": Board(
        title="ECPIX-5 85F",
        platform="amaranth_boards.ecpix5:ECPIX585Platform",
        family=ECP5,
        frequency=75_000_000,
        baud=4_000_000,
        bridge="FT2232H",
        config=demo,
        leds=("rgb_led/0/g", "rgb_led/1/b", "rgb_led/2/r"),
        loader=("-b", "ecpix5"),
    ),
    "colorlight-5a-75b": Board(
        title="Colorlight 5A-75B r7.0",
        platform="amaranth_boards.colorlight_5a75b_r7_0:Colorlight_5A75B_R70Platform",
        family=ECP5,
        frequency=62_500_000,
        baud=3_000_000,
        bridge="none; any of 3.3 V, such as FT232H",
        config=_SMALL,
        loader=("-b", "colorlight"),
        note="The serial line is at J19: DATA_LED- is the board's output, KEY+ its input. "
        "The only light is on the same pin, so there is none.",
    ),
    "icesugar-pro": Board(
        title="iCESugar-Pro",
        platform="amaranth_boards.icesugar_pro:ICESugarProPlatform",
        family=ECP5,
        frequency=62_500_000,
        baud=115_200,
        bridge="iCELink (a microcontroller's CDC)",
        config=_SMALL,
        leds=("rgb_led/0/g", "rgb_led/0/b", "rgb_led/0/r"),
        loader=("-c", "cmsisdap"),
        note=_SLOW_NOTE,
    ),
    "icepi-zero": Board(
        title="Icepi Zero v1.3",
        platform="amaranth_boards.icepi_zero:IcepiZero1_3Platform",
        family=ECP5,
        frequency=62_500_000,
        baud=3_000_000,
        bridge="FT231X",
        config=_SMALL,
        leds=("led/0", "led/1", "led/2"),
        loader=("-b", "icepi-zero"),
    ),
    "versa-ecp5": Board(
        title="Lattice Versa ECP5",
        platform="amaranth_boards.versa_ecp5:VersaECP5Platform",
        family=ECP5,
        frequency=75_000_000,
        baud=4_000_000,
        bridge="FT2232H",
        config=_MIDDLE,
        leds=("led/0", "led/1", "led/2"),
        loader=("-c", "ft2232"),
    ),
    "icebreaker": Board(
        title="iCEBreaker",
        platform="amaranth_boards.icebreaker:ICEBreakerPlatform",
        family=ICE40,
        frequency=24_000_000,
        baud=4_000_000,
        bridge="FT2232H",
        config=_UP5K,
        leds=("led_g/0", "led_r/0"),
        loader=("-b", "ice40_generic"),
        note="Here and on the iCESugar, the array has six of the eight multiplier blocks, and the "
        "engine one: in each cycle a word of weights and a work item come from the four "
        "single-port memories of 16 bits, which is enough for six columns of 8 bits.",
        is_simulated_as_netlist=True,
    ),
    "icesugar": Board(
        title="iCESugar",
        platform="amaranth_boards.icesugar:ICESugarPlatform",
        family=ICE40,
        frequency=24_000_000,
        baud=115_200,
        bridge="iCELink (a microcontroller's CDC)",
        config=_UP5K,
        leds=("led_g/0", "led_b/0", "led_r/0"),
        note="Programmed by copying the file to the drive iCELink. " + _SLOW_NOTE,
    ),
    "tang-nano-9k": Board(
        title="Tang Nano 9K",
        platform="amaranth_boards.tang_nano_9k:TangNano9kPlatform",
        family=GOWIN,
        frequency=54_000_000,
        baud=3_000_000,
        bridge="BL702",
        config=replace(_GOWIN_SMALL, columns=4),  # with eight, placing takes many minutes
        leds=("led/0", "led/1", "led/2"),
        loader=("-b", "tangnano9k"),
        note=_BL702_NOTE,
    ),
    "tang-primer-20k": Board(
        title="Tang Primer 20K, dock",
        platform="amaranth_boards.tang_primer_20k:TangPrimer20kDockPlatform",
        family=GOWIN,
        frequency=81_000_000,
        baud=3_000_000,
        bridge="BL702",
        config=_GOWIN_SMALL,
        leds=("led/0", "led/1", "led/2"),
        loader=("-b", "tangprimer20k"),
        note=_BL702_NOTE,
    ),
    "tang-nano-20k": Board(
        title="Tang Nano 20K",
        platform="ditto.fpga.platforms:TangNano20kPlatform",
        family=GOWIN,
        frequency=81_000_000,
        baud=115_200,
        bridge="BL616",
        config=_GOWIN_SMALL,
        leds=("led/0", "led/1", "led/2"),
        loader=("-b", "tangnano20k"),
        note="With firmware 2024122312 of the bridge, rates are wrong by four: [update it]"
        "(https://wiki.sipeed.com/hardware/en/tang/common-doc/update_debugger.html). " + _SLOW_NOTE,
    ),
    "arty-a7-35t": Board(
        title="Arty A7-35T",
        platform="amaranth_boards.arty_a7:ArtyA7_35Platform",
        family=XILINX,
        frequency=50_000_000,
        baud=4_000_000,
        bridge="FT2232H",
        config=_MIDDLE,
        leds=("led/0", "led/1", "led/2"),
        loader=("-b", "arty_a7_35t"),
    ),
    "arty-a7-100t": Board(
        title="Arty A7-100T",
        platform="amaranth_boards.arty_a7:ArtyA7_100Platform",
        family=XILINX,
        frequency=50_000_000,
        baud=4_000_000,
        bridge="FT2232H",
        config=demo,
        leds=("led/0", "led/1", "led/2"),
        loader=("-b", "arty_a7_100t"),
    ),
    "nexys4-ddr": Board(
        title="Nexys 4 DDR (A7-100T)",
        platform="amaranth_boards.nexys4ddr:Nexys4DDRPlatform",
        family=XILINX,
        frequency=50_000_000,
        baud=4_000_000,
        bridge="FT2232H",
        config=demo,
        leds=("led/0", "led/1", "led/2"),
        loader=("-b", "nexys_a7_100"),
    ),
    "zybo-z7-20": Board(
        title="Zybo Z7-20",
        platform="ditto.fpga.platforms:ZyboZ720Platform",
        family=XILINX,
        frequency=50_000_000,
        baud=3_000_000,
        bridge="none; any of 3.3 V, such as FT232H",
        config=demo,
        leds=("led/0", "led/1", "led/2"),
        loader=("-b", "zybo_z7_20"),
        processor="zybo-z7-20",
        note="The serial line is at Pmod JE: pin 1 is the board's output, pin 2 its input. "
        + _WITH_PROCESSOR,
    ),
    "pynq-z2": Board(
        title="PYNQ-Z2",
        platform="ditto.fpga.platforms:PynqZ2Platform",
        family=XILINX,
        frequency=50_000_000,
        baud=3_000_000,
        bridge="none; any of 3.3 V, such as FT232H",
        config=demo,
        leds=("led/0", "led/1", "led/2"),
        loader=("-b", "pynq_z2"),
        processor="pynq-z2",
        note="The serial line is at Pmod A: pin 1 is the board's output, pin 2 its input. "
        + _WITH_PROCESSOR,
    ),
    "de10-nano": Board(
        title="DE10-Nano",
        platform="amaranth_boards.de10_nano:DE10NanoPlatform",
        family=INTEL,
        frequency=50_000_000,
        baud=3_000_000,
        bridge="none; any of 3.3 V, such as FT232H",
        config=demo,
        leds=("led/0", "led/1", "led/2"),
        loader=("-b", "de10nano"),
        note="The serial line is at the Arduino header: TXD (D1) is the board's output, RXD (D0) "
        "its input.",
    ),
}
"""Boards by name."""


def board_of(name: str) -> Board:
    """Return a board.

    Raises
    ------
    UnknownBoardError
        If there is none of this name.
    """
    try:
        return BOARDS[name]
    except KeyError:
        raise UnknownBoardError(
            f"there is no board {name!r} to build for; choose from {', '.join(BOARDS)}"
        ) from None
