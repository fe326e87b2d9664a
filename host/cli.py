"""The ``ditto`` command."""

import argparse
import json
import logging
import math
import os
import re
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields, replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditto.hdl.config import Config, ConfigError, Multiplier, demo
from ditto.host import (
    cli_bench,
    cli_boards,
    cli_estimate,
    cli_policy,
    cli_resume,
    cli_selftest,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ditto.host.executor import LayerRun
    from ditto.host.session import OnStep

# Modules that take long to import are imported where they are used: `ditto -h` shall be quick.

__all__ = ["main"]

_FAILED, _USAGE, _BUILD, _TOOL, _INTERRUPTED = 1, 2, 3, 4, 130


_KNOWN = (
    ("ditto.hdl.protocol", "CommandError", _FAILED),
    ("ditto.host.boards", "BoardError", _USAGE),
    ("ditto.host.device", "DeviceError", _FAILED),
    ("ditto.host.executor", "MismatchError", _FAILED),
    ("ditto.host.model", "ModelError", _FAILED),
    ("ditto.host.monitor", "LimitError", _FAILED),
    ("ditto.host.output", "OutputError", _FAILED),
    ("ditto.host.program", "PlacementError", _FAILED),
    ("ditto.host.quantize", "QuantizeError", _FAILED),
    ("ditto.host.resume", "ResumeError", _USAGE),
    ("ditto.host.samplers", "SamplerError", _USAGE),
    ("ditto.host.transport", "LinkError", _FAILED),
    ("ditto.fpga.boards", "UnknownBoardError", _USAGE),
    ("ditto.fpga.clock", "ClockError", _USAGE),
    ("ditto.fpga.generate", "GenerateError", _FAILED),
    ("ditto.fpga.tools", "MissingToolError", _TOOL),
    ("ditto.fpga.tools", "ToolError", _BUILD),
    ("ditto.sim.verilate", "MissingToolError", _TOOL),
    ("ditto.sim.verilate", "BuildError", _BUILD),
    ("amaranth.back.verilog", "YosysError", _BUILD),
)
"""Errors with a clear message: module, name and exit status; the first that fits counts."""


class UsageError(Exception):
    """Options that make no sense together."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments
        The words after the program's name; those of the process if absent.

    Returns
    -------
    int
        The exit status: 0, 1 for a device or an input, 2 for wrong usage, 3 for a failed build,
        4 for a missing tool, 130 for ^C or SIGTERM.
    """
    options = _parser().parse_args(arguments)
    options.words = sys.argv[1:] if arguments is None else list(arguments)
    if arguments is None:
        # A command of its own: `kill` leaves as little behind as ^C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("ditto").setLevel(logging.WARNING if options.quiet else logging.INFO)
    try:
        return options.run(options)
    except KeyboardInterrupt as error:
        if options.debug:
            raise
        warnings.simplefilter("ignore")  # Amaranth's, about the modules that it didn't come to.
        print("ditto: interrupted; nothing was written", file=sys.stderr)
        _print_notes(error)
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone. Python flushes once more at exit: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except Exception as error:
        status = _status(error)
        if status is None or options.debug:
            raise
        print(f"ditto: {error}", file=sys.stderr)
        _print_notes(error)
        return status


def _print_notes(error: BaseException) -> None:
    for note in getattr(error, "__notes__", ()):
        print(f"ditto: {note}", file=sys.stderr)


def _status(error: Exception) -> int | None:
    """Return the exit status for an error; None if it is a bug."""
    if isinstance(error, (UsageError, ConfigError)):
        return _USAGE
    for module, name, status in _KNOWN:
        # An error's module has been imported; the others need not be.
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return status
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ditto", description="Diffusion inference by temporal differences, in hardware."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-q", "--quiet", action="store_true", help="print results only")
    common.add_argument("--debug", action="store_true", help="show where an error comes from")
    for add in (
        _add_quantize,
        _add_analyze,
        _add_denoise,
        cli_bench.add,
        cli_estimate.add,
        cli_policy.add,
        _add_generate,
        _add_identify,
        cli_boards.add,
        cli_selftest.add,
    ):
        add(verbs, common)
    return parser


