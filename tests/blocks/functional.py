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

from benches import CONFIG, Bench

from ditto.hdl.config import Config, Multiplier
from ditto.hdl.engine import Engine

TARGET = 0.95

DEVICES: dict[str, dict[str, Any]] = {
    "nothing is a power of two": CONFIG,
    "one lane, cluster, column and channel; only 1 x 1 kernels": CONFIG
    | dict(clusters=1, lanes=1, columns=1, channels=1, list_depth=2, digit_bits=9),
    "two bits a digit, multipliers as tables": CONFIG
    | dict(
        clusters=2,
        columns=3,
        digit_bits=2,
        activation_bits=6,
        weight_bits=5,
        list_depth=30,
        multiplier=Multiplier.LUT,
    ),
}


def measure(name: str) -> dict[str, Any]:
    """Return which combinations a device's runs have, and which not."""
    os.environ["COCOTB_TEST_FILTER"] = "every_kind_of_run"
    with tempfile.TemporaryDirectory(prefix="ditto-functional-") as folder:
        output = Path(folder, "hits.json")
        parameters = {"runs": 1, "resets": 1, "functional": str(output)}
        bench = Bench(Engine, "engine", parameters, {}, DEVICES[name])
        bench.run("engine", Engine(Config(**DEVICES[name])))
        hits: dict[str, int] = json.loads(output.read_text())
    return {
        "block": name,
        "combinations": len(hits),
        "reached": sum(count > 0 for count in hits.values()),
        "missed": [key for key, count in hits.items() if not count],
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
        options.output.write_text(json.dumps({"blocks": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
