import ctypes
import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ditto.sim import verilate
from ditto.sim.board import SimulatedBoard
from ditto.sim.verilate import BuildError, MissingToolError, build, cache_folder, remember

ECHO = Path(__file__).with_name("echo.v").read_text()


@pytest.fixture
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ditto"


def fake_compiler(folder: Path, script: str) -> str:
    path = folder / "fake-c++"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo fake && exit\n{script}\n')
    path.chmod(0o755)
    return str(path)


def names(folder: Path) -> list[str]:
    """Return what a build left, without locks, which stay."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_the_cache_is_where_the_user_wants_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ditto"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "ditto"


def test_the_second_build_is_the_first() -> None:
    first = build(ECHO)
    steps: list[str] = []
    assert build(ECHO, progress=steps.append) == first
    assert steps == []
    assert build(ECHO.replace("wait_in <= 2", "wait_in <= 1")) != first


def test_builds_at_the_same_time_do_the_work_once(cold: Path) -> None:
    steps: list[str] = []
    results: list[Path] = []
    threads = [
        threading.Thread(target=lambda: results.append(build(ECHO, progress=steps.append)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(results) == 3
    assert len(set(results)) == 1
    assert len(steps) == len(set(steps)) == 4
    kept = names(cold)
    assert [name.split("-")[0] for name in kept] == ["runtime", "sim"]
    ctypes.CDLL(str(results[0]))


def test_a_failed_build_says_why_and_leaves_nothing(cold: Path) -> None:
    build(ECHO)  # With the runtime; its failures are those of the compiler below.
    before = names(cold)
    with pytest.raises(BuildError, match=r"(?s)^verilator failed with status .*no_such_wire"):
        build(ECHO.replace("assign i__ready =", "assign i__ready = no_such_wire &&"))
    assert names(cold) == before


def test_a_failed_compiler_is_quoted(
    cold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "i=0; while [ $i -lt 99 ]; do i=$((i+1)); echo note $i; done; echo out of luck; exit 3"
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, script))
    with pytest.raises(
        BuildError, match=r"(?s)fake-c\+\+ failed with status 3:\nnote 81\n.*out of luck$"
    ) as error:
        build(ECHO)
    assert "note 80\n" not in str(error.value)
    assert names(cold) == []


def test_a_compiler_that_hangs_is_ended_with_its_children(
    cold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "child"
    script = f"(sleep 4; touch {mark}) & wait"
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, script))
    start = time.monotonic()
    with pytest.raises(BuildError, match=r"fake-c\+\+ has not finished in 0\.5 s; gave up$"):
        build(ECHO, timeout=0.5)
    assert time.monotonic() - start < 4
    assert names(cold) == []
    time.sleep(max(0.0, start + 6 - time.monotonic()))
    assert not mark.exists()


def test_cxx_may_have_arguments(
    cold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", f"env {fake_compiler(tmp_path, 'echo luck; exit 1')}")
    with pytest.raises(BuildError, match=r"^env /.*fake-c\+\+ failed with status 1:\nluck$"):
        build(ECHO)


def test_a_compiler_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -v")
    with pytest.raises(MissingToolError, match="CXX names does not exist: 'no-such-compiler'$"):
        build(ECHO)


def test_without_a_compiler_both_remedies_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ziglang" else find_spec(name)
    )
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match=r"install g\+\+ or clang\+\+ .* install ziglang$"):
        build(ECHO)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_cache_that_cannot_be_written(cold: Path) -> None:
    cold.parent.mkdir(mode=0o500)
    with pytest.raises(BuildError, match="set XDG_CACHE_HOME to a folder that can be written"):
        build(ECHO)


def test_a_cache_that_is_a_file(cold: Path) -> None:
    cold.parent.mkdir()
    cold.touch()
    with pytest.raises(BuildError, match="set XDG_CACHE_HOME to a folder that can be written"):
        build(ECHO)
    assert remember("name", lambda: "text") == "text"


def test_what_is_remembered_is_made_once(cold: Path) -> None:
    assert remember("name", lambda: "text") == "text"
    assert remember("name", lambda: "other") == "text"
    assert names(cold) == ["name"]


def test_two_processes_at_once(cold: Path) -> None:
    code = "import sys; from ditto.sim.verilate import build; print(build(sys.stdin.read()))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(ECHO)
        process.stdin.close()
    for process in processes:
        assert process.stdout is not None
        with process.stdout as stdout:
            outputs.append(stdout.read())
        assert process.wait(300) == 0
    assert outputs[0] == outputs[1]
    assert Path(outputs[0].strip()).exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is missing")
def test_zig_is_a_compiler_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{sys.executable} -m ziglang c++")
    library = verilate.build(ECHO)
    monkeypatch.delenv("CXX")
    assert library != verilate.build(ECHO)
    monkeypatch.setenv("CXX", f"{sys.executable} -m ziglang c++")
    with SimulatedBoard.from_verilog(ECHO) as board:
        board.write(b"abc")
        assert board.read(3, 30) == b"abc"
