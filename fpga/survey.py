"""What is known of the boards: the builds of their default devices, and the page about them.

``python -m ditto.fpga.survey BOARD...`` builds boards, all that need no vendor's tools if none is
named, and keeps the figures in ``builds.json``, beside this module. With ``--fit``, it finds the
largest arrays and keeps them in ``largest.json``. With ``--image``, it counts what crosses the link
for an image of the demo, and keeps that in ``traffic.json``.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ditto.fpga.boards import BOARDS, Board
from ditto.hdl.config import Config, demo
from ditto.host.model import Model
from ditto.host.program import PlacementError, Program
from ditto.host.samplers import DDIM, Schedule
from ditto.host.traffic import measure, seconds
from ditto.sim.golden_board import GoldenBoard

__all__ = ["Proof", "build_of", "image_traffic", "largest_of", "page", "proofs_of"]


class Proof(StrEnum):
    """A way in which a board is proven; none ran on hardware yet."""

    #: The gateware runs in simulation.
    SIMULATED = "simulated"
    #: The default device was placed and routed, and meets its clock.
    BUILT = "built"
    #: The netlist of a smaller device runs in simulation, through the board's pins.
    NETLIST = "netlist-simulated"


@cache
def _kept(name: str) -> dict[str, dict[str, Any]]:
    return json.loads(files("ditto.fpga").joinpath(name).read_text("utf-8"))


def build_of(name: str) -> dict[str, Any] | None:
    """Return the figures of a board's build; none if its default device was not built."""
    build = _kept("builds.json").get(name)
    board = BOARDS[name]
    if build is None or (build["digest"], build["clock_hz"]) != (
        board.config.digest.hex(),
        board.frequency,
    ):
        return None
    return build


def largest_of(name: str) -> dict[str, Any] | None:
    """Return the figures of the largest array; none if it was not looked for in today's device."""
    found = _kept("largest.json").get(name)
    board = BOARDS[name]
    if found is None or found["clock_hz"] != board.frequency:
        return None
    array = {key: found[key] for key in ("clusters", "columns")}
    return found if replace(board.config, **array).digest.hex() == found["digest"] else None


def proofs_of(name: str) -> list[Proof]:
    """Return how a board is proven."""
    proofs = [Proof.SIMULATED]
    if build_of(name) is not None:
        proofs.append(Proof.BUILT)
    if BOARDS[name].is_simulated_as_netlist:
        proofs.append(Proof.NETLIST)
    return proofs


def page() -> str:
    """Return the page about the boards, in Markdown."""
    parts = [
        "# Boards",
        "Written by `ditto boards --page docs/boards.md`, from the table in `fpga/boards.py` and "
        "the builds in `fpga/builds.json`.",
        "No board has been run yet: nobody had one at hand. What is claimed of each is the last "
        "column. *Simulated*: the gateware runs in simulation. *Built*: the default device was "
        "placed and routed, and meets its clock by the tools' timing analysis. "
        "*Netlist-simulated*: the synthesized netlist of a smaller device runs in simulation, "
        "through the board's pins.",
        _table(
            ("board", "name", "FPGA", "clock, MHz", "link, bit/s", "bridge", "default", "proven"),
            [_row(name, board) for name, board in BOARDS.items()],
        ),
        "The default is clusters × lanes × columns of the array. `ditto build NAME -o build/` "
        "makes the bitstream, `--fit` finds the largest array that fits and meets the clock, and "
        "every parameter can be given, see `ditto build -h`. For the boards of Xilinx and Intel, "
        "the vendor's tools do the rest: `ditto build` writes Verilog, constraints and their "
        "script.",
        "## What the builds took",
        *_builds(),
        *_largest(),
        "## What fits, and how long an image takes",
        _images(),
        "## Notes",
        "\n".join(f"- {board.title}: {board.note}" for board in BOARDS.values() if board.note),
        _ADD,
    ]
    return "\n\n".join(parts) + "\n"


