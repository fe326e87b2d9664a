"""A board's top: clock, reset, serial line and lights around the device."""

from typing import Any

from amaranth.hdl import ClockDomain, ClockSignal, Elaboratable, Module, ResetSignal, Signal
from amaranth.lib import io
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import connect

from ditto.fpga.boards import Board
from ditto.fpga.uart import Uart
from ditto.hdl.config import Config
from ditto.hdl.protocol import NO_BUILD
from ditto.hdl.top import Top

__all__ = ["BoardTop"]

_RESET_CYCLES = 1 << 10
"""Reset after the clock is stable: iCE40 needs 15 us until its block memories work."""

_BEAT_SECONDS = 1.0
_GLOW = 4  # times that activity may blink in a beat


class BoardTop(Elaboratable):
    """A device on a board.

    Three lights, where a board has them: a heartbeat (on and off once in a second or two), bytes on
    the link, and bytes that were lost on it.

    Parameters
    ----------
    board
        The board.
    config
        The device.
    frequency, baud
        Frequency of the core's clock and bits per second of the link, in Hz.
    build
        What the device was made of, see :func:`ditto.hdl.protocol.identity`.
    """

    def __init__(
        self,
        board: Board,
        config: Config,
        *,
        frequency: int,
        baud: int,
        build: bytes = NO_BUILD,
    ) -> None:
        self.board, self.config = board, config
        self.frequency, self.baud = frequency, baud
        self.build = build

    def elaborate(self, platform: Any) -> Module:
        """Build the top."""
        m = Module()
        self._add_clock(m, platform)
        m.submodules.uart = uart = Uart(frequency=self.frequency, baud=self.baud)
        m.submodules.device = device = Top(self.config, self.build)
        connect(m, uart.o, device.i)
        connect(m, device.o, uart.i)

        pins = platform.request(*self.board.uart, dir="-")
        m.submodules.rx = rx = io.Buffer(io.Direction.Input, pins.rx)
        m.submodules.tx = tx = io.Buffer(io.Direction.Output, pins.tx)
        m.d.comb += [uart.rx.eq(rx.i), tx.o.eq(uart.tx)]
        self._add_lights(m, platform, uart)
        return m

    def _add_clock(self, m: Module, platform: Any) -> None:
        """Add the domain ``sync``, and its reset from power-up on."""
        source = platform.default_clk_frequency
        m.submodules.clock = clock = self.board.family.clock(
            platform.request(platform.default_clk, dir="-"),
            source=round(source),
            target=self.frequency,
        )
        m.domains.sync = ClockDomain()
        m.domains.start = ClockDomain(reset_less=True, local=True)
        m.d.comb += [ClockSignal("sync").eq(clock.clk), ClockSignal("start").eq(clock.clk)]
        hold = Signal()
        m.d.comb += hold.eq(~clock.locked)
        if platform.default_rst is not None:
            button = io.Buffer(io.Direction.Input, platform.request(platform.default_rst, dir="-"))
            m.submodules.button = button
            m.d.comb += hold.eq(~clock.locked | button.i)
        held = Signal(init=1)
        m.submodules.hold = FFSynchronizer(hold, held, o_domain="start", init=1)
        left = Signal(range(_RESET_CYCLES), init=_RESET_CYCLES - 1)
        reset = Signal(init=1)
        m.d.start += reset.eq(left != 0)
        with m.If(held):
            m.d.start += left.eq(_RESET_CYCLES - 1)
        with m.Elif(left != 0):
            m.d.start += left.eq(left - 1)
        m.d.comb += ResetSignal("sync").eq(reset)

    def _add_lights(self, m: Module, platform: Any, uart: Uart) -> None:
        """Add the lights."""
        if not self.board.leds:
            return
        width = max(_GLOW, (round(self.frequency * _BEAT_SECONDS) - 1).bit_length())
        beat = Signal(width)
        m.d.sync += beat.eq(beat + 1)
        blink = Signal()
        m.d.sync += blink.eq(beat[: width - _GLOW.bit_length()] == 0)
        moved = (uart.o.valid & uart.o.ready) | (uart.i.valid & uart.i.ready)
        lost = uart.framing_error | uart.overrun
        states = [beat[-1]]
        for name, event in (("active", moved), ("failed", lost)):
            # On from the event until the blink after the next.
            seen, light = Signal(name=f"{name}_seen"), Signal(name=name)
            with m.If(blink):
                m.d.sync += [light.eq(seen), seen.eq(0)]
            with m.If(event):
                m.d.sync += [light.eq(1), seen.eq(1)]
            states.append(light)
        # Lights of several colors are one resource.
        requested: dict[tuple[str, str], Any] = {}
        for index, (path, state) in enumerate(zip(self.board.leds, states, strict=False)):
            name, number, *members = path.split("/")
            if (name, number) not in requested:
                requested[name, number] = platform.request(name, int(number), dir="-")
            port = requested[name, number]
            for member in members:
                port = getattr(port, member)
            m.submodules[f"light_{index}"] = light = io.Buffer(io.Direction.Output, port)
            m.d.comb += light.o.eq(state)
