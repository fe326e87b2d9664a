import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ditto.hdl.config import demo
from ditto.host.performance import page

ROOT = Path(__file__).parents[1]


def test_memory_table_is_that_of_the_demo() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    for memory in demo.memories:
        size = f"{memory.depth} × {memory.width} | {memory.bits / 8192:.1f}"
        assert f"| {memory.name} | {memory.count} | {size} |" in text
    total = sum(memory.bits for memory in demo.memories) / 8
    assert f"{total / 1024:.0f} KiB ({total / 1000:.0f} kB)" in text
    assert total <= 400e3


def test_performance_page_is_made_of_its_figures() -> None:
    facts = json.loads((ROOT / "docs/performance.json").read_text())
    text = (ROOT / "docs/performance.md").read_text()
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(pictures) == len({run["model"] for run in facts["runs"]}) >= 2
    assert text == page(facts, pictures)


@pytest.mark.parametrize("name", ["README.md", *sorted(p.name for p in ROOT.glob("docs/*.md"))])
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name if name == "README.md" else ROOT / "docs" / name
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{name} links to {target}"


def test_python_example_of_the_readme_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("(1, 1, 16, 16) ")
