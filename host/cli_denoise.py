"""``ditto denoise``: draws images on a device."""

import argparse
import json
import logging
import math
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditto.host import cli_policy, cli_resume
from ditto.host.cli_common import (
    UsageError,
    add_board,
    add_config,
    add_sampler,
    check_steps,
    config_of,
    demo_model,
    fraction,
    natural,
    number,
    open_board,
    open_console,
    positive,
    sampler_given,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ditto.host.executor import LayerRun
    from ditto.host.session import OnStep

# As in cli.py, what takes long to import is imported where it is used.

__all__ = ["add"]


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "denoise",
        parents=[common],
        help="draw images with a diffusion model, on a device",
        description="Draw images with a diffusion model whose linear layers run on a device, and "
        "compare the cycles with those of dense mode. The model is an int8 QDQ ONNX file with the "
        "inputs sample, timestep and perhaps label.",
    )
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add("model", nargs="?", type=Path, metavar="MODEL", help="int8 model (default: the demo model)")
    add("-o", "--output", type=Path, required=True, metavar="PNG", help="image to write")
    add_board(parser)
    add("--steps", type=positive, default=50, metavar="N", help="denoising steps (default: 50)")
    add("--samples", type=positive, default=16, metavar="N", help="images (default: 16)")
    add("--seed", type=natural, default=0, metavar="N", help="seed of the noise (default: 0)")
    add_sampler(parser)
    add(
        "--eta",
        type=fraction,
        default=0.0,
        metavar="X",
        help="fresh noise in each step: 0 is DDIM, 1 is DDPM (default: 0)",
    )
    cli_policy.add_policy(parser)
    add(
        "--tau",
        type=natural,
        default=0,
        metavar="N",
        help="leave differences of at most N in the residual; 0 is exact (default: 0)",
    )
    add(
        "--inputs",
        type=Path,
        metavar="NPZ",
        help="one array for each input of the model besides sample, timestep and label, such as an "
        "encoded text; with --guidance in a batch of two, the first without condition",
    )
    add(
        "--guidance",
        type=number(float, math.isfinite, "a number"),
        metavar="SCALE",
        help="evaluate the model without condition, too, and go this far along the difference",
    )
    add("--null-label", type=natural, metavar="N", help="label that stands for no condition")
    add(
        "--check",
        action="store_true",
        help="compare every layer of every step with the golden model",
    )
    add(
        "--jobs",
        type=positive,
        metavar="N",
        help="boards to use at once (default: 2, or fewer on one core)",
    )
    add("--json", type=Path, metavar="FILE", help="write all counts to a file")
    cli_resume.add_resume(parser)
    add_config(parser)


