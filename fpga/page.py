"""The page about the boards: resources, clocks, what fits, and how far each is proven."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

from ditto.fpga.boards import BOARDS, Board
from ditto.fpga.proofs import build_of, is_of_today, proofs_of
from ditto.hdl.config import Config, demo
from ditto.host.model import Model
from ditto.host.program import PlacementError, Program
from ditto.host.traffic import seconds

__all__ = ["demo_model", "page"]


def page() -> str:
    """Return the page about the boards, in Markdown."""
    parts = [
        "# Boards",
        "Written by `ditto boards --page docs/boards.md`, from the table in `fpga/boards.py` and "
        "the builds in `fpga/builds`.",
        "No board has been run yet: nobody had one at hand. What is claimed of each is the last "
        "column. *Simulated*: the gateware runs in simulation. *Built*: the default device was "
        "placed and routed, and meets its clock by the tools' timing analysis; *earlier gateware*: "
        "so it was before the gateware last changed, which may have made it larger or slower. "
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
    return (
        board.title,
        f"`{name}`",
        board.family.name,
        f"{board.frequency / 1e6:g}",
        f"{board.baud:,}",
        board.bridge,
        _array(board.config),
        ", ".join(proofs_of(name)),
    )


def _builds() -> list[str]:
    """Say what the builds of the default devices took."""
    rows = [_build_row(name, build) for name in BOARDS if (build := build_of(name))]
    if not rows:
        return ["None of the default devices, as they are now, has been built yet."]
    return [
        "Figures of nextpnr; the frequency is that of the slowest, the middle and the fastest "
        "seed. A board that is not in this table was not built.",
        _table(("board", "gateware", "cells", "highest MHz", "clock, MHz", "seeds"), rows),
        _tools(),
    ]


def _build_row(name: str, build: Mapping[str, Any]) -> tuple[object, ...]:
    speeds = _speeds(build)
    return (
        BOARDS[name].title,
        _age(name, build),
        _cells(build["utilization"]),
        " / ".join(f"{mhz:.1f}" for mhz in (speeds[0], speeds[len(speeds) // 2], speeds[-1])),
        f"{build['clock_hz'] / 1e6:g}",
        ", ".join(build["fmax_mhz"]),
    )


def _largest() -> list[str]:
    """Say which arrays `--fit` has found."""
    found = {name: build for name in BOARDS if (build := build_of(name, largest=True))}
    rows = [
        (
            BOARDS[name].title,
            _age(name, build),
            _array(replace(BOARDS[name].config, **build["array"])),
            _cells(build["utilization"]),
            f"{_speeds(build)[-1]:.1f}",
            f"{build['seconds']:,}",
        )
        for name, build in found.items()
    ]
    if not rows:
        return []
    return [
        "The largest arrays that `ditto build NAME --fit` has found, with the other parameters of "
        "the default device, and the seconds that it took on one core of a server:",
        _table(("board", "gateware", "array", "cells", "highest MHz", "seconds"), rows),
    ]


def _age(name: str, build: Mapping[str, Any]) -> str:
    return "today's" if is_of_today(name, build) else "earlier"


def _speeds(build: Mapping[str, Any]) -> list[float]:
    """Return the frequency of the slowest clock with every seed, the lowest first."""
    return sorted(min(clocks.values()) for clocks in build["fmax_mhz"].values())


def _array(config: Config) -> str:
    return f"{config.clusters} × {config.lanes} × {config.columns}"


def _cells(utilization: dict[str, dict[str, int]]) -> str:
    return ", ".join(
        f"{n['used']:,} of {n['available']:,} {cell}" for cell, n in utilization.items()
    )


def _images() -> str:
    """Say which boards the demo model fits, and what its layers take there."""
    traffic: dict[str, dict[str, int]] = json.loads(
        files("ditto.fpga").joinpath("traffic.json").read_text("utf-8")
    )
    total = {key: sum(layer[key] for layer in traffic.values()) for key in _COUNTS}
    model = demo_model()
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


def demo_model() -> Model:
    """Return the model of the demo."""
    return Model.load(str(files("ditto.host.models").joinpath("digits16.int8.onnx")))


def _tools() -> str:
    builds = [build for name in BOARDS if (build := build_of(name)) is not None]
    tools = {tool: version for build in builds for tool, version in build["tools"].items()}
    named = ("yosys", "nextpnr-ecp5", "nextpnr-ice40", "nextpnr-himbaechel-gowin")
    return "Tools: " + ", ".join(tools[tool] for tool in named if tool in tools) + "."


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
