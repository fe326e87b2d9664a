"""The shipping driver, by pyserial, against the generated hardware down to the bits of the line."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditto.fpga.uart import SerialDevice
from ditto.hdl.config import Config
from ditto.hdl.protocol import CommandHeader, Counters, Mode, Opcode, Space, Status, pack
from ditto.host import cli
from ditto.host.boards import SERIAL, open_port
from ditto.host.device import Device, DeviceError
from ditto.host.framing import Decoder, encode
from ditto.host.serial_port import SerialPort
from ditto.host.transport import LinkError
from ditto.sim.board import SimulatedBoard
from ditto.sim.golden import Golden
from ditto.sim.golden_board import GoldenBoard
from ditto.sim.line import Pty, line_verilog
from ditto.sim.workload import DELTAS, random_deltas, random_workload

pytestmark = pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")

CONFIG = Config(
    clusters=1,
    lanes=2,
    columns=4,
    accumulator_bits=24,
    weight_rows=320,
    accumulator_rows=512,
    item_depth=768,
    positions=64,
    channels=12,
    layers=8,
)
BAUD = 3_000_000  # a pseudo-terminal takes any


@cache
def verilog(frequency: int, baud: int, host_baud: int) -> str:
    device = SerialDevice(CONFIG, frequency=frequency, baud=baud)
    return line_verilog(device, frequency=frequency, baud=host_baud)


def fast() -> SimulatedBoard:
    """A board with 5 cycles a bit, whose host is 2 % too fast."""
    return SimulatedBoard.from_verilog(verilog(500, 100, 102))


def slow() -> SimulatedBoard:
    """A board at 25 MHz and 3 MBd, whose host is 2 % too slow."""
    return SimulatedBoard.from_verilog(verilog(25_000, 3_000, 2_940))


@pytest.fixture
def pty() -> Iterator[Pty]:
    with Pty(fast()) as pty:
        yield pty


@pytest.mark.parametrize("make", [fast, slow])
def test_driver_and_device_agree_over_pins_and_port(make: Callable[[], SimulatedBoard]) -> None:
    golden = Golden(CONFIG)
    rng = np.random.default_rng(3)
    with Pty(make()) as pty, open_port(SERIAL, pty.name, baud=BAUD) as device:
        assert device.config == CONFIG
        for number, kind in enumerate(DELTAS):
            work = random_workload(rng, CONFIG, rows=60)
            base = work.entry["accumulator_base"]
            for target in device, golden:
                work.load(target, number)
            for mode in (Mode.DENSE, Mode.TEMPORAL):
                deltas = random_deltas(rng, CONFIG, work.entry, kind)
                for target in device, golden:
                    target.write_deltas(number, deltas)
                got, want = device.run(number, mode), golden.run(number, mode)
                assert got._replace(stall_link=0) == want._replace(stall_link=0)
                read = device.read_accumulators(base, work.filled[0])
                assert np.array_equal(read, golden.read_accumulators(base, work.filled[0]))
        assert device.resent == 0


LONG = dict(in_height=8, in_width=8, positions=64, channels=3, out_height=8, out_width=8)
LONG |= dict(kernel_height=5, kernel_width=5, stride_y=1, stride_x=1, dilation_y=1, dilation_x=1)
LONG |= dict(pad_top=2, pad_left=2, tiles=2, split=1)


def test_repeats_of_a_run_that_keeps_the_device_busy_overrun_nothing() -> None:
    """What the argument in fpga/uart.py is about; an overrun would stop the simulation."""
    with fast() as board:
        device = Device(board)
        device.write_layers(0, [LONG])
        rng = np.random.default_rng(4)
        device.write_deltas(0, rng.integers(-255, 256, (64, 3)))
        sequence = device._sequence + 1 & 0xFFFF
        before = board.cycles
        fields: dict[str, Any] = {"mode": Mode.DENSE, "space": Space.WEIGHTS}
        run = encode(pack(CommandHeader, sequence=sequence, op=Opcode.RUN, **fields))
        board.write(5 * run)
        assert board.cycles - before < 5000  # all of them are there before the run ends
        data = bytes(rng.integers(1, 256, CONFIG.frame_bytes - 16, np.uint8))
        write = pack(CommandHeader, sequence=sequence + 1 & 0xFFFF, op=Opcode.WRITE, **fields)
        decoder, answers = Decoder(), []
        while len(answers) < 6:
            raw = board.read(1 << 16, 10)
            assert raw, f"only {len(answers)} answers"
            if not answers:  # the host goes on as soon as it has the first one
                board.write(encode(write[:8] + (250).to_bytes(4, "little") + data))
            answers += decoder.feed(raw)
        assert [answer[3] for answer in answers] == [Status.OK.value] * 6
        assert len(set(answers[:5])) == 1
        assert Counters.unpack(answers[0][4:]).cycles > 5000


def test_a_device_that_floods_the_line_is_noticed() -> None:
    """The simulation does stop when bytes are lost."""
    with fast() as board:
        device = Device(board)
        device.write_layers(0, [LONG])
        device.write_deltas(0, np.full((64, 3), 255))
        sequence = device._sequence + 1 & 0xFFFF
        fields: dict[str, Any] = {"mode": Mode.DENSE, "space": Space.LAYERS}
        run = encode(pack(CommandHeader, sequence=sequence, op=Opcode.RUN, **fields))
        with pytest.raises(LinkError, match="the simulated device stopped: .*assertion"):
            board.write(12 * run)
            board.read(1 << 16, 5)


def ditto(*words: object) -> int:
    return cli.main([str(word) for word in words])


def test_denoise_over_a_port(
    denoiser_file: Path, tmp_path: Path, pty: Pty, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "3", "--samples", "2", "-q"]
    port = ["--board", SERIAL, "--port", pty.name, "--baud", BAUD]
    assert ditto("identify", *port) == 0
    assert f"configuration {CONFIG.digest.hex()}, 8 multipliers" in capsys.readouterr().out
    images = tmp_path / "port.png", tmp_path / "golden.png"
    assert ditto("denoise", denoiser_file, *options, *port, "--check", "-o", images[0]) == 0
    assert ditto("denoise", denoiser_file, *options, "--board", "golden", "-o", images[1]) == 0
    assert images[0].read_bytes() == images[1].read_bytes()
    # A parameter that is given is asked for.
    assert ditto("identify", *port, "--columns", "4") == 0
    capsys.readouterr()
    assert ditto("denoise", denoiser_file, *port, "--columns", "8", "-o", images[0]) == 1
    assert "another configuration: columns = 4 instead of 8" in capsys.readouterr().err


def test_unplugging_ends_a_command_at_once(pty: Pty) -> None:
    device = open_port(SERIAL, pty.name, baud=BAUD)
    timer = threading.Timer(0.3, pty.unplug)
    timer.start()
    began = time.monotonic()
    with pytest.raises(LinkError, match=f"the port {pty.name} is lost .* plug the board in again"):
        while time.monotonic() < began + 20:
            device.read_accumulators(0, 512)
    assert time.monotonic() < began + 5
    timer.join()
    device.close()
    device.close()
    with pytest.raises(LinkError, match="is closed"):
        device.counters()


def test_closing_ends_a_read_in_another_thread(pty: Pty) -> None:
    port = SerialPort(pty.name, BAUD)
    timer = threading.Timer(0.2, port.close)
    timer.start()
    began = time.monotonic()
    with pytest.raises(LinkError, match="closed"):
        port.read(1, 30)
    assert time.monotonic() < began + 5


def test_reads_keep_their_time_limits() -> None:
    with Pty(GoldenBoard(CONFIG)) as pty:
        port = SerialPort(pty.name, BAUD)
        for timeout in 0.0, 0.25:
            began = time.monotonic()
            assert port.read(100, timeout) == b""
            assert timeout <= time.monotonic() - began < timeout + 2
        port.close()


def test_ports_that_cannot_be_opened(pty: Pty, tmp_path: Path) -> None:
    with pytest.raises(LinkError, match=r"cannot open the port \S+: it does not exist; (no|the) p"):
        SerialPort(str(tmp_path / "none"), BAUD)
    with pytest.raises(LinkError, match="cannot open the port .*text"):
        (tmp_path / "text").write_text("no port")
        SerialPort(str(tmp_path / "text"), BAUD)
    holder = SerialPort(pty.name, BAUD)
    with pytest.raises(LinkError, match="another program uses it"):
        SerialPort(pty.name, BAUD)
    holder.close()
    SerialPort(pty.name, BAUD).close()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may use every port")
def test_a_port_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "port"
    path.touch(mode=0)
    with pytest.raises(LinkError, match="join the group that owns it"):
        SerialPort(str(path), BAUD)


def test_a_silent_port() -> None:
    class Silent(GoldenBoard):
        def write(self, data: bytes) -> None:
            pass

    with Pty(Silent(CONFIG)) as pty:
        port = SerialPort(pty.name, BAUD)
        with pytest.raises(DeviceError, match="no answer to IDENTIFY after 2 tries"):
            Device(port, timeout=0.1, tries=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "/dev/x"], "the board sim is on this computer and has no port"),
        (["--board", SERIAL], "the board serial needs a port: --port PORT"),
        (["--board", SERIAL, "--port", "x"], "the board serial needs the rate of its UART: --baud"),
        (["--board", "none", "--port", "x"], "there is no board 'none'; choose from "),
        (["--baud", "9600"], "--baud is the rate of a --port"),
    ],
)
def test_options_that_make_no_sense(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ditto("identify", *words) == 2
    assert message in capsys.readouterr().err


class FakePort:
    """Stands for pyserial's port: notes what is asked of it, and fails where it is told to."""

    def __init__(self, fail: dict[str, Exception]) -> None:
        self.fail = fail
        self.written: list[bytes] = []
        self.asked: list[int] = []
        self.data = b""
        self.is_open = True

    def _may(self, name: str) -> None:
        if name in self.fail:
            raise self.fail[name]

    def reset_input_buffer(self) -> None:
        self._may("reset")

    def set_low_latency_mode(self, mode: bool) -> None:
        assert mode is True
        self._may("latency")

    def write(self, data: bytes) -> None:
        self._may("write")
        self.written.append(data)

    @property
    def in_waiting(self) -> int:
        return len(self.data)

    def read(self, size: int) -> bytes:
        self._may("read")
        self.asked.append(size)
        data, self.data = self.data[:size], self.data[size:]
        return data

    def close(self) -> None:
        self.is_open = False
        self._may("close")


