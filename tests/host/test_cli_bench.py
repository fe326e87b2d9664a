import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ditto.fpga import build, tools
from ditto.fpga.parts import PARTS
from ditto.hdl.config import Config
from ditto.host import cli

QUICK = ["--steps", "3"]


def ditto(*words: object) -> int:
    """Run the command in this process."""
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as leave:
        assert isinstance(leave.code, int)
        return leave.code


class FakeBuilder:
    """Builds without tools; on a 25k nothing fits, seed 13 and tables take too long."""

    made: list[dict[str, Any]] = []

    def __init__(self, config: Config, **options: Any) -> None:
        self.config, self.options = config, options
        self.made.append({"config": config, **options})

    def synthesize(self) -> None:
        if self.options["timeout"] < 5 and self.config.multiplier == "lut":
            raise tools.TimeLimitError("yosys has not finished in 4 s")

    def place(self, seed: int) -> None:
        part = PARTS[self.options["part"]]
        if part is PARTS["25k"]:
            raise build.DoesNotFitError(
                part.name, {"DP16KD": (60, 56)}, {"DP16KD": "block memories"}
            )
        if seed == 13:
            raise tools.TimeLimitError("nextpnr-ecp5 has not finished in 9 s")

    def facts(self, seeds: list[int]) -> dict[str, Any]:
        part = PARTS[self.options["part"]]
        return {
            "device": part.name,
            "speed": 6,
            "configuration": self.config.__dict__,
            **dict.fromkeys(("luts", "carries", "comb", "ffs", "dsps", "brams"), 1234),
            "available": part.cells,
            "fmax_mhz": {str(seed): 80.0 + seed for seed in seeds},
            "delays": {},
            "tools": {"yosys": "yosys 9"},
        }


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> type[FakeBuilder]:
    FakeBuilder.made.clear()
    monkeypatch.setattr(build, "Builder", FakeBuilder)
    monkeypatch.setattr(tools, "find", lambda name: None)
    return FakeBuilder


