"""Builds a device for a board: from the table to a bitstream whose timing is met."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib import metadata
from pathlib import PurePath
from typing import Any, NamedTuple

from ditto.fpga.boards import Board, board_of
from ditto.fpga.build import FLOORPLAN, DoesNotFitError, summary, with_places
from ditto.fpga.floorplan import LEAST_CLUSTERS
from ditto.fpga.flow import Flow
from ditto.fpga.generate import for_yosys
from ditto.fpga.parts import PARTS
from ditto.fpga.tools import TimeLimitError, ToolError, find
from ditto.fpga.top import BoardTop
from ditto.hdl.config import Config
from ditto.hdl.protocol import NO_BUILD

__all__ = ["Bitstream", "BoardBuilder", "Group", "Routed", "TimingError", "routed_of"]

MARGIN = 1.1
"""How much faster than its clock a device is placed for."""

_PINS = "pins"
_ECP5_SIZE = re.compile(r"--(?:um-|um5g-)?(12k|25k|45k|85k)\b")

SEEDS = (1, 2, 3)
"""Seeds that a board is built with unless others are named."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The slowest path of a group: from a clock or from pins, to a clock or to pins.

    Parameters
    ----------
    source, target
        Names of clocks, or ``pins``.
    nanoseconds
        Its delay.
    path
        The cells that it goes through, and the nanoseconds until each.
    """

    source: str
    target: str
    nanoseconds: float
    path: tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Routed:
    """What place and route with one seed made.

    Parameters
    ----------
    seed
        The seed.
    clocks
        Highest frequency of every clock, in MHz.
    groups
        The slowest path of every group.
    """

    seed: int
    clocks: dict[str, float]
    groups: tuple[Group, ...]

    @property
    def fmax_mhz(self) -> float:
        """Highest frequency of the slowest clock, in MHz."""
        return min(self.clocks.values())

    @property
    def slowest(self) -> Group:
        """The slowest path from a clock to a clock."""
        inside = [group for group in self.groups if _PINS not in (group.source, group.target)]
        return max(inside, key=lambda group: group.nanoseconds)


class TimingError(ToolError):
    """A device that is too slow for its clock, with every seed.

    Parameters
    ----------
    runs
        What place and route made.
    required
        The clock's frequency, in MHz.
    """

    def __init__(self, runs: Sequence[Routed], required: float) -> None:
        self.runs, self.required = runs, required
        best = max(runs, key=lambda run: run.fmax_mhz)
        clock = min(best.clocks, key=lambda name: best.clocks[name])
        slowest = best.slowest
        seeds = ", ".join(f"{run.fmax_mhz:.1f} MHz with seed {run.seed}" for run in runs)
        cells = "\n".join(f"  {ns:7.2f} ns  {cell}" for cell, ns in slowest.path)
        super().__init__(
            f"timing is not met: {clock} needs {required:g} MHz and reaches {seeds}; its slowest "
            f"path with seed {best.seed} takes {slowest.nanoseconds:.2f} ns:\n{cells}\n"
            "(a smaller array, or a slower clock by --frequency, would do)"
        )


@dataclass(frozen=True, kw_only=True)
class Bitstream:
    """A bitstream, and what is known of it.

    Parameters
    ----------
    data
        Its bytes.
    suffix
        Ending of its name, such as ``.bit``.
    facts
        Everything that the manifest says.
    runs
        What place and route made, for each seed.
    """

    data: bytes
    suffix: str
    facts: dict[str, Any]
    runs: tuple[Routed, ...]


class _Plan(NamedTuple):
    """A design for a board, as Amaranth hands it to the tools."""

    rtlil: str
    constraints: bytes
    #: Options of nextpnr, and the one that names its result.
    place: list[str]
    write: list[str]
    #: Command that makes the bitstream.
    pack: list[str]


def _plan(board: Board, top: BoardTop) -> _Plan:
    """Have Amaranth prepare a design."""
    family = board.family
    files = board.open_platform(top.config).prepare(top, name="top", emit_src=False).files
    text = {
        name: data.decode() if isinstance(data, bytes) else data for name, data in files.items()
    }
    # The PLL's clock is constrained by an option, and nothing else has a clock.
    lines = text[family.constraints].splitlines(keepends=True)
    lines = [line for line in lines if not line.startswith(("FREQUENCY ", "set_frequency "))]
    _, place, pack = json.loads(text["build_top.json"])["commands"]
    words = family.adapt([word for word in place[1:] if word != "--quiet"])
    at = words.index(family.routed)
    return _Plan(
        rtlil=for_yosys(text["top.il"], "top.device"),
        constraints="".join(lines).encode(),
        place=_without(words, "--log", "--json", words[at - 1]),
        write=words[at - 1 : at + 1],
        pack=pack,
    )


def _without(words: list[str], *options: str) -> list[str]:
    """Drop some options with a value."""
    pairs = zip(["", *words], words, strict=False)
    return [word for before, word in pairs if not {before, word} & set(options)]


class BoardBuilder:
    """Builds a device for a board; what the cache has is not built again.

    Parameters
    ----------
    name
        Name of the board.
    config
        The device; the board's default if absent.
    frequency, baud
        Frequency of the core's clock in Hz, and bits per second; the board's if absent.
    timeout
        Most seconds for each run of a tool.
    progress
        Called with a line of text for each step that the cache does not have.

    Raises
    ------
    UnknownBoardError
        If there is no such board.
    ClockError
        If the board's PLL cannot make the clock, or it is too slow for the serial line.
    MissingToolError
        If a tool is missing.
    """

    def __init__(
        self,
        name: str,
        config: Config | None = None,
        *,
        frequency: int | None = None,
        baud: int | None = None,
        timeout: float = 3600.0,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.board = board = board_of(name)
        self.config = config or board.config
        self.frequency = frequency or board.frequency
        self.baud = baud or board.baud
        board.check_rates(self.frequency, self.baud)
        # What is missing is found before the design is made, which takes seconds.
        self._tools = [find(tool) for tool in ("yosys", board.family.nextpnr)]
        # The device reports a hash of itself, but for this hash.
        blank = self._prepare(NO_BUILD)
        inputs = [blank.rtlil.encode(), blank.constraints, " ".join(blank.place).encode()]
        self.build_hash = hashlib.sha256(b"\0".join(inputs)).digest()[: len(NO_BUILD)]
        self._packer = find(blank.pack[0])
        self._timeout, self._progress = timeout, progress

    @cached_property
    def _plan(self) -> _Plan:
        return self._prepare(self.build_hash)

    @cached_property
    def _flow(self) -> Flow:
        return Flow(
            self._plan.rtlil,
            top="top",
            synthesis=self.board.family.synthesis,
            nextpnr=self.board.family.nextpnr,
            name=f"{summary(self.config)} for {self.name}",
            timeout=self._timeout,
            progress=self._progress,
        )

    def _prepare(self, build: bytes) -> _Plan:
        top = BoardTop(
            self.board, self.config, frequency=self.frequency, baud=self.baud, build=build
        )
        return _plan(self.board, top)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of everything that a bitstream depends on."""
        names = ("ditto-accel", "amaranth", "amaranth-boards")
        versions = {name: metadata.version(name) for name in names}
        return versions | {tool.name: tool.version for tool in (*self._tools, self._packer)}

    def utilization(self) -> dict[str, tuple[int, int]]:
        """Return how many cells of each kind the device takes, and how many there are.

        Raises
        ------
        DoesNotFitError
            If there are too few of a kind.
        ToolError
            If a tool fails or takes too long.
        """
        report = self._flow.pack(self._plan.place, self._files)
        cells = {
            cell: (numbers["used"], numbers["available"])
            for cell, numbers in report["utilization"].items()
            if cell in self.board.family.cells
        }
        needs = {cell: counts for cell, counts in cells.items() if counts[0] > counts[1]}
        if needs:
            raise DoesNotFitError(self.board.title, needs, self.board.family.cells)
        return cells

    def place(self, seed: int) -> Routed:
        """Place and route the device.

        Raises
        ------
        DoesNotFitError
            If it does not fit.
        ToolError
            If a tool fails or takes too long.
        """
        return self._place(seed)[0]

    def build(self, seeds: Sequence[int] = SEEDS) -> Bitstream:
        """Build the bitstream, with the seed that gives the fastest device.

        Raises
        ------
        DoesNotFitError
            If it does not fit.
        TimingError
            If it is too slow with every seed.
        ToolError
            If a tool fails or takes too long; place and route, if it does so with every seed.
        """
        utilization = self.utilization()
        runs: list[tuple[Routed, bytes]] = []
        failed: dict[int, ToolError] = {}
        for seed in seeds:
            try:
                runs.append(self._place(seed))
            except ToolError as error:
                # Where the first takes too long, so would all.
                if isinstance(error, TimeLimitError) and not runs:
                    raise
                # In a full part, not every seed finds places and routes for everything.
                failed[seed] = error
        if not runs:
            raise failed[seeds[0]]
        required = self.frequency / 1e6
        routed, made = max(runs, key=lambda run: run[0].fmax_mhz)
        if routed.fmax_mhz < required:
            raise TimingError([run for run, _ in runs], required)
        family = self.board.family
        inputs = [made, " ".join(self._plan.pack).encode(), self._packer.version.encode()]
        (data,) = self._flow.run(
            f"bitstream-{hashlib.sha256(b''.join(inputs)).hexdigest()[:32]}",
            "Packing the bitstream of",
            self._packer,
            self._plan.pack[1:],
            {family.routed: made},
            [family.product],
        )
        facts = {
            "board": self.name,
            "title": self.board.title,
            "digest": self.config.digest.hex(),
            "configuration": asdict(self.config),
            "build": self.build_hash.hex(),
            "rtl_sha256": hashlib.sha256(self._plan.rtlil.encode()).hexdigest(),
            "bitstream_sha256": hashlib.sha256(data).hexdigest(),
            "clock_hz": self.frequency,
            "baud": self.baud,
            "seed": routed.seed,
            "fmax_mhz": {str(run.seed): run.clocks for run, _ in runs},
            "failed_seeds": list(failed),
            "utilization": {
                cell: {"used": used, "available": available}
                for cell, (used, available) in utilization.items()
            },
            "tools": self.versions,
        }
        return Bitstream(
            data=data,
            suffix=PurePath(family.product).suffix,
            facts=facts,
            runs=tuple(run for run, _ in runs),
        )

    @property
    def _files(self) -> dict[str, bytes]:
        return {self.board.family.constraints: self._plan.constraints}

    def _place(self, seed: int) -> tuple[Routed, bytes]:
        self.utilization()
        # Whether timing is met is judged here: for the clock's frequency, without the margin.
        options = [
            *self._plan.place,
            *self._plan.write,
            "--freq",
            f"{MARGIN * self.frequency / 1e6:g}",
        ]
        options.append("--timing-allow-fail")
        prepare, version = bytes, ""
        size = _ECP5_SIZE.search(" ".join(options))
        if size and self.config.clusters >= LEAST_CLUSTERS:
            # As the device alone is built, see `ditto.fpga.build`.
            options += ["--placer", "static"]
            prepare, version = partial(with_places, top="top", part=PARTS[size[1]]), FLOORPLAN
        report, (made,) = self._flow.place(
            seed, options, self._files, [self.board.family.routed], prepare, version
        )
        return routed_of(report, seed), made


def routed_of(report: dict[str, Any], seed: int) -> Routed:
    """Read a report of nextpnr."""
    groups = []
    for group in report["critical_paths"]:
        # A wire to a cell and the way through it are two steps.
        path: dict[str, float] = {}
        delay = 0.0
        for step in group["path"]:
            delay += step["delay"]
            path[step["to"]["cell"]] = round(delay, 3)
        ends = [_end_of(group[end]) for end in ("from", "to")]
        groups.append(
            Group(
                source=ends[0],
                target=ends[1],
                nanoseconds=round(delay, 3),
                path=tuple(path.items()),
            )
        )
    clocks = {_end_of(name): round(c["achieved"], 2) for name, c in report["fmax"].items()}
    return Routed(seed=seed, clocks=clocks, groups=tuple(groups))


def _end_of(name: str) -> str:
    """Return the name of a clock, or what stands for pins."""
    if name == "<async>":
        return _PINS
    # The falling edge is named: half a cycle is all that such a path has.
    return name.removeprefix("posedge ").replace("$glbnet$", "")
