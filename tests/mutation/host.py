"""Mutation score of the host's numerics and link, by mutmut, against their tests.

    python tests/mutation/host.py -o host.json [--sample 600] [--seed 1] [--only host/resume.py]

A mutant is killed when a test fails or takes far too long. Mutants that no test reaches count as
survivors. A sample is drawn from each module in proportion to its mutants, and of 40 at least.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("hdl", "sim", "fpga", "host")
TARGET = 0.85
#: What is mutated: a module, and the functions of it if not all.
MODULES: dict[str, tuple[str, ...]] = {
    "host/device.py": (),
    "host/framing.py": (),
    "host/layers.py": ("quantize", "dequantize"),
    "host/lowering.py": (),
    "host/narrow.py": (),
    "host/resume.py": (),
    "host/serial_port.py": (),
    "sim/cycles.py": (),
    "sim/golden.py": (),
}
TESTS = (
    "tests/host/test_device.py tests/host/test_framing.py tests/host/test_inputs.py "
    "tests/host/test_lowering.py "
    "tests/host/test_model.py tests/host/test_narrow.py tests/host/test_products.py "
    "tests/host/test_resume.py tests/host/test_serial_port.py tests/sim/test_golden.py "
    "tests/sim/test_spatial.py tests/test_fuzz.py"
).split()
#: They simulate a device for long, or begin processes, in which no mutant is.
LEFT_OUT = (
    "not pins_and_port and not denoise_over_a_port and not is_noticed and not small_archive "
    "and not generated_hardware and not overrun_nothing"
)
KILLED = (1, 3, 152, 24, -24, 36, 255)
#: Mutants of a run of mutmut, each of which begins with all tests without a mutant.
LOT = 160
LEAST = 40


def lay_out(folder: Path, modules: list[str]) -> None:
    """Make a project whose folders are its packages, which is what mutmut expects."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package,
            folder / "src" / "ditto" / package,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    # It has to be there when Python starts, which else believes that it never will be.
    (folder / "mutants" / "src").mkdir(parents=True)
    only = [f"src/ditto/{module}" for module in modules]
    (folder / "pyproject.toml").write_text(
        text
        + "\n[tool.mutmut]\n"
        + 'source_paths = ["src"]\n'
        + f"only_mutate = {json.dumps(only)}\n"
        + f"pytest_add_cli_args_test_selection = {json.dumps([*TESTS, '-k', LEFT_OUT])}\n"
        + 'pytest_add_cli_args = ["-p", "no:cacheprovider", "-x"]\n'
        + "track_dependencies = false\nuse_git_change_detection = false\n",
        encoding="utf-8",
    )


def mutmut(folder: Path, *arguments: str) -> str:
    # The mutated package comes before the installed one, in what the tests start too.
    path = str(folder / "mutants" / "src")
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout


def verdicts(folder: Path, modules: list[str]) -> dict[str, dict[str, int | None]]:
    """Return the exit code of each mutant by module; None if it has not run."""
    found = {}
    for module in modules:
        path = folder / "mutants" / "src" / "ditto" / f"{module}.meta"
        codes = json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
        found[module] = {
            name: code
            for name, code in codes.items()
            if not MODULES[module] or name.rsplit("__mutmut_", 1)[0].endswith(MODULES[module])
        }
    return found


def sample(mutants: dict[str, dict[str, Any]], count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    total = sum(map(len, mutants.values()))
    share = min(1.0, count / total)
    return [
        name
        for names in mutants.values()
        for name in sorted(
            rng.sample(sorted(names), min(max(round(share * len(names)), LEAST), len(names)))
        )
    ]


SHOW = """
import json, sys
from mutmut.__main__ import get_diff_for_mutant
print(json.dumps([get_diff_for_mutant(name) for name in sys.argv[1:]]))
"""


def changes(folder: Path, names: list[str]) -> list[str]:
    """Return the lines that each mutant changes."""
    if not names:
        return []
    # The command `mutmut show` takes seconds to start, for each of them.
    done = subprocess.run(
        [sys.executable, "-c", SHOW, *names],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        return names
    return [
        " / ".join(
            line
            for line in text.splitlines()
            if line[:1] in "+-" and not line.startswith(("+++", "---")) and line[1:].strip()
        )
        for text in json.loads(done.stdout.splitlines()[-1])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--sample", type=int, default=600, help="mutants (default: 600)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(MODULES), help="modules (default: all of them)")
    parser.add_argument("--folder", type=Path, help="work here, and leave it there")
    parser.add_argument("--seconds", type=float, default=1500, help="begin no more after these")
    options = parser.parse_args()
    modules = options.only.split(",")
    for module in modules:
        if module not in MODULES:
            parser.error(f"there is no module {module!r}; choose from {', '.join(MODULES)}")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ditto-mutants-") as temporary:
        folder = options.folder or Path(temporary)
        lay_out(folder, modules)
        # A name that no mutant has: this makes the mutants and finds which tests reach them.
        log = mutmut(folder, "run", "--max-children", "1", "none*")
        mutants = verdicts(folder, modules)
        stats = folder / "mutants" / "mutmut-stats.json"
        if not stats.exists():
            sys.exit(log[-3000:])
        reached = json.loads(stats.read_text(encoding="utf-8"))["tests_by_mangled_function_name"]
        chosen = sample(mutants, options.sample, options.seed)
        have_tests = [name for name in chosen if reached.get(name.rsplit("__mutmut_", 1)[0])]
        # In lots, drawn at random: mutmut begins with the quick ones, and time may run out.
        random.Random(options.seed).shuffle(have_tests)
        for at in range(0, len(have_tests), LOT):
            if time.monotonic() - start > options.seconds:
                break
            lot = have_tests[at : at + LOT]
            log = mutmut(folder, "run", "--max-children", "1", *lot)
            print(f"{at + len(lot)} of {len(have_tests)}", flush=True)
        after = verdicts(folder, modules)
        blocks = []
        for module, names in after.items():
            ran = {name: code for name, code in names.items() if name in set(chosen)}
            left = [
                name
                for name, code in ran.items()
                if code not in KILLED and (code is not None or name not in have_tests)
            ]
            not_run = [n for n, code in ran.items() if code is None and n in have_tests]
            killed = sum(code in KILLED for code in ran.values())
            tried = len(ran) - len(not_run)
            blocks.append(
                {
                    "block": module,
                    "all": len(names),
                    "mutants": tried,
                    "killed": killed,
                    "equivalent": 0,
                    "score": killed / tried if tried else 0.0,
                    "target": TARGET,
                    "survivors": [
                        {"mutant": name, "change": text}
                        for name, text in zip(left, changes(folder, left), strict=True)
                    ],
                }
            )
            print(f"{module}: {killed} of {tried} (of {len(names)} in all)", flush=True)
    report = {"sample": options.sample, "seed": options.seed, "blocks": blocks}
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if not any(block["mutants"] for block in blocks):
        sys.exit(log[-3000:])


if __name__ == "__main__":
    main()
