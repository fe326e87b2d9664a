# amaranth: UnusedElaboratable=no
"""Functional coverage of the engine: kind of layer, mode and edge case, on several devices.

    python tests/blocks/functional.py -o functional.json

Every run is compared with the golden model, values and counters.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from benches import CONFIGS, Bench

from ditto.hdl.config import Config
from ditto.hdl.engine import Engine

TARGET = 0.95

# The benches of the default suite have compiled the first three.
DEVICES: dict[str, dict[str, Any]] = {
    "nothing is a power of two": CONFIGS["odd"],
    "one lane, cluster, column and channel; only 1 x 1 kernels": CONFIGS["one"],
    "two bits a digit, multipliers as tables": CONFIGS["digits"],
    "a reference buffer": CONFIGS["odd"]
    | dict(clusters=2, columns=2, reference_depth=300, neighbour_depth=60),
}


def measure(name: str) -> dict[str, Any]:
    """Return which combinations a device's runs have, and which not."""
    os.environ["COCOTB_TEST_FILTER"] = "every_kind_of_run"
    with tempfile.TemporaryDirectory(prefix="ditto-functional-") as folder:
        output = Path(folder, "hits.json")
        parameters = {"runs": 1, "resets": 1, "functional": str(output)}
        bench = Bench(Engine, "engine", parameters, {}, DEVICES[name])
        bench.run("engine", Engine(Config(**DEVICES[name])))
        found = json.loads(output.read_text())
    hits: dict[str, int] = found["hits"]
    return {
        "block": name,
        "combinations": len(hits),
        "reached": sum(count > 0 for count in hits.values()),
        "missed": [key for key, count in hits.items() if not count],
        "refused": found["refused"],
        "target": TARGET,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    results = []
    for name in DEVICES:
        results.append(measure(name))
        print(results[-1], flush=True)
        report = {"asked": list(DEVICES), "blocks": results}
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
