"""Every pair of commands in either order, on the generated RTL and on the golden board."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ditto.hdl.config import Config
from ditto.hdl.protocol import (
    CommandHeader,
    LayerEntry,
    Mode,
    Opcode,
    Space,
    Status,
    pack,
    size,
)
from ditto.host.device import word_bytes
from ditto.host.framing import Decoder, encode
from ditto.sim.board import SimulatedBoard
from ditto.sim.commands import random_commands, without_link_stalls
from ditto.sim.disturbance import CONFIG, REFERENCES
from ditto.sim.golden_board import GoldenBoard

ENTRY = {
    "in_height": 1,
    "in_width": 2,
    "positions": 2,
    "channels": 2,
    "kernel_height": 1,
    "kernel_width": 1,
    "stride_y": 1,
    "stride_x": 1,
    "dilation_y": 1,
    "dilation_x": 1,
    "out_height": 1,
    "out_width": 2,
    "tiles": 1,
    "split": 1,
    "accumulator_base": 3,
}
DELTAS = bytes([1, 0xFF, 0x80, 200, 0, 3])  # four, one of them of two bytes
NOWHERE = 255  # no opcode, space or mode


def header(op: int, *, mode: int = 0, space: int = 0, **fields: Any) -> bytes:
    raw = bytearray(pack(CommandHeader, op=Opcode.RESET, **fields))
    raw[2:5] = op, mode, space
    return bytes(raw)


def commands(config: Config) -> dict[str, bytes]:
    """Return the bodies of commands, by what they are; the sequence is still to be written."""
    word = word_bytes(config.columns, config.accumulator_bits)
    layer = pack(LayerEntry, **ENTRY)
    weights = bytes(range(1, 1 + word_bytes(config.columns, config.weight_bits)))
    numbers = {
        kind: [*(member.value for member in kind), len(kind), NOWHERE] for kind in (Space, Mode)
    }
    write, run, read = Opcode.WRITE.value, Opcode.RUN.value, Opcode.READ.value
    found = {
        f"op {op}": header(op)
        for op in (*(op.value for op in Opcode if op.value not in (write, run, read)), 0, 7, 255)
    }
    for space in numbers[Space]:
        name = f"write space {space}"
        data = {Space.LAYERS.value: layer, Space.WEIGHTS.value: weights}.get(space, DELTAS)
        found |= {
            name: header(write, space=space) + data,
            f"{name}, cut": header(write, space=space, count=1) + data[:-1],
            f"{name}, empty": header(write, space=space, count=1),
            f"{name}, outside": header(write, space=space, address=config.weight_rows - 1)
            + data * 2,
            f"{name}, bank": header(write, space=space, bank=config.clusters, count=1) + data,
            f"read space {space}": header(read, space=space, address=1, count=2, size=word),
        }
    for mode in numbers[Mode]:
        found[f"run mode {mode}"] = header(run, mode=mode)
        for space in (Space.DELTAS, Space.INPUTS):
            found[f"tile of {space.name} mode {mode}"] = (
                header(write, mode=mode, space=space.value, address=1) + DELTAS[:4]
            )
    found |= {
        "run outside": header(run, address=config.layers),
        "run empty entry": header(run, address=2),
        "read no words": header(read, size=1),
        "read no bytes": header(read, count=1),
        "read too far": header(read, address=config.accumulator_rows - 1, count=2, size=1),
        "read too wide": header(read, count=1, size=word + 1),
    }
    return found


class Sender:
    """Numbers commands, sends them to both boards and compares what they say."""

    def __init__(self, config: Config, board: SimulatedBoard) -> None:
        self.config = config
        self.boards: list[Any] = [GoldenBoard(config), board]
        self.decoders = [Decoder(max_frame=1 << 16) for _ in self.boards]
        self.sequence = 0
        self.last = b""

    def number(self, body: bytes) -> bytes:
        """Make a body the next command; without one, the last again or one out of order."""
        if body == b"again":
            return self.last
        if body == b"other":
            return self.last[:3] + bytes([self.last[3] ^ 1]) + self.last[4:]
        if body == b"out of order":
            return (self.sequence + 7 & 0xFFFF).to_bytes(2, "little") + self.last[2:]
        self.sequence = self.sequence + 1 & 0xFFFF
        self.last = self.sequence.to_bytes(2, "little") + body[2:]
        return self.last

    def send(self, bodies: list[bytes], what: str) -> list[bytes]:
        numbered = [self.number(body) for body in bodies]
        link = b"".join(map(encode, numbered))
        answers = []
        for board, decoder in zip(self.boards, self.decoders, strict=True):
            board.write(link)
            got: list[bytes] = []
            while len(got) < len(numbered) and (chunk := board.read(1 << 14, 5.0)):
                got += decoder.feed(chunk)
            answers.append([without_link_stalls(answer) for answer in got])
        assert len(answers[0]) == len(numbered), what
        for body, want, got in zip(numbered, *answers, strict=True):
            assert got == want, f"{what}: {body.hex()}"
        return answers[0]


@pytest.fixture(scope="module", params=[CONFIG, REFERENCES], ids=["deltas", "references"])
def sender(request: pytest.FixtureRequest) -> Iterator[Sender]:
    config = request.param
    with SimulatedBoard(config) as board:
        sender = Sender(config, board)
        for body in random_commands(random.Random(1), config):
            sender.send([body], "preparing")
            sender.sequence = int.from_bytes(body[:2], "little")
            sender.last = body
            if body[2] == Opcode.RUN.value:
                break
        yield sender


def prepared() -> list[bytes]:
    """Leave a layer with accumulators, and the deltas of its next run."""
    write = Opcode.WRITE.value
    layer = pack(LayerEntry, **ENTRY)
    deltas = header(write, space=Space.DELTAS.value) + DELTAS
    return [
        header(write, space=Space.LAYERS.value) + layer * 2 + bytes(size(LayerEntry)),
        header(write, space=Space.WEIGHTS.value) + bytes(range(5, 5 + 4)),
        deltas,
        header(Opcode.RUN.value, mode=Mode.DENSE.value),
        deltas,
    ]


def every_pair(sender: Sender, wanted: Callable[[int], bool]) -> set[int]:
    """Send the pairs, each after the same commands and before questions; return the statuses."""
    config = sender.config
    kinds = commands(config) | {word: word.encode() for word in ("again", "other", "out of order")}
    word = word_bytes(config.columns, config.accumulator_bits)
    questions = [
        header(Opcode.COUNTERS.value),
        header(Opcode.READ.value, count=config.accumulator_rows, size=word),
        header(Opcode.RUN.value, mode=Mode.TEMPORAL.value),
        header(Opcode.READ.value, count=config.accumulator_rows, size=word),
    ]
    pairs = [(a, b) for a in kinds for b in kinds]
    statuses: set[int] = set()
    for number, (a, b) in enumerate(pairs):
        if wanted(number):
            bodies = [*prepared(), kinds[a], kinds[b], *questions]
            statuses |= {answer[3] for answer in sender.send(bodies, f"{a}, then {b}")}
    return statuses


def test_some_pairs_of_commands(sender: Sender) -> None:
    every_pair(sender, lambda number: number % 23 == 5)


@pytest.mark.long
def test_every_pair_of_commands(sender: Sender) -> None:
    assert every_pair(sender, lambda number: True) >= {
        status.value for status in Status if status is not Status.NO_SESSION
    }
