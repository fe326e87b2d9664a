"""The boards that a device can be on."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ditto.hdl.config import Config
from ditto.host.device import Accelerator, Device

__all__ = ["BOARDS", "SERIAL", "BoardError", "check_board", "open_device", "open_port"]

SERIAL = "serial"
"""Stands for any board with a device behind a serial port."""


class BoardError(Exception):
    """A board that does not exist."""


class Board(NamedTuple):
    """A kind of board."""

    description: str
    open: Callable[[Config], Accelerator]


def _sim(config: Config) -> Accelerator:
    from ditto.sim.board import SimulatedBoard

    return Device(SimulatedBoard(config), expect=config)


def _golden(config: Config) -> Accelerator:
    from ditto.sim.golden import Golden

    return Golden(config)


BOARDS = {
    "sim": Board("the generated hardware, compiled and clocked on this computer", _sim),
    "golden": Board("the golden model in place of driver and hardware, without a link", _golden),
}
"""Boards by name."""


def open_device(board: str, config: Config) -> Accelerator:
    """Open a device.

    Parameters
    ----------
    board
        Name of a board, see :data:`BOARDS`.
    config
        The configuration that the device must have.

    Raises
    ------
    BoardError
        If there is no such board.
    DeviceError
        If the device does not answer or has another configuration.
    """
    check_board(board, None)
    return BOARDS[board].open(config)


def open_port(
    board: str,
    port: str,
    *,
    baud: int | None = None,
    expect: Config | Mapping[str, Any] | None = None,
) -> Device:
    """Open the device of a board at a serial port; the device tells its configuration.

    Parameters
    ----------
    board
        Name of a board, or :data:`SERIAL`.
    port
        Name of the port.
    baud
        Bits per second; those of the board if absent.
    expect
        The configuration that the device must have, or some of its parameters by name.

    Raises
    ------
    BoardError
        If there is no such board, or it has no port, or it needs a rate.
    DeviceError
        If the device does not answer or has another configuration.
    LinkError
        If the port cannot be opened.
    """
    from ditto.host.serial_port import SerialPort

    check_board(board, port)
    rate = baud or _baud(board)
    # A frame and an answer of more than that take their time on a slow line.
    return Device(SerialPort(port, rate), expect=expect, timeout=2.0 + (1 << 15) * 10 / rate)


def check_board(board: str, port: str | None) -> None:
    """Check that there is such a board, with a port or without one.

    Raises
    ------
    BoardError
        If there is none.
    """
    if board in BOARDS:
        if port is not None:
            raise BoardError(f"the board {board} is on this computer and has no port")
        return
    names = [*BOARDS, SERIAL, *_rates()]
    if board not in names:
        raise BoardError(f"there is no board {board!r}; choose from {', '.join(names)}")
    if port is None:
        raise BoardError(f"the board {board} needs a port: --port PORT")


def _rates() -> dict[str, int]:
    """Return the rates of the boards' UARTs, by name."""
    from ditto.fpga import boards

    return {name: board.baud for name, board in boards.BOARDS.items()}


def _baud(board: str) -> int:
    """Return the rate of a board's UART."""
    if board == SERIAL:
        raise BoardError(f"the board {SERIAL} needs the rate of its UART: --baud N")
    return _rates()[board]
