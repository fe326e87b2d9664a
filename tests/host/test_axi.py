from typing import Any

import numpy as np
import pytest

from ditto.hdl.config import Config
from ditto.hdl.protocol import Mode
from ditto.host import axi
from ditto.host.axi import EMPTY, IDENT, Control, DmaLink, Register, RegisterLink, State
from ditto.host.device import Device, DeviceError
from ditto.host.transport import LinkError
from ditto.sim.golden_board import GoldenBoard

CONFIG = Config(
    clusters=1,
    columns=4,
    accumulator_bits=24,
    weight_rows=64,
    accumulator_rows=64,
    item_depth=64,
    positions=16,
    channels=8,
    layers=4,
    frame_bytes=128,
)


class Registers:
    """The registers in front of a board, as `ditto.fpga.axi` has them."""

    def __init__(self, board: GoldenBoard | None, *, ident: int = IDENT, busy: int = 0) -> None:
        self.board, self.ident, self.busy = board, ident, busy
        self.control = -1

    def read(self, offset: int) -> int:
        if offset == Register.IDENT:
            return self.ident
        if offset == Register.STATE:
            self.busy -= 1
            return 0 if self.busy >= 0 or self.board is None else State.CAN_WRITE
        assert offset == Register.DATA
        byte = self.board.read(1, 0) if self.board is not None else b""
        return byte[0] if byte else EMPTY

    def write(self, offset: int, data: int) -> None:
        if offset == Register.CONTROL:
            self.control = data
        else:
            assert offset == Register.DATA and self.busy < 0 and self.board is not None
            self.board.write(bytes([data]))


class Channel:
    """One direction of a DMA engine; it takes a while."""

    def __init__(self) -> None:
        self.buffer: Any = None
        self.transferred = self.wait = 0

    def transfer(self, buffer: Any, nbytes: int = 0) -> None:
        assert self.idle, "one transfer at a time"
        self.buffer, self.transferred, self.wait = buffer, 0, 2
        self.nbytes = nbytes

    @property
    def idle(self) -> bool:
        if self.buffer is not None:
            self.wait -= 1
            if self.wait < 0:
                self.done()
        return self.buffer is None

    def done(self) -> None:
        raise NotImplementedError


class Dma:
    """A DMA engine between buffers and a board."""

    def __init__(self, board: GoldenBoard | None) -> None:
        class Send(Channel):
            def done(self) -> None:
                if board is not None:
                    board.write(bytes(self.buffer[: self.nbytes]))
                    self.buffer = None

        class Receive(Channel):
            def done(self) -> None:
                if board is None:
                    return
                packet = b""
                while byte := board.read(1, 0):
                    packet += byte
                    if byte == b"\0":
                        break
                if packet:
                    self.buffer[: len(packet)] = list(packet)
                    self.transferred = len(packet)
                    self.buffer = None

        self.sendchannel, self.recvchannel = Send(), Receive()


def allocate(size: int) -> Any:
    return np.zeros(size, np.uint8)


@pytest.mark.parametrize("kind", ["registers", "dma"])
def test_device_behind_axi(kind: str) -> None:
    board = GoldenBoard(CONFIG)
    registers = Registers(board, busy=3)
    if kind == "dma":
        link: Any = DmaLink(registers, Dma(board), allocate)
        assert registers.control == Control.STREAMS
    else:
        link = RegisterLink(registers)
        assert registers.control == 0
    with Device(link, expect=CONFIG, timeout=0.2) as device:
        weights = np.arange(12).reshape(3, 4)
        device.write_weights(0, 1, weights)
        assert device.config == CONFIG and device.resent == 0
        with pytest.raises(Exception, match="NO_DELTAS|BAD_LAYER|layer"):
            device.run(0, Mode.TEMPORAL)
    for call in (lambda: link.write(b"x"), lambda: link.read(1, 0)):
        with pytest.raises(LinkError, match="the link is closed"):
            call()


@pytest.mark.parametrize("kind", ["registers", "dma"])
def test_nothing_waits_for_ever(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(axi, "_PATIENCE", 0.02)
    registers = Registers(None)
    link: Any = (
        DmaLink(registers, Dma(None), allocate) if kind == "dma" else RegisterLink(registers)
    )
    assert link.read(5, 0.01) == b""
    with pytest.raises(LinkError, match="the device has (taken no byte for|not taken a frame in)"):
        link.write(b"abc")


def test_other_registers_are_refused() -> None:
    with pytest.raises(LinkError, match="no Ditto at these registers: they identify as 0x12345678"):
        RegisterLink(Registers(None, ident=0x12345678))
    board = GoldenBoard(CONFIG)
    other = Config(**{**vars(CONFIG), "columns": 2})
    with pytest.raises(DeviceError, match="columns = 4 instead of 2"):
        Device(RegisterLink(Registers(board)), expect=other)
