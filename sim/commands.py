"""Random commands, for tests of anything that answers commands."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from ditto.hdl.config import Config
from ditto.hdl.protocol import (
    CommandHeader,
    Counters,
    Decision,
    LayerEntry,
    Mode,
    Opcode,
    ResponseHeader,
    Rule,
    Space,
    pack,
    size,
)
from ditto.host.device import pack_words, word_bytes
from ditto.sim.workload import clearing_entry, random_weights

__all__ = ["random_command", "random_commands", "without_link_stalls"]

_SPACES = (Space.LAYERS, Space.WEIGHTS, Space.DELTAS)
_TAPS = 2  # of the largest kernel
_TILES = 2
_CHANNELS = 4
_POSITIONS = 3
_BASE = 3  # first word of the accumulators, at most


def random_commands(rng: random.Random, config: Config) -> Iterator[bytes]:
    """Yield bodies of commands as a driver with little sense sends them, for ever.

    The first ones begin a session and write every memory. After them most commands are the next in
    order; some repeat the last one or are out of order.

    Parameters
    ----------
    rng
        Source of randomness.
    config
        The device. Small memories make for more commands that have an effect.

    Raises
    ------
    ValueError
        If the device is too small for the layers that :func:`random_command` makes.
    """
    _check(config)
    sequence = rng.randrange(1 << 16)
    yield _command(sequence, Opcode.IDENTIFY)
    for space, bank, depth, word in [
        (Space.LAYERS, 0, config.layers, size(LayerEntry)),
        *(
            (Space.WEIGHTS, cluster, config.weight_rows, _weight_bytes(config))
            for cluster in range(config.clusters)
        ),
        *(
            [(Space.DECISIONS, 0, config.decision_words, size(Decision))]
            if config.reference_depth
            else []
        ),
    ]:
        # As many words as a frame holds, with its header and its check.
        most = (config.frame_bytes - size(CommandHeader) - 4) // word
        for at in range(0, depth, most):
            data = bytes(min(most, depth - at) * word)
            sequence += 1
            yield _command(sequence, Opcode.WRITE, data, space=space, bank=bank, address=at)
    clearing = clearing_entry(config)
    steps: list[tuple[Opcode, Space, bytes]] = []
    if config.reference_depth:
        # A tile of inputs is what writes references.
        for base in range(0, config.reference_depth, _CHANNELS):
            first = min(base, config.reference_depth - _CHANNELS)
            entry = pack(LayerEntry, **clearing | {"channels": _CHANNELS, "reference_base": first})
            steps.append((Opcode.WRITE, Space.LAYERS, entry))
            steps.append((Opcode.WRITE, Space.INPUTS, bytes(_CHANNELS)))
    # A run is what writes accumulators.
    body = b""
    for op, space, data in [
        *steps,
        (Opcode.WRITE, Space.LAYERS, pack(LayerEntry, **clearing)),
        (Opcode.WRITE, Space.DELTAS, bytes(1)),
        (Opcode.RUN, Space.LAYERS, b""),
    ]:
        sequence += 1
        body = _command(sequence, op, data, space=space)
        yield body
    while True:
        chance = rng.random()
        if chance < 0.1:
            # Alone, random commands hardly ever make a run that is carried out.
            for header, data in _runs(rng, config):
                sequence += 1
                yield _command(sequence, data=data, **header)
        elif chance < 0.85:
            body = random_command(rng, config, (sequence + 1) % (1 << 16))
            sequence = int.from_bytes(body[:2], "little")
            yield body
        elif chance < 0.91:
            yield body
        elif chance < 0.93:
            # The last sequence with another header, mostly.
            other = random_command(rng, config, sequence)
            if (
                other[2] == Opcode.IDENTIFY.value
                or other[: size(CommandHeader)] == (body[: size(CommandHeader)])
            ):
                body, sequence = other, int.from_bytes(other[:2], "little")
            yield other
        else:
            other = random_command(rng, config, (sequence + rng.randint(2, 65535)) % (1 << 16))
            if other[2] == Opcode.IDENTIFY.value:
                body, sequence = other, int.from_bytes(other[:2], "little")
            yield other


def _command(sequence: int, op: Opcode, data: bytes = b"", **header: Any) -> bytes:
    """Make the body of a command."""
    return pack(CommandHeader, op=op, sequence=sequence % (1 << 16), **header) + data


def random_command(rng: random.Random, config: Config, sequence: int) -> bytes:
    """Make the body of a command that often makes sense.

    Layers are a few positions in one line, and words go to and come from the first few addresses,
    so that commands have to do with each other. Some are damaged: an opcode, mode or space that
    does not exist, an address outside, data that ends within a word.
    """
    entry = _entry(rng, config)
    op = rng.choice([*Opcode, Opcode.WRITE, Opcode.WRITE, Opcode.RUN, Opcode.RUN])
    space = rng.choice([*_SPACES, Space.DELTAS])
    if config.reference_depth and rng.random() < 0.5:
        space = rng.choice([Space.INPUTS, Space.INPUTS, Space.INPUTS, Space.DECISIONS])
    word = _accumulator_bytes(config)
    header = dict(
        sequence=sequence,
        op=op,
        mode=rng.choice([Mode.DENSE, Mode.DENSE, Mode.TEMPORAL, *Mode]),
        space=space,
        bank=rng.randint(0, config.clusters),
        address=rng.randint(0, 3) if rng.random() < 0.9 else rng.randrange(1 << 16),
        count=rng.choice([0, 0, 1, 2]),
        size=rng.choice([1, (word + 1) // 2, word]),
    )
    words = rng.randint(1, 2)
    data = {
        Space.LAYERS: pack(LayerEntry, **entry) * words,
        Space.WEIGHTS: _weights(rng, config, words),
        Space.DELTAS: bytes(rng.choice([0, 1, 0xFF, 0x7F]) for _ in range(rng.randint(1, 12))),
        Space.INPUTS: bytes(rng.choice([0, 3, 0xFF, 0x80]) for _ in range(rng.randint(1, 12))),
        Space.DECISIONS: b"".join(_decision(rng) for _ in range(words)),
    }[space]
    if space in (Space.DELTAS, Space.INPUTS) and rng.random() < 0.3:
        # As many as an entry has that fits, most of the time.
        data = data[:1] * rng.choice(range(1, _POSITIONS * _CHANNELS + 1))
    if rng.random() < 0.1:
        data = data[:-1]
    body = pack(CommandHeader, **header)
    if rng.random() < 0.05:
        body = body[:2] + rng.randbytes(3) + body[5:]
    return body + (data if op is Opcode.WRITE or rng.random() < 0.1 else b"")


def _entry(rng: random.Random, config: Config) -> dict[str, int]:
    """Make the fields of a layer-table entry, most of which fit together."""
    entry = {
        "in_height": 1,
        "in_width": rng.randint(1, _POSITIONS),
        "channels": rng.choice(range(1, _CHANNELS + 1)),
        "kernel_height": 1,
        "kernel_width": rng.choice([1, 1, _TAPS]),
        "stride_y": 1,
        "stride_x": rng.choice([1, 2]),
        "dilation_y": 1,
        "dilation_x": 1,
        "out_height": 1,
        "out_width": rng.randint(0, 2),
        "tiles": rng.choice([1, 1, _TILES]),
        "weight_base": rng.randint(0, 1),
        "accumulator_base": rng.choice([_BASE - 1, _BASE]),
        "split": rng.randint(rng.random() > 0.1, config.clusters + (rng.random() < 0.1)),
    }
    entry["positions"] = entry["in_width"] + (rng.random() < 0.1)
    entry["skew"] = rng.randint(0, max(entry["split"] - 1, 0)) + (rng.random() < 0.05)
    if config.reference_depth:
        entry |= _differences(rng, config)
    return entry


def _runs(rng: random.Random, config: Config) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Make headers and data that write an entry and run it some times, begun in any way."""
    entry = _entry(rng, config)
    address = rng.randrange(config.layers)
    yield dict(op=Opcode.WRITE, space=Space.LAYERS, address=address), pack(LayerEntry, **entry)
    count = entry["in_width"] * entry["channels"]
    for _ in range(rng.randint(1, 4)):
        # Small changes, so that modes differ in what they take.
        values = bytes(rng.choice([0, 0, 1, 2, 0x30, 0xFF]) for _ in range(count))
        space = Space.INPUTS if config.reference_depth and rng.random() < 0.8 else Space.DELTAS
        modes = [Mode.DENSE, Mode.TEMPORAL, Mode.SPATIAL]
        mode = rng.choice([*modes, Mode.AUTO, Mode.AUTO] if space is Space.INPUTS else modes)
        if mode is Mode.SPATIAL and space is Space.DELTAS:
            values += bytes(entry["margin"] * entry["channels"])
        yield dict(op=Opcode.WRITE, space=space, address=address, mode=mode), values
        mode = rng.choice([mode, Mode.AUTO])
        yield dict(op=Opcode.RUN, space=Space.LAYERS, address=address, mode=mode), b""


