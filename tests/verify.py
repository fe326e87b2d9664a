"""Measure the evidence for the gateware, and write docs/verification.md from it.

    python tests/verify.py                    all parts, as `make verify` does
    python tests/verify.py --parts lint       some of them; the others stay as they were measured
    python tests/verify.py --parts ""         write the page again

Results are kept in docs/verification.json: each with its command and the gateware that it is of.
Ended by SIGTERM or Ctrl-C, it ends its parts and keeps the results of those that are through.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
import evidence_link  # noqa: E402

RESULTS = ROOT / "docs" / "verification.json"
PAGE = ROOT / "docs" / "verification.md"


class Part(NamedTuple):
    """A part of the evidence: a command, and the seconds that it may take."""

    arguments: list[str]
    limit: float


PARTS = {
    "formal": Part(["-m", "pytest", "tests/formal"], 1000),
    "formal-long": Part(["-m", "pytest", "tests/formal", "-m", "long"], 1300),
    "lint": Part(["-m", "pytest", "tests/fpga/test_lint.py"], 300),
    "icarus": Part(["-m", "pytest", "tests/cocotb", "-k", "icarus"], 900),
    "skip": Part(
        ["-m", "pytest", "tests/cocotb/test_skip.py", "-m", "long or not long"],
        900,
    ),
    "multipliers": Part(["-m", "pytest", "tests/hdl/test_multiplier.py"], 900),
    "matrix": Part(
        ["-m", "pytest", "tests/sim/test_device.py", "-k", "counters_are_those"]
        + ["-m", "not slow"],
        1200,
    ),
    "power-up": Part(["tests/blocks/power_up.py"], 1200),
    "functional": Part(["tests/blocks/functional.py"], 900),
    "coverage": Part(["tests/blocks/covered.py"], 1200),
}
#: Seconds that the mutants of a bench may take.
BENCHES = {
    **dict.fromkeys(
        "rows buffer framer deframer sequencer uart differences decisions".split(), 700
    ),
    **dict(encoder=700, tables=700, core=1500, engine=3000),
}
PARTS |= {
    f"mutation-{bench}": Part(
        ["tests/blocks/mutation.py", "--benches", bench, "--mutants", "100", "--jobs", "1"]
        + ["--seconds", "20"],
        limit,
    )
    for bench, limit in BENCHES.items()
}
PARTS |= {name: Part(*part) for name, part in evidence_link.PARTS.items()}
#: What the evidence is of; a part is of the first, unless it is of the second.
SOURCES = {"gateware": ["hdl"], "host": ["hdl", "host", "sim"]}
OF_THE_HOST = ("fuzz", "fuzz-by-coverage", "mutation-host", "coverage-host")
MATRIX_TARGET = 40
MUTANTS_TARGET = 100
#: Of a block and a mutant's change.
EXPLAINED = {
    r"-wire \\?(counters\.)?(zero|narrow|wide|dense|temporal|spatial) "
    r"-wirebit (1[2-9]|[2-9]\d)$": "an upper bit of a counter, which a bench does not count up to",
    r"^(deframer|command machine): -mode const1 .*-wire (command)?\.?\\?\$signature__en": (
        "writes the place of the next byte too early, which is written again before it is read"
    ),
    r"^command machine: -mode const0 .*-wire command\.(outcome|status) -wirebit [3-7]$": (
        "an upper bit of a status: there are eight"
    ),
    r"^command machine: .*-cell \$flatten\\command\.\$procmux\$1910 -port A ": (
        "the address while a response's header waits: it is set anew before it is read"
    ),
    r"^UART: -mode inv .*-wire receiver\.count -wirebit [12]$": (
        "counts a byte's bits in another order, of which 7 is the eighth, too"
    ),
    r"^UART: -mode cnot1 .*transmitter\.\$\d+ -port Y -portbit 2 -ctrlbit 1$": (
        "counts the bits that are left in another order, which ends with 2, 1, 0, too"
    ),
    r"^sequencer: -mode const0 .*-wire geometry -wirebit 3[7-9]$": (
        "an upper bit of a slot's last item: the device's layers have no such slots"
    ),
    r"^sequencer: .*-ctrlbit 20 -wire places__place ": (
        "the upper bit of a count of high items: no position of the device has so many"
    ),
    r"^sequencer: -mode (cnot1 .*-ctrlbit 8 -wire high_(total|sum) -wirebit \d|"
    r"const0 .*-wire high_(total|sum) -wirebit 8)$": (
        "the upper bit of a row's high items: they are more than the difference buffer has"
    ),
    r"^differences: -mode (const0|cnot1) .*-port A .*-wire entry -wirebit (5[3-9]|6[0-3])$": (
        "an upper bit of the number of channels: the engine refuses so many"
    ),
    r"^differences: .*-cell \$166 -port B -portbit 0$": (
        "`takes` beside `emits`: whatever reads the first asks for the second, too"
    ),
    r"^column: -mode const0 .*-wire cluster_\d+\.array\.column_[02]\.carry": (
        "of two columns that share a block, only the second has carries; the third has its own"
    ),
    r"^array: -mode const1 .*array\.\$33 -port B ": (
        "a stopped row is written once more: its entry holds no accumulators then, and the next "
        "tile stops the cluster again"
    ),
    r"^lanes: -mode const1 .*lane_1\.\$auto\$(simple\.cc:211:make_patterns_logic\$1977 -port A|"
    r"ff\.cc:337:slice\$1971 -port EN) ": (
        "whether one high item is left, while the lane is at none: set anew before it is read"
    ),
    r"^lanes: -mode const1 .*lanes\.\$17 -port A ": (
        "`finishing` beside `~valid`: lanes without a row are finishing"
    ),
    r"^cluster: -mode const1 .*-wire cluster_\d+\.read__en( |$)|"
    r"^cluster: -mode const1 .*cluster_\d+\.\$17 -port B ": (
        "reads weights that nothing asks for: whatever is written then does not run"
    ),
    r"^cluster: -mode const0 .*cluster_\d+\.\$21 -port B ": (
        "a cluster that is stopped has ended, which ends the run as well"
    ),
    r"^cluster: -mode const0 .*-wire cluster_1\.overrun ": (
        "the first of two clusters has as many positions or one more, and overruns, too"
    ),
    r"^lanes: -mode cnot1 .*rows\.\$15 -port DATA -portbit 39 -ctrlbit 5 ": (
        "goes on from the row before, which was zero wherever a row had so many items"
    ),
    r"^engine: -mode cnot[01] .*-port Q .*-wire (filled|counters) ": (
        "turns over whenever the register is written, and was right when the bench looked"
    ),
    r"^engine: -mode cnot1 .*-ctrlbit 2(4[1-9]|5\d) -wire entry -wirebit 2(4[1-9]|5\d)$": (
        "a bit of where references begin, beyond the memory, beside another such bit"
    ),
    r"^engine: -mode const0 .*-cell \$procmux\$1597 -port B ": (
        "a run of a bad layer that does not stop the clusters: the next tile stops them"
    ),
}


def text_of(arguments: list[str]) -> str:
    return " ".join(["python", *(f'"{a}"' if " " in a else a for a in arguments)])


class Run:
    """A part that runs, as a session of processes of its own.

    Parameters
    ----------
    part
        What to run.
    limit
        Seconds that it may take.
    work
        Folder for its report.
    """

    def __init__(self, part: Part, limit: float, work: Path) -> None:
        self.part, self.limit = part, limit
        self.is_pytest = "pytest" in part.arguments
        self.output = work / ("report.xml" if self.is_pytest else "report.json")
        extra = [f"--junitxml={self.output}"] if self.is_pytest else ["-o", str(self.output)]
        self.start = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, *part.arguments, *extra],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def poll(self) -> dict[str, Any] | None:
        """Return the result if the part is through or has used up its time; it is ended then."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        seconds = time.monotonic() - self.start
        if not pid and seconds < self.limit:
            return None
        self.end()
        is_late = not pid
        if is_late:
            print(f"{text_of(self.part.arguments)}: ended after {seconds:.0f} s", file=sys.stderr)
            _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        result: dict[str, Any] = {
            "command": text_of(self.part.arguments),
            "commit": commit(),
            **digests(),
            "seconds": round(seconds),
            "processor": round(usage.ru_utime + usage.ru_stime),
        }
        if is_late:
            result["ended_after"] = round(seconds)
        if not self.output.exists():
            return result | {"cases": [], "blocks": []}
        read = read_report if self.is_pytest else lambda path: json.loads(path.read_text())
        return result | read(self.output)

    def end(self) -> None:
        """Kill every process of the part: SymbiYosys' tools have process groups of their own."""
        session = self.process.pid
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[3]) == session:
                    os.kill(int(stat.parent.name), signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(session, signal.SIGKILL)


def run_all(
    names: list[str],
    jobs: int,
    seconds: float,
    keep: Callable[[str, dict[str, Any]], None],
) -> None:
    """Run parts, the longest first, so that none of them is left alone at the end.

    How long one is follows from its limit.

    Parameters
    ----------
    names
        The parts.
    jobs
        How many at a time.
    seconds
        For all of them: what runs then is ended, and what waits does not begin.
    keep
        Is given each part's name and result.
    """
    waiting = sorted(names, key=lambda name: -PARTS[name].limit)
    running: dict[str, Run] = {}
    begin = time.monotonic()
    with ExitStack() as folders:
        try:
            while waiting or running:
                left = begin + seconds - time.monotonic()
                while waiting and len(running) < jobs and left > 0:
                    name = waiting.pop(0)
                    folder = folders.enter_context(
                        tempfile.TemporaryDirectory(prefix="ditto-verify-")
                    )
                    print(f"{name} begins", flush=True)
                    running[name] = Run(PARTS[name], min(PARTS[name].limit, left), Path(folder))
                if not running:
                    break
                time.sleep(0.2)
                for name, part in list(running.items()):
                    if (result := part.poll()) is not None:
                        del running[name]
                        print(f"{name}: {result['seconds']} s", flush=True)
                        keep(name, result)
        finally:
            for part in running.values():
                part.end()
                part.process.wait()
    if waiting:
        print(f"No time was left for {', '.join(waiting)}", file=sys.stderr)


def commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def digests() -> dict[str, str]:
    """Return a digest of each of :data:`SOURCES`."""
    found = {}
    for of, folders in SOURCES.items():
        sources = hashlib.sha256()
        for folder in folders:
            for path in sorted((ROOT / folder).glob("*.py")):
                sources.update(path.name.encode() + path.read_bytes())
        found[of] = sources.hexdigest()[:8]
    return found


def read_report(path: Path) -> dict[str, Any]:
    """Return the tests of a report, with what they recorded."""
    cases = []
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        tags = {child.tag for child in case}
        state = "failed" if tags & {"failure", "error"} else "passed"
        recorded = {item.attrib["name"]: item.attrib["value"] for item in case.iter("property")}
        cases.append(
            {
                "file": case.attrib["classname"].rsplit(".", 1)[-1],
                "name": case.attrib["name"],
                "state": "skipped" if "skipped" in tags else state,
                **{name: json.loads(value) for name, value in recorded.items()},
            }
        )
    return {"cases": cases}


def run_of(name: str, result: dict[str, Any], today: dict[str, str]) -> str:
    """Say how a part was measured; ``today`` are the digests that the page is about."""
    spent = (
        f"{result['processor']} processor seconds"
        if "processor" in result
        else f"{result['seconds']} s"
    )
    text = f"`{result['command']}` at {result['commit']}, {spent}."
    of, what = ("host", "code") if name in OF_THE_HOST else ("gateware", "gateware")
    if result.get(of) != today[of]:
        text += f" **Of earlier {what}** ({result.get(of, 'not recorded')})."
    if "ended_after" in result:
        text += f" **Ended after {result['ended_after']} s, before it was through: below target.**"
    return text


def verdict(is_met: bool) -> str:
    return "met" if is_met else "**below target**"


def count(cases: list[dict[str, Any]], state: str) -> int:
    return sum(case["state"] == state for case in cases)


def tally(cases: list[dict[str, Any]]) -> str:
    states = ("passed", "failed", "skipped")
    return ", ".join(f"{n} {state}" for state in states if (n := count(cases, state))) or "none ran"


def proofs(result: dict[str, Any]) -> list[str]:
    lines = ["| proof | result | reached |", "|---|---|---|"]
    for case in result["cases"]:
        if "prove" in case:
            how = f"holds in every cycle, by induction over {case['prove']['depth']}"
        elif "bmc" in case:
            how = f"holds in the first {case['bmc']['depth']} cycles"
        elif "with_a_defect" in case["name"]:
            continue
        else:
            how = f"**{case['state']}**"
        reached = f"within {case['cover']['depth']} cycles" if "cover" in case else "--"
        if case["state"] != "passed":
            how, reached = f"**{case['state']}**", "--"
        lines.append(f"| {case['name'].removeprefix('test_')} | {how} | {reached} |")
    defects = [case for case in result["cases"] if "with_a_defect" in case["name"]]
    lines += [
        "",
        "A proof that cannot fail proves nothing: they are also run on blocks with a defect, and "
        f"have to find it. Of {len(defects)} defects, {count(defects, 'passed')} are found: "
        f"{verdict(count(defects, 'passed') == len(defects))}.",
    ]
    return lines


def unmeasured(parts: list[dict[str, Any]]) -> list[str]:
    """Return the blocks that parts were asked for and have no result of."""
    return [
        name
        for part in parts
        for name in part.get("asked", [])
        if name not in [block["block"] for block in part["blocks"]]
    ]


def mutation(parts: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| block | mutants | killed | proven equivalent | score | target |",
        "|---|---|---|---|---|---|",
    ]
    blocks = [block for part in parts for block in part["blocks"]]
    for block in blocks:
        is_met = block["score"] >= block["target"] and block["mutants"] >= MUTANTS_TARGET
        lines.append(
            f"| {block['block']} | {block['mutants']} | {block['killed']} | "
            f"{block['equivalent']} | {block['score']:.1%} | {block['target']:.0%} of "
            f"{MUTANTS_TARGET}: {verdict(is_met)} |"
        )
    lines += [
        f"| {name} | -- | -- | -- | -- | not measured: {verdict(False)} |"
        for name in unmeasured(parts)
    ]
    for block in blocks:
        if block["survivors"]:
            lines += ["", f"Survivors of {block['block']}:", ""]
            lines += [
                f"- {s['mutant']}: `{s['change']}`: {why(block['block'], s['change'])}"
                for s in block["survivors"]
            ]
    return lines


def why(block: str, change: str) -> str:
    """Explain why no bench notices a mutant."""
    for pattern, reason in EXPLAINED.items():
        if re.search(pattern, f"{block}: {change}"):
            return reason
    return "not explained"


def functional(result: dict[str, Any]) -> list[str]:
    lines = ["| device | combinations | reached | target |", "|---|---|---|---|"]
    for block in result["blocks"]:
        share = block["reached"] / block["combinations"]
        lines.append(
            f"| {block['block']} | {block['combinations']} | {share:.1%} | "
            f"{block['target']:.0%}: {verdict(share >= block['target'])} |"
        )
    lines += [f"| {name} | -- | not measured | {verdict(False)} |" for name in unmeasured([result])]
    for block in result["blocks"]:
        if refused := block.get("refused"):
            lines += ["", f"Refused by the device with {block['block']}: {'; '.join(refused)}."]
        if block["missed"]:
            lines += ["", f"Not reached by the device with {block['block']}:", ""]
            lines += [f"- {missed}" for missed in block["missed"]]
    return lines


def coverage(result: dict[str, Any]) -> list[str]:
    lines = ["| block | lines | toggles | target |", "|---|---|---|---|"]
    for block in result["blocks"]:
        worst = min(block["line"], block["toggle"])
        lines.append(
            f"| {block['block']} | {block['line']:.1%} | {block['toggle']:.1%} | "
            f"{block['target']:.0%}: {verdict(worst >= block['target'])} |"
        )
    lines += [
        f"| {name} | -- | -- | not measured: {verdict(False)} |" for name in unmeasured([result])
    ]
    lines += ["", "Not counted:", "", *(f"- {reason}" for reason in result.get("waived", []))]
    return lines


def below(lines: list[str]) -> list[str]:
    """Return the titles of the sections in which something is not as it should be."""
    found: list[str] = []
    title = ""
    for line in lines:
        if line.startswith("## "):
            title = line.removeprefix("## ")
        if (
            re.search(r"below target|earlier (gateware|code)\*\*|\*\*failed|\*\*skipped", line)
            and title not in found
        ):
            found.append(title)
    return found


def page(results: dict[str, Any], today: dict[str, str]) -> str:
    """Write the page about the sources of some digests."""
    lines = [
        "# Verification",
        "",
        "<!-- Written by tests/verify.py from verification.json; change those. -->",
        "",
        "What speaks for the gateware, measured by the commands shown. `make verify` runs all of "
        "it and writes this page; anything below its target is shown as such. The digest of the "
        f"gateware's sources (`hdl/*.py`) is {today['gateware']}, with those of `host` and `sim` "
        f"{today['host']}; what is of others says so.",
    ]
    head = len(lines)

    def part(name: str, title: str, text: str) -> dict[str, Any] | None:
        lines.extend(["", f"## {title}", "", text, ""])
        if name not in results:
            lines.append(f"Not measured: {verdict(False)}.")
            return None
        result = results[name]
        lines.append(run_of(name, result, today))
        lines.append("")
        return result

    if result := part(
        "formal",
        "Proofs",
        "Control blocks, by Yosys and SymbiYosys with Boolector. Every register and memory begins "
        "with any value; a reset comes first, and again at any time. What surrounds the block does "
        "anything that the block's documentation allows, at any speed. The statements are the "
        "docstrings in `tests/formal`.",
    ):
        lines += proofs(result)
    if result := part(
        "formal-long",
        "Proofs that take longer",
        "The same of more configurations, deeper, and of the frames.",
    ):
        lines += proofs(result)
    if result := part(
        "multipliers",
        "Multipliers",
        "Every digit times every weight, for widths from 2 by 2 to 9 by 8 bits, of blocks and of "
        "tables. The weights of the two columns that share a block take all pairs of the ends of "
        "their range, and random ones.",
    ):
        lines.append(f"{tally(result['cases'])}: {verdict(is_fine(result))}.")
    if result := part(
        "matrix",
        "Configurations",
        "Devices over the legal space, corners and drawn ones, run random layers through the link: "
        f"values and counters are those of the golden model. Target: {MATRIX_TARGET}.",
    ):
        enough = count(result["cases"], "passed") >= MATRIX_TARGET and is_fine(result)
        lines.append(f"{tally(result['cases'])}: {verdict(enough)}.")
    lines += [
        "",
        "## Mutation",
        "",
        "Yosys puts defects into a block's netlist, one at a time, and the block's own bench has "
        "to notice; registers and memories begin with anything. Multipliers, columns, array, "
        "lanes, cluster and engine share the engine's bench, which compares values and counters, "
        "on a device with a reference buffer; it sets counters to what no run counts up to. The "
        "bench of the command machine is the whole device's. The score is the killed mutants "
        "among those that are not proven equivalent.",
        "",
    ]
    names = [name for bench in BENCHES if (name := f"mutation-{bench}") in results]
    mutated = [results[name] for name in names]
    lines += [f"- {run_of(name, results[name], today)}" for name in names]
    if missing := [bench for bench in BENCHES if f"mutation-{bench}" not in results]:
        lines.append(f"- Not measured: {', '.join(missing)}: {verdict(False)}.")
    lines += ["", *mutation(mutated)]
    if result := part(
        "skip",
        "Mutants of the skip",
        "Defects that break nothing but the skipping. On the engine's bench with its comparison "
        "of values alone each of them passes; with that of the counters, each is found.",
    ):
        lines += [
            f"- {case['name'].partition('[')[2].rstrip(']')}: {case['state']}"
            for case in result["cases"]
        ]
        lines += ["", f"{tally(result['cases'])}: {verdict(is_fine(result))}."]
    if result := part(
        "functional",
        "Functional coverage",
        "Kind of layer x mode x edge case, on devices that differ in what they have, by "
        "cocotb-coverage in the engine's bench; every run is compared with the golden model. "
        "`tests/cocotb/functional.py` defines them, and which a device cannot have.",
    ):
        lines += functional(result)
    if result := part(
        "coverage",
        "Line and toggle coverage",
        "Of the generated Verilog by Verilator: what the benches of the mutants reach, which are "
        "kept short for those.",
    ):
        lines += coverage(result)
    if result := part(
        "power-up",
        "Dirty power-up",
        "The same benches on blocks whose registers and memories begin with anything, drawn by "
        "three seeds; a reset follows.",
    ):
        lines.append(f"{tally(result['cases'])}: {verdict(is_fine(result))}.")
    for name, title, text, lines_of in evidence_link.SECTIONS:
        if result := part(name, title, text):
            lines += lines_of(result, verdict)
    if result := part(
        "lint",
        "Lint",
        "Verilator -Wall on the Verilog of three devices. What it may say is explained in "
        "`tests/fpga/lint.vlt`.",
    ):
        lines.append(f"{tally(result['cases'])}: {verdict(is_fine(result))}.")
    if result := part(
        "icarus",
        "A second simulator",
        "The benches run on Icarus Verilog, too: other rules for what has no value yet.",
    ):
        lines.append(f"{tally(result['cases'])}: {verdict(is_fine(result))}.")
    total = sum(result.get("processor", result["seconds"]) for result in results.values())
    lines += [
        "",
        "## Time",
        "",
        f"What is on this page took {total} processor seconds; two cores have 7200 in an hour.",
        "",
    ]
    short = [f"- {title}" for title in below(lines)]
    summary = (
        "Below target, not measured, or of earlier gateware is something of:"
        if short
        else "All targets are met."
    )
    return "\n".join([*lines[:head], "", summary, "", *short, *lines[head:]])


def is_fine(result: dict[str, Any]) -> bool:
    return bool(result["cases"]) and count(result["cases"], "passed") == len(result["cases"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="(default: all of them)")
    parser.add_argument("--jobs", type=int, default=2, help="parts at a time (default: 2)")
    parser.add_argument("--minutes", type=float, default=60, help="for all parts (default: 60)")
    options = parser.parse_args()
    names = [name for name in options.parts.split(",") if name]
    for name in names:
        if name not in PARTS:
            parser.error(f"there is no part {name!r}; choose from {', '.join(PARTS)}")
    results: dict[str, Any] = {"parts": {}}
    if RESULTS.exists():
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended by SIGTERM"))

    def write() -> None:
        results["digests"] = digests()
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(results["parts"], results["digests"]), encoding="utf-8")

    def keep(name: str, result: dict[str, Any]) -> None:
        results["parts"][name] = result
        write()

    write()
    run_all(names, options.jobs, 60 * options.minutes, keep)


if __name__ == "__main__":
    main()
