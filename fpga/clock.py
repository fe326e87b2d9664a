"""The core's clock, made by the FPGA's own PLL from the board's oscillator, within its limits."""

from typing import NamedTuple

from amaranth.hdl import Const, Instance, Module, Signal
from amaranth.lib import io, wiring
from amaranth.lib.wiring import Out

__all__ = [
    "Clock",
    "ClockError",
    "Dividers",
    "Ecp5Clock",
    "GowinClock",
    "Ice40Clock",
    "Limits",
    "XilinxClock",
    "dividers",
]


class ClockError(ValueError):
    """A frequency that a PLL cannot make."""


class Limits(NamedTuple):
    """What a PLL can do: lowest and highest frequencies, in Hz, and its dividers.

    The oscillator's frequency, divided by ``inputs``, is compared with what is fed back, divided by
    ``feedbacks``: the output, or the VCO itself. ``outputs`` divide the VCO's frequency.
    """

    name: str
    compared: tuple[float, float]
    vco: tuple[float, float]
    output: tuple[float, float]
    inputs: range
    feedbacks: range
    outputs: tuple[int, ...]
    feeds_back_vco: bool = False


class Dividers(NamedTuple):
    """Dividers of a PLL, see :class:`Limits`."""

    input: int
    feedback: int
    output: int


def dividers(limits: Limits, source: int, target: int) -> Dividers:
    """Choose the dividers that make one frequency from another, exactly.

    Of those within the limits, the ones that compare at the highest frequency are chosen, then the
    ones with the VCO nearest to the middle of its range: both give the least jitter.

    Parameters
    ----------
    limits
        The PLL.
    source, target
        Frequencies in Hz.

    Raises
    ------
    ClockError
        If the PLL cannot make it.
    """
    found = []
    middle = sum(limits.vco) / 2
    for divide in limits.inputs:
        compared = source / divide
        if not limits.compared[0] <= compared <= limits.compared[1]:
            continue
        for output in limits.outputs:
            vco = target * output
            if not limits.vco[0] <= vco <= limits.vco[1]:
                continue
            feedback, rest = divmod((vco if limits.feeds_back_vco else target) * divide, source)
            if not rest and feedback in limits.feedbacks:
                found.append((-compared, abs(vco - middle), Dividers(divide, feedback, output)))
    if not found or not limits.output[0] <= target <= limits.output[1]:
        raise ClockError(
            f"{limits.name} cannot make {target / 1e6:g} MHz of {source / 1e6:g} MHz exactly "
            "within its limits; choose another clock frequency"
        )
    return min(found)[-1]


class Clock(wiring.Component):
    """Make the core's clock; a family's own class says how.

    Parameters
    ----------
    port
        The oscillator's pin.
    source
        Its frequency, in Hz.
    target
        The core's, in Hz. If it is the same, no PLL is used.

    Members
    -------
    clk : Out(1)
        The clock.
    locked : Out(1)
        It is stable. Asynchronous.

    Raises
    ------
    ClockError
        If the family cannot make this clock.
    """

    clk: Signal
    locked: Signal

    limits: Limits | None = None

    def __init__(self, port: io.PortLike, *, source: int, target: int) -> None:
        self.port = port
        self.source, self.target = source, target
        self.dividers = self.choose(source, target)
        super().__init__({"clk": Out(1), "locked": Out(1)})

    @classmethod
    def choose(cls, source: int, target: int) -> Dividers | None:
        """Choose the PLL's dividers; none if there need not be a PLL.

        Raises
        ------
        ClockError
            If the family cannot make this clock.
        """
        if source == target:
            return None
        if cls.limits is None:
            raise ClockError(
                f"there is no PLL for this board: its clock is {source / 1e6:g} MHz, and "
                f"{target / 1e6:g} MHz cannot be made"
            )
        return dividers(cls.limits, source, target)

    def elaborate(self, platform: object) -> Module:
        """Build the clock."""
        m = Module()
        if self.dividers is None:
            m.d.comb += [self.clk.eq(self.add_pin(m)), self.locked.eq(1)]
        else:
            self.add_pll(m, self.dividers, platform)
        return m

    def add_pll(self, m: Module, dividers: Dividers, platform: object) -> None:
        """Add the PLL, from :attr:`port` to :attr:`clk`."""
        raise NotImplementedError

    def add_pin(self, m: Module) -> Signal:
        """Add a buffer of the oscillator's pin."""
        m.submodules.pin = pin = io.Buffer(io.Direction.Input, self.port)
        return pin.i


class Ecp5Clock(Clock):
    """Clock of a Lattice ECP5; limits of FPGA-DS-02012, sysCLOCK PLL timing."""

    limits = Limits(
        "EHXPLLL",
        (10e6, 400e6),
        (400e6, 800e6),
        (3.125e6, 400e6),
        range(1, 129),
        range(1, 81),
        tuple(range(1, 129)),
    )

    def add_pll(self, m: Module, dividers: Dividers, platform: object) -> None:
        """Add the PLL."""
        low = Const(0, 1)
        m.submodules.pll = Instance(
            "EHXPLLL",
            # Loop filter and charge pump, as Lattice's own tool sets them for these ranges.
            a_ICP_CURRENT="12",
            a_LPF_RESISTOR="8",
            a_MFG_ENABLE_FILTEROPAMP="1",
            a_MFG_GMCREF_SEL="2",
            p_PLLRST_ENA="DISABLED",
            p_INTFB_WAKE="DISABLED",
            p_STDBY_ENABLE="DISABLED",
            p_DPHASE_SOURCE="DISABLED",
            p_OUTDIVIDER_MUXA="DIVA",
            p_CLKI_DIV=dividers.input,
            p_CLKFB_DIV=dividers.feedback,
            p_FEEDBK_PATH="CLKOP",
            p_CLKOP_ENABLE="ENABLED",
            p_CLKOP_DIV=dividers.output,
            p_CLKOP_CPHASE=dividers.output - 1,
            p_CLKOP_FPHASE=0,
            i_RST=low,
            i_STDBY=low,
            i_CLKI=self.add_pin(m),
            i_CLKFB=self.clk,
            i_PHASESEL0=low,
            i_PHASESEL1=low,
            i_PHASEDIR=low,
            i_PHASESTEP=low,
            i_PHASELOADREG=low,
            i_PLLWAKESYNC=low,
            i_ENCLKOP=low,
            o_CLKOP=self.clk,
            o_LOCK=self.locked,
        )