def _run(options: argparse.Namespace) -> int:
    config = config_of(options)
    import numpy as np

    from ditto.host import png
    from ditto.host.boards import check_board
    from ditto.host.conditioning import Conditioning
    from ditto.host.defo import costs_of, policy_of
    from ditto.host.model import Model, ModelError
    from ditto.host.output import OutputFile
    from ditto.host.program import Program
    from ditto.host.report import report
    from ditto.host.samplers import Schedule, load_inputs, sampler_of
    from ditto.host.session import draw, foresee

    if options.policy == "oracle" and options.tau:
        raise UsageError("--policy oracle foresees exact samples only, not those with --tau")
    if options.policy == "oracle" and options.guidance is not None:
        raise UsageError("--policy oracle foresees one evaluation in a step, not --guidance")
    check_board(options.board, options.port)
    given = [path for path in (options.output, options.json, options.monitor) if path is not None]
    if len({path.absolute() for path in given}) < len(given):
        raise UsageError("image, JSON file and monitor's lines cannot be the same file")
    path = options.model or demo_model()
    model = Model.load(path)
    inputs = None if options.inputs is None else load_inputs(options.inputs)
    conditioning = Conditioning(
        model, inputs, guidance=options.guidance, null_label=options.null_label
    )
    shape = conditioning.shape
    if shape[1] not in (1, 3):
        raise ModelError(
            f"{path} makes images of {shape[1]} channels; only gray (1) and color (3) can be "
            "written"
        )
    schedule = Schedule.from_metadata(model.metadata)
    check_steps(options.steps, schedule.train_steps)
    if options.policy == "oracle" and len(model.windows) > 1:
        raise UsageError("--policy oracle foresees models without step windows only")
    sampler = sampler_of(sampler_given(options), schedule, steps=options.steps, eta=options.eta)
    shapes = model.shapes(conditioning.inputs(0, np.zeros(shape, np.float32), 0, 0))
    jobs = options.jobs or (1 if options.port else min(2, os.cpu_count() or 1))
    if options.port and jobs > 1:
        raise UsageError(f"--jobs {jobs} boards at one --port; a port has one board")
    memory = cli_policy.memory_of(options)

    console = open_console()
    with ExitStack() as stack:
        # Simulated boards are opened when they are needed, as many as there are jobs.
        device = open_board(options) if options.port else None
        if device is not None:
            config = device.config
            stack.callback(device.close)
        program = Program(model.layers, shapes, config, states=conditioning.states)
        if options.policy == "oracle":
            policy = foresee(
                model, program, sampler, seed=options.seed, memory=memory, conditioning=conditioning
            )
        else:
            has_table = bool(config.reference_depth) and not memory.holds
            costs = costs_of(program, memory)
            policy = policy_of(options.policy, costs, has_table=has_table)
        checkpoint = stack.enter_context(cli_resume.checkpoint_of(options, config, path))
        if checkpoint.steps:
            logging.getLogger("ditto").info("%d steps are done already", checkpoint.steps)
        output = stack.enter_context(OutputFile(options.output))
        counts = stack.enter_context(OutputFile(options.json)) if options.json else None
        on_step = _progress(
            stack,
            console,
            options.samples,
            len(sampler.timesteps),
            options.quiet,
            checkpoint.steps,
        )
        drawing = draw(
            model,
            program,
            (lambda: device) if device else lambda: open_board(options),
            sampler,
            samples=options.samples,
            seed=options.seed,
            check=options.check,
            jobs=jobs,
            tau=options.tau,
            conditioning=conditioning,
            policy=policy,
            memory=memory,
            on_step=cli_policy.monitored(stack, options, program, on_step),
            checkpoint=checkpoint,
        )
        facts = report(
            drawing,
            program,
            sampler.timesteps,
            on_host=model.on_host,
            model=str(path),
            board=options.board,
            policy=options.policy,
            memory_model=asdict(memory) | {"holds": sorted(memory.holds)},
            samples=options.samples,
            seed=options.seed,
            eta=options.eta,
            tau=options.tau,
            guidance=options.guidance,
            checked=options.check,
        )
        images = np.moveaxis(drawing.images, 1, -1) if shape[1] == 3 else drawing.images[:, 0]
        pixels = np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)
        picture = png.encode(png.grid(pixels))
        if counts is not None:
            counts.write(json.dumps(facts, indent=1).encode() + b"\n")
        output.write(picture)
    _table(console, facts)
    print(f"wrote {options.output}")
    return 0


def _progress(
    stack: Any, console: "Console", samples: int, steps: int, quiet: bool, done: int
) -> "OnStep":
    """Return what is called after each step: a progress bar, or a line for each sample."""
    from ditto.host.report import Total, shares

    def text(total: Total) -> str:
        zero, narrow, wide = (100 * share for share in shares(total.counters))
        return (
            f"zero {zero:4.1f}%  narrow {narrow:4.1f}%  wide {wide:4.1f}%  "
            f"{total.counters.cycles:,} cycles"
        )

    if console.is_terminal and not quiet:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        bar = stack.enter_context(
            Progress(
                BarColumn(8),  # the line fits 80 columns
                MofNCompleteColumn(),
                Remaining(compact=True),
                TextColumn("{task.fields[step]}"),
                console=console,
            )
        )
        task = bar.add_task("denoising", total=samples * steps, completed=done, step="")

        def advance(sample: int, step: int, timestep: int, runs: "Sequence[LayerRun]") -> None:
            bar.update(task, advance=1, step=text(Total.of(runs)))

        return advance

    held: dict[int, list[LayerRun]] = {}

    def line(sample: int, step: int, timestep: int, runs: "Sequence[LayerRun]") -> None:
        held.setdefault(sample, []).extend(runs)
        if step + 1 == steps:
            total = text(Total.of(held.pop(sample)))
            if not quiet:
                print(f"sample {sample}: {steps} steps  {total}", flush=True)

    return line


