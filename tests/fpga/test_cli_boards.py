"""The commands ``boards``, ``build`` and ``program``, and the page about the boards."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ditto.fpga import bitstream, boards, proofs, survey
from ditto.fpga.bitstream import Bitstream, Group, Routed, TimingError
from ditto.fpga.boards import BOARDS, Board
from ditto.fpga.build import DoesNotFitError
from ditto.fpga.page import page
from ditto.fpga.proofs import Proof, build_of, proofs_of
from ditto.hdl.config import Config
from ditto.host.cli import main

ROOT = Path(__file__).parents[2]

TINY = (
    "--clusters=1 --lanes=1 --columns=2 --weight-rows=64 --accumulator-rows=64 --item-depth=64 "
    "--positions=16 --channels=8 --list-depth=4 --layers=4 --frame-bytes=128"
).split()

RUN = Routed(
    seed=3,
    clocks={"clk": 70.0},
    groups=(Group(source="clk", target="clk", nanoseconds=14.2, path=(("a", 1.0), ("b", 14.2))),),
)


class FakeBuilder:
    """Builds without tools."""

    made: list[dict[str, Any]] = []
    built: list[str] = []
    error: Exception | None = None
    build_hash = bytes.fromhex("0123456789abcdef")
    versions = {"yosys": "yosys 9"}

    def __init__(self, name: str, config: Config, **options: Any) -> None:
        self.name, self.config, self.options = name, config, options
        self.made.append({"name": name, "config": config, **options})

    def utilization(self) -> dict[str, tuple[int, int]]:
        if self.config.multipliers > 40:
            raise DoesNotFitError("ULX3S 12F", {"DSP": (40, 28)}, {})
        return {}

    def build(self, seeds: list[int]) -> Bitstream:
        self.built.append(self.name)
        if self.error is not None:
            raise self.error
        facts = {
            "board": self.name,
            "title": "ULX3S 12F",
            "digest": self.config.digest.hex(),
            "configuration": {"columns": self.config.columns},
            "build": self.build_hash.hex(),
            "bitstream_sha256": "00",
            "clock_hz": BOARDS[self.name].frequency,
            "baud": 3_000_000,
            "seed": 3,
            "fmax_mhz": {"3": {"clk": 70.0}},
            "failed_seeds": seeds[1:],
            "utilization": {"DP16KD": {"used": 3, "available": 56}},
            "tools": self.versions,
        }
        return Bitstream(data=b"bits", suffix=".bit", facts=facts, runs=(RUN,))


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> type[FakeBuilder]:
    FakeBuilder.made.clear()
    monkeypatch.setattr(FakeBuilder, "error", None)
    monkeypatch.setattr(bitstream, "BoardBuilder", FakeBuilder)
    return FakeBuilder


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_boards_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "boards")
    assert status == 0
    for name in BOARDS:
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [name]]
        proven = proofs_of(name)
        built = {Proof.BUILT: "yes", Proof.EARLIER: "earlier"}
        (mark,) = [built[proof] for proof in proven if proof in built] or ["-"]
        assert line.split()[-2:] == [mark, "yes" if Proof.NETLIST in proven else "-"]
    assert "none ran on hardware" in out
    # A terminal of 80 columns shows each board in one line.
    assert max(len(line.rstrip()) for line in out.splitlines() if " x " in line) < 80


def test_build_writes_bitstream_report_and_manifest(
    builder: type[FakeBuilder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "build"
    status, out, _ = run(
        capsys,
        *("build", "ulx3s-12f", "-o", folder, "--columns", "4", "--frequency", "50"),
        *("--baud", "1000000", "--seeds", "3,5,3", "--timeout", "77"),
    )
    assert status == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "report.html",
        "top.bit",
    ]
    assert (folder / "top.bit").read_bytes() == b"bits"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["configuration"] == {"columns": 4}
    assert manifest["failed_seeds"] == [5]
    assert "<h1>Ditto on ULX3S 12F</h1>" in (folder / "report.html").read_text()
    assert "seed 3: clk 70.0 MHz of 62.5" in out and "3 of 56" in out
    (made,) = builder.made
    assert made.pop("config") == Config(**{**vars(BOARDS["ulx3s-12f"].config), "columns": 4})
    assert made == {
        "name": "ulx3s-12f",
        "frequency": 50_000_000,
        "baud": 1_000_000,
        "timeout": 77.0,
    }


def test_build_finds_the_largest_array(
    builder: type[FakeBuilder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, "build", "ulx3s-12f", "--fit", "-o", tmp_path)
    assert status == 0 and "largest array: 1 x 2 x 16" in out
    assert json.loads((tmp_path / "manifest.json").read_text())["configuration"] == {"columns": 16}


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["build", "ulx4s"], 2, "there is no board 'ulx4s' to build for; choose from ulx3s-12f, "),
        (["build", "ulx3s-12f", "--fit", "--columns", "4"], 2, "leave out --columns"),
        (["build", "ulx3s-12f", "--columns", "0"], 2, "columns = 0 breaks its bound"),
        (["program", "icesugar", "x"], 3, "does not know the iCESugar. Programmed by copying"),
        (["program", "ulx3s-12f", "none.bit"], 3, "there is no file none.bit; make it by: ditto b"),
    ],
)
def test_what_cannot_be(
    words: list[str],
    status: int,
    message: str,
    builder: type[FakeBuilder],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["-o", str(tmp_path / "build")] if words[0] == "build" else []
    got, _, err = run(capsys, *words, *options)
    assert got == status and message in err


def test_unmet_timing_leaves_nothing(
    builder: type[FakeBuilder],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(builder, "error", TimingError([RUN], 80.0))
    status, _, err = run(capsys, "build", "ulx3s-12f", "-o", tmp_path / "build")
    assert status == 3 and "clk needs 80 MHz and reaches 70.0 MHz with seed 3" in err
    assert "14.20 ns  b" in err
    assert list((tmp_path / "build").iterdir()) == []


def loader(folder: Path, status: int) -> None:
    """Write an openFPGALoader that notes what it is called with."""
    path = folder / "openFPGALoader"
    path.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"open({str(folder / 'calls')!r}, 'a').write(repr(sys.argv[1:]))\nsys.exit({status})\n"
    )
    path.chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="scripts are no programs there")
@pytest.mark.parametrize("status", [0, 1])
def test_program(
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loader(tmp_path, status)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    file = tmp_path / "top.bit"
    file.write_bytes(b"bits")
    got, out, err = run(capsys, "program", "ulx3s-85f", file)
    assert (tmp_path / "calls").read_text() == repr(["-b", "ulx3s", str(file)])
    if status:
        assert got == 3 and "openFPGALoader failed with status 1 (is the ULX3S 85F" in err
    else:
        assert got == 0 and out == f"loaded {file} into ULX3S 85F\n"


def test_program_without_the_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    file = tmp_path / "top.bit"
    file.write_bytes(b"bits")
    status, _, err = run(capsys, "program", "ulx3s-85f", file)
    assert status == 4 and "openFPGALoader is not on the PATH; install it" in err


@pytest.mark.parametrize(
    ("name", "constraints", "found"),
    [
        ("arty-a7-35t", "top.xdc", ["set_property LOC A9", "create_clock", "PLLE2_BASE"]),
        ("de10-nano", "top.qsf", ["PIN_V11", "PIN_AG13", "5CSEBA6U23I7"]),
        ("zybo-z7-20", "top.xdc", ["set_property LOC V12", "module ditto_axi(", "*:zybo-z7-20:"]),
    ],
)
def test_project_of_a_vendor(
    name: str,
    constraints: str,
    found: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        status, out, _ = run(capsys, "build", name, "-o", folder, *TINY)
        assert status == 0 and "top.v" in out and f"cd {folder} && sh build_top.sh" in out
        assert ("vivado -mode batch -source overlay.tcl" in out) == name.startswith("zybo")
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert files[0] == files[1]
    text = b"\n".join(files[0].values()).decode()
    for words in found:
        assert words in text
    assert constraints in files[0]
    manifest = json.loads(files[0]["manifest.json"])
    assert set(manifest["files"]) == set(files[0]) - {"manifest.json"}
    assert re.fullmatch("[0-9a-f]{16}", manifest["build"]) and int(manifest["build"], 16)


def test_page_is_that_of_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "boards.md"
    assert run(capsys, "boards", "--page", written)[0] == 0
    assert written.read_text() == page()
    kept = (ROOT / "docs/boards.md").read_text()
    assert kept == page(), "run: ditto boards --page docs/boards.md"


def test_builds_that_are_kept_meet_their_clocks() -> None:
    for name in BOARDS:
        build = build_of(name)
        if build is not None:
            assert len(build["fmax_mhz"]) >= 3
            best = max(min(clocks.values()) for clocks in build["fmax_mhz"].values())
            assert best >= build["clock_hz"] / 1e6
            for numbers in build["utilization"].values():
                assert numbers["used"] <= numbers["available"]


@pytest.fixture
def kept(builder: type[FakeBuilder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep figures in a folder of their own, and build without tools."""
    monkeypatch.setattr(survey, "BoardBuilder", builder)
    monkeypatch.setattr(proofs, "_folder", lambda: tmp_path / "builds")
    return tmp_path / "builds"


