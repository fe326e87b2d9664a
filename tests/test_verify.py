import importlib.util
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def load() -> Any:
    spec = importlib.util.spec_from_file_location("verify", ROOT / "tests" / "verify.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_written_from_the_results() -> None:
    verify = load()
    results = json.loads(verify.RESULTS.read_text(encoding="utf-8"))
    assert verify.PAGE.read_text(encoding="utf-8") == verify.page(
        results["parts"], results["digests"]
    )


def test_what_is_below_its_target_is_shown_so() -> None:
    verify = load()
    ran = {"command": "python x", "commit": "0", "gateware": "ab", "seconds": 1}
    survivor = {"mutant": 3, "change": "-mode inv"}
    block = {"block": "rows", "mutants": 100, "killed": 80, "equivalent": 10, "target": 0.95}
    covered = {"block": "rows", "line": 0.97, "toggle": 0.89, "target": 0.9, "missed": []}
    results = {
        "mutation-rows": ran | {"blocks": [block | {"score": 80 / 90, "survivors": [survivor]}]},
        "coverage": ran | {"blocks": [covered]},
        "matrix": ran | {"cases": [{"name": "a", "state": "passed"}] * 39},
        "lint": ran | {"cases": [{"name": "a", "state": "failed"}]},
        "multipliers": ran | {"cases": [{"name": "a", "state": "passed"}]},
    }
    text = verify.page(results, {"gateware": "ab", "host": "cd"})
    assert "| rows | 100 | 80 | 10 | 88.9% | 95% of 100: **below target** |" in text
    assert "- 3: `-mode inv`: not explained" in text
    assert "| rows | 97.0% | 89.0% | 90%: **below target** |" in text
    assert "39 passed: **below target**." in text
    assert "1 failed: **below target**." in text
    assert "1 passed: met." in text
    assert text.count("Not measured: **below target**.") == 6 + len(verify.evidence_link.SECTIONS)


def of(name: str, **result: object) -> str:
    verify = load()
    ran = {"command": "python x", "commit": "0", "seconds": 1, "cases": [], "blocks": []}
    today = {"gateware": "ab", "host": "cd"}
    text = verify.page({name: ran | today | result}, today)
    # The section of the part, which is not that of those that were not measured.
    (section,) = [part for part in text.split("\n## ") if "`python x`" in part]
    return section


def test_faults_that_do_harm_are_shown() -> None:
    board = {
        "board": "gateware",
        "faults": 1_000_000,
        "kinds": {"drop": 1_000_000},
        "runs": 5,
        "wrong": 0,
        "commands": 9,
        "resent": 3,
        "unsynchronized": 0,
    }
    image = {"images": 2, "steps": 3, "faults": 7, "same": True}
    assert "below target" not in of("faults", boards=[board], image=image)
    for harm in ({"wrong": 1}, {"unsynchronized": 1}, {"runs": 0}, {"faults": 999_999}):
        assert "below target" in of("faults", boards=[board | harm], image=image)
    assert "below target" in of("faults", boards=[board], image=image | {"same": False})
    assert "below target" in of("faults")


def test_targets_that_fail_are_shown() -> None:
    target = {"target": "frames", "runs": 5000, "ok": True}
    assert "| frames | 5,000 | met |" in of("fuzz", targets=[target])
    assert "below target" in of("fuzz-by-coverage", targets=[target | {"ok": False}])


def test_modules_and_repeats_below_target_are_shown() -> None:
    modules = {"host/a.py": 1.0, "host/b.py": 0.85}
    assert "- host/b.py: 85.0%" in of("coverage-host", modules=modules, total=0.93)
    assert "below target" in of("coverage-host", modules=modules, total=0.89)
    cases = [{"name": "a", "state": "passed"}, {"name": "b", "state": "skipped"}]
    assert "1 of 2 passed: **below target**" in of("repeats", cases=cases)


def test_mutants_that_live_are_shown() -> None:
    block = {"block": "host/a.py", "all": 50, "mutants": 10, "killed": 8, "target": 0.85}
    survivor = {"mutant": "a", "change": "-x / +y"}
    text = of("mutation-host", blocks=[block | {"score": 0.8, "survivors": [survivor]}])
    assert "| host/a.py | 50 | 10 | 8 | 80.0% | 85%: **below target** |" in text
    assert "- `-x / +y`" in text


def test_parts_of_other_gateware_and_parts_without_an_end_are_shown() -> None:
    assert "earlier gateware" not in of("lint")
    assert "**Of earlier gateware** (ef)" in of("lint", gateware="ef")
    assert "earlier" not in of("fuzz", gateware="ef")
    assert "earlier" not in of("lint", host="ef")
    assert "**Of earlier code** (ef)" in of("fuzz", host="ef")
    assert "Ended after 7 s, before it was through: below target" in of("power-up", ended_after=7)


def test_blocks_that_a_part_did_not_come_to_are_shown() -> None:
    names = ["lanes", "array"]
    assert "| array | -- | -- | -- | -- | not measured: **below" in of("mutation-core", asked=names)
    assert "| array | -- | not measured | **below target** |" in of("functional", asked=names)
    assert "| array | -- | -- | not measured: **below target** |" in of("coverage", asked=names)


def alive(marker: str) -> int:
    texts = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            texts.append(path.read_bytes().decode(errors="replace"))
    return sum(marker in text for text in texts)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_parts_end_when_their_time_is_up(tmp_path: Path) -> None:
    verify = load()
    marker = f"sleep_{os.getpid()}"
    # A child in a process group of its own, as the tools of proofs are.
    text = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', "
        f"'import time; time.sleep(60) # {marker}'], process_group=0); time.sleep(60)"
    )
    verify.PARTS.clear()
    verify.PARTS |= {"long": verify.Part(["-c", text], 2.0), "late": verify.Part(["-c", ""], 1.0)}
    results: dict[str, Any] = {}
    # The first one uses up the time of all, and the other one does not begin.
    verify.run_all(["late", "long"], 1, 1.5, results.__setitem__)
    assert list(results) == ["long"] and results["long"]["ended_after"] >= 1
    assert alive(marker) == 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_parts_end_with_it() -> None:
    verify = load()
    marker = f"stop_{os.getpid()}"
    verify.PARTS.clear()
    verify.PARTS["long"] = verify.Part(["-c", f"import time; time.sleep(60) # {marker}"], 60)

    def stop(*_: object) -> None:
        raise SystemExit

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        with pytest.raises(SystemExit):
            verify.run_all(["long"], 1, 60, lambda *_: None)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert alive(marker) == 0
