from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ditto.hdl.config import Config
from ditto.hdl.protocol import (
    CommandError,
    CommandHeader,
    LayerEntry,
    Mode,
    Opcode,
    Space,
    Status,
    identity,
    pack,
    unpack,
)
from ditto.host.device import (
    Accelerator,
    Device,
    DeviceError,
    pack_deltas,
    pack_words,
    unpack_words,
)
from ditto.host.executor import Executor
from ditto.host.framing import Decoder, encode
from ditto.host.model import Model
from ditto.host.program import Program, suggest
from ditto.host.transport import LinkError
from ditto.sim.faults import FaultRates, FaultyTransport
from ditto.sim.golden import Golden
from ditto.sim.golden_board import GoldenBoard

ZEROS = ("pad_top", "pad_left", "skew", "spatial", "margin", "lead")

CONFIG = Config(clusters=3, columns=5, accumulator_bits=21, weight_bits=7, frame_bytes=64)
RNG = np.random.default_rng(11)


class Tampered(GoldenBoard):
    """A board whose link does things to whole writes and responses."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.lose: Callable[[int], bool] = lambda n: False
        self.mute: Callable[[int], bool] = lambda n: False
        self.repeat = 1
        self.writes = self.answers = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        if not self.lose(self.writes):
            super().write(data * self.repeat)

    def read(self, size: int, timeout: float) -> bytes:
        data = super().read(size, timeout)
        if data:
            self.answers += 1
            if self.mute(self.answers):
                return b""
        return data


def device_of(board: GoldenBoard, expect: Config | None = None, tries: int = 5) -> Device:
    return Device(board, expect=expect, timeout=0.002, tries=tries)


def patient_device_of(board: GoldenBoard) -> Device:
    """Open a device that sends nothing again because the machine is busy for some milliseconds."""
    return Device(board, timeout=5)


@given(st.integers(1, 9), st.integers(1, 48), st.integers(0, 5), st.integers(0, 1 << 30))
def test_words_are_packed_low_column_first(columns: int, bits: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = rng.integers(-(1 << bits - 1), 1 << bits - 1, (count, columns))
    raw = pack_words(words, bits)
    assert len(raw) == count * -(-columns * bits // 8)
    for word, at in zip(words, range(0, len(raw), len(raw) // max(count, 1) or 1), strict=False):
        value = int.from_bytes(raw[at : at + len(raw) // count], "little")
        want = sum((int(v) & (1 << bits) - 1) << i * bits for i, v in enumerate(word))
        assert value == want
    np.testing.assert_array_equal(unpack_words(raw, columns, bits), words)


@example([-128, -127, -126, 126, 127, 128, 255, 256, -256, -257, 1 << 14])
@given(st.lists(st.integers(-(1 << 15), (1 << 15) - 1)))
def test_deltas_of_more_than_a_byte_are_escaped(values: list[int]) -> None:
    want = b"".join(
        bytes([v & 0xFF]) if -127 <= v <= 127 else b"\x80" + v.to_bytes(2, "little", signed=True)
        for v in values
    )
    assert pack_deltas(np.array(values, np.int64)) == want


def test_both_are_accelerators() -> None:
    device: Accelerator = device_of(GoldenBoard(CONFIG))
    golden: Accelerator = Golden(CONFIG)
    assert isinstance(device, Accelerator) and isinstance(golden, Accelerator)


def exercise(device: Accelerator) -> list[Any]:
    """Do everything that a device can do, with data from a fixed seed."""
    rng = np.random.default_rng(5)
    config = device.config
    half = 1 << config.weight_bits - 1
    least = config.min_weight
    entry = dict.fromkeys(unpack(LayerEntry, bytes(32)), 1) | {
        "in_height": 4,
        "in_width": 6,
        "positions": 24,
        "channels": 7,
        "split": 2,
        "out_height": 4,
        "out_width": 6,
        "kernel_height": 3,
        "kernel_width": 3,
        "tiles": 2,
        "weight_base": 2,
        "accumulator_base": 10,
        "spatial": 0,
        "margin": 0,
        "lead": 0,
    }
    device.reset()
    device.write_layers(1, [entry, entry | {"stride_x": 2, "out_width": 3}])
    for cluster in range(config.clusters):
        device.write_weights(cluster, 0, rng.integers(least, half, (140, config.columns)))
    seen: list[Any] = []
    for mode in (Mode.DENSE, Mode.TEMPORAL, Mode.TEMPORAL, Mode.DENSE):
        for number in (1, 2):
            device.write_deltas(number, rng.integers(-255, 256, (24, 7)))
            seen.append(device.run(number, mode))
            seen.append(device.read_accumulators(10, 48).tolist())
            seen.append(device.read_accumulators(11, 3, 2).tolist())
    return seen


def test_the_driver_does_what_the_golden_model_does() -> None:
    board = GoldenBoard(CONFIG)
    device = patient_device_of(board)
    assert device.config == CONFIG
    assert exercise(device) == exercise(Golden(CONFIG))
    assert device.counters() == device.counters()
    assert device.resent == 0
    # Every body was short enough for the device, and most were full.
    assert max(len(body) for body in board.bodies) + 4 == CONFIG.frame_bytes


@pytest.mark.parametrize("what", ["lose", "mute"])
def test_lost_commands_and_answers(what: str) -> None:
    board = Tampered(CONFIG)
    setattr(board, what, lambda n: n % 3 == 0)
    device = device_of(board)
    assert exercise(device) == exercise(Golden(CONFIG))
    assert device.resent > 20
    # A command whose answer was lost is repeated, and not carried out again.
    assert board.executed.count(Opcode.RUN) == 8


def test_every_command_comes_three_times() -> None:
    board = Tampered(CONFIG)
    board.repeat = 3
    device = patient_device_of(board)
    assert exercise(device) == exercise(Golden(CONFIG))
    assert device.resent == 0
    assert board.executed.count(Opcode.RUN) == 8


@pytest.mark.parametrize("seed", range(4))
def test_bad_cable(seed: int) -> None:
    rates = FaultRates(drop=4e-4, flip=4e-4, duplicate=4e-4, insert=4e-4)
    board = GoldenBoard(CONFIG)
    link = FaultyTransport(board, seed=seed, to_device=rates, from_device=rates)
    # An answer of 1 KiB passes such a cable once in five times.
    device = Device(link, timeout=0.002, tries=100)
    assert exercise(device) == exercise(Golden(CONFIG))
    assert link.faults > 0 and board.executed.count(Opcode.RUN) == 8


def test_a_whole_model_over_the_link(denoiser_proto: onnx.ModelProto) -> None:
    model = Model(denoiser_proto)
    shapes = model.shapes()
    config = suggest(
        model.layers, shapes, Config(clusters=2, columns=3, frame_bytes=64, positions=20)
    )
    program = Program(model.layers, shapes, config)
    device = Executor(model, program, device_of(GoldenBoard(config)), check=True)
    golden = Executor(model.clone(), program, Golden(config))
    for timestep in (900, 890, 880):
        feed = {
            "sample": RNG.standard_normal((1, 1, 6, 6)).astype(np.float32),
            "timestep": np.array([timestep]),
            "label": np.array([1]),
        }
        np.testing.assert_array_equal(device.step(feed)[0], golden.step(feed)[0])
    assert device.runs == golden.runs


def test_no_answer() -> None:
    board = Tampered(CONFIG)
    board.lose = lambda n: True
    with pytest.raises(DeviceError, match=r"no answer to IDENTIFY after 3 tries in 0\.006 s; is"):
        device_of(board, tries=3)
    assert board.writes == 3
    with pytest.raises(LinkError):
        board.read(1, 0)
    board = Tampered(CONFIG)
    device = device_of(board)
    board.lose = lambda n: True
    with pytest.raises(DeviceError, match="no answer to RESET after 5 tries"):
        device.reset()


def test_another_configuration_is_refused() -> None:
    with pytest.raises(
        DeviceError, match="configuration: clusters = 3 instead of 4, columns = 5 ins"
    ):
        device_of(GoldenBoard(CONFIG), expect=replace(CONFIG, clusters=4, columns=6))
    device_of(GoldenBoard(CONFIG), expect=CONFIG)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"DOTT", "no Ditto behind this link: it identifies as b'DOTT' instead of b'DITT'"),
        (b"", "no Ditto behind this link"),
        (b"DITT\7\0\0\0", "speaks version 7 of the protocol and this driver version 5"),
        (
            identity(bytes(8), CONFIG.pack()),
            f"digest {bytes(8).hex()} for parameters that have {CONFIG.digest.hex()}",
        ),
        (identity(bytes(8), CONFIG.pack()[:-4]), "impossible configuration: a configuration has"),
        (
            identity(bytes(8), bytes(len(CONFIG.pack()))),
            "impossible configuration: clusters = 0 breaks its bound",
        ),
    ],
)
def test_other_devices_are_refused(answer: bytes, message: str) -> None:
    class Stranger(GoldenBoard):
        def _execute(self, header: dict[str, int], data: bytes) -> bytes:
            return answer

    with pytest.raises(DeviceError, match=message):
        device_of(Stranger(CONFIG))


def test_a_device_tells_what_it_was_made_of() -> None:
    board = GoldenBoard(CONFIG)
    build = bytes(range(1, 9))
    board._execute = lambda header, data: identity(CONFIG.digest, CONFIG.pack(), build)
    device = device_of(board)
    assert (device.build, device.config) == (build, CONFIG)


@pytest.mark.parametrize("length", [0, 35, 37])
def test_an_answer_that_is_no_counters(length: int) -> None:
    board = GoldenBoard(CONFIG)
    device = device_of(board)
    board._pack_counters = lambda: bytes(length)
    with pytest.raises(DeviceError, match="answer to COUNTERS is no counters: .* of this version"):
        device.counters()


def test_accumulators_of_another_length() -> None:
    board = GoldenBoard(CONFIG)
    device = device_of(board)
    board._execute = lambda header, data: bytes(7)
    word = (5 * CONFIG.accumulator_bits + 7) // 8
    wanted = f"READ of {CONFIG.clusters} x 2 words with 7 bytes instead of "
    with pytest.raises(DeviceError, match=f"{wanted}{CONFIG.clusters * 2 * word};"):
        device.read_accumulators(0, 2)


def test_no_weights_and_no_accumulators() -> None:
    board = GoldenBoard(CONFIG)
    device = device_of(board)
    device.write_weights(0, 3, np.zeros((0, CONFIG.columns), int))
    assert board.executed == [Opcode.IDENTIFY]
    assert device.read_accumulators(3, 0).shape == (CONFIG.clusters, 0, CONFIG.columns)
    with pytest.raises(CommandError, match="BAD_ADDRESS: accumulators"):
        device.read_accumulators(0, -1)


def test_commands_without_data_are_a_header() -> None:
    board = GoldenBoard(CONFIG)
    device = patient_device_of(board)
    sent = []
    write = board.write

    def record(data: bytes) -> None:
        sent.extend(Decoder().feed(data))
        write(data)

    board.write = record
    device.reset()
    device.counters()
    assert [len(body) for body in sent] == [12, 12]


def test_frames_that_hold_no_word() -> None:
    config = Config(clusters=2, columns=64, frame_bytes=79)
    with pytest.raises(DeviceError, match=r"frame_bytes = 79 bytes, but a memory word needs 80"):
        device_of(GoldenBoard(config))
    board = GoldenBoard(replace(config, frame_bytes=80))
    words = np.arange(192).reshape(3, 64) - 99
    device_of(board).write_weights(1, 2, words)
    assert board.golden._weights[1, 2:5].tolist() == words.tolist()


def test_reset_in_the_middle() -> None:
    board = GoldenBoard(CONFIG)
    device = device_of(board)
    board.power_on()
    with pytest.raises(DeviceError, match=r"was reset in the middle of the session \(at RUN\)"):
        device.run(0, Mode.DENSE)


def test_two_programs_on_one_device() -> None:
    board = GoldenBoard(CONFIG)
    first = device_of(board)
    first._sequence = 100
    second = device_of(board)
    while 99 <= second._sequence <= 102:
        second = device_of(board)
    with pytest.raises(DeviceError, match="another program talks to it"):
        first.reset()


def test_refused_commands_say_what_was_asked() -> None:
    board = GoldenBoard(CONFIG)
    device = device_of(board)
    with pytest.raises(CommandError, match=r"^BAD_LAYER: RUN address = 0, mode = DENSE$") as caught:
        device.run(0, Mode.DENSE)
    assert caught.value.status is Status.BAD_LAYER
    for refused in (
        lambda: device.write_weights(0, 1020, np.zeros((5, 5), int)),
        lambda: device.read_accumulators(2000, 49),
        lambda: device.write_layers(64, [dict.fromkeys(unpack(LayerEntry, bytes(32)), 0)]),
        lambda: device.write_deltas(64, np.zeros((1, 5), int)),
    ):
        with pytest.raises(CommandError, match="BAD_ADDRESS"):
            refused()
    with pytest.raises(CommandError, match="BAD_ADDRESS: WEIGHTS 1020..1024 of 1024"):
        device.write_weights(0, 1020, np.zeros((5, 5), int))
    with pytest.raises(CommandError, match="BAD_COMMAND: cluster 3"):
        device.write_weights(3, 0, np.zeros((1, 5), int))
    with pytest.raises(ValueError, match="weights are at least -63, not -64"):
        device.write_weights(0, 0, np.full((1, 5), -64))
    with pytest.raises(ValueError, match=r"words are of shape \(rows, 5\), not \(1, 4\)"):
        device.write_weights(0, 0, np.zeros((1, 4), int))


class Raw:
    """Sends single commands to a board."""

    def __init__(self, config: Config = CONFIG) -> None:
        self.board = GoldenBoard(config)
        self.decoder = Decoder()

    def __call__(self, sequence: int, op: int | Opcode, data: bytes = b"", **fields: Any) -> Any:
        header = pack(CommandHeader, sequence=sequence, op=Opcode.RESET, **fields)
        code = op.value if isinstance(op, Opcode) else op
        self.board.write(encode(header[:2] + bytes([code]) + header[3:] + data))
        (body,) = self.decoder.feed(self.board.read(1 << 16, 0.0))
        assert body[:3] == sequence.to_bytes(2, "little") + bytes([code])
        return Status(body[3]), body[4:]


def test_sequence_rules() -> None:
    raw = Raw()
    assert raw(5, Opcode.RESET) == (Status.NO_SESSION, b"")
    assert raw(65534, Opcode.IDENTIFY)[0] is Status.OK
    assert raw(65534, Opcode.IDENTIFY)[1] == identity(CONFIG.digest, CONFIG.pack())
    assert raw(65535, Opcode.RESET)[0] is Status.OK
    assert raw(65534, Opcode.RESET)[0] is Status.BAD_SEQUENCE
    assert raw(1, Opcode.RESET)[0] is Status.BAD_SEQUENCE
    assert raw(0, 77)[0] is Status.BAD_COMMAND
    assert raw(0, 77)[0] is Status.BAD_COMMAND  # repeated
    assert raw(1, Opcode.RESET)[0] is Status.OK
    assert raw.board.executed.count(Opcode.RESET) == 2


def test_commands_that_make_no_sense() -> None:
    raw = Raw()
    raw(0, Opcode.IDENTIFY)
    fields: dict[str, Any]
    for sequence, (want, op, fields) in enumerate(
        [
            (Status.BAD_ADDRESS, Opcode.READ, {"count": 0, "size": 1}),
            (Status.BAD_ADDRESS, Opcode.READ, {"count": 1, "size": 0}),
            (Status.BAD_ADDRESS, Opcode.READ, {"count": 1, "size": 15}),
            (Status.OK, Opcode.READ, {"count": 1, "size": 14}),
            (Status.BAD_ADDRESS, Opcode.WRITE, {"space": Space.WEIGHTS, "data": bytes(14)}),
            (Status.OK, Opcode.WRITE, {"space": Space.WEIGHTS, "data": bytes(15)}),
            (Status.BAD_COMMAND, Opcode.WRITE, {"space": Space.WEIGHTS, "bank": 3}),
            (Status.BAD_ADDRESS, Opcode.RUN, {"address": 64}),
            (Status.BAD_LAYER, Opcode.RUN, {"address": 63}),
            (Status.BAD_LAYER, Opcode.WRITE, {"space": Space.DELTAS, "address": 63}),
            (Status.OK, Opcode.COUNTERS, {}),
        ],
        start=1,
    ):
        assert raw(sequence, op, **fields)[0] is want, (op, fields)


def test_weights_that_no_driver_writes_are_taken() -> None:
    raw = Raw()
    raw(0, Opcode.IDENTIFY)
    least = pack_words(np.full((2, CONFIG.columns), -64), CONFIG.weight_bits)
    fields = {"space": Space.WEIGHTS, "address": CONFIG.weight_rows - 1}
    assert raw(1, Opcode.WRITE, least[: len(least) // 2], **fields)[0] is Status.OK
    assert raw(2, Opcode.WRITE, least, **fields)[0] is Status.BAD_ADDRESS


def test_runs_that_make_no_sense() -> None:
    board = GoldenBoard(CONFIG)
    device = device_of(board)
    ones = dict.fromkeys(unpack(LayerEntry, bytes(32)), 1) | dict.fromkeys(ZEROS, 0)
    entry = ones | {"in_width": 4, "out_width": 4, "positions": 4, "channels": 2}
    device.write_layers(0, [entry, entry])

    def refused(status: Status, number: int, mode: Mode = Mode.DENSE) -> None:
        with pytest.raises(CommandError) as caught:
            device.run(number, mode)
        assert caught.value.status is status

    deltas = np.ones((4, 2), int)
    refused(Status.NO_DELTAS, 0)
    device.write_deltas(0, deltas)
    refused(Status.NO_DELTAS, 1)
    refused(Status.NO_DELTAS, 0)  # the refused run has used them up
    device.write_deltas(0, deltas)
    refused(Status.NO_STATE, 0, Mode.TEMPORAL)
    device.write_deltas(0, deltas)
    device.run(0, Mode.DENSE)
    refused(Status.NO_DELTAS, 0)
    for shape in ((3, 2), (5, 2), (4, 3)):
        device.write_deltas(0, np.ones(shape, int))
        refused(Status.NO_DELTAS, 0)
    device.write_deltas(0, deltas)
    device.run(0, Mode.TEMPORAL)
    device.reset()
    device.write_deltas(0, deltas)
    refused(Status.NO_STATE, 0, Mode.TEMPORAL)


def test_room_for_the_worst_deltas_is_needed() -> None:
    config = replace(CONFIG, item_depth=128, positions=100, channels=8)
    device = device_of(GoldenBoard(config))
    ones = dict.fromkeys(unpack(LayerEntry, bytes(32)), 1) | dict.fromkeys(ZEROS, 0)
    for number, width in enumerate((32, 33)):  # of four digits each
        device.write_layers(
            number, [ones | {"in_width": width, "out_width": width, "positions": width}]
        )
        device.write_deltas(number, np.zeros((width, 1)))
        if width == 32:
            device.run(number, Mode.DENSE)
    with pytest.raises(CommandError, match="NO_DELTAS"):
        device.run(1, Mode.DENSE)


def test_context_closes_the_link() -> None:
    board = GoldenBoard(CONFIG)
    with device_of(board) as device:
        device.reset()
        assert device.transport is board
    with pytest.raises(LinkError, match="closed"):
        device.reset()
