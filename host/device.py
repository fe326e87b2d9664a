"""The driver: commands to a device over a transport."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.config import Config, ConfigError
from ditto.hdl.protocol import (
    ESCAPE,
    MAGIC,
    VERSION,
    CommandError,
    CommandHeader,
    Counters,
    Decision,
    LayerEntry,
    Mode,
    Opcode,
    ResponseHeader,
    Space,
    Status,
    pack,
    size,
    unpack,
)
from ditto.host.framing import Decoder, encode
from ditto.host.transport import Transport

__all__ = [
    "CRC_BYTES",
    "Accelerator",
    "Device",
    "DeviceError",
    "pack_deltas",
    "pack_words",
    "unpack_words",
]

CRC_BYTES = 4
"""Bytes of the check at the end of a frame."""

_HEADER = size(CommandHeader)
_ANSWER = size(ResponseHeader)
_ENTRY = size(LayerEntry)
_DECISION = size(Decision)
_RESPONSE_BYTES = 1024  # data of a READ's response, at most (or one word)
_TRIES = 5


class DeviceError(Exception):
    """A device that does not answer, or is not the one that is needed."""


@runtime_checkable
class Accelerator(Protocol):
    """What the executor needs of a device: the driver and the golden model have it."""

    config: Config

    def reset(self) -> None:
        """Forget which layers hold accumulators, and the deltas."""
        ...

    def write_layers(self, first: int, entries: Sequence[dict[str, int]]) -> None:
        """Write layer-table entries, from entry ``first`` on; they then hold no accumulators."""
        ...

    def write_weights(self, cluster: int, row: int, words: NDArray[Any]) -> None:
        """Write words of shape (rows, columns) into a cluster's weight bank, from ``row`` on."""
        ...

    def read_accumulators(
        self, row: int, count: int, columns: int | None = None
    ) -> NDArray[np.int64]:
        """Return accumulators from ``row`` on: (clusters, ``count``, first ``columns``)."""
        ...

    def write_deltas(self, entry: int, deltas: NDArray[Any], mode: Mode = Mode.DENSE) -> None:
        """Fill the difference buffer with an entry's deltas, of shape (positions, channels)."""
        ...

    def write_inputs(self, entry: int, inputs: NDArray[Any], mode: Mode = Mode.AUTO) -> None:
        """Let the device take the differences of an entry's inputs, for a run in a mode."""
        ...

    def write_decisions(self, first: int, words: Sequence[int]) -> None:
        """Write words of the table of decisions, from ``first`` on."""
        ...

    def read_decisions(self, first: int, count: int) -> list[int]:
        """Return words of the table of decisions, from ``first`` on."""
        ...

    def run(self, entry: int, mode: Mode) -> Counters:
        """Run a layer-table entry, and return its counters."""
        ...


def word_bytes(columns: int, bits: int) -> int:
    """Return the bytes of a word of ``columns`` values of ``bits`` bits."""
    return (columns * bits + 7) // 8


def pack_words(words: NDArray[Any], bits: int) -> bytes:
    """Pack words of shape (count, columns), column 0 in the lowest bits, each in whole bytes.

    >>> pack_words(np.array([[1, -1, 2]]), 4).hex()
    'f102'
    """
    words = np.ascontiguousarray(words, "<i8")
    raw = np.unpackbits(words.view(np.uint8), bitorder="little")
    flat = raw.reshape(*words.shape, 64)[..., :bits].reshape(len(words), words.shape[1] * bits)
    return np.packbits(flat, axis=1, bitorder="little").tobytes()


def unpack_words(raw: bytes, columns: int, bits: int) -> NDArray[np.int64]:
    """Undo :func:`pack_words`.

    >>> unpack_words(bytes.fromhex("f102"), 3, 4).tolist()
    [[1, -1, 2]]
    """
    packed = np.frombuffer(raw, np.uint8).reshape(-1, word_bytes(columns, bits))
    flat = np.unpackbits(packed, axis=1, count=columns * bits, bitorder="little")
    values = flat.reshape(-1, columns, bits)
    # The highest bit is the sign: it fills the bits above.
    wide = np.empty((len(packed), columns, 64), np.uint8)
    wide[..., :bits] = values
    wide[..., bits:] = values[..., -1:]
    result = np.packbits(wide.reshape(-1), bitorder="little").view("<i8")
    return result.reshape(-1, columns).astype(np.int64)


