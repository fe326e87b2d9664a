"""Verilator's line and toggle coverage of the gateware's blocks, by their cocotb benches.

    python tests/blocks/covered.py -o coverage.json [--benches encoder,engine]

Counted are the branches and lines of the generated Verilog, and both changes of every bit of the
signals that have a name in the source. Not counted is what :data:`WAIVED` explains.
"""

import argparse
import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from amaranth.lib import data
from benches import CONFIGS, COVERED

from ditto.hdl.config import Config
from ditto.hdl.protocol import LayerEntry

TARGET = 0.9


def bits_beyond(config: Config) -> str:
    """Return a pattern of the bits of entries that no layer of a device has."""
    bounds = config.largest | {
        "positions": config.positions,
        "weight_base": config.weight_rows,
        "accumulator_base": config.accumulator_rows,
    }
    fields = dict(data.Layout.cast(LayerEntry))
    bits = [
        fields[name].offset + bit
        for name, bound in bounds.items()
        for bit in range(bound.bit_length(), fields[name].width)
    ]
    names = r"(entry|layer_data|table_r__data|entry_register\.(i|o|held))"
    return rf"{names}\[({'|'.join(map(str, bits))})\]"


WAIVED = {
    "branches that Yosys writes so that a process runs once, `if (\\$auto$verilog_backend...)`": (
        "line",
        r"if \(\\\$auto\$verilog_backend",
    ),
    "results between operations, copies of ports, and fields of structures, whose bits are "
    "counted in the whole": ("toggle", r".*__02[4e]"),
    "bits of counters from bit 8 on, which a run of a bench does not count up to": (
        "toggle",
        r"(zero|narrow|wide|dense|temporal|spatial)\[([89]|[123]\d)\]|counters\[\d+\]|"
        rf"digits\[({'|'.join(str(bit) for bit in range(96) if bit % 32 >= 8)})\]",
    ),
    "bits of a layer's sizes that are beyond the device's own": (
        "toggle",
        r"(channels?|positions)\[([5-9]|1\d|[23]\d)\]|" + bits_beyond(Config(**CONFIGS["odd"])),
    ),
    "upper bits of modes, of which there are four, and what belongs to the table of decisions, "
    "where a device has none": ("toggle", r"(mode|tile_mode)\[[2-7]\]|decision(_data)?\[\d+\]"),
    "high items in the first lane, which takes none, and their entries' last ones, which are 0": (
        "toggle",
        r"lane_0\.(at_high|high_one|load_high|high_left\[\d+\]|high__entry\[\d+\])|"
        r"(high__entry|work__high)\[(9|1[0-7])\]",
    ),
    "bits of AXI that stay 0 or are ignored: responses are OKAY, addresses are those of words": (
        "toggle",
        r"s_axi_(a[rw]prot|[br]resp)\[\d\]|s_axi_a[rw]addr\[[01]\]",
    ),
}
RUNS = {"engine": 4, "tables": 2}
"""Runs of a bench that is kept shorter for mutants."""


def points(file: Path) -> list[tuple[dict[str, str], int]]:
    """Read the points of a coverage file: their keys, and how often each was reached."""
    found = []
    for line in file.read_text().splitlines():
        if match := re.match(r"C '(.*)' (\d+)$", line):
            keys = dict(part.split("\2", 1) for part in match[1].split("\1") if part)
            found.append((keys, int(match[2])))
    return found


def measure(name: str) -> list[dict[str, Any]]:
    """Measure the blocks of one bench."""
    bench = COVERED[name]
    with tempfile.TemporaryDirectory(prefix="ditto-coverage-") as folder:
        file = Path(folder, "coverage.dat")
        more = {"parameters": {"runs": RUNS[name]}} if name in RUNS else {}
        bench.run(name, bench.make(Config(**bench.config)), coverage=file, **more)
        found = points(file)
        lines = file.with_suffix(".v").read_text().splitlines()
    results = []
    for block, pattern in bench.blocks.items():
        reached: Counter[str] = Counter()
        total: Counter[str] = Counter()
        missed: set[str] = set()
        for keys, count in found:
            kind, module = keys["page"].split("/", 1)
            kind = "toggle" if kind == "v_toggle" else "line"
            path = module.removeprefix(name).lstrip(".")
            text = lines[int(keys["l"]) - 1]
            signal = keys["o"].replace("__05F", "_").rsplit(":", 1)[0]
            names = (signal, f"{path.rpartition('.')[2]}.{signal}")
            if not re.fullmatch(pattern, path) or any(is_waived(kind, text, n) for n in names):
                continue
            total[kind] += 1
            reached[kind] += count > 0
            if not count:
                where = re.sub(r"_\d+\b", "_n", path)
                missed.add(f"{where}: {signal if kind == 'toggle' else text.strip()}")
        results.append(
            {
                "block": block,
                **{kind: reached[kind] / max(total[kind], 1) for kind in ("line", "toggle")},
                "points": dict(total),
                "target": TARGET,
                "missed": sorted(missed),
            }
        )
    return results


def is_waived(kind: str, text: str, signal: str) -> bool:
    """Tell whether a point does not count."""
    for what, pattern in WAIVED.values():
        if what == "line" and kind == "line" and re.search(pattern, text):
            return True
        if what != "line" and kind == "toggle" and re.match(pattern, signal):
            return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--benches", default=",".join(COVERED), help="(default: all of them)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    results = []
    names = options.benches.split(",")
    asked = [block for name in names for block in COVERED[name].blocks]
    for name in names:
        for result in measure(name):
            results.append(result)
            print(
                f"{result['block']}: lines {result['line']:.1%}, toggles {result['toggle']:.1%}, "
                f"{result['points']}",
                flush=True,
            )
        report = {"asked": asked, "blocks": results, "waived": list(WAIVED)}
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
