"""Builds the default devices of the boards, and keeps the figures.

::

    python -m ditto.fpga.survey [--jobs N] [BOARD...]

builds boards, all that need no vendor's tools if none is named, and keeps the figures for
:mod:`ditto.fpga.proofs`. What is kept of today's gateware and tools is not built again, so a survey
that was interrupted goes on where it was. With ``--fit``, it finds the largest arrays. With
``--image``, it counts what crosses the link for an image of the demo, and keeps that in
``traffic.json``. Then ``ditto boards --page docs/boards.md`` brings all of it to the page.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from ditto.fpga.bitstream import SEEDS, BoardBuilder
from ditto.fpga.boards import BOARDS
from ditto.fpga.largest import largest
from ditto.fpga.page import demo_model
from ditto.fpga.proofs import build_of, keep
from ditto.fpga.tools import ToolError
from ditto.hdl.config import Config, demo
from ditto.host.cli_common import frequency, natural, positive, values
from ditto.host.samplers import DDIM, Schedule
from ditto.host.traffic import measure
from ditto.sim.golden_board import GoldenBoard

__all__ = ["image_traffic", "main", "survey"]


def image_traffic(steps: int) -> dict[str, dict[str, int]]:
    """Count what crosses the link for an image of the demo, layer by layer."""
    model = demo_model()
    sampler = DDIM(Schedule.from_metadata(model.metadata), steps=steps)
    return measure(model, demo, sampler, GoldenBoard(demo))


def survey(name: str, options: argparse.Namespace) -> str:
    """Build a board and keep the figures, unless they are kept; say how it went.

    Raises
    ------
    ToolError
        If it does not fit, is too slow, or a tool fails.
    """

    def make(config: Config, timeout: float) -> BoardBuilder:
        return BoardBuilder(name, config, timeout=timeout, progress=_say)

    start, config = time.monotonic(), BOARDS[name].config
    found = build_of(name, largest=options.fit)
    if found is not None:
        builder = make(replace(config, **found.get("array", {})), options.timeout)
        tried = {*found["fmax_mhz"], *map(str, found["failed_seeds"])}
        same = (found["build"], found["tools"]) == (builder.build_hash.hex(), builder.versions)
        if same and tried >= {*map(str, options.seeds)}:
            keep(name, found, largest=options.fit)
            return "is built already"
    if options.fit:
        config, built = largest(make, config, options.seeds, seconds=options.fit_seconds)
    else:
        built = make(config, options.timeout).build(options.seeds)
    seconds = round(time.monotonic() - start)
    array = {"clusters": config.clusters, "columns": config.columns}
    keep(name, built.facts | {"array": array, "seconds": seconds}, largest=options.fit)
    reached = ", ".join(f"{run.fmax_mhz:.1f}" for run in built.runs)
    return f"{reached} MHz of {built.facts['clock_hz'] / 1e6:g}, in {seconds} s"


def _at_once(jobs: int, names: Sequence[str], words: Sequence[str]) -> bool:
    """Survey boards in processes of their own; return whether any failed."""
    waiting, running, failed = list(names), [], False
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(subprocess.Popen([*_COMMAND, *words, waiting.pop(0)]))
            time.sleep(0.2)
            failed |= any(process.poll() for process in running)
            running = [process for process in running if process.poll() is None]
    finally:
        # Each ends its tool.
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    return failed


_COMMAND = (sys.executable, "-m", "ditto.fpga.survey")


def _say(text: str) -> None:
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the boards' default devices and keep the figures."""
    parser = argparse.ArgumentParser(prog="python -m ditto.fpga.survey", description=main.__doc__)
    add = parser.add_argument
    add("board", nargs="*", metavar="BOARD", help="default: all that need no vendor's tools")
    add("--jobs", type=positive, default=1, metavar="N", help="boards at once (default: 1)")
    add("--seeds", type=values(natural), default=list(SEEDS), metavar="N,...")
    add("--timeout", type=frequency, default=3600.0, metavar="S", help="for each run of a tool")
    add("--fit", action="store_true", help="find the largest arrays")
    add("--fit-seconds", type=frequency, default=7200.0, metavar="S")
    add("--image", action="store_true", help="count what an image takes, and build nothing")
    options = parser.parse_args(arguments)
    if options.image:
        text = json.dumps(image_traffic(50), indent=1) + "\n"
        Path(str(files("ditto.fpga").joinpath("traffic.json"))).write_text(text, "utf-8")
        return 0
    every = [name for name, board in BOARDS.items() if not board.family.is_vendor]
    names = options.board or every
    if unknown := sorted({*names} - {*every}):
        known = ", ".join(every)
        parser.error(f"the open tools have no {', '.join(unknown)}; choose from {known}")
    if options.jobs > 1:
        words = [f"--seeds={','.join(map(str, options.seeds))}", f"--timeout={options.timeout}"]
        words += ["--fit", f"--fit-seconds={options.fit_seconds}"] if options.fit else []
        return _at_once(options.jobs, names, words)
    failed = False
    for name in names:
        try:
            _say(f"{name}: {survey(name, options)}")
        except ToolError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed = True
    return failed


if __name__ == "__main__":
    # `kill` ends the tool that runs, as ^C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
