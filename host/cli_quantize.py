"""``ditto quantize``: makes an int8 model of a float one."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditto.host.cli_common import UsageError, add_inputs, positive, progress_bar

if TYPE_CHECKING:
    pass

# As in cli.py, what takes long to import is imported where it is used.

__all__ = ["add"]


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "quantize",
        parents=[common],
        help="quantize a float model to int8",
        description="Quantize a float ONNX model to int8 with onnxruntime's own tools: one scale "
        "for each activation, the same in every step, and one for each output channel of weights.",
    )
    parser.set_defaults(run=_run)
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
        type=positive,
        default=1,
        metavar="N",
        help="parts of the trajectory with activation scales of their own (default: 1)",
    )
    add_inputs(parser)


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ditto.host.output import OutputFile
    from ditto.host.quantize import draw_calibration, load_calibration, quantize, require
    from ditto.host.samplers import load_inputs

    require()  # before trajectories are drawn for it
    if options.calibration and options.inputs:
        raise UsageError("--calibration holds all inputs of the model; --inputs goes without it")
    # The bar goes to standard error: onnxruntime prints to the other one, which is closed to it.
    with (
        OutputFile(options.output) as output,
        progress_bar(Console(stderr=True), options.quiet) as bar,
    ):
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
