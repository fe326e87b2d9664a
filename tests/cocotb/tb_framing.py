"""Framer and deframer against the driver's own framing, at any length and with any damage."""

import random
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, RisingEdge

from ditto.hdl.framing import PACKET
from ditto.host.framing import Decoder, encode
from ditto.sim.cocotb_bench import Sink, Source, parameters, start
from ditto.sim.testbench import pauses

PARAMETERS = parameters()
IS_FRAMER = PARAMETERS["top"] == "framer"
LENGTHS: list[int] = PARAMETERS["lengths"]
FRAMES: int = PARAMETERS["frames"]
FRAME_BYTES: int = PARAMETERS["frame_bytes"]


def random_body(length: int) -> bytes:
    match random.randrange(4):
        case 0:
            return bytes(length)
        case 1:
            return bytes(random.randint(1, 255) for _ in range(length))
        case 2:
            return random.randbytes(length)
        case _:
            return bytes(random.choices((0, 1, 255), (6, 1, 1), k=length))


def packets(body: bytes) -> list[int]:
    return [*body[:-1], body[-1] | 1 << 8]


async def collect(sink: Sink, bodies: list[bytes]) -> None:
    body = bytearray()
    async for byte in sink.each():
        body.append(byte.data)
        if byte.last:
            bodies.append(bytes(body))
            body.clear()


async def frame(dut: Any, bodies: list[bytes], **kwargs: Any) -> None:
    """Send bodies through the framer and compare with the driver's frames."""
    source = Source(dut, "i", gaps=kwargs.get("gaps"))
    sink = Sink(dut, "o", stalls=kwargs.get("stalls"))
    await start(dut, "i", "o")

    async def send() -> None:
        for body in bodies:
            await source.send(packets(body))

    sender = cocotb.start_soon(send())
    for n, body in enumerate(bodies):
        wanted = encode(body)
        got = bytes(await sink.receive(len(wanted)))
        assert got == wanted, f"frame {n}: got {got.hex()}, want {wanted.hex()}"
    await sender


async def deframe(dut: Any, link: bytes, **kwargs: Any) -> None:
    """Send bytes through the deframer and compare with the driver's decoder."""
    source = Source(dut, "i", gaps=kwargs.get("gaps"))
    sink = Sink(dut, "o", shape=PACKET, stalls=kwargs.get("stalls"))
    await start(dut, "i", "o")
    got: list[bytes] = []
    cocotb.start_soon(collect(sink, got))
    # The last byte is taken only after everything before it has come out.
    await source.send(link + b"\0")
    await ClockCycles(dut.clk, 10)
    wanted = Decoder(max_frame=FRAME_BYTES).feed(link)
    for n, (body, want) in enumerate(zip(got, wanted, strict=False)):
        assert body == want, f"body {n}: got {body.hex()}, want {want.hex()}"
    assert len(got) == len(wanted)


def damaged_link() -> bytes:
    """Mix frames that are right, wrong and too long with other bytes."""
    link = bytearray()
    for _ in range(FRAMES):
        part = bytearray(encode(random_body(random.randint(1, min(120, FRAME_BYTES)))))
        match random.randrange(10):
            case 0:
                part[random.randrange(len(part))] ^= 1 << random.randrange(8)
            case 1:
                del part[random.randrange(len(part)) :]
            case 2:
                del part[: random.randrange(len(part))]
            case 3:
                at = random.randrange(len(part))
                del part[at : at + random.randint(1, 3)]
            case 4:
                part = bytearray(random.randbytes(random.randint(1, 300)))
            case 5:
                part = bytearray(encode(random_body(FRAME_BYTES - 4 + random.randint(0, 2))))
            case 6:
                part.pop()  # Without the zero, the next one may belong to it.
            case _:
                pass
        link += part
    return bytes(link) + b"\0"


@cocotb.test(skip=not IS_FRAMER)
async def framer_takes_every_length(dut: Any) -> None:
    await frame(dut, [random_body(length) for length in LENGTHS])


@cocotb.test(skip=not IS_FRAMER)
@cocotb.parametrize(share=[0.1, 0.8])
async def framer_under_stalls(dut: Any, share: float) -> None:
    bodies = [random_body(random.choice(LENGTHS)) for _ in range(FRAMES // 10)]
    gaps = pauses(random.random(), share=share)
    stalls = pauses(random.random(), share=1 - share, longest=6)
    await frame(dut, bodies, gaps=gaps, stalls=stalls)


@cocotb.test(skip=not IS_FRAMER)
async def framer_resets_anywhere(dut: Any) -> None:
    source, sink = Source(dut, "i"), Sink(dut, "o")
    await start(dut, "i", "o")
    for _ in range(FRAMES // 10):
        sender = cocotb.start_soon(source.send(packets(random_body(60))))
        taker = cocotb.start_soon(sink.receive(100))
        await ClockCycles(dut.clk, random.randint(1, 100))
        sender.cancel()
        taker.cancel()
        dut.i__valid.value = 0
        dut.o__ready.value = 0
        dut.rst.value = 1
        await RisingEdge(dut.clk)
        dut.rst.value = 0
        body = random_body(20)
        wanted = encode(body)
        sender = cocotb.start_soon(source.send(packets(body)))
        assert bytes(await sink.receive(len(wanted))) == wanted
        await sender


@cocotb.test(skip=IS_FRAMER)
async def deframer_takes_every_length(dut: Any) -> None:
    await deframe(dut, b"".join(encode(random_body(length)) for length in LENGTHS))


@cocotb.test(skip=IS_FRAMER)
@cocotb.parametrize(share=[0.0, 0.3])
async def deframer_drops_damage_under_stalls(dut: Any, share: float) -> None:
    gaps = pauses(random.random(), share=share)
    stalls = pauses(random.random(), share=share)
    await deframe(dut, damaged_link(), gaps=gaps, stalls=stalls)


@cocotb.test(skip=IS_FRAMER)
async def deframer_resets_anywhere(dut: Any) -> None:
    source = Source(dut, "i")
    sink = Sink(dut, "o", shape=PACKET)
    await start(dut, "i", "o")
    body = random.randbytes(20)
    for _ in range(FRAMES // 10):
        task = cocotb.start_soon(source.send(encode(body) * 3))
        dut.o__ready.value = random.randrange(2)
        await ClockCycles(dut.clk, random.randint(1, 100))
        task.cancel()
        dut.i__valid.value = 0
        dut.o__ready.value = 0
        dut.rst.value = 1
        await RisingEdge(dut.clk)
        dut.rst.value = 0
        task = cocotb.start_soon(source.send(encode(body)))
        got = await sink.receive(len(body))
        assert bytes(byte.data for byte in got) == body and got[-1].last
        await task