_ADD = """## Add your board

1. Your board needs a serial line to the computer, and an FPGA of a family in `fpga/families.py`.
2. Find its pins: a class of [amaranth-boards](https://github.com/amaranth-lang/amaranth-boards), or
   write one like those in `fpga/platforms.py`: the clock, a `UARTResource`, some `LEDResources`.
3. Add it to the table in `fpga/boards.py`. `frequency` is the clock of the device, in Hz: what the
   FPGA's PLL can make of the board's clock, exactly. Begin low.

   ```python
   "my-board": Board(
       title="My Board",
       platform="amaranth_boards.ulx3s:ULX3S_12F_Platform",
       family=ECP5,
       frequency=50_000_000,
       baud=1_000_000,
       bridge="FT232R",
       config=_SMALL,
       leds=("led/0", "led/1", "led/2"),
       loader=("-b", "ulx3s"),
   ),
   ```

4. `ditto build my-board -o build/` tells whether it fits, and how fast it is. If it does not fit,
   give fewer `--columns`, `--weight-rows` or `--accumulator-rows`.
5. `ditto program my-board build/top.bit` loads it.
6. `python -m ditto.fpga.survey my-board` and `ditto boards --page docs/boards.md` bring it to this
   page.
"""


def _row(name: str, board: Board) -> tuple[object, ...]:
    config = board.config
    return (
        board.title,
        f"`{name}`",
        board.family.name,
        f"{board.frequency / 1e6:g}",
        f"{board.baud:,}",
        board.bridge,
        f"{config.clusters} × {config.lanes} × {config.columns}",
        ", ".join(proofs_of(name)),
    )


def _builds() -> list[str]:
    """Say what the builds of the default devices took."""
    rows = [row for name in BOARDS for row in _build_row(name)]
    if not rows:
        return ["None of the default devices, as they are now, has been built yet."]
    return [
        "Figures of nextpnr; the frequency is that of the slowest, the middle and the fastest "
        "seed. A board that is not in this table was not built.",
        _table(("board", "cells", "highest MHz", "clock, MHz", "seeds"), rows),
        _tools(),
    ]


