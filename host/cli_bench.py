"""``ditto bench``: measures cycles, size and speed of a device, and says what bounds them."""

import argparse
import json
import logging
import os
import re
import shlex
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ditto.hdl.config import Config, Multiplier
from ditto.host.cli_common import (
    BUILD,
    UsageError,
    add_config,
    check_steps,
    config_of,
    demo_model,
    frequency,
    natural,
    open_console,
    positive,
    values,
)

# As in cli.py, what takes long to import is imported where it is used.

__all__ = ["add"]


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "bench",
        parents=[common],
        help="measure cycles, size and speed of a device",
        description="Count the cycles of whole trajectories with the golden model, build the "
        "device and the dense array of the same generator for an ECP5, and write all figures as "
        "JSON, a roofline beside it (*.svg) and a page. Where a model needs deeper memories than "
        "the device has, its cycles are counted with those; where the part has too few blocks for "
        "the memories, the device is built with shallower ones. Builds need the tools of the extra "
        "fpga, take minutes to hours, and are kept.",
    )
    parser.set_defaults(run=_bench)
    option = parser.add_argument
    option("model", nargs="*", type=Path, metavar="MODEL", help="int8 models (default: the demo's)")
    option("-o", "--output", type=Path, required=True, metavar="JSON", help="file to write")
    option("--page", type=Path, metavar="FILE", help="write a page in Markdown, too")
    count = {"type": positive, "metavar": "N"}
    option("--steps", default=50, help="denoising steps (default: 50)", **count)
    option("--samples", default=1, help="images (default: 1)", **count)
    option(
        "--builds",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="place and route the device and the dense array (default), and synthesize both with "
        "the other kind of multipliers",
    )
    option(
        "--seeds",
        type=values(natural),
        default=[1, 2, 3],
        metavar="N,...",
        help="seeds of place and route (default: 1,2,3)",
    )
    option(
        "--part",
        choices=("12k", "25k", "45k", "85k"),
        default="85k",
        help="size of the ECP5 (default: 85k)",
    )
    option(
        "--frequency",
        type=frequency,
        default=80.0,
        metavar="MHZ",
        help="clock frequency to aim for (default: 80)",
    )
    option(
        "--timeout",
        type=frequency,
        default=3600.0,
        metavar="S",
        help="most seconds for each run of a tool (default: 3600)",
    )
    add_config(parser)


def _bench(options: argparse.Namespace) -> int:
    from importlib import metadata

    from ditto.fpga.estimate import memories
    from ditto.fpga.parts import PARTS
    from ditto.host.bench import compare_builds, fitting, measure
    from ditto.host.model import Model
    from ditto.host.output import OutputFile
    from ditto.host.performance import page
    from ditto.host.roofline import roofline
    from ditto.host.samplers import DDIM, Schedule

    config = config_of(options)
    if options.builds:
        from ditto.fpga.tools import find

        for tool in "yosys", "nextpnr-ecp5":
            find(tool)
    paths = options.model or [demo_model()]
    names = [re.sub(r"(\.int8)?\.onnx$", "", path.name) for path in paths]
    if len(set(names)) < len(names):
        raise UsageError("two models have the same name")
    ending = [""] if len(names) == 1 else [f"-{name}" for name in names]
    pictures = [options.output.with_name(f"{options.output.stem}{end}.svg") for end in ending]
    outputs = [options.output, *pictures, *([options.page] if options.page else [])]
    if len({path.absolute() for path in outputs}) < len(outputs):
        raise UsageError("the files to write must have different names; the JSON's is *.json")

    console = open_console()
    with ExitStack() as stack:
        opened = [stack.enter_context(OutputFile(path)) for path in outputs]
        runs: list[dict[str, Any]] = []
        for path, name in zip(paths, names, strict=True):
            model = Model.load(path)
            schedule = Schedule.from_metadata(model.metadata)
            check_steps(options.steps, schedule.train_steps)
            fitted = fitting(model, config)
            for field, value in asdict(fitted).items():
                if value != getattr(config, field):
                    logging.getLogger("ditto").info(
                        "%s needs %s = %s, not %s", name, field, value, getattr(config, field)
                    )
            sampler = DDIM(schedule, steps=options.steps)
            found = measure(model, fitted, sampler, name=name, samples=options.samples)
            needs = {
                "scales": model.metadata.get("ditto.scales"),
                "brams_needed": memories(fitted).brams,
                "brams_available": PARTS[options.part].cells["DP16KD"],
            }
            runs += [run | needs for run in found]
        builds, complete = _builds(config, options) if options.builds else ([], True)
        for run in runs:
            compare_builds(run, builds)
        versions = {name: metadata.version(name) for name in ("ditto-accel", "numpy", "onnx")}
        facts = {
            "command": shlex.join(["ditto", *options.words]),
            "versions": versions | (builds[0]["tools"] if builds else {}),
            "configuration": asdict(config),
            "runs": runs,
            "builds": builds,
        }
        opened[0].write(json.dumps(facts, indent=1).encode() + b"\n")
        for file, name in zip(opened[1:], names, strict=False):
            file.write(roofline([run for run in runs if run["model"] == name]).encode())
        if options.page:
            folder = options.page.absolute().parent
            links = [Path(os.path.relpath(path.absolute(), folder)).as_posix() for path in pictures]
            opened[-1].write(page(facts, links).encode())
    _print(console, facts)
    print(f"wrote {', '.join(str(path) for path in outputs)}")
    return 0 if complete else BUILD


