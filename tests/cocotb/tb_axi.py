# amaranth: UnusedElaboratable=no
"""The device behind AXI against cocotbext-axi's models of a processor and of a DMA engine, with
every handshake stalled at random, and against the executable specification of the commands."""

import random
from collections.abc import Iterator
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.simtime import get_sim_time
from cocotb.triggers import ClockCycles, FallingEdge, RisingEdge
from cocotbext.axi import (
    AxiLiteBus,
    AxiLiteMaster,
    AxiStreamBus,
    AxiStreamSink,
    AxiStreamSource,
)

from ditto.hdl.config import Config
from ditto.hdl.protocol import CommandHeader, LayerEntry, Mode, Opcode, Space, pack
from ditto.host.axi import EMPTY, IDENT, Control, Register, State
from ditto.host.framing import encode
from ditto.sim.cocotb_bench import parameters
from ditto.sim.golden_board import GoldenBoard

CONFIG = Config(**parameters()["config"])


def stalls(share: float) -> Iterator[bool]:
    while True:
        yield random.random() < share


class Bench:
    """A clocked device, and the other ends of its ports."""

    def __init__(self, dut: Any, share: float) -> None:
        self.dut = dut
        Clock(dut.aclk, 10, unit="ns").start()
        reset = {"reset_active_level": False}
        clock = (dut.aclk, dut.aresetn)
        self.bus = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi"), *clock, **reset)
        self.source = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis"), *clock, **reset)
        self.sink = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis"), *clock, **reset)
        if share:
            write, read = self.bus.write_if, self.bus.read_if
            assert write is not None and read is not None
            for channel in (
                *(write.aw_channel, write.w_channel, write.b_channel),
                *(read.ar_channel, read.r_channel),
                *(self.source, self.sink),
            ):
                channel.set_pause_generator(stalls(share))

    async def reset(self) -> None:
        self.dut.aresetn.value = 0
        await ClockCycles(self.dut.aclk, 4)
        self.dut.aresetn.value = 1
        await RisingEdge(self.dut.aclk)
        for name in ("s_axi_b", "s_axi_r", "m_axis_t"):
            cocotb.start_soon(self._watch(name))

    async def _watch(self, name: str) -> None:
        """Fail when a channel withdraws or changes what it offers before it is taken."""
        payloads = {"s_axi_b": ["bresp"], "s_axi_r": ["rdata", "rresp"], "m_axis_t": ["tdata"]}
        prefix, _, letter = name.rpartition("_")
        parts = [getattr(self.dut, f"{prefix}_{part}") for part in payloads[name]]
        valid = getattr(self.dut, f"{prefix}_{letter}valid")
        ready = getattr(self.dut, f"{prefix}_{letter}ready")
        held = None
        while True:
            await FallingEdge(self.dut.aclk)
            offer = [int(part.value) for part in parts] if int(valid.value) else None
            assert held is None or offer == held, f"{name} changed while stalled"
            held = offer if offer is not None and not int(ready.value) else None

    async def read(self, register: Register) -> int:
        return await self.bus.read_dword(register)

    async def write(self, register: Register, value: int) -> None:
        await self.bus.write_dword(register, value)


def commands(count: int) -> list[bytes]:
    """Make frames: IDENTIFY, layers, weights, deltas, runs and reads, and some that are refused."""
    sequence = random.randrange(1 << 16)
    frames = [encode(pack(CommandHeader, sequence=sequence, op=Opcode.IDENTIFY))]
    entry = dict.fromkeys([name for name, _ in LayerEntry.as_shape()], 1)
    bodies = [
        (dict(op=Opcode.WRITE, space=Space.LAYERS), pack(LayerEntry, **entry)),
        (dict(op=Opcode.READ, count=2, size=3), b""),
        (dict(op=Opcode.RUN, mode=Mode.DENSE, address=1), b""),
        (dict(op=Opcode.COUNTERS), b""),
        (dict(op=Opcode.RESET), b""),
        (dict(op=Opcode.READ, count=1, address=60000, size=1), b""),
    ]
    for _ in range(count):
        header, data = random.choice(bodies)
        sequence = (sequence + 1) % (1 << 16)
        frames.append(encode(pack(CommandHeader, sequence=sequence, **header) + data))
    return frames


def answers(frames: list[bytes]) -> list[bytes]:
    """Return what the specification answers, frame by frame."""
    board = GoldenBoard(CONFIG)
    result = []
    for frame in frames:
        board.write(frame)
        answer = b""
        while piece := board.read(1 << 16, 0):
            answer += piece
        result.append(answer)
    return result


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def registers(dut: Any) -> None:
    """Commands through the registers, byte by byte."""
    bench = Bench(dut, 0.4)
    await bench.reset()
    assert await bench.read(Register.IDENT) == IDENT
    assert await bench.read(Register.STATE) == State.CAN_WRITE
    assert await bench.read(Register.CONTROL) == 0
    assert await bench.read(Register.DATA) == EMPTY
    frames = commands(4)
    for frame, answer in zip(frames, answers(frames), strict=True):
        for byte in frame:
            assert await bench.read(Register.STATE) & State.CAN_WRITE
            # What is above the byte does not count.
            await bench.write(Register.DATA, byte | random.getrandbits(24) << 8)
        got = b""
        while len(got) < len(answer):
            word = await bench.read(Register.DATA)
            if word != EMPTY:
                assert word < 256
                got += bytes([word])
        assert got == answer
    assert await bench.read(Register.DATA) == EMPTY
    assert await bench.read(Register.STATE) == State.CAN_WRITE


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def streams(dut: Any) -> None:
    """Commands through the streams; every answer is a packet."""
    bench = Bench(dut, 0.4)
    await bench.reset()
    await bench.write(Register.CONTROL, Control.STREAMS)
    assert await bench.read(Register.CONTROL) == Control.STREAMS
    frames = commands(12)
    for frame, answer in zip(frames, answers(frames), strict=True):
        await bench.source.send(frame)
        got = b""
        while len(got) < len(answer):
            packet = bytes((await bench.sink.recv()).tdata)
            assert packet.index(0) == len(packet) - 1
            got += packet
        assert got == answer
        # The registers answer meanwhile, and see nothing of it.
        assert await bench.read(Register.DATA) == EMPTY


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def full_speed(dut: Any) -> None:
    """Without stalls, a byte a cycle goes through the streams."""
    bench = Bench(dut, 0)
    await bench.reset()
    await bench.write(Register.CONTROL, Control.STREAMS)
    begun = get_sim_time("ns")
    await bench.source.send(bytes(200))
    await bench.source.wait()
    assert get_sim_time("ns") - begun < 10 * 210


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def lost_bytes_are_noticed(dut: Any) -> None:
    """Write while the device cannot take: STATE tells, until a reset."""
    bench = Bench(dut, 0)
    await bench.reset()
    # Nobody looks at the registers, so nothing is read.
    await bench.write(Register.CONTROL, Control.STREAMS)
    written = 0
    while await bench.read(Register.STATE) & State.CAN_WRITE:
        await bench.write(Register.DATA, 0)
        written += 1
    assert written >= 512
    assert await bench.read(Register.STATE) == 0
    await bench.write(Register.DATA, 0)
    assert await bench.read(Register.STATE) == State.LOST
    # A write of the other bytes of the register is none.
    await bench.bus.write(Register.CONTROL + 1, b"\xff")
    assert await bench.read(Register.CONTROL) == Control.STREAMS
    await bench.reset()
    assert await bench.read(Register.STATE) == State.CAN_WRITE
