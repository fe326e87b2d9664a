"""Benches of the gateware's blocks after a power-up with anything in every register and memory.

python tests/blocks/power_up.py -o power_up.json [--benches encoder,engine] [--seeds 3]
"""

import argparse
import json
from pathlib import Path

from benches import TABLE

from ditto.hdl.config import Config
from ditto.sim.cocotb_runner import CocotbError
from ditto.sim.mutation import without_initial_values


def passes(name: str, seed: int) -> bool:
    """Tell whether a bench passes."""
    bench = TABLE[name]
    component = bench.make(Config(**bench.config))
    try:
        bench.run(
            name,
            component,
            source=without_initial_values(component, name),
            plusargs=["+verilator+rand+reset+2", f"+verilator+seed+{seed}"],
        )
    except CocotbError as error:
        print(error, flush=True)
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--benches", default=",".join(TABLE), help="(default: all of them)")
    parser.add_argument("--seeds", type=int, default=3, help="of what there is (default: 3)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    cases = []
    for name in options.benches.split(","):
        for seed in range(1, options.seeds + 1):
            state = "passed" if passes(name, seed) else "failed"
            cases.append({"name": f"{name}, seed {seed}", "state": state})
            print(f"{name}, seed {seed}: {state}", flush=True)
        options.output.write_text(json.dumps({"cases": cases}, indent=2) + "\n")


if __name__ == "__main__":
    main()
