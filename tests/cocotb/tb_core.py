"""The whole device against the golden board: every answer, byte for byte, over a stalling link."""

import random
from itertools import chain, repeat
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge, RisingEdge, with_timeout
from gateware import CONFIG, LIMIT_MS, PARAMETERS, WARM_UP, chance, generator, of_inputs, pulse

from ditto.hdl.protocol import (
    CommandHeader,
    Counters,
    LayerEntry,
    Mode,
    Opcode,
    Space,
    pack,
    size,
)
from ditto.host.device import pack_deltas, pack_words
from ditto.host.framing import Decoder, encode
from ditto.sim.cocotb_bench import Sink, Source, start
from ditto.sim.commands import random_commands, without_link_stalls
from ditto.sim.golden_board import GoldenBoard
from ditto.sim.testbench import pauses
from ditto.sim.workload import DELTAS, Workload, random_deltas, random_workload

COMMANDS: int = PARAMETERS["commands"]
RESETS: int = PARAMETERS["resets"]


class Bench:
    """A device and the golden board, which get the same bytes."""

    def __init__(self, dut: Any, share: float) -> None:
        self.dut = dut
        self.golden = GoldenBoard(CONFIG)
        self.source = Source(dut, "i", gaps=pauses(random.random(), share=share))
        self.sink = Sink(dut, "o", stalls=pauses(random.random(), longest=5, share=share))
        self.sequence = random.randrange(1 << 16)

    async def start(self) -> None:
        await start(self.dut, "i", "o")
        if cocotb.SIM_NAME.startswith("Icarus"):
            # What a lane has never read is unknown there, even times zero.
            link = self.command(Opcode.IDENTIFY) + self.load(WARM_UP, 0)
            link += self.deltas(0, np.ones((1, CONFIG.lanes), int)) + self.run(0, Mode.DENSE)
            await self.talk(link, "warm-up")

    async def talk(self, link: bytes, where: str = "", *, reads: bool = True) -> list[bytes]:
        """Send bytes, take as many answers as the golden board gives, and compare them.

        Without ``reads``, what was read may be anything: no run has written it.
        """
        wanted = self._golden(link)
        sender = cocotb.start_soon(self.source.send(link))
        decoder = Decoder()
        raw = bytearray()
        bodies: list[bytes] = []

        async def receive() -> None:
            async for byte in self.sink.each():
                raw.append(byte)
                bodies.extend(decoder.feed(bytes([byte])))
                if len(bodies) == len(wanted):
                    break
            self.dut.o__ready.value = 0

        if wanted:
            await with_timeout(receive(), 20_000 + 500 * len(link), "us")
        await sender
        for number, (got, want) in enumerate(zip(bodies, wanted, strict=True)):
            if not reads and want[2] == Opcode.READ.value:
                got = got[:4] + want[4:] if len(got) == len(want) else got
            assert without_link_stalls(got) == without_link_stalls(want), (
                f"{where}, answer {number} of {len(wanted)}: got {got.hex()}, want {want.hex()}; "
                f"link {link.hex()}"
            )
        # Every byte between the answers is one of a frame.
        assert bytes(raw) == b"".join(map(encode, bodies)), where
        return bodies

    def _golden(self, link: bytes) -> list[bytes]:
        self.golden.write(link)
        return Decoder().feed(self.golden.read(1 << 20, 0))

    async def silence(self) -> None:
        for _ in range(50):
            await FallingEdge(self.dut.clk)
            assert not int(self.dut.o__valid.value), "an answer too many"
            await RisingEdge(self.dut.clk)

    async def reset(self) -> None:
        self.dut.i__valid.value = 0
        self.dut.o__ready.value = 0
        await pulse(self.dut, "rst")
        self.golden.power_on()

    def command(self, op: Opcode, data: bytes = b"", **header: Any) -> bytes:
        """Make the frame of the next command."""
        return encode(self.header(op, **header) + data)

    def header(self, op: Opcode, **header: Any) -> bytes:
        """Make the header of the next command."""
        if op is not Opcode.IDENTIFY:
            self.sequence = (self.sequence + 1) % (1 << 16)
        fields = {"mode": Mode.DENSE, "space": Space.LAYERS} | header
        return pack(CommandHeader, sequence=self.sequence, op=op, **fields)

    def load(self, work: Workload, number: int) -> bytes:
        """Make the frames that load a layer, a word with each."""
        entry = work.entry
        layer = pack(LayerEntry, **entry)
        link = self.command(Opcode.WRITE, layer, space=Space.LAYERS, address=number)
        for bank, words in enumerate(work.weights):
            for row, word in enumerate(words, entry["weight_base"]):
                data = pack_words(word[None], CONFIG.weight_bits)
                link += self.command(
                    Opcode.WRITE, data, space=Space.WEIGHTS, bank=bank, address=row
                )
        return link

    def deltas(self, number: int, deltas: np.ndarray) -> bytes:
        """Make the frames that fill the difference buffer, cut anywhere."""
        stream = pack_deltas(deltas)
        link, at = b"", 0
        while at < len(stream):
            n = random.randint(1, CONFIG.frame_bytes - 16)
            part = stream[at : at + n]
            link += self.command(
                Opcode.WRITE, part, space=Space.DELTAS, address=number, count=int(at > 0)
            )
            at += n
        return link

    def run(self, number: int, mode: Mode) -> bytes:
        return self.command(Opcode.RUN, address=number, mode=mode)

    def read(self, work: Workload) -> bytes:
        word = len(pack_words(np.zeros((1, CONFIG.columns)), CONFIG.accumulator_bits))
        first = work.entry["accumulator_base"]
        # What a reset left in the words that some cluster does not fill is nobody's business.
        return b"".join(
            self.command(Opcode.READ, address=row, count=1, size=random.choice([1, word, word]))
            for row in range(first, first + min(work.filled))
        ) + self.command(Opcode.READ, address=first, count=min(work.filled), size=word)


