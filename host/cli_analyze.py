"""``ditto analyze``: what differences would save on a model, and at what quality."""

import argparse
import json
import textwrap
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditto.host.cli_common import (
    UsageError,
    add_config,
    add_inputs,
    add_sampler,
    check_steps,
    config_of,
    demo_model,
    fraction,
    natural,
    number,
    open_console,
    positive,
    progress_bar,
    sampler_given,
    values,
)

if TYPE_CHECKING:
    from rich.console import Console


# As in cli.py, what takes long to import is imported where it is used.

__all__ = ["add"]


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "analyze",
        parents=[common],
        help="show what temporal differences would save on a model, where, and at what quality",
        description="Draw images with an int8 model, and report for each layer and step what "
        "temporal differences would save: values by size, bit operations, cycles, memory traffic, "
        "state, and the quality of the images.",
    )
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add("model", nargs="?", type=Path, metavar="MODEL", help="int8 model (default: the demo model)")
    add("-o", "--output", type=Path, required=True, metavar="HTML", help="report to write")
    add("--json", type=Path, metavar="FILE", help="write the same figures as JSON")
    add("--csv", type=Path, metavar="FILE", help="write a row for each run, layer and step")
    add("--float", type=Path, metavar="ONNX", help="float model to compare the images with")
    add(
        "--features",
        type=Path,
        metavar="ONNX",
        help="network from images to features, for the Fréchet distance (default: random filters)",
    )
    add(
        "--steps",
        type=values(positive),
        default=[50],
        metavar="N,…",
        help="denoising steps (default: 50)",
    )
    add_sampler(parser)
    add(
        "--eta",
        type=values(fraction),
        default=[0.0],
        metavar="X,…",
        help="fresh noise in each step: 0 is DDIM, 1 is DDPM (default: 0)",
    )
    add(
        "--tau",
        type=values(natural),
        default=[0],
        metavar="N,…",
        help="thresholds to compare: differences of at most N stay in the residual (default: 0)",
    )
    add(
        "--min-psnr",
        type=number(float, lambda x: x > 0, "a number above 0"),
        default=30.0,
        metavar="DB",
        help="least PSNR for a threshold to be suggested, against the float model if there is one, "
        "otherwise against no threshold (default: 30)",
    )
    add("--samples", type=positive, default=16, metavar="N", help="images (default: 16)")
    add("--seed", type=natural, default=0, metavar="N", help="seed of the noise (default: 0)")
    add_inputs(parser)
    add_config(parser)


def _run(options: argparse.Namespace) -> int:
    config = config_of(options)
    from ditto.host import page
    from ditto.host.advice import advice, thresholds
    from ditto.host.analysis import Setting, analyze
    from ditto.host.model import read
    from ditto.host.output import OutputFile
    from ditto.host.samplers import Schedule, load_inputs
    from ditto.host.table import write_csv

    given = [path for path in (options.output, options.json, options.csv) if path is not None]
    if len({path.absolute() for path in given}) < len(given):
        raise UsageError("report, JSON and CSV cannot be the same file")
    path = options.model or demo_model()
    console = open_console()
    with ExitStack() as stack:
        with progress_bar(console, options.quiet) as bar:
            proto = read(path)
            schedule = Schedule.from_metadata({p.key: p.value for p in proto.metadata_props})
            check_steps(max(options.steps), schedule.train_steps)
            given_by = product(options.steps, options.eta, options.tau, [sampler_given(options)])
            outputs = [stack.enter_context(OutputFile(path)) for path in given]
            result = analyze(
                proto,
                [Setting(*values) for values in given_by],
                config=config,
                samples=options.samples,
                seed=options.seed,
                name=str(path),
                exact=None if options.float is None else read(options.float),
                extra=load_inputs(options.inputs) if options.inputs else None,
                features=None if options.features is None else read(options.features),
                on_progress=bar,
            )
        facts = result.facts
        facts["threshold"] = thresholds(facts, options.min_psnr)
        facts["advice"] = advice(facts)
        texts = {options.output: page.render(result)}
        if options.json:
            texts[options.json] = json.dumps(facts, indent=1, allow_nan=False) + "\n"
        if options.csv:
            texts[options.csv] = write_csv(facts)
        for output in outputs:
            output.write(texts[output.path].encode())
    _print_analysis(console, facts)
    for path in given:
        print(f"wrote {path}")
    return 0


def _print_analysis(console: "Console", facts: dict[str, Any]) -> None:
    """Print the means of every run, and what to do next."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    table.add_column("run")
    for head in (
        "zero\n%",
        "narrow\n%",
        "wide\n%",
        "bit operations\n%",
        "cycles\nratio",
        "PSNR\ndB",
    ):
        table.add_column(head, justify="right", no_wrap=True)
    for run in facts["runs"]:
        means, compared = run["means"], run["quality"].get(facts["against"])
        psnr = compared["psnr"] if compared else None
        table.add_row(
            run["sampler"] + (f", tau {run['tau']}" if run["tau"] else ""),
            *(f"{100 * means['temporal'][name]:.1f}" for name in ("zero", "narrow", "wide")),
            f"{100 * means['bit_operations']['temporal']:.1f}",
            f"{run['cycles']['ratio']:.2f}" if run["cycles"] else "-",
            "-" if psnr is None else f"{psnr:.1f}",
        )
    console.print(table)
    print(
        f"temporal differences, scales: {facts['scales']}; bit operations against a dense 8-bit "
        "array"
    )
    for line in facts["advice"]:
        print(textwrap.fill(line, 100, initial_indent="- ", subsequent_indent="  "))
