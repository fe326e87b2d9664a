"""The boards that a device can be on."""

from collections.abc import Callable
from typing import NamedTuple

from ditto.hdl.config import Config
from ditto.host.device import Accelerator, Device

__all__ = ["BOARDS", "BoardError", "open_device"]


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
    try:
        kind = BOARDS[board]
    except KeyError:
        raise BoardError(f"there is no board {board!r}; choose from {', '.join(BOARDS)}") from None
    return kind.open(config)