def damaged(frame: bytes) -> bytes:
    """Spoil a frame, so that it is none or another one's beginning."""
    part = bytearray(frame)
    match random.randrange(5):
        case 0:
            part[random.randrange(1, len(part) - 1)] ^= 1 << random.randrange(8)
        case 1:
            del part[random.randrange(1, len(part) - 1) :]
        case 2:
            del part[: random.randrange(2, len(part) - 1)]
        case 3:
            part = bytearray(random.randbytes(random.randint(1, 60)))
        case _:
            part = bytearray(encode(random.randbytes(CONFIG.frame_bytes)))
    return bytes(part)


def changed(header: bytes, bits: int) -> bytes:
    """Change the bits of a header that are 1 in ``bits``."""
    return (int.from_bytes(header, "little") ^ bits).to_bytes(len(header), "little")


def random_layer(rows: int) -> Workload:
    work = random_workload(generator(), CONFIG, rows=min(rows, CONFIG.accumulator_rows - 1))
    return work._replace(entry=work.entry | of_inputs())


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
@cocotb.parametrize((("share", "damage"), [(0.0, 0.0), (0.3, 0.3)]))
async def random_commands_are_answered(dut: Any, share: float, damage: float) -> None:
    bench = Bench(dut, share)
    await bench.start()
    bodies = random_commands(random.Random(random.random()), CONFIG)
    done = 0
    while done < COMMANDS:
        link = b""
        for _ in range(random.choice([1, 1, 5, 20])):
            body = next(bodies)
            while chance(damage):
                link += damaged(encode(body))
            link += encode(body)
            done += 1
        await bench.talk(link, f"command {done}")
    await bench.silence()


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def every_bit_of_a_header_matters(dut: Any) -> None:
    """Change a bit, or two neighbours, of commands; and of repeats, which are refused then."""
    bench = Bench(dut, 0.0)
    await bench.start()
    await bench.talk(bench.command(Opcode.IDENTIFY))
    work = random_layer(rows=6)
    deltas = random_deltas(generator(), CONFIG, work.entry, "full")
    # Entries may hold what the test before has left.
    fill = b"".join(bench.load(work, number) for number in range(CONFIG.layers))
    fill += bench.deltas(0, deltas) + bench.run(0, Mode.DENSE)
    answers = await bench.talk(fill)
    assert not any(body[3] for body in answers)
    word = pack_words(np.ones((1, CONFIG.columns), np.int64), CONFIG.weight_bits)
    commands: list[tuple[Opcode, bytes, dict[str, Any]]] = [
        (Opcode.WRITE, pack(LayerEntry, **work.entry), dict(space=Space.LAYERS)),
        (Opcode.WRITE, word, dict(space=Space.WEIGHTS)),
        (Opcode.WRITE, b"\1", dict(space=Space.DELTAS)),
        (Opcode.RUN, b"", {}),
        (Opcode.READ, b"", dict(count=1, size=1)),
        (Opcode.COUNTERS, b"", {}),
        (Opcode.RESET, b"", {}),
    ]
    last = 8 * size(CommandHeader) - 1
    for bit in range(16, last + 1):
        link = b""
        for op, data, fields in random.sample(commands, 3):
            bits = random.choice([1 << bit, 3 << min(bit, last - 1)])
            link += encode(changed(bench.header(op, **fields), bits) + data)
        op, data, fields = random.choice(commands)
        header = bench.header(op, **fields)
        for bits in (0, 1 << bit, 0):
            link += encode(changed(header, bits) + data)
        await bench.talk(link, f"bit {bit}", reads=False)
    await bench.silence()


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
@cocotb.parametrize(share=[0.0, 0.4])
async def layers_run_exactly(dut: Any, share: float) -> None:
    bench = Bench(dut, share)
    await bench.start()
    await bench.talk(bench.command(Opcode.IDENTIFY))
    for _ in range(2):
        work = random_layer(rows=12)
        number = random.randrange(CONFIG.layers)
        link = bench.load(work, number)
        mode = Mode.DENSE
        for kind in random.sample(DELTAS, 3):
            deltas = random_deltas(generator(), CONFIG, work.entry, kind)
            link += bench.deltas(number, deltas) + bench.run(number, mode) + bench.read(work)
            mode = Mode.TEMPORAL
        answers = await bench.talk(link, str(work.entry))
        runs = [body for body in answers if body[2] == Opcode.RUN.value]
        assert len(runs) == 3 and not any(body[3] for body in answers if min(work.filled))
        for body in runs:
            counters = Counters.unpack(body[4:])
            lost = counters.stall_row + counters.stall_item + counters.stall_cluster
            lanes = CONFIG.clusters * CONFIG.lanes
            assert counters.items + lost == lanes * counters.cycles
    await bench.silence()


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def answers_wait_for_the_host(dut: Any) -> None:
    """Take nothing until the framer's ring is full, and then less than the device could give."""
    bench = Bench(dut, 0.0)
    await bench.start()
    (identity,) = await bench.talk(bench.command(Opcode.IDENTIFY))
    word = pack_words(np.ones((1, CONFIG.columns), np.int64), CONFIG.weight_bits)
    commands: list[tuple[Opcode, bytes, dict[str, Any]]] = [
        (Opcode.WRITE, word, dict(space=Space.WEIGHTS)),
        (Opcode.READ, b"", dict(count=1, size=1)),
        (Opcode.COUNTERS, b"", {}),
        (Opcode.RESET, b"", {}),
    ]
    link = bench.command(Opcode.IDENTIFY) * (512 // len(identity))
    for _ in range(6):
        for op, data, fields in random.sample(commands, len(commands)):
            link += bench.command(op, data, **fields)
    bench.sink.stalls = chain([1500], repeat(5, 300), repeat(0))
    await bench.talk(link, reads=False)
    await bench.silence()


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def reset_in_the_middle_of_a_run(dut: Any) -> None:
    """Reset some cycles after the last byte of a run command; after it, everything is exact."""
    bench = Bench(dut, 0.0)
    await bench.start()
    for delay in random.sample(range(100), RESETS):
        await bench.talk(bench.command(Opcode.IDENTIFY))
        work = random_layer(rows=6)
        deltas = random_deltas(generator(), CONFIG, work.entry, "full")
        load, fill = bench.load(work, 0), bench.deltas(0, deltas)
        await bench.talk(load + fill)
        dut.o__ready.value = 1
        await bench.source.send(bench.run(0, Mode.DENSE))
        for _ in range(delay):
            await RisingEdge(dut.clk)
        await bench.reset()
        await bench.silence()
        # The session is gone, and so are the deltas and the accumulators.
        await bench.talk(bench.run(0, Mode.DENSE) + bench.command(Opcode.IDENTIFY))
        link = bench.run(0, Mode.DENSE) + bench.load(work, 0) + bench.deltas(0, deltas)
        link += bench.run(0, Mode.TEMPORAL) + bench.deltas(0, deltas) + bench.run(0, Mode.DENSE)
        link += bench.read(work)
        await bench.talk(link, f"reset after {delay} cycles")


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def reset_among_random_commands(dut: Any) -> None:
    bench = Bench(dut, 0.1)
    await bench.start()
    for _ in range(RESETS // 2):
        bodies = random_commands(random.Random(random.random()), CONFIG)
        await bench.talk(b"".join(encode(next(bodies)) for _ in range(30)))
        link = b"".join(encode(next(bodies)) for _ in range(10))
        sender = cocotb.start_soon(bench.source.send(link))
        dut.o__ready.value = 1
        for _ in range(random.randint(1, 600)):
            await RisingEdge(dut.clk)
        sender.cancel()
        await bench.reset()
    await bench.silence()
