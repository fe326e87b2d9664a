"""Branch coverage of host and simulation by their tests.

    python tests/coverage_host.py -o coverage.json

The tests that place and route, and that compare many devices, are left out: they reach nothing
more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = (
    "tests/host tests/sim tests/hdl tests/formal/test_framing.py tests/fpga/test_cli_boards.py "
    "tests/cocotb/test_cocotb_framing.py tests/blocks tests/test_docs.py tests/test_fuzz.py "
    "tests/test_trajectory.py"
).split()
SETTINGS = """[run]
source_pkgs = ditto.host,ditto.sim
branch = true
parallel = true
patch = subprocess
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory(prefix="ditto-coverage-") as temporary:
        folder = Path(temporary)
        settings = folder / "settings"
        settings.write_text(SETTINGS + f"data_file = {folder / 'data'}\n", encoding="utf-8")

        def coverage(*words: str) -> int:
            command = [sys.executable, "-m", "coverage", *words]
            where = [f"--rcfile={settings}"]
            return subprocess.run([*command[:4], *where, *command[4:]], cwd=ROOT).returncode

        os.environ.setdefault("OMP_NUM_THREADS", "1")
        tests = [*TESTS, "-k", "not counters_are_those", "-q", "-p", "no:cacheprovider"]
        failed = coverage("run", "-m", "pytest", *tests)
        coverage("combine", "-q")
        coverage("json", "-q", "-o", str(folder / "report.json"))
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))

    def share(summary: dict[str, float]) -> float:
        whole = summary["num_statements"] + summary["num_branches"]
        return (summary["covered_lines"] + summary["covered_branches"]) / whole if whole else 1.0

    modules = {
        "/".join(Path(name).parts[-2:]): share(file["summary"])
        for name, file in report["files"].items()
    }
    facts = {"failed": failed, "total": share(report["totals"]), "modules": modules}
    output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    for name, value in sorted(modules.items(), key=lambda item: item[1]):
        print(f"{value:7.1%} {name}")


if __name__ == "__main__":
    main()