def _add_quantize(verbs: Any, common: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "quantize",
        parents=[common],
        help="quantize a float model to int8",
        description="Quantize a float ONNX model to int8 with onnxruntime's own tools: one scale "
        "for each activation, the same in every step, and one for each output channel of weights.",
    )
    parser.set_defaults(run=_quantize)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="float model")
    add("-o", "--output", type=Path, required=True, metavar="ONNX", help="int8 model to write")
    add(
        "--calibration",
        type=Path,
        metavar="NPZ",
        help="one array for each input of the model, samples along the first axis: the inputs of "
        "all steps of some trajectories (default: drawn with the model itself, DDIM and DDPM, 8 "
        "images of 50 steps each)",
    )
    add(
        "--method",
        choices=("max", "percentile"),
        default="max",
        help="where a scale ends: the largest magnitude, or the 99.9th percentile (default: max)",
    )
    add(
        "--windows",
        type=_positive,
        default=1,
        metavar="N",
        help="parts of the trajectory with activation scales of their own (default: 1)",
    )
    _add_inputs(parser)


def _add_analyze(verbs: Any, common: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "analyze",
        parents=[common],
        help="show what temporal differences would save on a model, where, and at what quality",
        description="Draw images with an int8 model, and report for each layer and step what "
        "temporal differences would save: values by size, bit operations, cycles, memory traffic, "
        "state, and the quality of the images.",
    )
    parser.set_defaults(run=_analyze)
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
        type=_list(_positive),
        default=[50],
        metavar="N,…",
        help="denoising steps (default: 50)",
    )
    _add_sampler(parser)
    add(
        "--eta",
        type=_list(_fraction),
        default=[0.0],
        metavar="X,…",
        help="fresh noise in each step: 0 is DDIM, 1 is DDPM (default: 0)",
    )
    add(
        "--tau",
        type=_list(_natural),
        default=[0],
        metavar="N,…",
        help="thresholds to compare: differences of at most N stay in the residual (default: 0)",
    )
    add(
        "--min-psnr",
        type=_number(float, lambda x: x > 0, "a number above 0"),
        default=30.0,
        metavar="DB",
        help="least PSNR for a threshold to be suggested, against the float model if there is one, "
        "otherwise against no threshold (default: 30)",
    )
    add("--samples", type=_positive, default=16, metavar="N", help="images (default: 16)")
    add("--seed", type=_natural, default=0, metavar="N", help="seed of the noise (default: 0)")
    _add_inputs(parser)
    _add_config(parser)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--inputs",
        type=Path,
        metavar="NPZ",
        help="one array for each input of the model beyond sample, timestep and label, without the "
        "batch, such as encoder_hidden_states",
    )


def _add_denoise(verbs: Any, common: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "denoise",
        parents=[common],
        help="draw images with a diffusion model, on a device",
        description="Draw images with a diffusion model whose linear layers run on a device, and "
        "compare the cycles with those of dense mode. The model is an int8 QDQ ONNX file with the "
        "inputs sample, timestep and perhaps label.",
    )
    parser.set_defaults(run=_denoise)
    add = parser.add_argument
    add("model", nargs="?", type=Path, metavar="MODEL", help="int8 model (default: the demo model)")
    add("-o", "--output", type=Path, required=True, metavar="PNG", help="image to write")
    _add_board(parser)
    add("--steps", type=_positive, default=50, metavar="N", help="denoising steps (default: 50)")
    add("--samples", type=_positive, default=16, metavar="N", help="images (default: 16)")
    add("--seed", type=_natural, default=0, metavar="N", help="seed of the noise (default: 0)")
    _add_sampler(parser)
    add(
        "--eta",
        type=_fraction,
        default=0.0,
        metavar="X",
        help="fresh noise in each step: 0 is DDIM, 1 is DDPM (default: 0)",
    )
    cli_policy.add_policy(parser)
    add(
        "--tau",
        type=_natural,
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
        type=_number(float, math.isfinite, "a number"),
        metavar="SCALE",
        help="evaluate the model without condition, too, and go this far along the difference",
    )
    add("--null-label", type=_natural, metavar="N", help="label that stands for no condition")
    add(
        "--check",
        action="store_true",
        help="compare every layer of every step with the golden model",
    )
    add(
        "--jobs",
        type=_positive,
        metavar="N",
        help="boards to use at once (default: 2, or fewer on one core)",
    )
    add("--json", type=Path, metavar="FILE", help="write all counts to a file")
    cli_resume.add_resume(parser)
    _add_config(parser)


def _add_sampler(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sampler",
        choices=("ddim", "ddpm", "dpm++", "euler"),
        default="ddim",
        help="how a step goes on from the model's prediction (default: ddim)",
    )
    parser.add_argument(
        "--scheduler",
        type=Path,
        metavar="DIR",
        help="a scheduler of diffusers in its place: a pipeline's folder, or the scheduler's",
    )


def _sampler(options: argparse.Namespace) -> Any:
    """Return the name of the sampler, or the scheduler that takes its place."""
    if options.scheduler is None:
        return options.sampler
    from ditto.host.schedulers import load_scheduler

    return load_scheduler(options.scheduler)


