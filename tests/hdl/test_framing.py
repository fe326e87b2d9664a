# amaranth: UnusedElaboratable=no

import random
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any
from zlib import crc32

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from cobs import cobs

from ditto.hdl.framing import PACKET, CobsDecoder, CobsEncoder, Deframer, Framer
from ditto.sim.testbench import each, get, pauses, put, simulate

# With the CRC: around one and two full blocks. The cocotb bench tries every length.
LENGTHS = [1, 2, 3, 5, 249, 250, 251, 253, 254, 255, 504, 505, 600]


def frame(body: bytes) -> bytes:
    return cobs.encode(body + crc32(body).to_bytes(4, "little"))


def bodies_in(link: bytes, frame_bytes: int) -> list[bytes]:
    """Decode as simply as possible."""
    bodies = []
    for part in link.split(b"\0")[:-1]:
        try:
            decoded = cobs.decode(part)
        except cobs.DecodeError:
            continue
        body, crc = decoded[:-4], decoded[-4:]
        if body and len(decoded) <= frame_bytes and crc == crc32(body).to_bytes(4, "little"):
            bodies.append(body)
    return bodies


def random_body(rng: random.Random, length: int) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(length)
    if kind == 1:
        return bytes(rng.randint(1, 255) for _ in range(length))
    if kind == 2:
        return rng.randbytes(length)
    return bytes(rng.choice((0, 0, 0, 1, 255)) for _ in range(length))


def packets(bodies: Iterable[bytes]) -> Iterator[dict[str, int]]:
    for body in bodies:
        for byte in body[:-1]:
            yield {"data": byte, "last": 0}
        yield {"data": body[-1], "last": 1}


def check_deframer(
    link: bytes,
    frame_bytes: int,
    gaps: Iterator[int] | None = None,
    stalls: Iterator[int] | None = None,
) -> None:
    dut = Deframer(frame_bytes=frame_bytes)
    got = [bytearray()]

    async def source(ctx: Any) -> None:
        # The last zero is taken only after everything before it has come out.
        await put(ctx, dut.i, link + b"\0", gaps)

    async def sink(ctx: Any) -> None:
        async for byte in each(ctx, dut.o, stalls):
            got[-1].append(byte.data)
            if byte.last:
                got.append(bytearray())

    simulate(dut, source, background=[sink])
    wanted = [*bodies_in(link + b"\0", frame_bytes), b""]
    for n, (body, want) in enumerate(zip(got, wanted, strict=False)):
        assert body == want, f"body {n} of {len(wanted) - 1}"
    assert len(got) == len(wanted)


def check_framer(
    bodies: list[bytes],
    gaps: Iterator[int] | None = None,
    stalls: Iterator[int] | None = None,
) -> None:
    dut = Framer()
    wanted = b"".join(b"\0" + frame(body) + b"\0" for body in bodies)

    async def source(ctx: Any) -> None:
        await put(ctx, dut.i, packets(bodies), gaps)

    async def sink(ctx: Any) -> None:
        assert bytes(await get(ctx, dut.o, len(wanted), stalls)) == wanted
        for _ in range(20):
            *_, valid = await ctx.tick().sample(dut.o.valid)
            assert not valid, "a byte too many"

    simulate(dut, source, sink)


@pytest.mark.parametrize("stalled", [False, True])
def test_deframer_passes_bodies_on(stalled: bool) -> None:
    rng = random.Random(f"bodies {stalled}")
    bodies = [random_body(rng, length) for length in LENGTHS]
    link = b"".join(b"\0" * rng.randint(1, 3) + frame(body) for body in bodies) + b"\0"
    assert bodies_in(link, 604) == bodies
    if stalled:
        check_deframer(link, 604, pauses("gaps", share=0.2), pauses("stalls", share=0.2))
    else:
        check_deframer(link, 604)


