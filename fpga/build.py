"""Synthesizes, places and routes a device for an ECP5, to learn its size and speed.

Results are kept in the folder of :func:`ditto.sim.verilate.cache_folder` under a hash of everything
that went into them: the gateware, the tools' versions and their options. A run that fails or is
interrupted leaves nothing there.
"""

import gzip
import hashlib
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ditto.fpga.ecp5 import Ecp5
from ditto.fpga.floorplan import LEAST_CLUSTERS, floorplan
from ditto.fpga.generate import rtlil
from ditto.fpga.parts import PACKAGE, PARTS, SPEED, Part
from ditto.fpga.tools import Tool, ToolError, find
from ditto.hdl.config import Config
from ditto.sim.verilate import cache_folder, remember

__all__ = ["Builder", "Delay", "DoesNotFitError", "Placed", "Synthesized", "cells_of", "placed_of"]

logger = logging.getLogger(__name__)

# Wide multiplexers and the mapper's second version take more LUTs than they save here.
_SYNTHESIS = "read_rtlil d.il; synth_ecp5 -nowidelut -noabc9 -top ditto -json d.json"

# Of the floorplan: a placement in the cache with another one is not used.
_FLOORPLAN = "floorplan 1"

_CELLS = {
    "LUT4": "luts",
    "CCU2C": "carries",
    "TRELLIS_FF": "ffs",
    "TRELLIS_DPR16X4": "distributed",
    "DP16KD": "brams",
    "MULT18X18D": "dsps",
}

_MEANINGS = {
    "TRELLIS_COMB": "LUTs",
    "TRELLIS_FF": "flip-flops",
    "TRELLIS_RAMW": "distributed memories",
    "DP16KD": "block memories",
    "MULT18X18D": "multiplier blocks",
}


class DoesNotFitError(ToolError):
    """A device that is too big for a part.

    Parameters
    ----------
    part
        The part.
    needs
        What it would take of each kind of cell that there is not enough of.
    """

    def __init__(self, part: Part, needs: dict[str, int]) -> None:
        self.part, self.needs = part, needs
        causes = ", ".join(
            f"{used} of {part.cells[cell]} {_MEANINGS[cell]} ({cell}), "
            f"{used - part.cells[cell]} too many"
            for cell, used in needs.items()
        )
        super().__init__(f"the device does not fit {part.name}: it takes {causes}")


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
        self._timeout = timeout
        self._progress = progress
        self._yosys, self._nextpnr = find("yosys"), find("nextpnr-ecp5")
        self._rtlil = rtlil(config, Ecp5())
        self._netlist_key = _digest(self._rtlil, self._yosys.version, _SYNTHESIS)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the tools."""
        return {tool.name: tool.version for tool in (self._yosys, self._nextpnr)}

    def synthesize(self) -> Synthesized:
        """Map the device to cells, and pack them.

        Raises
        ------
        ToolError
            If a tool fails or takes too long.
        """
        # The biggest part, for any: packing does not depend on it.
        options = [*_options(PARTS["85k"]), "--pack-only"]

        def make() -> str:
            netlist = self._netlist()
            self._say(f"Packing {_summary(self.config)}")
            report = self._run(self._nextpnr, [*options, "--report", "r.json"], netlist)
            used = {
                cell: numbers["used"] for cell, numbers in json.loads(report)["utilization"].items()
            }
            return json.dumps(cells_of(netlist) | {"used": used})

        key = _digest(self._netlist_key, self._nextpnr.version, *options)
        return Synthesized(**json.loads(remember(f"synthesis-{key}.json", make)))

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
        needs = {cell: used[cell] for cell, most in self.part.cells.items() if used[cell] > most}
        if needs:
            raise DoesNotFitError(self.part, needs)
        options = [*_options(self.part), "--seed", str(seed), "--freq", f"{self.frequency:g}"]
        # To measure, not to fail: a missed frequency is a result.
        options += ["--timing-allow-fail"]
        if self.config.clusters >= LEAST_CLUSTERS:
            # Around blocks that have their places, its wires are shorter than the default's.
            options += ["--placer", "static"]

        def make() -> str:
            netlist = _with_places(self._netlist(), self.part)
            self._say(f"Placing and routing {_summary(self.config)}, seed {seed}")
            report = self._run(self._nextpnr, [*options, "--report", "r.json"], netlist)
            return json.dumps(asdict(placed_of(json.loads(report), seed)))

        key = _digest(self._netlist_key, self._nextpnr.version, *options, _FLOORPLAN)
        values = json.loads(remember(f"placement-{key}.json", make))
        delays = tuple(Delay(**delay) for delay in values["delays"])
        return Placed(**values | {"delays": delays})

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

    def _say(self, text: str) -> None:
        logger.info("%s", text)
        if self._progress is not None:
            self._progress(text)

    def _netlist(self) -> str:
        """Return the netlist, as Yosys writes it in JSON."""
        path = cache_folder() / f"netlist-{self._netlist_key}.json.gz"
        try:
            return gzip.decompress(path.read_bytes()).decode()
        except (OSError, EOFError, UnicodeDecodeError):
            pass
        self._say(f"Synthesizing {_summary(self.config)}")
        with tempfile.TemporaryDirectory(dir=_made(path.parent), prefix="build-") as temporary:
            folder = Path(temporary)
            (folder / "d.il").write_text(self._rtlil, encoding="utf-8")
            self._yosys.run(["-q", "-p", _SYNTHESIS], folder, self._timeout)
            text = (folder / "d.json").read_text(encoding="utf-8")
            whole = folder / "whole"
            whole.write_bytes(gzip.compress(text.encode(), 6, mtime=0))
            os.replace(whole, path)
        return text

    def _run(self, tool: Tool, options: list[str], netlist: str) -> str:
        """Run nextpnr on a netlist and return its report."""
        with tempfile.TemporaryDirectory(dir=_made(cache_folder()), prefix="build-") as temporary:
            folder = Path(temporary)
            (folder / "d.json").write_text(netlist, encoding="utf-8")
            tool.run(options, folder, self._timeout)
            return (folder / "r.json").read_text(encoding="utf-8")


def _with_places(netlist: str, part: Part) -> str:
    """Give the blocks of a netlist the places that the floorplan has for them."""
    whole = json.loads(netlist)
    cells = whole["modules"]["ditto"]["cells"]
    places = floorplan(cells, part)
    if not places:
        return netlist
    for name, place in places.items():
        cells[name].setdefault("attributes", {})["BEL"] = place
    return json.dumps(whole)


def cells_of(netlist: str) -> dict[str, int]:
    """Count the cells of a netlist that Yosys wrote, by field of :class:`Synthesized`."""
    modules = json.loads(netlist)["modules"]
    found = Counter(cell["type"] for cell in modules["ditto"]["cells"].values())
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
        *(part.option, "--speed", str(SPEED), "--package", PACKAGE, "--json", "d.json"),
        # The core's pins are a board's business.
        "--lpf-allow-unconstrained",
    ]


def _summary(config: Config) -> str:
    array = f"{config.clusters} x {config.lanes} x {config.columns}"
    return f"{array} multipliers ({config.multiplier})"


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ToolError(
            f"cannot build in {folder}: {error} (set XDG_CACHE_HOME to a folder that can be "
            "written)"
        ) from error
    return folder


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
