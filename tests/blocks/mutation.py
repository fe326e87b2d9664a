# amaranth: UnusedElaboratable=no
"""Mutation score of the gateware's blocks, each against a cocotb bench.

    python tests/blocks/mutation.py -o mutation.json [--benches encoder,engine] [--mutants 100]

A mutant is killed when the bench fails. The score is the killed ones among those that are not
proven equivalent; whoever is left is listed.
"""

import argparse
import json
import resource
import tempfile
from pathlib import Path
from typing import Any

from benches import TABLE

from ditto.hdl.config import Config
from ditto.sim.mutation import Mutants

TARGET = 0.95


def score(name: str, count: int, seed: int, jobs: int, seconds: float) -> list[dict[str, Any]]:
    """Measure the blocks of one bench."""
    bench = TABLE[name]
    component = bench.make(Config(**bench.config))
    mutants = Mutants(component, name, bench.blocks, count, seed)
    with tempfile.TemporaryDirectory(prefix="ditto-mutation-") as folder:
        report = Path(folder, "report.json")
        orders = {
            "numbers": [number for numbers in mutants.numbers.values() for number in numbers],
            "jobs": jobs,
            "report": str(report),
        }
        bench.run(
            name,
            component,
            parameters={"mutants": orders},
            source=mutants.source,
            last_module="mutants",
            plusargs=["+verilator+rand+reset+2", f"+verilator+seed+{seed}"],
        )
        passed = {int(key): value for key, value in json.loads(report.read_text()).items()}
    return [
        judge(block, numbers, passed, mutants, seconds)
        for block, numbers in mutants.numbers.items()
    ]


def judge(
    block: str,
    numbers: range,
    report: dict[int, tuple[bool, float]],
    mutants: Mutants,
    seconds: float,
) -> dict[str, Any]:
    """Return the result of one block."""
    left = [number for number in numbers if report[number][0]]
    proven = mutants.are_equivalent(left, seconds)
    equivalent = sum(proven)
    killed = len(numbers) - len(left)
    return {
        "block": block,
        "mutants": len(numbers),
        "killed": killed,
        "equivalent": equivalent,
        "score": killed / max(len(numbers) - equivalent, 1),
        "target": TARGET,
        "survivors": [
            {"mutant": number, "change": mutants.what[number - 1]}
            for number, same in zip(left, proven, strict=True)
            if not same
        ],
        "seconds": round(sum(report[number][1] for number in (*numbers, 0))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--benches", default=",".join(TABLE), help="(default: all of them)")
    parser.add_argument("--mutants", type=int, default=100, help="of each block (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="which mutants (default: 1)")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (default: 2)")
    parser.add_argument(
        "--seconds", type=float, default=60, help="for a proof of equivalence (default: 60)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    results = []
    names = options.benches.split(",")
    for name in names:
        if name not in TABLE:
            parser.error(f"there is no bench {name!r}; choose from {', '.join(TABLE)}")
    asked = [block for name in names for block in TABLE[name].blocks]
    for name in names:
        for result in score(name, options.mutants, options.seed, options.jobs, options.seconds):
            print(
                f"{result['block']}: {result['killed']} of {result['mutants']} killed, "
                f"{result['equivalent']} equivalent, score {result['score']:.1%}, "
                f"{result['seconds']} s of processor time",
                flush=True,
            )
            for survivor in result["survivors"]:
                print(f"  {survivor['mutant']}: {survivor['change']}", flush=True)
            results.append(result)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"asked": asked, "blocks": results}, indent=2) + "\n")
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{children.ru_utime + children.ru_stime:.0f} s of processor time in all")


if __name__ == "__main__":
    main()
