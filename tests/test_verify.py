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
    assert text.count("Not measured.") == 4
