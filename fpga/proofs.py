"""How far each board is proven, by the figures of its builds that are kept.

They are in the folder ``builds``, beside this module: for each board ``NAME.json`` of its default
device, and ``NAME.largest.json`` of the largest array; :mod:`ditto.fpga.survey` makes them.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from amaranth.back import rtlil  # pyright: ignore[reportAttributeAccessIssue]

from ditto.fpga.boards import BOARDS
from ditto.fpga.generate import for_yosys
from ditto.fpga.uart import SerialDevice
from ditto.hdl.config import Config

__all__ = ["Proof", "build_of", "gateware_of", "is_of_today", "keep", "proofs_of"]

_FACTS = (
    "build",
    "digest",
    "clock_hz",
    "fmax_mhz",
    "failed_seeds",
    "utilization",
    "tools",
    "bitstream_sha256",
)

# Not too shallow for the families' own memories.
_SAMPLE = Config(
    clusters=1,
    lanes=1,
    columns=1,
    accumulator_bits=24,
    weight_rows=512,
    accumulator_rows=64,
    item_depth=512,
    positions=16,
    channels=8,
    list_depth=9,
    layers=4,
    frame_bytes=128,
)


class Proof(StrEnum):
    """A way in which a board is proven; none ran on hardware yet."""

    #: The gateware runs in simulation.
    SIMULATED = "simulated"
    #: The default device was placed and routed, and meets its clock.
    BUILT = "built"
    #: So it was with gateware that has changed since.
    EARLIER = "built (earlier gateware)"
    #: The netlist of a smaller device runs in simulation, through the board's pins.
    NETLIST = "netlist-simulated"


@cache
def gateware_of(family: type) -> str:
    """Return a hash of the gateware: of the RTL of a small device behind a serial line.

    Parameters
    ----------
    family
        What the FPGA's family has better, see :attr:`ditto.fpga.families.Family.gateware`.
    """
    platform = family()
    platform.config = _SAMPLE
    device = SerialDevice(_SAMPLE, frequency=50_000_000, baud=1_000_000)
    text = rtlil.convert(device, name="top", platform=platform, emit_src=False)
    return hashlib.sha256(for_yosys(text, "top.device").encode()).hexdigest()[:16]


def build_of(name: str, *, largest: bool = False) -> dict[str, Any] | None:
    """Return the figures of a board's build, be it of today's gateware or not.

    Parameters
    ----------
    name
        Name of the board.
    largest
        Whether the largest array is meant, and not the default device.

    Returns
    -------
    dict or None
        None if there is none with today's parameters and clock.
    """
    try:
        found = json.loads(_file(name, largest).read_text("utf-8"))
    except FileNotFoundError:
        return None
    board = BOARDS[name]
    config = replace(board.config, **found["array"]) if largest else board.config
    is_same = (found["digest"], found["clock_hz"]) == (config.digest.hex(), board.frequency)
    return found if is_same else None


def keep(name: str, facts: Mapping[str, Any], *, largest: bool = False) -> None:
    """Keep the figures of a build, of :attr:`ditto.fpga.bitstream.Bitstream.facts`.

    For the largest array, there are two more: ``array``, its clusters and columns, and the
    ``seconds`` that it took to find it.
    """
    names = _FACTS + ("array", "seconds") * largest
    figures = {key: facts[key] for key in names} | {
        "gateware": gateware_of(BOARDS[name].family.gateware)
    }
    path = _file(name, largest)
    path.parent.mkdir(exist_ok=True)
    whole = path.with_suffix(".part")
    whole.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    os.replace(whole, path)


def _file(name: str, largest: bool) -> Path:
    return _folder() / (f"{name}.largest.json" if largest else f"{name}.json")


def _folder() -> Path:
    return Path(str(files("ditto.fpga").joinpath("builds")))


def is_of_today(name: str, found: Mapping[str, Any]) -> bool:
    """Return whether figures are of today's gateware."""
    return found["gateware"] == gateware_of(BOARDS[name].family.gateware)


def proofs_of(name: str) -> list[Proof]:
    """Return how a board is proven."""
    proofs = [Proof.SIMULATED]
    build = build_of(name)
    if build is not None:
        proofs.append(Proof.BUILT if is_of_today(name, build) else Proof.EARLIER)
    if BOARDS[name].is_simulated_as_netlist:
        proofs.append(Proof.NETLIST)
    return proofs
