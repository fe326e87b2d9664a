"""Options for policies, memory and monitoring, and the verb ``policies``."""

import argparse
import json
import re
import shlex
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditto.host.cli_common import (
    UsageError,
    add_config,
    check_steps,
    config_of,
    demo_model,
    fraction,
    frequency,
    natural,
    number,
    open_console,
    positive,
    progress_bar,
    values,
)

if TYPE_CHECKING:
    from ditto.host.program import Program
    from ditto.host.session import OnStep
    from ditto.sim.memory import Memory

__all__ = ["add", "add_policy", "memory_of", "monitored"]

# As in cli.py, what takes long to import is imported where it is used.


def add_policy(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run that chooses modes, and of what is told about it."""
    add = parser.add_argument
    add(
        "--policy",
        choices=("dense", "temporal", "defo", "defo+", "adaptive", "oracle"),
        default="temporal",
        help="what each layer's step starts from: zero (dense), the step before (temporal), the "
        "one that took fewer cycles in the first two steps (defo; defo+ with neighbours in the "
        "same step for zero), the one that the latest digits speak for (adaptive), the best in "
        "hindsight (oracle); all give the same image (default: temporal)",
    )
    add(
        "--monitor",
        type=Path,
        metavar="JSONL",
        help="write a line for each layer of each step: mode, counts, cycles, stalls",
    )
    add(
        "--max-wide",
        type=number(float, lambda x: 0 <= x <= 100, "a number in 0..100"),
        metavar="PERCENT",
        help="stop if more of a step's temporal deltas are wide",
    )
    add(
        "--memory",
        choices=("chip", "sdram-state", "sdram"),
        default="chip",
        help="what to count waits for: nothing, all is on chip (default); the state between steps "
        "in one 16-bit SDRAM; inputs, weights and outputs in it, too",
    )
    _add_bandwidth(parser)


def _add_bandwidth(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bandwidth",
        type=frequency,
        metavar="BYTES",
        help="bytes that the SDRAM moves in a cycle (default: 2)",
    )


def memory_of(options: argparse.Namespace) -> "Memory":
    """Return the memory that the options describe."""
    from ditto.sim.memory import MEMORIES

    memory = MEMORIES[options.memory]
    return memory if options.bandwidth is None else memory.with_bandwidth(options.bandwidth)


def monitored(
    stack: ExitStack, options: argparse.Namespace, program: "Program", then: "OnStep"
) -> "OnStep":
    """Return what is called after each step: what the options ask for, and something else."""
    from ditto.host.monitor import Monitor
    from ditto.host.output import OutputError

    if options.monitor is None and options.max_wide is None:
        return then
    lines = None
    if options.monitor is not None:
        try:
            lines = stack.enter_context(options.monitor.open("w", encoding="utf-8"))
        except OSError as error:
            raise OutputError(f"cannot write {options.monitor}: {error.strerror}") from error
    limit = None if options.max_wide is None else options.max_wide / 100
    monitor = Monitor(program, lines=lines, max_wide=limit)

    def both(sample: int, step: int, timestep: int, runs: Any) -> None:
        then(sample, step, timestep, runs)
        monitor(sample, step, timestep, runs)

    return both


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb ``policies``."""
    parser = verbs.add_parser(
        "policies",
        parents=[common],
        help="compare the policies that choose each layer's mode",
        description="Draw images with int8 models, and count what every policy takes for them: "
        "cycles of the array, waits for the memory, traffic, and how often it chooses as the best "
        "in hindsight does. Every policy sees the same images.",
    )
    parser.set_defaults(run=_policies)
    add = parser.add_argument
    add("model", nargs="*", type=Path, metavar="MODEL", help="int8 models (default: the demo's)")
    add("-o", "--output", type=Path, required=True, metavar="JSON", help="file to write")
    add("--page", type=Path, metavar="FILE", help="write the tables in Markdown, too")
    add(
        "--steps",
        type=values(positive),
        default=[20, 50, 100],
        metavar="N,…",
        help="denoising steps (default: 20,50,100)",
    )
    add(
        "--eta",
        type=values(fraction),
        default=[0.0, 1.0],
        metavar="X,…",
        help="fresh noise in each step: 0 is DDIM, 1 is DDPM (default: 0,1)",
    )
    add("--samples", type=positive, default=2, metavar="N", help="images (default: 2)")
    add("--seed", type=natural, default=0, metavar="N", help="seed of the noise (default: 0)")
    _add_bandwidth(parser)
    add_config(parser)


def _policies(options: argparse.Namespace) -> int:
    from itertools import product

    from ditto.host.analysis import Setting
    from ditto.host.model import Model, read
    from ditto.host.output import OutputFile
    from ditto.host.policies import compare, record, saved
    from ditto.host.policy_page import page
    from ditto.host.samplers import Schedule
    from ditto.sim.memory import MEMORIES

    config = config_of(options)
    memories = list(MEMORIES.values())
    if options.bandwidth is not None:
        memories = [memory.with_bandwidth(options.bandwidth) for memory in memories]
    settings = [Setting(steps, eta) for eta, steps in product(options.eta, options.steps)]
    files = [options.output, *([options.page] if options.page else [])]
    if len({path.absolute() for path in files}) < len(files):
        raise UsageError("the JSON file and the page cannot be the same file")
    console = open_console()
    with ExitStack() as stack:
        opened = [stack.enter_context(OutputFile(path)) for path in files]
        bar = stack.enter_context(progress_bar(console, options.quiet))
        facts: dict[str, Any] = {
            "command": shlex.join(["ditto", *options.words]),
            "configuration": asdict(config),
            "memories": [asdict(m) | {"holds": sorted(m.holds)} for m in memories],
            "samples": options.samples,
            "seed": options.seed,
            "models": [],
            "runs": [],
        }
        for path in options.model or [demo_model()]:
            proto = read(path)
            model = Model(proto, str(path))
            name = re.sub(r"(\.int8)?\.onnx$", "", path.name)
            scales = model.metadata.get("ditto.scales", "not said in the file")
            facts["models"].append({"model": name, "scales": scales} | saved(proto, model, config))
            check_steps(max(options.steps), Schedule.from_metadata(model.metadata).train_steps)
            for setting in settings:
                recording = record(
                    proto,
                    model,
                    config,
                    setting,
                    samples=options.samples,
                    seed=options.seed,
                    on_progress=bar,
                )
                for memory in memories:
                    facts["runs"].append(
                        {
                            "model": name,
                            "sampler": setting.sampler,
                            "steps": setting.steps,
                            "eta": setting.eta,
                            "memory": memory.name,
                            "policies": compare(recording, memory),
                        }
                    )
                if not options.quiet:
                    print(f"{name}: {setting.sampler} counted", flush=True)
        text = page(facts)
        opened[0].write(json.dumps(facts, indent=1).encode() + b"\n")
        if options.page:
            opened[1].write(text.encode())
    print(text)
    print(f"wrote {', '.join(str(path) for path in files)}")
    return 0