def damage(rng: random.Random, stuffed: bytes, frame_bytes: int) -> bytes:
    """Spoil a frame, or put something else before it."""
    match rng.randrange(8):
        case 0:  # Garbled.
            at = rng.randrange(len(stuffed))
            return b"".join(
                (stuffed[:at], bytes([stuffed[at] ^ 1 << rng.randrange(8)]), stuffed[at + 1 :])
            )
        case 1:  # Cut.
            return stuffed[: rng.randrange(len(stuffed))]
        case 2:  # Beheaded.
            return stuffed[rng.randrange(1, len(stuffed)) :]
        case 3:  # Merged with another one.
            return stuffed + frame(rng.randbytes(rng.randint(1, 9)))
        case 4:  # Too long by one, or by more than a counter holds.
            length = frame_bytes - 3 + rng.choice((0, 0, 1, 2 * frame_bytes))
            return frame(random_body(rng, length))
        case 5:  # Something else.
            return rng.randbytes(rng.randint(1, 12)) + b"\0" + stuffed
        case 6:  # Shorter than a CRC, or nothing but a CRC.
            return cobs.encode(rng.choice((bytes(rng.randint(0, 4)), b"\xff" * 4)))
        case _:  # Bytes are lost in the middle.
            at = rng.randrange(len(stuffed))
            return stuffed[:at] + stuffed[at + rng.randint(1, 3) :]


@pytest.mark.parametrize("seed", range(3))
def test_deframer_drops_what_is_wrong_and_finds_its_place_again(seed: int) -> None:
    rng = random.Random(seed)
    frame_bytes = (40, 64, 300)[seed]
    link, good = b"", []
    for _ in range(24):
        body = random_body(rng, rng.randint(1, min(frame_bytes - 4, 80)))
        link += damage(rng, frame(body), frame_bytes) + b"\0"
        body = random_body(rng, rng.randint(1, min(frame_bytes - 4, 80)))
        link += frame(body) + b"\0"
        good.append(body)
    passing = iter(bodies_in(link, frame_bytes))
    assert all(body in passing for body in good), "a good frame is missing from the reference"
    check_deframer(link, frame_bytes, pauses(f"gaps {seed}", share=0.1), pauses(f"stalls {seed}"))


def test_deframer_takes_the_longest_frame_and_not_a_byte_more() -> None:
    longest = b"".join(frame(bytes([n]) * n) + b"\0" for n in (59, 60, 61, 62, 63, 64, 65, 1))
    assert [len(body) for body in bodies_in(longest, 64)] == [59, 60, 1]
    check_deframer(longest, 64)
    check_deframer(frame(b"!") + b"\0" + frame(b"12") + b"\0", 5)


def test_deframer_drops_a_frame_that_ends_within_a_block() -> None:
    stuffed = bytearray(frame(b"\0good but for its last code"))
    last = 0
    while last + stuffed[last] < len(stuffed):
        last += stuffed[last]
    stuffed[last] += 1
    link = bytes(stuffed) + b"\0" + frame(b"good") + b"\0"
    assert bodies_in(link, 64) == [b"good"]
    check_deframer(link, 64)


def test_deframer_drops_an_empty_body() -> None:
    assert crc32(b"") == 0
    check_deframer(frame(b"") + b"\0" + b"\1\0" + frame(b"good") + b"\0", 64)


def test_deframer_takes_a_code_byte_behind_a_full_last_block() -> None:
    body = next(body for n in range(1, 256) if frame(body := bytes([n]) * 250)[0] == 0xFF)
    stuffed = frame(body)
    assert stuffed[0] == 0xFF and len(stuffed) == 255
    assert bodies_in(stuffed + b"\1\0", 254) == [body]
    check_deframer(stuffed + b"\1\0", 254)


@pytest.mark.parametrize("stalled", [False, True])
def test_framer_matches_the_reference(stalled: bool) -> None:
    rng = random.Random(f"framer {stalled}")
    bodies = [random_body(rng, length) for length in LENGTHS]
    if stalled:
        check_framer(bodies, pauses("gaps", share=0.2), pauses("stalls", share=0.2))
    else:
        check_framer(bodies)