def pack_deltas(deltas: NDArray[Any]) -> bytes:
    """Make the byte stream of deltas, as :attr:`ditto.hdl.protocol.Space.DELTAS` describes it.

    >>> pack_deltas(np.array([[1, -127], [-128, 255]])).hex(" ")
    '01 81 80 80 ff 80 ff 00'
    """
    flat = np.asarray(deltas, dtype=np.int64).reshape(-1)
    wide = (flat > 127) | (flat < -127)
    last = np.cumsum(np.where(wide, 3, 1))
    stream = np.empty(int(last[-1]) if flat.size else 0, np.uint8)
    stream[last - 1] = np.where(wide, flat >> 8, flat) & 0xFF
    stream[last[wide] - 2] = flat[wide] & 0xFF
    stream[last[wide] - 3] = ESCAPE
    return stream.tobytes()


class Device:
    """A device behind a transport.

    Opens a session: identifies the device and learns its configuration. One command is on the link
    at a time; a command without an answer is sent again, which the device doesn't carry out twice.

    Parameters
    ----------
    transport
        The link. The driver closes it.
    expect
        The configuration that the device must have, or some of its parameters by name; any if
        absent.
    timeout
        Seconds to wait for an answer before a command is sent again.
    tries
        How often a command is sent before the driver gives up.

    Attributes
    ----------
    config : Config
        The device's configuration.
    build : bytes
        Hash of what it was made of, which the manifest of its bitstream has too;
        :data:`~ditto.hdl.protocol.NO_BUILD` if it is no bitstream.
    resent : int
        Commands that were sent more than once.

    Raises
    ------
    DeviceError
        If no device answers, or it is none of this version or not the one that is expected.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        expect: Config | Mapping[str, Any] | None = None,
        timeout: float = 2.0,
        tries: int = _TRIES,
    ) -> None:
        self._transport = transport
        self._timeout = timeout
        self._tries = tries
        self._decoder = Decoder()
        self.resent = 0
        # A random start: answers to an earlier session's commands don't fit.
        self._sequence = secrets.randbelow(1 << 16)
        try:
            self.config = self._identify(expect)
        except BaseException:
            transport.close()
            raise
        self._capacity = self.config.frame_bytes - _HEADER - CRC_BYTES

    @property
    def transport(self) -> Transport:
        """The link to the device."""
        return self._transport

    def close(self) -> None:
        """Close the transport."""
        self._transport.close()

    def __enter__(self) -> Self:
        """Return the device."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the device."""
        self.close()

    def reset(self) -> None:
        """Forget which layers hold accumulators, and the deltas."""
        self._command(Opcode.RESET)

    def write_layers(self, first: int, entries: Sequence[dict[str, int]]) -> None:
        """Write layer-table entries, from entry ``first`` on; they then hold no accumulators.

        Raises
        ------
        CommandError
            If they lie outside the layer table.
        """
        raw = b"".join(pack(LayerEntry, **entry) for entry in entries)
        self._write_words(Space.LAYERS, first, raw, _ENTRY, self.config.layers)

    def write_weights(self, cluster: int, row: int, words: NDArray[Any]) -> None:
        """Write words of shape (rows, columns) into a cluster's weight bank, from ``row`` on.

        Raises
        ------
        CommandError
            If they lie outside the bank, or there is no such cluster.
        ValueError
            If a weight is less than the device can multiply with.
        """
        config = self.config
        words = np.asarray(words)
        if words.size and words.min() < config.min_weight:
            raise ValueError(f"weights are at least {config.min_weight}, not {words.min()}")
        raw, word = self._pack(words, config.weight_bits)
        self._write_words(Space.WEIGHTS, row, raw, word, config.weight_rows, cluster)

    def read_accumulators(
        self, row: int, count: int, columns: int | None = None
    ) -> NDArray[np.int64]:
        """Return accumulators from ``row`` on: (clusters, ``count``, first ``columns``).

        Raises
        ------
        CommandError
            If the words lie outside the buffer.
        """
        bits = self.config.accumulator_bits
        columns = self.config.columns if columns is None else min(columns, self.config.columns)
        if not 0 <= row <= row + count <= self.config.accumulator_rows:
            raise CommandError(Status.BAD_ADDRESS, "accumulators")
        word = word_bytes(columns, bits)
        clusters = self.config.clusters
        parts = [np.empty((clusters, 0, columns), np.int64)]
        for at, n in _chunks(count, max(1, _RESPONSE_BYTES // max(clusters * word, 1))):
            raw = self._command(Opcode.READ, address=row + at, count=n, size=word)
            if len(raw) != clusters * n * word:
                raise DeviceError(
                    f"the device answered READ of {clusters} x {n} words with {len(raw)} bytes "
                    f"instead of {clusters * n * word}; is its gateware of this version?"
                )
            parts.append(unpack_words(raw, columns, bits).reshape(clusters, n, columns))
        return np.concatenate(parts, axis=1)

    def write_deltas(self, entry: int, deltas: NDArray[Any], mode: Mode = Mode.DENSE) -> None:
        """Fill the difference buffer with the deltas of an entry, of shape (positions, channels).

        Parameters
        ----------
        entry
            Number of the layer-table entry.
        deltas
            In order; those of a spatial run are :func:`ditto.sim.spatial.spatial`.
        mode
            Of the run. Between dense and temporal, the run may still choose.

        Raises
        ------
        CommandError
            If the entry cannot run in the mode.
        """
        self._write_tile(Space.DELTAS, entry, pack_deltas(deltas), mode)

    def write_inputs(self, entry: int, inputs: NDArray[Any], mode: Mode = Mode.AUTO) -> None:
        """Fill the difference buffer with the differences of an entry's quantized inputs.

        The device takes them itself. The entry holds no accumulators until it has run.

        Parameters
        ----------
        entry
            Number of the layer-table entry.
        inputs
            Of shape (positions, channels), in two's complement of ``activation_bits``.
        mode
            Of the run; ``AUTO`` for that of the table of decisions.

        Raises
        ------
        CommandError
            If the device has no reference buffer, or the entry no accumulators for a temporal run.
        """
        stream = np.asarray(inputs, dtype=np.int64).astype(np.uint8).tobytes()
        self._write_tile(Space.INPUTS, entry, stream, mode)

    def write_decisions(self, first: int, words: Sequence[int]) -> None:
        """Write words of 32 bits of the table of decisions, see :attr:`Space.DECISIONS`.

        Raises
        ------
        CommandError
            If they lie outside of the table, or there is none.
        """
        raw = np.asarray(words, "<u4").tobytes()
        self._write_words(Space.DECISIONS, first, raw, _DECISION, self.config.decision_words)

    def read_decisions(self, first: int, count: int) -> list[int]:
        """Return words of 32 bits of the table of decisions, from ``first`` on.

        Raises
        ------
        CommandError
            If they lie outside of the table, or there is none.
        """
        raw = b"".join(
            self._command(
                Opcode.READ, space=Space.DECISIONS, address=first + at, count=n, size=_DECISION
            )
            for at, n in _chunks(count, _RESPONSE_BYTES // _DECISION)
        )
        return np.frombuffer(raw, "<u4").tolist()

    def run(self, entry: int, mode: Mode) -> Counters:
        """Run a layer-table entry: ``a = W * d + start``, and count.

        Raises
        ------
        CommandError
            If the deltas or the accumulators that the run needs are not there.
        """
        return self._counters(Opcode.RUN, address=entry, mode=mode)

    def counters(self) -> Counters:
        """Return the counters of the last run."""
        return self._counters(Opcode.COUNTERS)

    def _counters(self, op: Opcode, **header: Any) -> Counters:
        raw = self._command(op, **header)
        try:
            return Counters.unpack(raw)
        except ValueError as error:
            raise DeviceError(
                f"the device's answer to {op.name} is no counters: {error}; is its gateware of "
                "this version?"
            ) from error

    def _pack(self, words: NDArray[Any], bits: int) -> tuple[bytes, int]:
        words = np.asarray(words)
        if words.ndim != 2 or words.shape[1] != self.config.columns:
            raise ValueError(f"words are of shape (rows, {self.config.columns}), not {words.shape}")
        return pack_words(words, bits), word_bytes(self.config.columns, bits)

    def _write_tile(self, space: Space, entry: int, stream: bytes, mode: Mode = Mode.DENSE) -> None:
        """Begin a tile and write all of it."""
        for at, n in _chunks(len(stream), self._capacity):
            self._command(
                Opcode.WRITE,
                stream[at : at + n],
                space=space,
                address=entry,
                count=int(at > 0),
                mode=mode,
            )

    def _write_words(
        self, space: Space, first: int, raw: bytes, word: int, depth: int, bank: int = 0
    ) -> None:
        """Write packed words, as many with a command as a frame holds."""
        if not 0 <= bank < self.config.clusters:
            raise CommandError(Status.BAD_COMMAND, f"cluster {bank}")
        count = len(raw) // word
        if not 0 <= first <= first + count <= depth:
            raise CommandError(
                Status.BAD_ADDRESS, f"{space.name} {first}..{first + count - 1} of {depth}"
            )
        for at, n in _chunks(count, self._capacity // word):
            self._command(
                Opcode.WRITE,
                raw[at * word : (at + n) * word],
                space=space,
                bank=bank,
                address=first + at,
                count=n,
            )

    def _identify(self, expect: Config | Mapping[str, Any] | None) -> Config:
        data = self._command(Opcode.IDENTIFY)
        magic, version, digest, parameters = data[:4], data[4:8], data[8:16], data[24:]
        self.build = data[16:24]
        if magic != MAGIC:
            raise DeviceError(
                f"no Ditto behind this link: it identifies as {magic!r} instead of {MAGIC!r} "
                "(is the bitstream loaded?)"
            )
        if int.from_bytes(version, "little") != VERSION:
            raise DeviceError(
                f"the device speaks version {int.from_bytes(version, 'little')} of the protocol "
                f"and this driver version {VERSION}; load a bitstream made by this release"
            )
        try:
            config = Config.unpack(parameters)
        except ConfigError as error:
            raise DeviceError(f"the device reports an impossible configuration: {error}") from error
        if config.digest != digest:
            raise DeviceError(
                f"the device reports the digest {digest.hex()} for parameters that have "
                f"{config.digest.hex()}; load a bitstream made by this release"
            )
        wanted = asdict(expect) if isinstance(expect, Config) else expect or {}
        differences = ", ".join(
            f"{name} = {getattr(config, name)} instead of {value}"
            for name, value in wanted.items()
            if value != getattr(config, name)
        )
        if differences:
            raise DeviceError(f"the device was built with another configuration: {differences}")
        longest = max(word_bytes(config.columns, config.weight_bits), _ENTRY)
        least = longest + _HEADER + CRC_BYTES
        if config.frame_bytes < least:
            raise DeviceError(
                f"the device takes frames of frame_bytes = {config.frame_bytes} bytes, but a "
                f"memory word needs {least}; build it with at least that many"
            )
        return config

    def _command(self, op: Opcode, data: bytes = b"", **header: Any) -> bytes:
        """Send a command until it is answered, and return the data of the answer."""
        sequence = self._sequence if op is Opcode.IDENTIFY else self._sequence + 1 & 0xFFFF
        fields = {"mode": Mode.DENSE, "space": Space.LAYERS} | header
        frame = encode(pack(CommandHeader, sequence=sequence, op=op, **fields) + data)
        for attempt in range(self._tries):
            self.resent += attempt > 0
            self._transport.write(frame)
            answer = self._answer(sequence, op)
            if answer is None:
                continue
            status, result = answer
            if status is Status.NO_SESSION:
                raise DeviceError(
                    f"the device was reset in the middle of the session (at {op.name}) and its "
                    "state is lost; start again"
                )
            if status is Status.BAD_SEQUENCE:
                raise DeviceError(
                    f"the device expects another command than {op.name} number {sequence}: "
                    "another program talks to it; end that one and start again"
                )
            self._sequence = sequence
            if status is not Status.OK:
                raise CommandError(status, f"{op.name} {_describe(header)}".strip())
            return result
        raise DeviceError(
            f"no answer to {op.name} after {self._tries} tries in "
            f"{self._tries * self._timeout:g} s; is the device connected and running?"
        )

    def _answer(self, sequence: int, op: Opcode) -> tuple[Status, bytes] | None:
        """Wait for the response to a command; None if there is none in time."""
        deadline = time.monotonic() + self._timeout
        while (left := deadline - time.monotonic()) > 0:
            for body in self._decoder.feed(self._transport.read(1 << 16, left)):
                if len(body) < _ANSWER:
                    continue
                header = unpack(ResponseHeader, body[:_ANSWER])
                if (header["sequence"], header["op"]) != (sequence, op.value):
                    continue  # the answer to a command that was answered before
                try:
                    return Status(header["status"]), body[_ANSWER:]
                except ValueError:
                    continue
        return None


def _chunks(total: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield the start and the size of the pieces of ``total`` things, at most ``most`` each."""
    for at in range(0, total, most):
        yield at, min(most, total - at)


def _describe(header: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {getattr(value, 'name', value)}" for name, value in header.items())
