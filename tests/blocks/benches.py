# amaranth: UnusedElaboratable=no
"""The gateware's blocks, and the bench of each."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from amaranth.lib import wiring

from ditto.fpga.axi import AxiDevice
from ditto.fpga.uart import Uart
from ditto.hdl.config import Config, Multiplier
from ditto.hdl.decisions import DecisionTable
from ditto.hdl.difference_buffer import DifferenceBuffer
from ditto.hdl.differences import Differencer
from ditto.hdl.encoder import Encoder
from ditto.hdl.engine import Engine
from ditto.hdl.framing import Deframer, Framer
from ditto.hdl.lanes import RowQueue
from ditto.hdl.sequencer import Sequencer, row_of
from ditto.hdl.top import Top
from ditto.sim.cocotb_runner import run_cocotb

sys.path.append(str(Path(__file__).parents[1] / "cocotb"))
import test_cocotb_blocks as default  # noqa: E402  # pyright: ignore[reportMissingImports]
from preset import PresetEngine  # noqa: E402  # pyright: ignore[reportMissingImports]

__all__ = ["CONFIGS", "COVERED", "TABLE", "Bench"]

CONFIGS: dict[str, dict[str, Any]] = default.CONFIGS
CONFIG = CONFIGS["odd"]
SMALL = CONFIG | dict(clusters=2, columns=3)


class Bench(NamedTuple):
    """A component, its bench, what the bench is told, and the blocks that it is to check.

    The blocks are regular expressions of the paths of their instances.
    """

    make: Callable[[Config], wiring.Component]
    name: str
    parameters: dict[str, Any]
    blocks: dict[str, str]
    config: dict[str, Any] = CONFIG

    def run(self, top: str, component: wiring.Component, **kwargs: Any) -> None:
        """Run the bench with one seed; what is not for it is for the runner."""
        parameters = {"config": self.config, "top": top, **self.parameters}
        parameters |= kwargs.pop("parameters", {})
        run_cocotb(
            component,
            top_name=top,
            testbench=Path(__file__).parents[1] / "cocotb" / f"tb_{self.name}.py",
            parameters=parameters,
            seed=1,
            **kwargs,
        )


ALL = ".*"
FRAMING = {"frame_bytes": 300, "lengths": [1, 2, 5, 249, 250, 251, 254, 296], "frames": 40}
TABLE = {
    "framer": Bench(lambda _: Framer(), "framing", FRAMING, {"framer": ALL}),
    "deframer": Bench(lambda _: Deframer(frame_bytes=300), "framing", FRAMING, {"deframer": ALL}),
    # A bit lasts six and a quarter cycles. The queue holds 64 bytes, and the receiver another one.
    "uart": Bench(
        lambda _: Uart(frequency=25, baud=4),
        "uart",
        {"rate": {"frequency": 25, "baud": 4}, "bytes": 6, "room": 65, "resets": 5},
        {"UART": ALL},
    ),
    "differences": Bench(
        Differencer,
        "differences",
        {"tiles": 40},
        {"differences": ALL},
        CONFIG | {"reference_depth": 150, "neighbour_depth": 22},
    ),
    "decisions": Bench(
        DecisionTable,
        "decisions",
        {"moves": 500},
        {"table of decisions": ALL},
        CONFIG | default.DECISIONS,
    ),
    "encoder": Bench(Encoder, "encoder", {"tiles": 25, "counts": 5000}, {"encoder": ALL}),
    "buffer": Bench(DifferenceBuffer, "buffers", {"cycles": 1000}, {"difference buffer": ALL}),
    "rows": Bench(
        lambda config: RowQueue(shape=row_of(config), depth=3),
        "buffers",
        {"cycles": 1000, "depth": 3},
        {"row queue": ALL},
    ),
    # With these rows, a bit that is turned over in their countdown comes to light.
    "sequencer": Bench(
        Sequencer, "sequencer", {"runs": 60}, {"sequencer": ALL}, CONFIG | {"accumulator_rows": 69}
    ),
    "engine": Bench(
        PresetEngine,
        "engine",
        {"runs": 3, "resets": 5, "has_preset": True},
        {
            "multiplier (blocks)": r"cluster_\d+\.array\.products_\d+",
            "column": r"cluster_\d+\.array\.column_\d+.*",
            "array": r"cluster_\d+\.array",
            "lanes": r"cluster_\d+\.lanes.*",
            "cluster": r"cluster_\d+(\.(\w+_register|weights|accumulators))?",
            "engine": r"(layers)?",
        },
        SMALL | {"reference_depth": 300, "neighbour_depth": 40},
    ),
    "tables": Bench(
        Engine,
        "engine",
        {"runs": 1, "resets": 6},
        {"multiplier (tables)": r"cluster_\d+\.array\.products_\d+"},
        SMALL | {"multiplier": Multiplier.LUT},
    ),
    "core": Bench(
        Top,
        "core",
        {"commands": 50, "resets": 2},
        {"command machine": "command.*"},
        SMALL | default.CORE["odd"],
    ),
}
# Its clock and its reset have AXI's names, so that it has neither mutants nor a dirty power-up.
COVERED = TABLE | {
    "ditto_axi": Bench(
        AxiDevice,
        "axi",
        {},
        {"AXI": ""},
        SMALL | dict(clusters=1, lanes=1, columns=2),
    )
}