def _build_row(name: str) -> list[tuple[object, ...]]:
    build = build_of(name)
    if build is None:
        return []
    speeds = sorted(min(clocks.values()) for clocks in build["fmax_mhz"].values())
    found = " / ".join(f"{mhz:.1f}" for mhz in (speeds[0], speeds[len(speeds) // 2], speeds[-1]))
    seeds = ", ".join(build["fmax_mhz"])
    cells = _cells(build["utilization"])
    return [(BOARDS[name].title, cells, found, f"{build['clock_hz'] / 1e6:g}", seeds)]


def _largest() -> list[str]:
    """Say which arrays `--fit` has found."""
    rows = []
    for name, board in BOARDS.items():
        found = largest_of(name)
        if found is not None:
            speeds = [min(clocks.values()) for clocks in found["fmax_mhz"].values()]
            array = f"{found['clusters']} × {board.config.lanes} × {found['columns']}"
            cells = _cells(found["utilization"])
            rows.append((board.title, array, cells, f"{max(speeds):.1f}", f"{found['seconds']:,}"))
    if not rows:
        return []
    return [
        "The largest arrays that `ditto build NAME --fit` has found, with the other parameters of "
        "the default device, and the seconds that it took on one core of a server:",
        _table(("board", "array", "cells", "highest MHz", "seconds"), rows),
    ]


def _cells(utilization: dict[str, dict[str, int]]) -> str:
    return ", ".join(
        f"{n['used']:,} of {n['available']:,} {cell}" for cell, n in utilization.items()
    )


def _images() -> str:
    """Say which boards the demo model fits, and what its layers take there."""
    traffic: dict[str, dict[str, int]] = _kept("traffic.json")
    total = {key: sum(layer[key] for layer in traffic.values()) for key in _COUNTS}
    model = _demo_model()
    fits, small = [], []
    for name, board in BOARDS.items():
        try:
            Program(model.layers, model.shapes(), board.config)
        except PlacementError:
            small.append(board.title)
            continue
        # Other devices have other cycles, and placements.
        assert board.config == demo
        fits.append((board, name))
    rows = [
        (
            name,
            *(f"{layer[key]:,}" for key in _COUNTS),
            f"{seconds(layer, *_FASTEST):.3f}",
        )
        for name, layer in traffic.items()
    ]
    rows.append(
        ("all", *(f"{total[key]:,}" for key in _COUNTS), f"{seconds(total, *_FASTEST):.1f}")
    )
    clock, baud = _FASTEST
    return "\n\n".join(
        [
            "The weights of the demo model, and its accumulators of all layers, stay on the chip. "
            "They fit the default devices of these boards; an image of 50 steps takes there, "
            "bytes on the link and cycles of the array added up:",
            _table(
                ("board", "seconds for an image"),
                [
                    (board.title, f"{seconds(total, board.frequency, board.baud):.0f}")
                    for board, _ in fits
                ],
            ),
            f"They do not fit those of: {', '.join(small)}.",
            f"By layer, for 50 steps, at {clock / 1e6:g} MHz and {baud:,} bit/s. The driver waits "
            "for the answer of every exchange: what a USB bridge adds to each, up to 16 ms if it "
            "is set so, comes on top, and so does the host's own work. What "
            "attention writes as weights counts for the layer before.",
            _table(
                ("layer", "bytes sent", "bytes received", "exchanges", "cycles", "seconds"), rows
            ),
        ]
    )


_COUNTS = ("sent", "received", "exchanges", "cycles")
_FASTEST = (BOARDS["ulx3s-85f"].frequency, BOARDS["ulx3s-85f"].baud)


def _demo_model() -> Model:
    return Model.load(str(files("ditto.host.models").joinpath("digits16.int8.onnx")))


def image_traffic(steps: int) -> dict[str, dict[str, int]]:
    """Count what crosses the link for an image of the demo, layer by layer."""
    model = _demo_model()
    sampler = DDIM(Schedule.from_metadata(model.metadata), steps=steps)
    return measure(model, demo, sampler, GoldenBoard(demo))


def _tools() -> str:
    builds = [build for name in BOARDS if (build := build_of(name)) is not None]
    tools = {tool: version for build in builds for tool, version in build["tools"].items()}
    named = ("yosys", "nextpnr-ecp5", "nextpnr-ice40", "nextpnr-himbaechel-gowin")
    return "Tools: " + ", ".join(tools[tool] for tool in named if tool in tools) + "."


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


_FACTS = ("digest", "clock_hz", "fmax_mhz", "utilization", "tools", "bitstream_sha256")


def main(arguments: Sequence[str] | None = None) -> int:
    """Build boards and keep the figures."""
    from ditto.fpga.bitstream import SEEDS, BoardBuilder
    from ditto.fpga.largest import largest
    from ditto.fpga.tools import ToolError

    parser = argparse.ArgumentParser(prog="python -m ditto.fpga.survey", description=main.__doc__)
    parser.add_argument("board", nargs="*", metavar="BOARD")
    parser.add_argument("--fit", action="store_true", help="find the largest arrays")
    parser.add_argument("--fit-seconds", type=float, default=7200.0, metavar="S")
    parser.add_argument("--image", action="store_true", help="count what an image takes")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), metavar="N,...")
    options = parser.parse_args(arguments)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if options.image:
        text = json.dumps(image_traffic(50), indent=1) + "\n"
        _file("traffic.json").write_text(text, "utf-8")
    failed = False
    every = [name for name, board in BOARDS.items() if not board.family.is_vendor]
    for name in options.board or ([] if options.image else every):

        def make(config: Config, timeout: float, name: str = name) -> BoardBuilder:
            return BoardBuilder(name, config, timeout=timeout, progress=print)

        start = time.monotonic()
        try:
            if options.fit:
                config = BOARDS[name].config
                config, built = largest(make, config, seeds, seconds=options.fit_seconds)
                found = {
                    "clusters": config.clusters,
                    "columns": config.columns,
                    "seconds": round(time.monotonic() - start),
                }
                _keep("largest.json", name, found | {key: built.facts[key] for key in _FACTS})
            else:
                facts = make(BOARDS[name].config, 3600.0).build(seeds).facts
                _keep("builds.json", name, {key: facts[key] for key in _FACTS})
        except ToolError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
    return failed


def _keep(file: str, name: str, facts: dict[str, Any]) -> None:
    """Keep the figures of a board, beside those of the others."""
    path = _file(file)
    kept = json.loads(path.read_text("utf-8")) | {name: facts}
    path.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", "utf-8")


def _file(name: str) -> Path:
    return Path(str(files("ditto.fpga").joinpath(name)))


if __name__ == "__main__":
    sys.exit(main())
