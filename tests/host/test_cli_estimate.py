import json
import os
from pathlib import Path

import pytest

from ditto.fpga.estimate import estimate
from ditto.hdl.config import Config, demo
from ditto.host import cli


def ditto(*words: object) -> int:
    """Run the command in this process."""
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as leave:
        assert isinstance(leave.code, int)
        return leave.code


def test_estimate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "e.json"
    assert ditto("estimate", "--json", file) == 0
    text = capsys.readouterr().out
    found = estimate(demo)
    for part in (f"{found.cells['luts']:,}", "exact", "too big", "fits", f"wrote {file}"):
        assert part in text
    assert "it exceeds the LFE5U-25F, at least by: 122 block memories" in text
    assert "exceeds the LFE5U-85F" not in text
    facts = json.loads(file.read_text())
    assert Config(**facts["configuration"]) == demo
    assert facts["brams"] == found.cells["brams"] and facts["fmax_mhz"] == found.fmax_mhz
    assert facts["margins"]["luts"] > 0
    assert facts["parts"]["LFE5U-85F"]["verdict"] == "fits"


def test_estimate_out_of_the_range_of_the_builds(capsys: pytest.CaptureFixture[str]) -> None:
    assert ditto("estimate", "--clusters", 16, "--columns", 100) == 0
    text = capsys.readouterr().out
    assert "warning: clusters = 16 is outside of the builds that the model was fitted to" in text
    assert "warning: columns = 100" in text
    assert "it exceeds the LFE5U-85F, at least by: " in text and " multiplier blocks" in text


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ditto("estimate", "--columns", 200) == 2
    assert "columns = 200 breaks its bound" in capsys.readouterr().err
    assert ditto("estimate", "--json", tmp_path / "no" / "e.json") == 1
    assert "cannot write" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