def test_bench(denoiser_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, page = tmp_path / "b.json", tmp_path / "docs.md"
    words = ["bench", denoiser_file, *QUICK, "--no-builds", "-o", output, "--page", page]
    assert ditto(*words) == 0
    text = capsys.readouterr().out
    for part in (
        "temporal",
        "dense",
        "2 × 2 × 16 dsp: in a cycle at best 64 products, 64 bytes",
        "layers bound, with the link: ",
        "faster than the dense array of the same generator",
    ):
        assert part in text
    assert f"wrote {output}" in text
    facts = json.loads(output.read_text())
    assert [run["mode"] for run in facts["runs"]] == ["temporal", "dense"]
    assert {run["model"] for run in facts["runs"]} == {"denoiser"}
    assert facts["builds"] == [] and "ditto-accel" in facts["versions"]
    assert (tmp_path / "b.svg").read_text().startswith("<svg")
    assert "(b.svg)" in page.read_text() and "bench" in facts["command"]
    assert sorted(os.listdir(tmp_path)) == ["b.json", "b.svg", "denoiser.onnx", "docs.md"]


def test_bench_with_builds(
    denoiser_file: Path,
    tmp_path: Path,
    builder: type[FakeBuilder],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "b.json"
    words = ["bench", denoiser_file, *QUICK, "--seeds", "2,4,2", "--part", "45k", "-o", output]
    assert ditto(*words, "--frequency", "66", "--clusters", "1", "--timeout", "9") == 0
    assert "82.0 / 83.0 / 84.0" in capsys.readouterr().out
    # The device and the dense array, then both with the other kind of multipliers.
    assert [made["config"].skip for made in builder.made] == [1, 0, 1, 0]
    assert [made["config"].multiplier for made in builder.made] == ["dsp", "dsp", "lut", "lut"]
    for made in builder.made:
        assert made["config"].clusters == 1
        assert (made["part"], made["frequency"], made["timeout"]) == ("45k", 66.0, 9.0)
    facts = json.loads(output.read_text())
    assert facts["builds"][0]["fmax_mhz"] == {"2": 82.0, "4": 84.0}
    assert facts["builds"][2]["fmax_mhz"] == {}
    for run in facts["runs"]:
        # Equal sizes and clocks, as the builder is none.
        assert run["speedup_equal_resources"] == pytest.approx(run["speedup_equal_bits"])
        assert run["speedup_end_to_end"] == pytest.approx(run["speedup_equal_bits"])
        assert list(run["built"]) == ["lut", "dsp"]
    assert facts["versions"]["yosys"] == "yosys 9"


def test_bench_of_a_device_that_does_not_fit(
    denoiser_file: Path,
    tmp_path: Path,
    builder: type[FakeBuilder],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "b.json"
    words = ["bench", denoiser_file, *QUICK, "--part", "25k", "-o", output]
    assert ditto(*words, "--page", tmp_path / "p.md") == 3
    message = "the device does not fit LFE5U-25F: it takes 60 of 56 block memories (DP16KD), 4 too"
    assert message in capsys.readouterr().err
    built = json.loads(output.read_text())["builds"][0]
    assert message in built["error"] and built["fmax_mhz"] == {}
    assert message in (tmp_path / "p.md").read_text()


def test_what_was_built_before_the_time_limit_counts(
    denoiser_file: Path, tmp_path: Path, builder: type[FakeBuilder]
) -> None:
    output = tmp_path / "b.json"
    assert ditto("bench", denoiser_file, *QUICK, "--seeds", "1,13,2", "-o", output) == 3
    found = json.loads(output.read_text())["builds"][0]
    assert found["fmax_mhz"] == {"1": 81.0} and "has not finished in 9 s" in found["error"]
    assert ditto("bench", denoiser_file, *QUICK, "--timeout", "4", "-o", output) == 3
    builds = json.loads(output.read_text())["builds"]
    assert [build["configuration"]["multiplier"] for build in builds] == ["dsp", "dsp"]


def test_bench_of_models_that_need_more_memory(
    denoiser_file: Path,
    tmp_path: Path,
    builder: type[FakeBuilder],
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other.int8.onnx"
    shutil.copyfile(denoiser_file, other)
    output = tmp_path / "b.json"
    words = ["bench", denoiser_file, other, *QUICK, "-o", output]
    assert ditto(*words, "--columns", "4", "--layers", "2", "--weight-rows", "9") == 0
    found = json.loads(output.read_text())
    assert [run["model"] for run in found["runs"]] == ["denoiser"] * 2 + ["other"] * 2
    assert {path.name for path in tmp_path.glob("*.svg")} == {"b-denoiser.svg", "b-other.svg"}
    # Built as the options say, counted with what the models need.
    assert {made["config"].weight_rows for made in builder.made} == {9}
    for run in found["runs"]:
        assert run["configuration"]["layers"] == 3 and run["configuration"]["weight_rows"] > 9
        assert run["speedup_end_to_end"]
        assert 0 < run["brams_needed"] < run["brams_available"] == 208
    assert "block memories on this array" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["MODEL", "--seeds", "1,x"], 2, "argument --seeds: 'x' is not a number of at least 0"),
        (["MODEL", "--part", "1k"], 2, "argument --part: invalid choice: '1k'"),
        (["MODEL", "--frequency", "0"], 2, "argument --frequency: '0' is not a number above 0"),
        (["MODEL", "--steps", "2000", "--no-builds"], 2, "--steps 2000 is more than the 1000"),
        (["MODEL", "MODEL", "--no-builds"], 2, "two models have the same name"),
        (["MODEL", "--page", "OUTPUT", "--no-builds"], 2, "must have different names"),
        (["none.onnx", "--no-builds"], 1, "cannot read model"),
        (["MODEL", "--page", "no/p.md", "--no-builds"], 1, "cannot write no/p.md"),
        (["MODEL"], 4, "yosys is missing"),
    ],
)
def test_bad_input(
    words: list[str],
    status: int,
    message: str,
    denoiser_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    output = tmp_path / "b.json"
    places = {"MODEL": denoiser_file, "OUTPUT": output}
    given = [places.get(word, word) for word in words]
    assert ditto("bench", "-o", output, *given) == status
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["denoiser.onnx"]