def _differences(rng: random.Random, config: Config) -> dict[str, int]:
    """Make the fields of an entry that differences take."""
    last = max(config.reference_depth - _POSITIONS * _CHANNELS, 0)
    return {
        "spatial": rng.randint(0, 1),
        "margin": rng.choice([0, 0, 1, 2]),
        "lead": rng.choice([0, 0, 1, 2, 15]),
        "decides": rng.randint(0, 1),
        "decision": rng.choice([0, 0, 0, 1, config.layers]),
        "zero_point": rng.choice([0, 1, 0xFF]),
        "threshold": rng.choice([0, 0, 1]),
        "reference_base": rng.choice([0, 1, last, config.reference_depth]),
    }


def _decision(rng: random.Random) -> bytes:
    """Make a word of the table of decisions."""
    if rng.random() < 0.3:
        return rng.randbytes(4)
    rule = rng.choice([Rule.DEFO, Rule.ADAPTIVE, *Rule])
    return pack(Decision, rule=rule, spatial=rng.randint(0, 1), mode=rng.randint(0, 2))


def without_link_stalls(answer: bytes) -> bytes:
    """Cut ``stall_link`` off an answer, which depends on the link and not on the commands."""
    if answer[2] in (Opcode.RUN.value, Opcode.COUNTERS.value):
        return answer[: size(ResponseHeader) + 4 * Counters._fields.index("stall_link")]
    return answer


def _weights(rng: random.Random, config: Config, words: int) -> bytes:
    """Make words of weights that the device can multiply with."""
    values = random_weights(
        np.random.default_rng(rng.getrandbits(32)), config, (words, config.columns)
    )
    return pack_words(values, config.weight_bits)


def _weight_bytes(config: Config) -> int:
    return word_bytes(config.columns, config.weight_bits)


def _accumulator_bytes(config: Config) -> int:
    return word_bytes(config.columns, config.accumulator_bits)


def _check(config: Config) -> None:
    least = {
        "weight_rows": 1 + _TILES * _TAPS * _CHANNELS,
        "accumulator_rows": _BASE + 2 * _TILES,
        "item_depth": (_POSITIONS + 1) * _CHANNELS * config.digits,
        "positions": _POSITIONS + 1,
        "channels": _CHANNELS,
        "list_depth": _TAPS,
    }
    for name, value in least.items():
        if getattr(config, name) < value:
            raise ValueError(f"random commands need {name} = {value}, not {getattr(config, name)}")
    if 0 < config.reference_depth < _CHANNELS:
        raise ValueError(f"random commands need reference_depth = {_CHANNELS}, or none")