def test_framer_waits_for_a_slow_link() -> None:
    rng = random.Random("slow")
    bodies = [bytes(rng.randint(1, 255) for _ in range(700)), bytes(300)]
    check_framer(bodies, None, pauses("slow", longest=8, share=0.9))


@pytest.mark.parametrize("length", [250, 1000])
def test_deframer_timing(length: int) -> None:
    dut = Deframer(frame_bytes=1024)
    link = frame(bytes([7]) * length) + b"\0"
    taken, valid, ready = [], [], []

    async def source(ctx: Any) -> None:
        await put(ctx, dut.i, link)
        await ctx.tick().repeat(length + 10)

    async def observe(ctx: Any) -> None:
        ctx.set(dut.o.ready, 1)
        ports = (dut.i.valid, dut.i.ready, dut.o.valid)
        async for _, _, i_valid, i_ready, o_valid in ctx.tick().sample(*ports):
            taken.append(i_valid & i_ready)
            valid.append(o_valid)
            ready.append(i_ready)

    simulate(dut, source, background=[observe])
    cycles = len(taken)
    end = len(link) - 1  # the cycle of the delimiter
    assert [n for n in range(cycles) if taken[n]] == list(range(len(link)))
    assert [n for n in range(cycles) if valid[n]] == list(range(end + 2, end + 2 + length))
    assert [n for n in range(cycles) if not ready[n]] == list(range(end + 1, end + 2 + length))


@pytest.mark.parametrize("body", [b"\7" * 1, b"\7" * 250, b"\7" * 1200, bytes(500)])
def test_framer_timing(body: bytes) -> None:
    dut = Framer()
    size = len(frame(body)) + 2
    taken, given = [], []

    async def source(ctx: Any) -> None:
        await put(ctx, dut.i, packets([body] * 3))
        await ctx.tick().repeat(size + 10)

    async def observe(ctx: Any) -> None:
        ctx.set(dut.o.ready, 1)
        ports = (dut.i.valid, dut.i.ready, dut.o.valid)
        async for _, _, i_valid, i_ready, o_valid in ctx.tick().sample(*ports):
            taken.append(i_valid & i_ready)
            given.append(o_valid)

    simulate(dut, source, background=[observe])
    # A cycle of the input for each byte of the output, and nothing more, from frame to frame.
    starts = [n for n, is_taken in enumerate(taken) if is_taken][:: len(body)]
    assert starts == [1, 1 + size, 1 + 2 * size]
    assert sum(given) == 3 * size
    assert given[:3] == [0, 0, 1]
    last = max(n for n in range(len(given)) if given[n])
    assert last <= 3 * size + 256  # behind by the last block and its code
    if len(body) == 1200:
        # Once the first full block is there, no pause until the last block.
        assert all(given[258 : 258 + 4 * 255])


@pytest.mark.parametrize("seed", range(2))
def test_reset_in_any_state(seed: int) -> None:
    rng = random.Random(seed)
    framer, deframer = Framer(), Deframer(frame_bytes=100)
    loop = Loop(framer, deframer)
    reset = Signal()

    async def bench(ctx: Any) -> None:
        for _ in range(24):
            # Leave off anywhere, with streams waiting on both sides.
            ctx.set(loop.i.payload, {"data": rng.randrange(4), "last": 0})
            ctx.set(loop.i.valid, 1)
            for _ in range(rng.randint(1, 60)):
                ctx.set(loop.o.ready, rng.randrange(2))
                (ready,) = (await ctx.tick().sample(loop.i.ready))[-1:]
                if ready:
                    last = rng.random() < 0.1
                    ctx.set(loop.i.payload, {"data": rng.randrange(4), "last": last})
            ctx.set(reset, 1)
            ctx.set(loop.i.valid, 0)
            ctx.set(loop.o.ready, 0)
            await ctx.tick()
            ctx.set(reset, 0)
            body = random_body(rng, rng.randint(1, 30))
            await put(ctx, loop.i, packets([body]))
            got = await get(ctx, loop.o, len(body))
            assert bytes(byte.data for byte in got) == body
            assert [byte.last for byte in got] == [0] * (len(body) - 1) + [1]

    simulate(loop, bench, reset=reset)