def _add_generate(verbs: Any, common: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "generate",
        parents=[common],
        help="write the Verilog of a device",
        description="Write the Verilog of a device for any board, and a JSON manifest beside it: "
        "parameters, ports, memory map, versions, hash. A file *.il is written as RTLIL, which "
        "Yosys maps to fewer memories.",
    )
    parser.set_defaults(run=_generate)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write, *.v or *.il",
    )
    parser.add_argument(
        "--target",
        choices=["any", "ecp5"],
        default="any",
        help="FPGAs it is for: with ecp5, adders use that family's carry cells (default: any)",
    )
    parser.add_argument(
        "--interface",
        choices=["bytes", "axi"],
        default="bytes",
        help="a byte stream each way, or AXI4-Lite registers and AXI4-Streams (default: bytes)",
    )
    _add_config(parser)


def _add_identify(verbs: Any, common: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "identify",
        parents=[common],
        help="show what device is on a board",
        description="Open a device and show its parameters and memories.",
    )
    parser.set_defaults(run=_identify)
    _add_board(parser)
    _add_config(parser)


def _add_board(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--board",
        default="sim",
        metavar="NAME",
        help="sim: the hardware, compiled and clocked on this computer (default); golden: the "
        "golden model in its place, without a compiler; those of ditto boards, and serial for any "
        "other one with a device at a serial port, need a port",
    )
    parser.add_argument(
        "--port",
        metavar="PORT",
        help="serial port of the board, such as /dev/ttyUSB0 or COM3; its device tells its "
        "parameters itself, and must have those that are given",
    )
    parser.add_argument(
        "--baud",
        type=_positive,
        metavar="N",
        help="bits per second of the port (default: the board's rate)",
    )


def _add_config(parser: argparse.ArgumentParser, whose: str = "the demo") -> None:
    """Add an option for every parameter of a configuration."""
    group = parser.add_argument_group(
        "device", f"Parameters of the device. The defaults are those of {whose}."
    )
    described = _descriptions()
    for parameter in fields(Config):
        default = getattr(demo, parameter.name)
        is_kind = isinstance(default, Multiplier)
        group.add_argument(
            f"--{parameter.name.replace('_', '-')}",
            type=str if is_kind else int,
            choices=[str(kind) for kind in Multiplier] if is_kind else None,
            metavar="KIND" if is_kind else "N",
            help=described.get(parameter.name, "")
            + (f" (default: {default})" if whose == "the demo" else ""),
        )


def _descriptions() -> dict[str, str]:
    """Return what the docstring of Config says about each parameter: its first sentence."""
    text = textwrap.dedent("    " + (Config.__doc__ or ""))
    found = re.findall(r"^(\w+)\n((?:    .*\n)+)", text, re.MULTILINE)
    result = {}
    for name, body in found:
        sentence = re.split(r"\.\s|\.$", " ".join(body.split()))[0]
        result[name] = sentence.replace("`", "").replace("%", "%%")
    return result


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters of the device that the options name."""
    values = {p.name: getattr(options, p.name) for p in fields(Config)}
    return {name: value for name, value in values.items() if value is not None}


def _config(options: argparse.Namespace, base: Config = demo) -> Config:
    """Return the configuration that the options describe."""
    return replace(base, **_given(options))


def _open(options: argparse.Namespace) -> Any:
    """Open the device that the options describe, an :class:`~ditto.host.device.Accelerator`."""
    from ditto.host.boards import open_device, open_port

    if options.port is None:
        if options.baud is not None:
            raise UsageError("--baud is the rate of a --port, and none is given")
        return open_device(options.board, _config(options))
    return open_port(options.board, options.port, baud=options.baud, expect=_given(options))


def _number(
    kind: Callable[[str], Any], allowed: Callable[[Any], bool], what: str
) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not allowed(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return parse


_positive = _number(int, lambda n: n >= 1, "a number of at least 1")
_natural = _number(int, lambda n: n >= 0, "a number of at least 0")
_frequency = _number(float, lambda x: 0 < x < 1e6, "a number above 0")
_fraction = _number(float, lambda x: 0 <= x <= 1, "a number in 0..1")


def _list(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Return a parser of values between commas, which leaves out what comes twice."""
    return lambda text: list(dict.fromkeys(kind(part) for part in text.split(",")))


def _console() -> "Console":
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120, highlight=False)


