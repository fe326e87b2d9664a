"""Faults of the link by the million: nothing may change a result, hang, or cost a second frame.

    python tests/faults/run.py -o faults.json [--faults 1000000] [--gateware 20000] [--images 2]

Most of them on the golden model behind a link, some on the generated gateware, compiled; half of
them on devices with a reference buffer.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from ditto.hdl.config import demo
from ditto.host.cli_common import demo_model
from ditto.host.device import Accelerator, Device
from ditto.host.model import Model
from ditto.host.program import Program
from ditto.host.samplers import DDIM, Schedule
from ditto.host.session import draw
from ditto.sim.board import SimulatedBoard
from ditto.sim.disturbance import CONFIG, REFERENCES, Tally, counted_time, disturb
from ditto.sim.faults import FaultRates, FaultyTransport
from ditto.sim.golden import Golden
from ditto.sim.golden_board import GoldenBoard

DEVICES = {"deltas": CONFIG, "reference buffer": REFERENCES}
"""Half of the faults are for each."""
STEPS = 10
RATE = 5e-5


def facts(name: str, tally: Tally, start: float) -> dict[str, Any]:
    found = {
        "board": name,
        "faults": tally.faults.total(),
        "kinds": dict(sorted(tally.faults.items())),
        "runs": tally.runs,
        "wrong": tally.wrong,
        "commands": tally.commands,
        "resent": tally.resent,
        "unsynchronized": tally.unsynchronized,
        "seconds": round(time.monotonic() - start),
    }
    print(found, flush=True)
    return found


def images(count: int) -> dict[str, Any]:
    """Draw images with the demo model over a bad link, and without a link."""
    model = Model.load(demo_model())
    program = Program(model.layers, model.shapes(), demo)
    sampler = DDIM(Schedule.from_metadata(model.metadata), steps=STEPS)

    def drawn(device: Accelerator) -> bytes:
        return draw(model, program, lambda: device, sampler, samples=count).images.tobytes()

    rates = FaultRates(drop=RATE, flip=RATE, duplicate=RATE, insert=RATE, swap=RATE, cut=RATE)
    with counted_time():
        link = FaultyTransport(
            GoldenBoard(demo), seed=3, to_device=rates, from_device=rates, stall=0.01
        )
        got = drawn(Device(link, expect=demo, timeout=0.05, tries=400))
    found = {
        "images": count,
        "steps": STEPS,
        "faults": link.faults,
        "same": got == drawn(Golden(demo)),
    }
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--faults", type=int, default=1_000_000)
    parser.add_argument("--gateware", type=int, default=20_000)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    report: dict[str, Any] = {"boards": []}

    def save() -> None:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    for name, config in DEVICES.items():
        start = time.monotonic()
        board = GoldenBoard(config)
        tally = disturb(board, options.faults // 2, seed=options.seed, config=config)
        report["boards"].append(facts(f"golden model, {name}", tally, start))
        save()
    report["image"] = images(options.images)
    save()
    for name, config in DEVICES.items():
        start = time.monotonic()
        with SimulatedBoard(config) as board:
            tally = disturb(board, options.gateware // 2, seed=options.seed, config=config)
        report["boards"].append(facts(f"gateware, {name}", tally, start))
        save()


if __name__ == "__main__":
    main()
