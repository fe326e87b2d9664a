"""Synthesizes, places and routes a device for an ECP5, to learn its size and speed."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ditto.fpga.ecp5 import Ecp5
from ditto.fpga.families import ECP5
from ditto.fpga.floorplan import LEAST_CLUSTERS, floorplan
from ditto.fpga.flow import Flow
from ditto.fpga.generate import rtlil
from ditto.fpga.parts import PACKAGE, PARTS, SPEED, Part
from ditto.fpga.tools import ToolError
from ditto.hdl.config import Config

__all__ = [
    "FLOORPLAN",
    "Builder",
    "Delay",
    "DoesNotFitError",
    "Placed",
    "Synthesized",
    "cells_of",
    "placed_of",
    "summary",
    "with_places",
]

# Of the floorplan: a placement in the cache with another one is not used.
FLOORPLAN = "floorplan 1"

_CELLS = {
    "LUT4": "luts",
    "CCU2C": "carries",
    "TRELLIS_FF": "ffs",
    "TRELLIS_DPR16X4": "distributed",
    "DP16KD": "brams",
    "MULT18X18D": "dsps",
}


class DoesNotFitError(ToolError):
    """A device that is too big for a part.

    Parameters
    ----------
    part
        Name of the part.
    needs
        What it would take of each kind of cell that there is not enough of, and how many there are.
    meanings
        What the cells are.
    """

    def __init__(
        self, part: str, needs: Mapping[str, tuple[int, int]], meanings: Mapping[str, str]
    ) -> None:
        self.part, self.needs = part, needs
        causes = ", ".join(
            f"{used} of {most} {meanings.get(cell, 'cells')} ({cell}), {used - most} too many"
            for cell, (used, most) in needs.items()
        )
        super().__init__(f"the device does not fit {part}: it takes {causes}")


@dataclass(frozen=True, kw_only=True)
class Synthesized:
    """What synthesis made of a device.

    Parameters
    ----------
    luts, carries, ffs, distributed, brams, dsps
        Number of LUT4, CCU2C, TRELLIS_FF, TRELLIS_DPR16X4, DP16KD and MULT18X18D.
    used
        What the packed netlist takes, by nextpnr's names.
    """

    luts: int
    carries: int
    ffs: int
    distributed: int
    brams: int
    dsps: int
    used: dict[str, int]

    @property
    def comb(self) -> int:
        """Places for a LUT that are taken: by LUTs, by carry cells and by memories."""
        return self.used["TRELLIS_COMB"]


@dataclass(frozen=True, kw_only=True)
class Delay:
    """The slowest path of a group.

    Parameters
    ----------
    source, target
        ``clk``, ``input`` or ``output``.
    nanoseconds
        Its delay.
    first, last
        The cells at its ends.
    levels
        Cells that it goes through.
    """

    source: str
    target: str
    nanoseconds: float
    first: str
    last: str
    levels: int


@dataclass(frozen=True, kw_only=True)
class Placed:
    """What place and route with one seed made of a device.

    Parameters
    ----------
    seed
        The seed.
    fmax_mhz
        Highest clock frequency, of paths from register to register.
    delays
        The slowest path of every group.
    """

    seed: int
    fmax_mhz: float
    delays: tuple[Delay, ...]


class Builder:
    """Builds a device; what the cache has is not built again.

    Parameters
    ----------
    config
        The device.
    part
        Size of the part, see :data:`ditto.fpga.parts.PARTS`.
    frequency
        Clock frequency to aim for, in MHz. Place and route tries no harder than this.
    timeout
        Most seconds for each run of a tool.
    progress
        Called with a line of text for each step that the cache does not have.

    Raises
    ------
    MissingToolError
        If a tool is missing.
    """

    def __init__(
        self,
        config: Config,
        *,
        part: str = "85k",
        frequency: float = 80.0,
        timeout: float = 3600.0,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.config = config
        self.part = PARTS[part]
        self.frequency = frequency
        self._flow = Flow(
            rtlil(config, Ecp5()),
            top="ditto",
            synthesis=ECP5.synthesis,
            nextpnr="nextpnr-ecp5",
            name=summary(config),
            timeout=timeout,
            progress=progress,
        )

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the tools."""
        return self._flow.versions

    def synthesize(self) -> Synthesized:
        """Map the device to cells, and pack them.

        Raises
        ------
        ToolError
            If a tool fails or takes too long.
        """
        # The biggest part, for any: packing does not depend on it.
        report = self._flow.pack(_options(PARTS["85k"]), {})
        used = {cell: numbers["used"] for cell, numbers in report["utilization"].items()}
        return Synthesized(**cells_of(self._flow.netlist(), "ditto"), used=used)

    def place(self, seed: int) -> Placed:
        """Place and route the device.

        Raises
        ------
        DoesNotFitError
            If the part is too small.
        ToolError
            If a tool fails or takes too long.
        """
        used = self.synthesize().used
        needs = {
            cell: (used[cell], most) for cell, most in self.part.cells.items() if used[cell] > most
        }
        if needs:
            raise DoesNotFitError(self.part.name, needs, ECP5.cells)
        options = [*_options(self.part), "--freq", f"{self.frequency:g}"]
        # To measure, not to fail: a missed frequency is a result.
        options += ["--timing-allow-fail"]
        if self.config.clusters >= LEAST_CLUSTERS:
            # Around blocks that have their places, its wires are shorter than the default's.
            options += ["--placer", "static"]
        report, _ = self._flow.place(
            seed,
            options,
            {},
            prepare=lambda n: with_places(n, "ditto", self.part),
            version=FLOORPLAN,
        )
        return placed_of(report, seed)

    def facts(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Describe the device, built with some seeds, in plain values, for JSON."""
        placed = [self.place(seed) for seed in seeds]
        area = self.synthesize()
        return {
            "device": self.part.name,
            "speed": SPEED,
            "package": PACKAGE,
            "target_mhz": self.frequency,
            "configuration": asdict(self.config),
            "luts": area.luts,
            "carries": area.carries,
            "comb": area.comb,
            "ffs": area.ffs,
            "distributed": area.distributed,
            "dsps": area.dsps,
            "brams": area.brams,
            "available": self.part.cells,
            "fmax_mhz": {str(run.seed): run.fmax_mhz for run in placed},
            "delays": {str(run.seed): [asdict(d) for d in run.delays] for run in placed},
            "tools": self.versions,
        }


def with_places(netlist: bytes, top: str, part: Part) -> bytes:
    """Give the blocks of a netlist the places that the floorplan has for them."""
    whole = json.loads(netlist)
    cells = whole["modules"][top]["cells"]
    places = floorplan(cells, part)
    if not places:
        return netlist
    for name, place in places.items():
        cells[name].setdefault("attributes", {})["BEL"] = place
    return json.dumps(whole).encode()


def cells_of(netlist: bytes, top: str) -> dict[str, int]:
    """Count the cells of a netlist that Yosys wrote, by field of :class:`Synthesized`."""
    modules = json.loads(netlist)["modules"]
    found = Counter(cell["type"] for cell in modules[top]["cells"].values())
    return {name: found[cell] for cell, name in _CELLS.items()}


def placed_of(report: dict[str, Any], seed: int) -> Placed:
    """Read a report of nextpnr."""
    delays = []
    for group in report["critical_paths"]:
        steps = group["path"]
        delays.append(
            Delay(
                source=_end_of(group["from"], "input"),
                target=_end_of(group["to"], "output"),
                nanoseconds=round(sum(step["delay"] for step in steps), 3),
                first=steps[0]["from"]["cell"],
                last=steps[-1]["to"]["cell"],
                levels=sum(step["type"] == "logic" for step in steps),
            )
        )
    (clock,) = report["fmax"].values()
    return Placed(seed=seed, fmax_mhz=round(clock["achieved"], 2), delays=tuple(delays))


def _end_of(name: str, asynchronous: str) -> str:
    return asynchronous if name == "<async>" else "clk"


def _options(part: Part) -> list[str]:
    return [
        *(part.option, "--speed", str(SPEED), "--package", PACKAGE),
        # The core's pins are a board's business.
        "--lpf-allow-unconstrained",
    ]


def summary(config: Config) -> str:
    """Say in a few words what a device is."""
    array = f"{config.clusters} x {config.lanes} x {config.columns}"
    return f"{array} multipliers ({config.multiplier})"