@contextmanager
def _bar(console: "Console", quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Show a progress bar, if there is a terminal to show it on."""
    if quiet or not console.is_terminal:
        yield lambda done, total, what: None
        return
    from rich.progress import Progress

    with Progress(console=console) as progress:
        task = progress.add_task("reading", total=None)
        yield lambda done, total, what: progress.update(
            task, completed=done, total=total, description=what
        )


def _quantize(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ditto.host.output import OutputFile
    from ditto.host.quantize import draw_calibration, load_calibration, quantize, require
    from ditto.host.samplers import load_inputs

    require()  # before trajectories are drawn for it
    if options.calibration and options.inputs:
        raise UsageError("--calibration holds all inputs of the model; --inputs goes without it")
    # The bar goes to standard error: onnxruntime prints to the other one, which is closed to it.
    with OutputFile(options.output) as output, _bar(Console(stderr=True), options.quiet) as bar:
        if options.calibration is None:
            extra = load_inputs(options.inputs) if options.inputs else None
            data = draw_calibration(
                options.model, lambda a, b: bar(a, b, "trajectories"), extra=extra
            )
        else:
            data = load_calibration(options.calibration)
        result = quantize(
            options.model,
            data,
            method=options.method,
            windows=options.windows,
            on_feed=lambda a, b: bar(a, b, "calibrating"),
        )
        output.write(result.SerializeToString())
    count = len(next(iter(data.values())))
    rule = {entry.key: entry.value for entry in result.metadata_props}["ditto.scales"]
    print(f"scales: {rule}; over {count} samples")
    print(f"wrote {options.output}")
    return 0


def _analyze(options: argparse.Namespace) -> int:
    config = _config(options)
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
    path = options.model or _demo_model()
    console = _console()
    with ExitStack() as stack:
        with _bar(console, options.quiet) as bar:
            proto = read(path)
            schedule = Schedule.from_metadata({p.key: p.value for p in proto.metadata_props})
            _check_steps(max(options.steps), schedule.train_steps)
            given_by = product(options.steps, options.eta, options.tau, [_sampler(options)])
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


def _check_steps(steps: int, limit: int) -> None:
    if steps > limit:
        raise UsageError(
            f"--steps {steps} is more than the {limit} steps that the model was trained with"
        )


def _generate(options: argparse.Namespace) -> int:
    config = _config(options)
    from ditto.fpga.ecp5 import Ecp5
    from ditto.fpga.generate import write

    platform = Ecp5() if options.target == "ecp5" else None
    verilog, manifest = write(config, options.output, platform, axi=options.interface == "axi")
    print(f"wrote {verilog} and {manifest}")
    return 0


def _identify(options: argparse.Namespace) -> int:
    from ditto.hdl.protocol import NO_BUILD, VERSION

    device = _open(options)
    config = device.config
    close = getattr(device, "close", None)
    if close is not None:
        close()
    print(f"Ditto on board {options.board}, protocol version {VERSION}")
    print(f"configuration {config.digest.hex()}, {config.multipliers} multipliers")
    build = getattr(device, "build", NO_BUILD)
    if build != NO_BUILD:
        print(f"build {build.hex()}")
    for name, value in asdict(config).items():
        print(f"  {name:18}{value:8}")
    print("memories")
    for memory in config.memories:
        size = f"{memory.count} x {memory.depth} x {memory.width} bits"
        print(f"  {memory.name:18}{size:>24}{memory.bits / 8192:10.1f} KiB")
    return 0


def _demo_model() -> Path:
    return Path(str(files("ditto.host").joinpath("models/digits16.int8.onnx")))


def _denoise(options: argparse.Namespace) -> int:
    config = _config(options)
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
    path = options.model or _demo_model()
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
    _check_steps(options.steps, schedule.train_steps)
    if options.policy == "oracle" and len(model.windows) > 1:
        raise UsageError("--policy oracle foresees models without step windows only")
    sampler = sampler_of(_sampler(options), schedule, steps=options.steps, eta=options.eta)
    shapes = model.shapes(conditioning.inputs(0, np.zeros(shape, np.float32), 0, 0))
    jobs = options.jobs or (1 if options.port else min(2, os.cpu_count() or 1))
    if options.port and jobs > 1:
        raise UsageError(f"--jobs {jobs} boards at one --port; a port has one board")
    memory = cli_policy.memory_of(options)

    console = _console()
    with ExitStack() as stack:
        # Simulated boards are opened when they are needed, as many as there are jobs.
        device = _open(options) if options.port else None
        if device is not None:
            config = device.config
            stack.callback(device.close)
        program = Program(model.layers, shapes, config, states=conditioning.states)
        if options.policy == "oracle":
            policy = foresee(
                model, program, sampler, seed=options.seed, memory=memory, conditioning=conditioning
            )
        else:
            policy = policy_of(options.policy, costs_of(program, memory))
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
            (lambda: device) if device else lambda: _open(options),
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


if __name__ == "__main__":
    sys.exit(main())
