import importlib.util
import json
from pathlib import Path
from typing import Any

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
    assert verify.PAGE.read_text(encoding="utf-8") == verify.page(results)


def test_what_is_below_its_target_is_shown_so() -> None:
    verify = load()
    ran = {"command": "python x", "commit": "0", "seconds": 1}
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
    text = verify.page(results)
    assert "| rows | 100 | 80 | 10 | 88.9% | 95% of 100: **below target** |" in text
    assert "- 3: `-mode inv`: not explained" in text
    assert "| rows | 97.0% | 89.0% | 90%: **below target** |" in text
    assert "39 passed: **below target**." in text
    assert "1 failed: **below target**." in text
    assert "1 passed: met." in text
    assert text.count("Not measured.") == 4 + len(verify.evidence_link.SECTIONS)


def of(name: str, **result: object) -> str:
    verify = load()
    ran = {"command": "python x", "commit": "0", "seconds": 1, "cases": [], "blocks": []}
    return verify.page({name: ran | result})


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
