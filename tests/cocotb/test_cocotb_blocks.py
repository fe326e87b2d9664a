# amaranth: UnusedElaboratable=no
"""The testbenches of the gateware's blocks, each in corners of the space of configurations."""

from pathlib import Path
from typing import Any

import pytest
from amaranth.lib import wiring

from ditto.hdl.config import Config
from ditto.hdl.decisions import DecisionTable
from ditto.hdl.difference_buffer import DifferenceBuffer
from ditto.hdl.differences import Differencer
from ditto.hdl.encoder import Encoder
from ditto.hdl.engine import Engine
from ditto.hdl.lanes import RowQueue
from ditto.hdl.sequencer import Sequencer, row_of
from ditto.hdl.top import Top
from ditto.sim.cocotb_runner import run_cocotb

CONFIGS: dict[str, dict[str, Any]] = {
    # Nothing is a power of two.
    "odd": dict(
        clusters=3,
        lanes=2,
        columns=5,
        accumulator_bits=19,
        weight_rows=330,
        accumulator_rows=70,
        item_depth=300,
        positions=25,
        channels=9,
        list_depth=11,
        layers=5,
        frame_bytes=128,
    ),
    # As little as possible of everything: some fields have no bits at all.
    "one": dict(
        clusters=1,
        lanes=1,
        columns=1,
        digit_bits=9,
        weight_rows=40,
        accumulator_rows=30,
        item_depth=20,
        positions=20,
        channels=1,
        list_depth=2,
        layers=2,
        frame_bytes=64,
    ),
    # Many narrow digits, and bigger kernels.
    "digits": dict(
        clusters=2,
        lanes=2,
        columns=3,
        digit_bits=2,
        activation_bits=6,
        weight_bits=5,
        accumulator_bits=13,
        weight_rows=200,
        accumulator_rows=64,
        item_depth=400,
        positions=30,
        channels=6,
        multiplier="lut",
        list_depth=30,
        layers=3,
        frame_bytes=128,
    ),
}

# What random commands need and do: they use the first few words of each memory.
CORE: dict[str, dict[str, int]] = {
    "odd": dict(weight_rows=40, accumulator_rows=15, layers=3),
    "one": dict(channels=4, item_depth=40),
}


# The fewest that have each rule of the table of decisions.
DECISIONS: dict[str, int] = dict(layers=3, reference_depth=1)


def make(top: str, config: Config, parameters: dict[str, Any]) -> wiring.Component:
    match top:
        case "encoder":
            return Encoder(config)
        case "differences":
            return Differencer(config)
        case "decisions":
            return DecisionTable(config)
        case "buffer":
            return DifferenceBuffer(config)
        case "rows":
            return RowQueue(shape=row_of(config), depth=parameters["depth"])
        case "sequencer":
            return Sequencer(config)
        case "engine":
            return Engine(config)
        case _:
            return Top(config)


def run(bench: str, top: str, config: str, *, simulator: Any = "verilator", **kwargs: Any) -> int:
    values = CONFIGS[config] | kwargs.pop("changes", {})
    parameters = {"config": values, "top": top, **kwargs}
    return run_cocotb(
        make(top, Config(**values), kwargs),
        top_name=top,
        testbench=Path(__file__).with_name(f"tb_{bench}.py"),
        simulator=simulator,
        parameters=parameters,
    )


@pytest.mark.parametrize("config", CONFIGS)
def test_encoder(config: str) -> None:
    assert run("encoder", "encoder", config, tiles=40) == 5


@pytest.mark.parametrize("config", CONFIGS)
def test_differences(config: str) -> None:
    # The biggest tiles find no room in either memory.
    memories = dict(reference_depth=150, neighbour_depth=22)
    assert run("differences", "differences", config, changes=memories, tiles=40) == 6


def test_decisions() -> None:
    assert run("decisions", "decisions", "odd", changes=DECISIONS, moves=1000) == 2


@pytest.mark.parametrize("config", ["odd", "one"])
def test_difference_buffer(config: str) -> None:
    assert run("buffers", "buffer", config, cycles=5000) == 1


@pytest.mark.parametrize("config, depth", [("odd", 5), ("one", 1)])
def test_queue_of_rows(config: str, depth: int) -> None:
    assert run("buffers", "rows", config, cycles=5000, depth=depth) == 1


@pytest.mark.parametrize("config", CONFIGS)
def test_sequencer(config: str) -> None:
    assert run("sequencer", "sequencer", config, runs=15) == 6


@pytest.mark.parametrize("config", CONFIGS)
def test_engine(config: str) -> None:
    assert run("engine", "engine", config, runs=8, resets=30) == 13


@pytest.mark.parametrize("config", ["odd", "one"])
def test_core(config: str) -> None:
    assert run("core", "core", config, changes=CORE[config], commands=250, resets=8) == 8


@pytest.mark.parametrize(
    "bench, top, parameters",
    [
        ("encoder", "encoder", {"tiles": 5}),
        ("buffers", "buffer", {"cycles": 300}),
        ("buffers", "rows", {"cycles": 300, "depth": 3}),
        ("sequencer", "sequencer", {"runs": 2}),
        ("engine", "engine", {"runs": 1, "resets": 3}),
        ("core", "core", {"commands": 30, "resets": 2}),
    ],
)
def test_on_icarus(bench: str, top: str, parameters: dict[str, Any]) -> None:
    changes = CORE["odd"] if top == "core" else {}
    run(bench, top, "odd", simulator="icarus", changes=changes, **parameters)