def _table(console: "Console", facts: dict[str, Any]) -> None:
    """Print what each layer took, and the totals."""
    if not facts["steps_run"]:
        print("all steps had been finished before: none has run, and there are no figures")
        return
    from rich import box
    from rich.table import Table

    def row(numbers: dict[str, Any]) -> list[str]:
        return [
            *(f"{100 * numbers[name]:.1f}" for name in ("zero", "narrow", "wide")),
            f"{numbers['cycles_per_step']:,.0f}",
            f"{numbers['dense_cycles_per_step']:,.0f}",
            f"{numbers['ratio']:.2f}",
            f"{100 * numbers['utilization']:.1f}",
        ]

    # In 80 columns there is no room for what the name and the sizes tell as well.
    narrow = console.width < 110
    texts = ["layer", "sizes"] if narrow else ["layer", "kind", "sizes"]
    heads = ["zero\n%", "narrow\n%", "wide\n%"]
    heads += [f"cycles\n{facts['policy']}", "cycles\ndense", "ratio", "used\n%"]
    table = Table(
        box=box.SIMPLE, pad_edge=False, show_footer=True, padding=(0, 0) if narrow else (0, 1)
    )
    for text in texts:
        table.add_column(text, "all layers" if text == "layer" else "", overflow="fold")
    for head, total in zip(heads, row(facts["total"]), strict=True):
        table.add_column(head, total, justify="right", no_wrap=True)
    for layer in facts["layers"]:
        # The last part of a name mostly repeats the operator.
        name = re.sub(r"/(Conv|Gemm|MatMul)$", "", layer["name"])
        cells = {"layer": name, "kind": layer["kind"], "sizes": layer["sizes"]}
        table.add_row(*(cells[text] for text in texts), *row(layer))
    console.print(table)
    print(
        "cycles are those of a step; used: multipliers at work on nonzero digits, for real channels"
    )
    lost = {name: f"{100 * share:.1f} %" for name, share in facts["total"]["idleness"].items()}
    print(
        f"not used: {lost['columns']} columns without a channel, {lost['row']} lanes at a row's "
        f"end, {lost['item']} gaps, {lost['cluster']} clusters that are done"
    )
    host = facts["host"]
    first = [f"{name} {100 * share:.1f} %" for name, share in list(host["operators"].items())[:4]]
    print(f"host: {100 * host['share']:.1f} % of the time in its own operators: {', '.join(first)}")
    for name, reason in host["layers"].items():
        print(f"on the host: {name} ({reason})")
    total, count = facts["total"], facts["steps_run"]
    runs = sum(total["modes"].values())
    modes = ", ".join(f"{100 * n / runs:.1f} % {mode}" for mode, n in total["modes"].items())
    print(f"runs: {modes}")
    if facts["memory_model"]["holds"]:
        print(
            f"memory {facts['memory_model']['name']}: {total['stall_memory'] / max(count, 1):,.0f} "
            f"cycles of a step wait for it, beside {total['cycles_per_step']:,.0f} of the array (a "
            "model, not a measurement)"
        )
    seconds = facts["seconds"]
    print(f"{facts['samples']} images of {len(facts['steps'])} steps in {seconds:.1f} s", end="")
    print(f" ({seconds / max(count, 1):.3f} s per step)")
    if count < facts["samples"] * len(facts["steps"]):
        print(f"of the {count} steps since the run was taken up again; so are all figures")
    if facts["checked"]:
        print("every accumulator and every counter equals the golden model's")
    if facts["clock_cycles"]:
        print(
            f"{facts['clock_cycles']:,} clock cycles simulated, {facts['clock_hertz']:,} per "
            f"second; {100 * facts['link_share']:.1f} % of them for the link"
        )
    if facts["resent_commands"]:
        print(f"{facts['resent_commands']} commands were sent again")
