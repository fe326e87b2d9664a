"""Parts of the evidence about the link and the host's code, for tests/verify.py."""

from collections.abc import Callable
from typing import Any

Result = dict[str, Any]
#: Command and seconds that it may take.
PARTS: dict[str, tuple[list[str], float]] = {
    "faults": (["tests/faults/run.py", "--faults", "1000000", "--gateware", "20000"], 1500),
    "fuzz": (["tests/fuzz/run.py", "--runs", "2000"], 900),
    "fuzz-by-coverage": (["tests/fuzz/run.py", "--runs", "20000", "--atheris"], 900),
    "repeats": (
        ["-m", "pytest", "tests/sim/test_pairs.py", "tests/host/test_back_to_back.py"]
        + ["-m", "long or not long"],
        900,
    ),
    "mutation-host": (["tests/mutation/host.py", "--sample", "400", "--seconds", "1200"], 1500),
    "coverage-host": (["tests/coverage_host.py"], 1800),
}
FAULTS_TARGET = 1_000_000
COVERAGE_TARGET = 0.9


def faults(result: Result, verdict: Callable[[bool], str]) -> list[str]:
    lines = [
        "| board | faults | runs compared | wrong | commands | sent again | second lost | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    boards = result.get("boards", [])
    for board in boards:
        is_met = board["runs"] > 0 and not board["wrong"] and not board["unsynchronized"]
        lines.append(
            f"| {board['board']} | {board['faults']:,} | {board['runs']:,} | {board['wrong']} | "
            f"{board['commands']:,} | {board['resent']:,} | {board['unsynchronized']} | "
            f"{verdict(is_met)} |"
        )
    total = sum(board["faults"] for board in boards)
    kinds: dict[str, int] = {}
    for board in boards:
        for kind, count in board["kinds"].items():
            kinds[kind] = kinds.get(kind, 0) + count
    named = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
    lines += ["", f"Target: {FAULTS_TARGET:,}: {verdict(total >= FAULTS_TARGET)}. {named}.", ""]
    if image := result.get("image"):
        lines.append(
            f"{image['images']} images of {image['steps']} steps of the demo model over a link "
            f"with {image['faults']:,} faults are those without a link: {verdict(image['same'])}."
        )
    return lines


def fuzz(result: Result, verdict: Callable[[bool], str]) -> list[str]:
    lines = ["| what | cases | |", "|---|---|---|"]
    for target in result.get("targets", []):
        lines.append(f"| {target['target']} | {target['runs']:,} | {verdict(target['ok'])} |")
    return lines


def repeats(result: Result, verdict: Callable[[bool], str]) -> list[str]:
    cases = result["cases"]
    passed = sum(case["state"] == "passed" for case in cases)
    return [f"{passed} of {len(cases)} passed: {verdict(0 < passed == len(cases))}."]


def mutation(result: Result, verdict: Callable[[bool], str]) -> list[str]:
    lines = ["| module | mutants | tried | killed | score | target |", "|---|---|---|---|---|---|"]
    blocks = result["blocks"]
    for block in blocks:
        lines.append(
            f"| {block['block']} | {block['all']} | {block['mutants']} | {block['killed']} | "
            f"{block['score']:.1%} | {block['target']:.0%}: "
            f"{verdict(block['score'] >= block['target'])} |"
        )
    if tried := sum(block["mutants"] for block in blocks):
        share = sum(block["killed"] for block in blocks) / tried
        lines += ["", f"All: {share:.1%} of {tried}: {verdict(share >= blocks[0]['target'])}."]
    for block in blocks:
        if block["survivors"]:
            lines += ["", f"Survivors of {block['block']}:", ""]
            lines += [f"- `{s['change'].replace('`', '')}`" for s in block["survivors"]]
    return lines


def coverage(result: Result, verdict: Callable[[bool], str]) -> list[str]:
    modules = result.get("modules", {})
    if not modules:
        return ["Nothing was measured."]
    total = result["total"]
    below = {name: share for name, share in modules.items() if share < COVERAGE_TARGET}
    lines = [
        f"{len(modules)} modules, {total:.1%} in all: {verdict(total >= COVERAGE_TARGET)}. "
        + ("Below target:" if below else "None is below target."),
        "",
    ]
    return lines + [f"- {name}: {share:.1%}" for name, share in sorted(below.items())]


SECTIONS: list[tuple[str, str, str, Callable[[Result, Callable[[bool], str]], list[str]]]] = [
    (
        "faults",
        "Faults of the link",
        "Random layers over a link that drops, repeats, swaps, flips and inserts bytes, cuts "
        "frames and stalls, while board and driver are reset; every run is compared with the "
        "golden model, values and counters. Most of the faults hit a golden model behind a link, "
        "the rest the compiled gateware; half of them devices with a reference buffer. A second "
        "frame is lost if a command has to be sent again "
        "although neither it nor its answer met a fault. Time is counted and not waited for; a "
        "command that is not answered in 400 tries ends the run.",
        faults,
    ),
    (
        "fuzz",
        "Fuzzing",
        "Frames, answers of devices, commands, models, states and schedules with changed bytes or, "
        "for graphs, changed parts: nothing but the errors that are meant for it, no case of over "
        "20 s, no more than 4 GiB, no file beside the given one.",
        fuzz,
    ),
    (
        "fuzz-by-coverage",
        "Fuzzing by coverage",
        "The same with atheris, which looks for bytes that reach more of the code.",
        fuzz,
    ),
    (
        "repeats",
        "Pairs and repeats",
        "Every pair of 75 commands (each opcode, space and mode, right and wrong; repeats and "
        "commands out of order) in either order, without and with a reference buffer: the gateware "
        "answers what the golden board does. A hundred images one after another on one board "
        "are those of fresh ones, on the golden board and on the gateware.",
        repeats,
    ),
    (
        "mutation-host",
        "Mutation of the host's code",
        "mutmut changes numerics and link, one place at a time; their tests have to notice. A "
        "sample is drawn from all mutants, in proportion; those that no test reaches count as "
        "survivors, and so do equivalent ones.",
        mutation,
    ),
    (
        "coverage-host",
        "Branch coverage of host and simulation",
        "By coverage.py, of the default suite without the builds for boards.",
        coverage,
    ),
]