def _builds(config: Config, options: argparse.Namespace) -> tuple[list[dict[str, Any]], bool]:
    """Build the device and the dense array; return them, and whether all could be built.

    What does not fit or takes too long to route has an error. With the other kind of multipliers,
    both are synthesized for their size alone.
    """
    from ditto.fpga.build import Builder, DoesNotFitError
    from ditto.fpga.estimate import shrink
    from ditto.fpga.parts import PARTS
    from ditto.fpga.tools import TimeLimitError
    from ditto.host.bench import baseline

    config = shrink(config, PARTS[options.part])
    builds: list[dict[str, Any]] = []
    complete = True
    for kind in sorted(Multiplier, key=lambda kind: kind is not config.multiplier):
        own = replace(config, multiplier=kind)
        for device in (own, baseline(own)):
            if device is None:
                continue
            builder = Builder(
                device,
                part=options.part,
                frequency=options.frequency,
                timeout=options.timeout,
            )
            placed: list[int] = []
            failure = {}
            try:
                builder.synthesize()
            except TimeLimitError as error:
                print(f"ditto: {error}", file=sys.stderr)
                complete = False
                continue
            try:
                for seed in options.seeds if kind is config.multiplier else []:
                    builder.place(seed)
                    placed.append(seed)
            except (DoesNotFitError, TimeLimitError) as error:
                failure = {"error": str(error)}
                print(f"ditto: {error}", file=sys.stderr)
                complete = False
            builds.append(builder.facts(placed) | failure)
    return builds, complete


def _print(console: Any, facts: dict[str, Any]) -> None:
    """Print the runs, and the ideal beside them, then the builds."""
    from rich import box
    from rich.table import Table

    from ditto.host.performance import array_of, speed_of

    def ratio(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    table = Table(box=box.SIMPLE, pad_edge=False)
    heads = ["mode", "cycles", "ideal", "used\n%", "faster,\nequal bits", "equal\nLUT, DSP"]
    heads += ["end to\nend", "link\ncycles"]
    table.add_column("model")
    for head in heads:
        table.add_column(head, justify="right")
    for run in facts["runs"]:
        table.add_row(
            run["model"],
            run["mode"],
            f"{run['array_cycles']:,}",
            f"{run['ideal_cycles']:,}",
            f"{100 * run['utilization']:.1f}",
            ratio(run["speedup_equal_bits"]),
            ratio(run["speedup_equal_resources"]),
            ratio(run["speedup_end_to_end"]),
            f"{run['link_cycles']:,}",
        )
    best = facts["runs"][0]["ideal"]
    print(
        f"{array_of(facts['configuration'])}: in a cycle at best {best['products_per_cycle']} "
        f"products, {best['weight_bytes_per_cycle']:g} bytes of weights, "
        f"{best['link_bytes_per_cycle']:g} byte of the link"
    )
    console.print(table)
    for run in facts["runs"]:
        for bound, text in ("bound", "with the link"), ("array_bound", "without"):
            bounds = Counter(layer[bound] for layer in run["layers"])
            counted = ", ".join(f"{count} by {name}" for name, count in bounds.most_common())
            print(f"{run['model']}, {run['mode']}: layers bound, {text}: {counted}")
    print(f"faster than {facts['runs'][0]['baseline']}; end to end: with the clock of each")
    for run in facts["runs"]:
        if run["mode"] == "temporal" and run["brams_needed"] > run["brams_available"]:
            print(
                f"{run['model']} needs {run['brams_needed']} block memories on this array; the "
                f"part has {run['brams_available']}"
            )
    if not facts["builds"]:
        return
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("array")
    for head in ("part", "LUT4", "CCU2C", "comb", "FF", "DSP", "BRAM"):
        table.add_column(head, justify="right")
    table.add_column("MHz, lowest / median / highest", justify="right")
    for build in facts["builds"]:
        cells = [f"{build[n]:,}" for n in ("luts", "carries", "comb", "ffs", "dsps", "brams")]
        array = array_of(build["configuration"])
        table.add_row(array, build["device"], *cells, speed_of(build))
    console.print(table)