def test_survey_keeps_its_figures(
    kept: Path, builder: type[FakeBuilder], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build_of("ulx3s-12f", largest=True) is None
    assert "None of the default devices" in page()
    assert survey.main(["ulx3s-12f", "--seeds", "3"]) == 0
    assert survey.main(["ulx3s-12f", "--fit", "--seeds", "3"]) == 0
    assert sorted(path.name for path in kept.iterdir()) == [
        "ulx3s-12f.json",
        "ulx3s-12f.largest.json",
    ]
    assert Proof.BUILT in proofs_of("ulx3s-12f")
    found = build_of("ulx3s-12f", largest=True)
    assert found is not None and found["array"] == {"clusters": 1, "columns": 16}
    assert "| ULX3S 12F | today's | 1 × 2 × 16 | 3 of 56 DP16KD | 70.0 | " in page()
    # Later gateware makes them figures of the past.
    with monkeypatch.context() as patch:
        patch.setattr(proofs, "gateware_of", lambda family: "other")
        assert Proof.EARLIER in proofs_of("ulx3s-12f")
        assert "| ULX3S 12F | earlier | 3 of 56 DP16KD | 70.0 / 70.0 / 70.0 | 62.5 | 3 |" in page()
        assert "built (earlier gateware)" in page()
    # What was found for another device says nothing of today's.
    board = BOARDS["ulx3s-12f"]
    for other in (
        replace(board, config=replace(board.config, positions=64)),
        replace(board, frequency=50_000_000),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(proofs, "BOARDS", {**BOARDS, "ulx3s-12f": other})
            assert build_of("ulx3s-12f") is build_of("ulx3s-12f", largest=True) is None
            assert proofs_of("ulx3s-12f") == [Proof.SIMULATED]


def test_survey_goes_on_where_it_was(
    kept: Path,
    builder: type[FakeBuilder],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def built(*words: str) -> int:
        builder.built.clear()
        assert survey.main(list(words)) == 0
        return len(builder.built)

    names = [name for name, board in BOARDS.items() if not board.family.is_vendor]
    assert len(names) == 15
    assert built(names[3], "--seeds=3") == 1
    assert built("--seeds=3") == 14
    assert built("--seeds=3") == 0
    assert capsys.readouterr().out.count("is built already") == 16
    # Other seeds, other gateware and other tools are built again.
    assert built(names[0], "--seeds=3,4") == 1
    monkeypatch.setattr(builder, "build_hash", bytes(8))
    assert built(names[0], "--seeds=3") == 1
    monkeypatch.setattr(builder, "versions", {})
    assert built(names[0], "--seeds=3") == 1
    # A failure is told, and the others are built.
    monkeypatch.setattr(builder, "error", TimingError([RUN], 80.0))
    assert survey.main(names[:2]) == 1
    assert capsys.readouterr().err.count("clk needs 80 MHz") == 2


def test_survey_of_what_cannot_be(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        survey.main(["ulx3s-12f", "pynq-z2", "ulx4s"])
    assert "the open tools have no pynq-z2, ulx4s; choose from" in capsys.readouterr().err


CHILD = """
import pathlib, sys, time
*words, name = sys.argv[1:]
folder = pathlib.Path(%r)
(folder / name).write_text(" ".join(words))
time.sleep(0.5)
(folder / f"{name}.others").write_text(str(len(list(folder.glob("*[0-9]f")))))
(folder / name).unlink()
sys.exit(name == "ulx3s-25f")
"""


def test_survey_of_some_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_COMMAND", (sys.executable, "-c", CHILD % str(tmp_path)))
    names = ["ulx3s-12f", "ulx3s-45f", "ulx3s-85f"]
    assert survey.main([*names, "--jobs=2"]) == 0
    assert survey.main([*names, "ulx3s-25f", "--jobs=2", "--fit"]) == 1
    assert len(list(tmp_path.iterdir())) == 4
    assert {path.read_text() for path in tmp_path.iterdir()} <= {"1", "2"}


def own_board() -> Board:
    """Return the board of the page, as its reader would write it."""
    text = (ROOT / "docs/boards.md").read_text()
    section = text[text.index("## Add your board") :]
    assert len(section.splitlines()) < 40
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (entry,) = eval(f"{{{block}}}", dict(vars(boards))).items()
    assert entry[0] == "my-board"
    return entry[1]


def test_own_board_has_pins() -> None:
    board = own_board()
    board.check_rates(board.frequency, board.baud)
    assert board.open_platform(board.config).lookup(*board.uart)


@pytest.mark.parametrize("name", ["icebreaker", "pynq-z2"])
def test_designs_do_not_depend_on_chance(name: str) -> None:
    """Python's sets and hashes differ from process to process; designs must not."""
    script = (
        "import sys; from ditto.fpga.boards import BOARDS; from ditto.fpga.top import BoardTop; "
        "from ditto.hdl.config import Config; board = BOARDS[sys.argv[1]]; "
        "config = Config(clusters=1, lanes=1, columns=2, channels=8, layers=8, positions=16); "
        "top = BoardTop(board, config, frequency=board.frequency, baud=board.baud); "
        "plan = board.open_platform(config).prepare(top, name='top', emit_src=False); "
        "print(sorted((k, v) for k, v in plan.files.items() if k.endswith(sys.argv[2])))"
    )
    suffix = ".v" if BOARDS[name].family.is_vendor else ".il"
    made = [
        subprocess.run(
            [sys.executable, "-c", script, name, suffix],
            env={**os.environ, "PYTHONHASHSEED": seed, "AMARANTH_USE_YOSYS": "builtin"},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert len(made[0]) > 10_000 and made[0] == made[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="scripts are no programs there")
@pytest.mark.skipif(
    not all(importlib.util.find_spec(f"yowasp_{name}") for name in ("yosys", "nextpnr_ecp5")),
    reason="needs the extra boards",
)
def test_own_board_as_the_page_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(boards, "BOARDS", {**BOARDS, "my-board": own_board()})
    folder = tmp_path / "build"
    assert run(capsys, "build", "my-board", "-o", folder, "--seeds=1", *TINY)[0] == 0
    loader(tmp_path, 0)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert run(capsys, "program", "my-board", folder / "top.bit")[0] == 0
    assert (tmp_path / "calls").exists()


def test_traffic_of_the_page_is_that_of_today() -> None:
    kept = json.loads((ROOT / "fpga/traffic.json").read_text())
    today = survey.image_traffic(50)
    remedy = "run: python -m ditto.fpga.survey --image"
    assert list(today) == list(kept), remedy
    for name, layer in today.items():
        for key in ("exchanges", "cycles"):
            assert layer[key] == kept[name][key], remedy
        # Stuffing depends on the sequence, which begins at random.
        for key in ("sent", "received"):
            assert layer[key] == pytest.approx(kept[name][key], rel=0.01), remedy
