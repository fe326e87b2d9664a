"""The board's top, through its pins."""

from types import SimpleNamespace
from typing import Any

from amaranth.hdl import Elaboratable, Fragment
from amaranth.lib import io
from amaranth.sim import Simulator

from ditto.fpga.boards import Board
from ditto.fpga.clock import Clock
from ditto.fpga.families import Family
from ditto.fpga.top import BoardTop
from ditto.hdl.config import Config
from ditto.hdl.protocol import CommandHeader, Opcode, identity, pack
from ditto.host.framing import Decoder, encode

SMALL = Config(
    clusters=1,
    lanes=1,
    columns=2,
    accumulator_bits=24,
    weight_rows=64,
    accumulator_rows=64,
    item_depth=64,
    positions=16,
    channels=8,
    list_depth=4,
    layers=4,
    frame_bytes=128,
)
FREQUENCY, BAUD = 4_000_000, 1_000_000
BUILD = bytes(range(1, 9))

BOARD = Board(
    title="Bench",
    platform="",
    family=Family(name="none", gateware=object, clock=Clock),
    frequency=FREQUENCY,
    baud=BAUD,
    bridge="none",
    config=SMALL,
    leds=("led/0", "rgb/0/b", "rgb/0/r"),
)


class Pins:
    """A platform whose pins are signals."""

    default_clk, default_rst = "clk", "rst"
    default_clk_frequency = float(FREQUENCY)

    def __init__(self) -> None:
        def port(direction: io.Direction | str) -> io.SimulationPort:
            return io.SimulationPort(direction, 1)

        self.rx, self.tx, self.clk, self.rst = port("i"), port("o"), port("i"), port("i")
        self.lights = [port("o") for _ in range(3)]
        self._resources = {
            ("clk", 0): self.clk,
            ("rst", 0): self.rst,
            ("uart", 0): SimpleNamespace(rx=self.rx, tx=self.tx),
            ("led", 0): self.lights[0],
            ("rgb", 0): SimpleNamespace(b=self.lights[1], r=self.lights[2]),
        }

    def request(self, name: str, number: int = 0, *, dir: str) -> Any:
        assert dir == "-"
        return self._resources.pop((name, number))  # once


class OnPins(Elaboratable):
    """A top, built for a platform that the simulator does not know of."""

    def __init__(self, top: BoardTop, pins: Pins) -> None:
        self.top, self.pins = top, pins

    def elaborate(self, platform: object) -> Fragment:
        return Fragment.get(self.top, self.pins)


def test_device_answers_through_the_pins() -> None:
    pins = Pins()
    top = BoardTop(BOARD, SMALL, frequency=FREQUENCY, baud=BAUD, build=BUILD)
    sim = Simulator(OnPins(top, pins))
    half = 0.5 / FREQUENCY
    seen: list[int] = []
    lights: list[list[int]] = []

    async def clock(ctx: Any) -> None:
        while True:
            ctx.set(pins.clk.i, 1)
            await ctx.delay(half)
            ctx.set(pins.clk.i, 0)
            await ctx.delay(half)

    async def send(ctx: Any, byte: int, stop: int = 1) -> None:
        for bit in (0, *((byte >> i) & 1 for i in range(8)), stop):
            ctx.set(pins.rx.i, bit)
            await ctx.delay(1 / BAUD)
        ctx.set(pins.rx.i, 1)

    def note(ctx: Any) -> None:
        lights.append([ctx.get(light.o) for light in pins.lights])

    async def host(ctx: Any) -> None:
        ctx.set(pins.rx.i, 1)
        # A byte during the reset is none.
        await send(ctx, 0x55)
        await ctx.delay(1200 / FREQUENCY)
        note(ctx)
        for byte in encode(pack(CommandHeader, sequence=7, op=Opcode.IDENTIFY)):
            await send(ctx, byte)
        await ctx.delay(20 / BAUD)
        note(ctx)
        await ctx.delay(1200 / BAUD)
        await send(ctx, 0x00, stop=0)
        await ctx.delay(2 / BAUD)
        note(ctx)

    async def listen(ctx: Any) -> None:
        while True:
            while ctx.get(pins.tx.o):
                await ctx.delay(0.25 / BAUD)
            await ctx.delay(1.25 / BAUD)
            byte = 0
            for bit in range(8):
                byte |= ctx.get(pins.tx.o) << bit
                await ctx.delay(1 / BAUD)
            assert ctx.get(pins.tx.o), "stop bit"
            seen.append(byte)

    sim.add_process(clock)
    sim.add_testbench(host)
    sim.add_testbench(listen, background=True)
    sim.run()
    decoder = Decoder()
    (answer,) = decoder.feed(bytes(seen))
    assert answer[4:] == identity(SMALL.digest, SMALL.pack(), BUILD)
    assert [link for _, link, _ in lights] == [0, 1, 1]
    assert [error for _, _, error in lights] == [0, 0, 1]
