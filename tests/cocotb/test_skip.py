# amaranth: UnusedElaboratable=no
"""Defects that break nothing but the skipping: all values stay right, and the counters tell."""

import sys
from pathlib import Path
from typing import Any

import pytest

from ditto.hdl import cluster, engine
from ditto.hdl.config import Config
from ditto.sim.cocotb_runner import CocotbError, run_cocotb
from ditto.sim.formal import mutant

sys.path.append(str(Path(__file__).parent))
import test_cocotb_blocks as blocks  # noqa: E402  # pyright: ignore[reportMissingImports]

CONFIG: dict[str, Any] = blocks.CONFIGS["odd"] | dict(clusters=1, columns=2)

SPLITTER = ("ditto.hdl.encoder", "left.eq(nonzero if config.skip else 1)")
SEQUENCER = ("ditto.hdl.sequencer", "helped.eq(Mux(surplus < 0, 0, surplus[1:]))")
LANES = ("ditto.hdl.lanes", "rows.pop.eq((~valid | finishing) & rows.filled & self.run)")
DEFECTS: dict[str, tuple[tuple[str, str], str]] = {
    "nothing is skipped": (SPLITTER, "left.eq((1 << shifts) - 1)"),
    "only zero deltas are skipped": (SPLITTER, "left.eq(Mux(nonzero != 0, (1 << shifts) - 1, 0))"),
    "low zeros are not skipped": (SPLITTER, "left.eq(nonzero | 1)"),
    "high zeros are not skipped": (SPLITTER, "left.eq(nonzero | 1 << shifts - 1)"),
    "the second lane takes no low items": (SEQUENCER, "helped.eq(0)"),
    "the second lane takes half of them": (SEQUENCER, "helped.eq(low_sum[1:])"),
    "a cycle is lost between rows": (LANES, "rows.pop.eq(~valid & rows.filled & self.run)"),
}


def run(monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> int:
    monkeypatch.setenv("COCOTB_TEST_FILTER", "runs_follow_each_other")
    return run_cocotb(
        engine.Engine(Config(**CONFIG)),
        top_name="engine",
        testbench=Path(__file__).with_name("tb_engine.py"),
        parameters={"config": CONFIG, "runs": 3, "resets": 1, **parameters},
    )


@pytest.mark.parametrize(
    "defect",
    [
        pytest.param(name, marks=[pytest.mark.long] if number else [])
        for number, name in enumerate(DEFECTS)
    ],
)
def test_counters_tell_of_a_broken_skip(monkeypatch: pytest.MonkeyPatch, defect: str) -> None:
    (module, old), new = DEFECTS[defect]
    broken = mutant(module, old, new)
    for place in (engine, cluster):
        for name in ("Encoder", "Sequencer", "Lanes"):
            if hasattr(place, name) and hasattr(broken, name):
                monkeypatch.setattr(place, name, getattr(broken, name))
    assert run(monkeypatch, values_only=True) == 2
    with pytest.raises(CocotbError, match=r"assert Counters\("):
        run(monkeypatch)