class Ice40Clock(Clock):
    """Clock of a Lattice iCE40 UltraPlus; limits of FPGA-DS-02008, sysCLOCK PLL timing."""

    limits = Limits(
        "SB_PLL40_PAD",
        (10e6, 133e6),
        (533e6, 1066e6),
        (16e6, 275e6),
        range(1, 17),
        range(1, 129),
        (2, 4, 8, 16, 32, 64),
        feeds_back_vco=True,
    )

    def add_pll(self, m: Module, dividers: Dividers, platform: object) -> None:
        """Add the PLL, which the pin leads to directly."""
        compared = self.source / dividers.input
        bounds = (17e6, 26e6, 44e6, 66e6, 101e6)
        m.submodules.pll = Instance(
            "SB_PLL40_PAD",
            p_FEEDBACK_PATH="SIMPLE",
            p_DIVR=Const(dividers.input - 1, 4),
            p_DIVF=Const(dividers.feedback - 1, 7),
            p_DIVQ=Const(dividers.output.bit_length() - 1, 3),
            p_FILTER_RANGE=Const(1 + sum(compared >= bound for bound in bounds), 3),
            i_PACKAGEPIN=self.port.io,  # pyright: ignore[reportAttributeAccessIssue]
            i_RESETB=Const(1),
            i_BYPASS=Const(0),
            o_PLLOUTGLOBAL=self.clk,
            o_LOCK=self.locked,
        )


class GowinClock(Clock):
    """Clock of a Gowin GW1N or GW2A; limits of DS117 and DS102, PLL timing, slowest grades."""

    limits = Limits(
        "rPLL",
        (3e6, 400e6),
        (500e6, 900e6),
        (3.125e6, 450e6),
        range(1, 65),
        range(1, 65),
        (2, 4, 8, *range(16, 129, 16)),
    )

    def add_pll(self, m: Module, dividers: Dividers, platform: object) -> None:
        """Add the PLL."""
        m.submodules.pll = Instance(
            "rPLL",
            p_DEVICE=platform.family,  # pyright: ignore[reportAttributeAccessIssue]
            p_FCLKIN=f"{self.source / 1e6:g}",
            p_IDIV_SEL=dividers.input - 1,
            p_FBDIV_SEL=dividers.feedback - 1,
            p_ODIV_SEL=dividers.output,
            p_DYN_IDIV_SEL="false",
            p_DYN_FBDIV_SEL="false",
            p_DYN_ODIV_SEL="false",
            p_PSDA_SEL="0000",
            p_DUTYDA_SEL="1000",
            p_DYN_DA_EN="false",
            p_DYN_SDIV_SEL=2,
            p_CLKFB_SEL="internal",
            p_CLKOUT_BYPASS="false",
            p_CLKOUTP_BYPASS="false",
            p_CLKOUTD_BYPASS="false",
            p_CLKOUTD_SRC="CLKOUT",
            p_CLKOUTD3_SRC="CLKOUT",
            i_CLKIN=self.add_pin(m),
            i_CLKFB=Const(0, 1),
            i_RESET=Const(0, 1),
            i_RESET_P=Const(0, 1),
            i_FBDSEL=Const(0, 6),
            i_IDSEL=Const(0, 6),
            i_ODSEL=Const(0, 6),
            i_DUTYDA=Const(0, 4),
            i_PSDA=Const(0, 4),
            i_FDLY=Const(0, 4),
            o_CLKOUT=self.clk,
            o_LOCK=self.locked,
        )


class XilinxClock(Clock):
    """Clock of a Xilinx 7 series; limits of DS181, PLL switching characteristics, grade -1."""

    limits = Limits(
        "PLLE2_BASE",
        (19e6, 450e6),
        (800e6, 1600e6),
        (6.25e6, 464e6),
        range(1, 57),
        range(2, 65),
        tuple(range(1, 129)),
        feeds_back_vco=True,
    )

    def add_pll(self, m: Module, dividers: Dividers, platform: object) -> None:
        """Add the PLL, and a global buffer."""
        feedback, clk = Signal(), Signal()
        m.submodules.pll = Instance(
            "PLLE2_BASE",
            p_CLKIN1_PERIOD=1e9 / self.source,
            p_DIVCLK_DIVIDE=dividers.input,
            p_CLKFBOUT_MULT=dividers.feedback,
            p_CLKOUT0_DIVIDE=dividers.output,
            i_CLKIN1=self.add_pin(m),
            i_CLKFBIN=feedback,
            i_RST=Const(0),
            i_PWRDWN=Const(0),
            o_CLKFBOUT=feedback,
            o_CLKOUT0=clk,
            o_LOCKED=self.locked,
        )
        m.submodules.buffer = Instance("BUFG", i_I=clk, o_O=self.clk)
