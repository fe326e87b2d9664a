"""Runs a testbench once for each mutant, in copies of the simulator's process.

It is the last of cocotb's modules: what the testbench imports is loaded, and no time has passed. So
a mutant costs no more than its simulation, up to the first failure.
"""

import atexit
import json
import os
import resource
import signal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cocotb
from cocotb.handle import Immediate

from ditto.sim.cocotb_bench import parameters

ORDERS: dict[str, Any] = parameters()["mutants"]
SLOWEST = 2.0
"""A mutant that takes so many times the processor time of the component itself hangs: killed."""


def become(mutant: int, results: Path, seconds: float) -> None:
    """Make this process the simulation of a mutant."""
    os.environ["COCOTB_RESULTS_FILE"] = str(results)
    signal.alarm(20 * int(seconds))
    # The threads of the libraries are not in the copy, and must not be waited for.
    atexit.register(os._exit, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    choose(mutant)


def choose(mutant: int) -> None:
    top: Any = cocotb.top
    top.mutant.value = Immediate(mutant)


def is_passed(results: Path) -> bool:
    """Tell whether all tests have run and passed."""
    if not results.exists():
        return False
    cases = list(ElementTree.parse(results).getroot().iter("testcase"))
    bad = [
        case for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    return bool(cases) and not bad


def run_all() -> None:
    """Run the component and the mutants, and report who passed and the processor time of each.

    In a copy that is to be simulated, it returns.
    """
    waiting: list[int] = [0, *ORDERS["numbers"]]
    running: dict[int, int] = {}
    report: dict[int, tuple[bool, float]] = {}
    limit = 120.0
    while waiting or running:
        # The first one is the component itself: its time is the measure for the others.
        while waiting and len(running) < (ORDERS["jobs"] if report else 1):
            mutant = waiting.pop(0)
            if not (child := os.fork()):
                become(mutant, Path(f"results{mutant}.xml"), limit)
                return
            running[child] = mutant
        child, _, usage = os.wait4(-1, 0)
        mutant = running.pop(child)
        seconds = usage.ru_utime + usage.ru_stime
        report[mutant] = is_passed(Path(f"results{mutant}.xml")), seconds
        if mutant == 0:
            if not report[0][0]:
                break
            limit = max(SLOWEST * seconds, 2.0)
    Path(ORDERS["report"]).write_text(json.dumps(report))
    choose(0)


run_all()
