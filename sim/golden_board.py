"""The golden model behind a link: the command machine as a Python object.

This is the specification of the gateware's command machine: what it answers to every command, and
when it carries one out. Weights below the least, which no driver writes, are taken; what a run then
makes of them is not specified.
"""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.hdl.protocol import (
    ESCAPE,
    CommandError,
    CommandHeader,
    Counters,
    Decision,
    LayerEntry,
    Mode,
    Opcode,
    Space,
    Status,
    identity,
    size,
    unpack,
)
from ditto.host.device import pack_words, unpack_words, word_bytes
from ditto.host.framing import Decoder, encode
from ditto.host.transport import LinkError
from ditto.sim.differences import Differences
from ditto.sim.golden import Golden, classify, count_modes, wrap
from ditto.sim.spatial import may_be_spatial, stretched

__all__ = ["GoldenBoard"]

_SIZES = ("positions channels out_height out_width kernel_height kernel_width tiles split").split()


class GoldenBoard:
    """A transport with a :class:`~ditto.sim.golden.Golden` device at its other end.

    Parameters
    ----------
    config
        The device.

    Attributes
    ----------
    golden : Golden
        The device.
    bodies : list of bytes
        The bodies of all frames that came.
    executed : list of Opcode
        The commands that were carried out.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.golden = Golden(config)
        self.bodies: list[bytes] = []
        self.executed: list[Opcode] = []
        self._entries: dict[int, dict[str, int]] = {}
        self._out = bytearray()
        self._is_open = True
        self.power_on()

    def power_on(self) -> None:
        """Reset the device as a whole: session, link and state. Memories keep their contents."""
        self._decoder = Decoder(max_frame=self.config.frame_bytes)
        self._session = False
        self._last = bytes(size(CommandHeader))
        self._answer = b""
        self._counters = Counters()
        self._out.clear()
        self._empty()
        self._is_inputs = False
        self._mode = Mode.DENSE
        self._reset()

    def write(self, data: bytes) -> None:
        """Take bytes of the link, and answer the commands that end in them."""
        self._check_open()
        for body in self._decoder.feed(data):
            self.bodies.append(body)
            if len(body) >= size(CommandHeader):
                self._out += encode(self._take(body))

    def read(self, size: int, timeout: float) -> bytes:
        """Return up to ``size`` bytes; none if there are none in ``timeout`` seconds."""
        self._check_open()
        if not self._out:
            time.sleep(timeout)  # nothing comes of itself
        data = bytes(self._out[:size])
        del self._out[:size]
        return data

    def close(self) -> None:
        """Give up the link."""
        self._is_open = False

    def _check_open(self) -> None:
        if not self._is_open:
            raise LinkError("the golden board is closed")

    def _take(self, body: bytes) -> bytes:
        """Return the response to a command."""
        raw = body[: size(CommandHeader)]
        header = unpack(CommandHeader, raw)
        last = unpack(CommandHeader, self._last)["sequence"]
        if header["op"] == Opcode.IDENTIFY.value:
            self._session = True
        elif not self._session:
            return self._response(header, Status.NO_SESSION)
        elif raw == self._last:
            return self._answer
        elif header["sequence"] != (last + 1) % (1 << 16):
            return self._response(header, Status.BAD_SEQUENCE)
        try:
            data = self._execute(header, body[size(CommandHeader) :])
            self._answer = self._response(header, Status.OK) + data
        except CommandError as error:
            self._answer = self._response(header, error.status)
        self._last = raw
        return self._answer

    @staticmethod
    def _response(header: dict[str, int], status: Status) -> bytes:
        op = header["op"] | status.value << 8
        return header["sequence"].to_bytes(2, "little") + op.to_bytes(2, "little")

    def _execute(self, header: dict[str, int], data: bytes) -> bytes:
        config = self.config
        op = _known(Opcode, header["op"])
        address, count = header["address"], header["count"]
        result = b""
        if op is Opcode.IDENTIFY:
            result = identity(config.digest, config.pack())
        elif op is Opcode.RESET:
            self._reset()
        elif op is Opcode.WRITE:
            space = _known(Space, header["space"])
            if space in (Space.INPUTS, Space.DECISIONS) and not config.reference_depth:
                raise CommandError(Status.BAD_COMMAND)
            if space in (Space.DELTAS, Space.INPUTS):
                self._write_tile(space, address, count, header["mode"], data)
            else:
                self._write(space, header["bank"], address, data)
        elif op is Opcode.RUN:
            self._run(address, _known(Mode, header["mode"]))
            result = self._pack_counters()
        elif op is Opcode.READ and header["space"] == Space.DECISIONS.value:
            result = self._read_decisions(address, count, header["size"])
        elif op is Opcode.READ:
            bits = config.accumulator_bits
            if not count or not 0 < header["size"] <= word_bytes(config.columns, bits):
                raise CommandError(Status.BAD_ADDRESS)
            words = self.golden.read_accumulators(address, count).reshape(-1, config.columns)
            raw = np.frombuffer(pack_words(words, bits), np.uint8)
            result = raw.reshape(len(words), -1)[:, : header["size"]].tobytes()
        else:
            result = self._pack_counters()
        self.executed.append(op)
        return result

    def _read_decisions(self, address: int, count: int, wanted: int) -> bytes:
        word = size(Decision)
        read = self.golden.read_decisions(address, count)
        if not count or not 0 < wanted <= word:
            raise CommandError(Status.BAD_ADDRESS)
        return b"".join(value.to_bytes(word, "little")[:wanted] for value in read)

    def _write(self, space: Space, bank: int, address: int, data: bytes) -> None:
        config, golden = self.config, self.golden
        word, depth = {
            Space.LAYERS: (size(LayerEntry), config.layers),
            Space.DECISIONS: (size(Decision), config.decision_words),
            Space.WEIGHTS: (word_bytes(config.columns, config.weight_bits), config.weight_rows),
        }[space]
        if space is Space.WEIGHTS and bank >= config.clusters:
            raise CommandError(Status.BAD_COMMAND)
        # Words that are whole and inside the memory are stored, whatever comes of the others.
        words = min(len(data) // word, max(depth - address, 0))
        stored = data[: words * word]
        if words and space is Space.LAYERS:
            entries = [unpack(LayerEntry, stored[i * word :][:word]) for i in range(words)]
            golden.write_layers(address, entries)
            self._tile = None
            self._entries.update(enumerate(entries, address))
        elif words and space is Space.DECISIONS:
            golden.write_decisions(address, np.frombuffer(stored, "<u4").tolist())
        elif words:
            values = unpack_words(stored, config.columns, config.weight_bits)
            golden.write_weights(bank, address, np.maximum(values, config.min_weight))
        if len(stored) != len(data):
            raise CommandError(Status.BAD_ADDRESS)

    def _write_tile(
        self, space: Space, address: int, count: int, mode_number: int, data: bytes
    ) -> None:
        if address >= self.config.layers:
            raise CommandError(Status.BAD_ADDRESS)
        if count == 0:
            mode = _known(Mode, mode_number)
            if space is Space.DELTAS and mode is Mode.AUTO:
                raise CommandError(Status.BAD_COMMAND)
            self._begin(space, address, mode)
        if not self._is_inputs:
            self._take_deltas(data)
        elif self._tile is not None:
            self.golden.add_inputs(np.frombuffer(data, np.uint8))
            self._inputs = self.golden.differences

    def _begin(self, space: Space, address: int, mode: Mode) -> None:
        """Begin a tile."""
        self._tile = None
        is_auto = mode is Mode.AUTO
        layer = self._layer(address, None if is_auto else mode)
        if space is Space.INPUTS:
            if (
                not layer["in_height"]
                or not layer["in_width"]
                or (layer["spatial"] and not layer["stride_x"])
                or (layer["spatial"] and layer["margin"] > layer["split"] * layer["stride_x"])
                or (is_auto and layer["decision"] >= self.config.layers)
            ):
                raise CommandError(Status.BAD_LAYER)
            mode = self.golden.begin_inputs(address, mode)
        self._empty()
        self._is_inputs = space is Space.INPUTS
        self._tile = address
        self._mode = mode

    def _take_deltas(self, data: bytes) -> None:
        for byte in data:
            if self._escape or byte == ESCAPE:
                self._escape.append(byte)
                if len(self._escape) == 3:
                    value = int.from_bytes(bytes(self._escape[1:]), "little", signed=True)
                    self._deltas.append(value)
                    self._escape.clear()
            else:
                self._deltas.append(byte - 256 if byte > 127 else byte)

    def _run(self, address: int, mode: Mode) -> None:
        if address >= self.config.layers:
            raise CommandError(Status.BAD_ADDRESS)
        tile, self._tile = self._tile, None
        mode = self._mode if mode is Mode.AUTO else mode
        layer = self._layer(address, mode)
        deltas = self._encoded()
        is_spatial = mode is Mode.SPATIAL
        positions = (stretched(layer) if is_spatial else layer)["positions"]
        channels = layer["channels"]
        if (
            tile != address
            or self._escape
            or is_spatial != (self._mode is Mode.SPATIAL)
            or len(deltas) != positions * channels
            or positions > self.config.positions
            or positions * channels * self.config.digits > self.config.item_depth
        ):
            raise CommandError(Status.NO_DELTAS)
        if not self._is_inputs:
            self.golden.write_deltas(address, deltas.reshape(positions, channels), self._mode)
        self._counters = self.golden.run(address, mode)

    def _encoded(self) -> NDArray[np.int64]:
        """Return the deltas that have come, or were taken of the inputs that have."""
        if self._inputs is not None:
            return self._inputs.deltas
        return wrap(np.array(self._deltas, np.int64), self.config.delta_bits)

    def _layer(self, address: int, mode: Mode | None) -> dict[str, int]:
        """Return a layer-table entry that a run in a mode can use."""
        config = self.config
        if address >= config.layers:
            raise CommandError(Status.BAD_ADDRESS)
        layer = self._entries.get(address)
        if (
            layer is None
            or not all(layer[name] for name in _SIZES)
            or any(layer[name] > value for name, value in config.largest.items())
            or layer["skew"] >= layer["split"]
            or (mode is Mode.SPATIAL and not may_be_spatial(layer))
            or layer["kernel_height"] * layer["kernel_width"] > config.list_depth
        ):
            raise CommandError(Status.BAD_LAYER)
        return layer

    def _empty(self) -> None:
        """Empty the difference buffer."""
        self._deltas: list[int] = []
        self._escape: list[int] = []
        self._inputs: Differences | None = None
        self._tile: int | None = None

    def _reset(self) -> None:
        self.golden.reset()
        self._tile = None

    def _pack_counters(self) -> bytes:
        zero, narrow, wide = classify(self._encoded(), self.config)
        counters = self._counters._replace(
            zero=zero, narrow=narrow, wide=wide, digits_dense=0, digits_temporal=0, digits_spatial=0
        )
        if self._inputs is not None:
            counters = counters._replace(**count_modes(self._inputs, self.config))
        return b"".join(count.to_bytes(4, "little") for count in counters)


def _known(kind: Any, value: int) -> Any:
    """Return the member of an enumeration, or refuse the command."""
    try:
        return kind(value)
    except ValueError:
        raise CommandError(Status.BAD_COMMAND) from None