def faked(monkeypatch: pytest.MonkeyPatch, **fail: Exception) -> FakePort:
    import serial

    port = FakePort(fail)

    def make(name: str, baud: int, **options: Any) -> FakePort:
        assert options == {"timeout": 0.1, "write_timeout": 5.0, "exclusive": True}
        if "open" in fail:
            raise fail["open"]
        return port

    monkeypatch.setattr(serial, "Serial", make)
    return port


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, OSError, ValueError])
def test_what_is_asked_of_the_port(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    port = faked(monkeypatch, latency=error())
    link = SerialPort("name", 1000)
    assert link.baud == 1000
    link.write(bytes(250))
    # A second's worth of bytes at a time, as many as the time limit is for.
    assert [len(piece) for piece in port.written] == [100, 100, 50]
    port.data = b"abcdef"
    assert [link.read(size, 0) for size in (0, 4, 4, 4)] == [b"", b"abcd", b"ef", b""]
    # Not more than is there, and no waiting once the time is over.
    assert port.asked == [4, 2]
    link.close()
    assert not port.is_open


def test_a_port_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import serial

    faked(monkeypatch, write=serial.SerialTimeoutException())
    with pytest.raises(LinkError, match="the port name has taken nothing for 5 s; is something"):
        SerialPort("name", 1000).write(b"a")


@pytest.mark.parametrize("what", ["write", "read"])
def test_a_port_that_is_lost(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    faked(monkeypatch, **{what: OSError("gone"), "close": OSError("gone")})
    link = SerialPort("name", 1000)
    with pytest.raises(LinkError, match=r"^the port name is lost \(gone\); plug the board in"):
        link.write(b"a") if what == "write" else link.read(1, 1)
    link.close()
    with pytest.raises(LinkError, match="^the port name is closed$"):
        link.write(b"a")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EACCES, "no"), "you may not use it; on Linux, join the group"),
        (OSError(errno.EPERM, "no"), "you may not use it; on Linux, join the group"),
        (OSError(errno.EBUSY, "no"), "another program uses it; end that one"),
        (OSError(errno.EAGAIN, "no"), "another program uses it; end that one"),
        (OSError("PermissionError"), "another program uses it; end that one"),
        (OSError("Could not exclusively lock port"), "another program uses it; end that one"),
        (OSError("FileNotFoundError"), "it does not exist; "),
        (ValueError("odd"), r"it does not run at 1000 Bd \(odd\)$"),
        (OSError("invalid baud rate"), r"it does not run at 1000 Bd \(invalid baud rate\)$"),
        (OSError("smoke"), "smoke$"),
    ],
)
def test_why_a_port_does_not_open(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    faked(monkeypatch, open=error)
    with pytest.raises(LinkError, match=f"^cannot open the port name: {message}"):
        SerialPort("name", 1000)


def test_a_port_that_opens_and_fails_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    port = faked(monkeypatch, reset=OSError("smoke"))
    with pytest.raises(LinkError, match="smoke"):
        SerialPort("name", 1000)
    assert not port.is_open


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "no port is there; is the board plugged in and powered"),
        (["/dev/b", "/dev/a"], "the ports here are /dev/a, /dev/b$"),
    ],
)
def test_the_ports_that_there_are(
    monkeypatch: pytest.MonkeyPatch, found: list[str], message: str
) -> None:
    from types import SimpleNamespace

    from serial.tools import list_ports

    monkeypatch.setattr(list_ports, "comports", lambda: [SimpleNamespace(device=n) for n in found])
    faked(monkeypatch, open=OSError(errno.ENOENT, "none"))
    with pytest.raises(LinkError, match=f"it does not exist; {message}"):
        SerialPort("name", 1000)


def test_without_pyserial(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(LinkError, match="a serial port needs pyserial, which is missing; install"):
        SerialPort("name", 1000)
