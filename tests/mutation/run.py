# amaranth: UnusedElaboratable=no
"""Mutation score of the gateware's blocks, each against its own cocotb bench.

    python tests/mutation/run.py -o mutation.json [--blocks encoder,framer] [--mutants 100]

A mutant is killed when the bench fails. The score is the killed ones among those that are not
proven equivalent; whoever is left is listed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from amaranth.lib import wiring

from ditto.hdl.config import Config
from ditto.hdl.difference_buffer import DifferenceBuffer
from ditto.hdl.encoder import Encoder
from ditto.hdl.framing import Deframer, Framer
from ditto.hdl.lanes import RowQueue
from ditto.hdl.sequencer import Sequencer, row_of
from ditto.sim.cocotb_runner import run_cocotb
from ditto.sim.mutation import Mutants

BENCHES = Path(__file__).parents[1] / "cocotb"
TARGET = 0.95
LIMIT = 60.0
"""Seconds for a bench; on a block without a mutant it takes a few."""

CONFIG: dict[str, Any] = dict(
    clusters=3,
    lanes=2,
    columns=5,
    accumulator_bits=19,
    weight_rows=330,
    accumulator_rows=70,
    item_depth=300,
    positions=25,
    channels=9,
    list_depth=11,
    layers=5,
    frame_bytes=128,
)


class Block(NamedTuple):
    """A block, its bench, and what the bench is told."""

    make: Callable[[Config], wiring.Component]
    bench: str
    parameters: dict[str, Any]


FRAMING = {"frame_bytes": 300, "lengths": [1, 2, 5, 249, 250, 251, 254, 296], "frames": 40}
BLOCKS = {
    "framer": Block(lambda _: Framer(), "framing", FRAMING),
    "deframer": Block(lambda _: Deframer(frame_bytes=300), "framing", FRAMING),
    "encoder": Block(Encoder, "encoder", {"tiles": 6}),
    "buffer": Block(DifferenceBuffer, "buffers", {"cycles": 1000}),
    "rows": Block(
        lambda config: RowQueue(shape=row_of(config), depth=3),
        "buffers",
        {"cycles": 1000, "depth": 3},
    ),
    "sequencer": Block(Sequencer, "sequencer", {"runs": 4}),
}


def run_bench(name: str, source: str, mutant: int) -> None:
    """Run a block's bench on one of its mutants; 0 is the block itself."""
    block = BLOCKS[name]
    run_cocotb(
        block.make(Config(**CONFIG)),
        top_name=name,
        testbench=BENCHES / f"tb_{block.bench}.py",
        parameters={"config": CONFIG, "top": name, **block.parameters},
        seed=1,
        source=source,
        plusargs=[f"+mutant={mutant}"],
    )


def is_killed(name: str, source: Path, mutant: int) -> bool:
    """Tell whether the bench fails, or does not end."""
    command = [sys.executable, __file__, "--bench", name, str(source), str(mutant)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(LIMIT) != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        # The simulator is a child of the bench.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def score(name: str, count: int, seed: int, jobs: int) -> dict[str, Any]:
    """Measure one block."""
    start = time.monotonic()
    mutants = Mutants(BLOCKS[name].make(Config(**CONFIG)), name, count, seed)
    count = mutants.count
    numbers = range(1, count + 1)
    with tempfile.TemporaryDirectory(prefix="ditto-mutation-") as folder:
        source = Path(folder, f"{name}.v")
        source.write_text(mutants.source, encoding="utf-8")
        if is_killed(name, source, 0):
            raise SystemExit(f"{name}: the bench fails without a mutant")
        with ThreadPoolExecutor(jobs) as pool:
            killed = list(pool.map(lambda number: is_killed(name, source, number), numbers))
            left = [number for number, dead in zip(numbers, killed, strict=True) if not dead]
            proven = list(pool.map(mutants.is_equivalent, left))
    equivalent = sum(proven)
    survivors = [
        {"mutant": number, "change": mutants.what[number - 1]}
        for number, same in zip(left, proven, strict=True)
        if not same
    ]
    return {
        "block": name,
        "mutants": count,
        "killed": sum(killed),
        "equivalent": equivalent,
        "score": sum(killed) / max(count - equivalent, 1),
        "target": TARGET,
        "survivors": survivors,
        "seconds": round(time.monotonic() - start),
    }


def main() -> None:
    if sys.argv[1:2] == ["--bench"]:
        name, source, mutant = sys.argv[2:]
        run_bench(name, Path(source).read_text(encoding="utf-8"), int(mutant))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", default=",".join(BLOCKS), help="(default: all of them)")
    parser.add_argument("--mutants", type=int, default=100, help="of each block (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="which mutants (default: 1)")
    parser.add_argument("--jobs", type=int, default=2, help="benches at a time (default: 2)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    results = []
    for name in options.blocks.split(","):
        if name not in BLOCKS:
            parser.error(f"there is no block {name!r}; choose from {', '.join(BLOCKS)}")
        result = score(name, options.mutants, options.seed, options.jobs)
        print(
            f"{name}: {result['killed']} of {result['mutants']} killed, "
            f"{result['equivalent']} equivalent, score {result['score']:.1%}, "
            f"{result['seconds']} s",
            flush=True,
        )
        for survivor in result["survivors"]:
            print(f"  {survivor['mutant']}: {survivor['change']}", flush=True)
        results.append(result)
        command = " ".join(["python", "tests/mutation/run.py", *sys.argv[1:]])
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(
            json.dumps({"command": command, "blocks": results}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
