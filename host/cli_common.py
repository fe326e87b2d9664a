"""What the verbs of the ``ditto`` command share: options, exit statuses, the console."""

import argparse
import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditto.hdl.config import Config, Multiplier, demo

if TYPE_CHECKING:
    from rich.console import Console


__all__ = [
    "BUILD",
    "FAILED",
    "INTERRUPTED",
    "TOOL",
    "USAGE",
    "UsageError",
    "add_board",
    "add_config",
    "add_inputs",
    "add_sampler",
    "check_steps",
    "config_of",
    "demo_model",
    "fraction",
    "frequency",
    "parameters_given",
    "natural",
    "number",
    "open_board",
    "open_console",
    "positive",
    "progress_bar",
    "sampler_given",
    "values",
]

FAILED, USAGE, BUILD, TOOL, INTERRUPTED = 1, 2, 3, 4, 130
"""Exit statuses."""


class UsageError(Exception):
    """Options that make no sense together."""


def add_board(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a device and its port."""
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
        type=positive,
        metavar="N",
        help="bits per second of the port (default: the board's rate)",
    )


def add_config(parser: argparse.ArgumentParser, whose: str = "the demo") -> None:
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


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add the option for further inputs of a model."""
    parser.add_argument(
        "--inputs",
        type=Path,
        metavar="NPZ",
        help="one array for each input of the model beyond sample, timestep and label, without the "
        "batch, such as encoder_hidden_states",
    )


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a sampler."""
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


def config_of(options: argparse.Namespace, base: Config = demo) -> Config:
    """Return the configuration that the options describe."""
    return replace(base, **parameters_given(options))


def open_board(options: argparse.Namespace) -> Any:
    """Open the device that the options describe, an :class:`~ditto.host.device.Accelerator`."""
    from ditto.host.boards import open_device, open_port

    if options.port is None:
        if options.baud is not None:
            raise UsageError("--baud is the rate of a --port, and none is given")
        return open_device(options.board, config_of(options))
    return open_port(
        options.board, options.port, baud=options.baud, expect=parameters_given(options)
    )


def sampler_given(options: argparse.Namespace) -> Any:
    """Return the name of the sampler, or the scheduler that takes its place."""
    if options.scheduler is None:
        return options.sampler
    from ditto.host.schedulers import load_scheduler

    return load_scheduler(options.scheduler)


def parameters_given(options: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters of the device that the options name."""
    values = {p.name: getattr(options, p.name) for p in fields(Config)}
    return {name: value for name, value in values.items() if value is not None}


def _descriptions() -> dict[str, str]:
    """Return what the docstring of Config says about each parameter: its first sentence."""
    text = textwrap.dedent("    " + (Config.__doc__ or ""))
    found = re.findall(r"^(\w+)\n((?:    .*\n)+)", text, re.MULTILINE)
    result = {}
    for name, body in found:
        sentence = re.split(r"\.\s|\.$", " ".join(body.split()))[0]
        result[name] = sentence.replace("`", "").replace("%", "%%")
    return result


def number(
    kind: Callable[[str], Any], allowed: Callable[[Any], bool], what: str
) -> Callable[[str], Any]:
    """Return a parser of numbers, for an option; ``what`` says which are allowed."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not allowed(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return parse


positive = number(int, lambda n: n >= 1, "a number of at least 1")
natural = number(int, lambda n: n >= 0, "a number of at least 0")
frequency = number(float, lambda x: 0 < x < 1e6, "a number above 0")
fraction = number(float, lambda x: 0 <= x <= 1, "a number in 0..1")


def values(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Return a parser of values between commas, which leaves out what comes twice."""
    return lambda text: list(dict.fromkeys(kind(part) for part in text.split(",")))


def open_console() -> "Console":
    """Return where tables and progress go: a terminal, or lines of one width."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120, highlight=False)


@contextmanager
def progress_bar(console: "Console", quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
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


def check_steps(steps: int, limit: int) -> None:
    """Refuse more steps than a model was trained with.

    Raises
    ------
    UsageError
        If there are more.
    """
    if steps > limit:
        raise UsageError(
            f"--steps {steps} is more than the {limit} steps that the model was trained with"
        )


def demo_model() -> Path:
    """Return the model that ships with Ditto."""
    return Path(str(files("ditto.host").joinpath("models/digits16.int8.onnx")))