class Loop(wiring.Component):
    i: stream.Interface
    o: stream.Interface

    def __init__(self, framer: Framer, deframer: Deframer) -> None:
        self.framer, self.deframer = framer, deframer
        super().__init__({"i": In(stream.Signature(PACKET)), "o": Out(stream.Signature(PACKET))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules += [self.framer, self.deframer]
        connect(m, flipped(self.i), self.framer.i)
        connect(m, self.framer.o, self.deframer.i)
        connect(m, self.deframer.o, flipped(self.o))
        return m


def test_cobs_alone_takes_packets_without_crc() -> None:
    packet = bytes([7]) * 254 + b"\0"
    encoder = CobsEncoder()

    async def encode(ctx: Any) -> None:
        await put(ctx, encoder.i, packets([packet]))

    async def check(ctx: Any) -> None:
        wanted = b"\0" + cobs.encode(packet) + b"\0"
        assert bytes(await get(ctx, encoder.o, len(wanted))) == wanted

    simulate(encoder, encode, check)
    decoder = CobsDecoder()

    async def decode(ctx: Any) -> None:
        await put(ctx, decoder.i, b"\0\3\7\0\1\1\0", pauses("gaps"))

    async def compare(ctx: Any) -> None:
        got = await get(ctx, decoder.o, 5, pauses("stalls"))
        assert [(token.end, token.data, token.intact) for token in got if not token.end] == [
            (0, 7, 0),
            (0, 0, 1),
        ]
        assert [token.intact for token in got if token.end] == [1, 0, 1]

    simulate(decoder, decode, compare)


@pytest.mark.parametrize(
    "frame_bytes, error, message",
    [
        (4, ValueError, "Frame size must be at least 5 bytes, not 4"),
        ("9", TypeError, "Frame size must be an integer, not '9'"),
    ],
)
def test_wrong_size_is_named(frame_bytes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        Deframer(frame_bytes=frame_bytes)


class Fickle(wiring.Component):
    """Breaks the contract of its stream after some cycles."""

    o: stream.Interface

    def __init__(self, *, withdraws: bool) -> None:
        self.withdraws = withdraws
        super().__init__({"o": Out(stream.Signature(8))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        count = Signal(8)
        m.d.sync += count.eq(count + 1)
        m.d.comb += self.o.valid.eq(~count[2] if self.withdraws else 1)
        m.d.comb += self.o.payload.eq(0 if self.withdraws else count[2])
        return m


@pytest.mark.parametrize("withdraws, what", [(True, "withdrawn"), (False, "changed")])
def test_the_watcher_sees_a_broken_contract(withdraws: bool, what: str) -> None:
    async def wait(ctx: Any) -> None:
        await ctx.tick().repeat(20)

    with pytest.raises(AssertionError, match=f"^o, cycle 4: payload .*{what}"):
        simulate(Fickle(withdraws=withdraws), wait)


def test_a_hang_is_a_failure() -> None:
    dut = Framer()

    async def wait(ctx: Any) -> None:
        await get(ctx, dut.o)

    with pytest.raises(AssertionError, match="^not done after 50 cycles$"):
        simulate(dut, wait, cycles=50)


def test_pauses_repeat_with_their_seed() -> None:
    first, again, other = (list(islice(pauses(seed), 50)) for seed in (1, 1, 2))
    assert first == again != other
    assert set(first) == {0, 1, 2, 3}
