"""Export of diffusers models to ONNX: ``python -m ditto.host.diffusers PIPELINE_DIR -o unet.onnx``.

The file takes ``sample`` and ``timestep``, and ``label`` or ``encoder_hidden_states`` where the
model is conditioned; its properties say how the model was trained, from the pipeline's scheduler.
"""

# Torch and diffusers come with an extra.
# pyright: reportMissingImports=false

import argparse
import contextlib
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from ditto.host.model import ModelError
from ditto.host.output import OutputError, OutputFile
from ditto.host.quantize import OPSET
from ditto.host.schedulers import schedule_metadata

__all__ = ["MODELS", "export", "main", "to_onnx"]

MODELS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")
"""Classes that can be exported."""

_TOKENS = 77  # of CLIP's text encoder
# Entries of a configuration that ask for inputs which are not exported.
_UNKNOWN = {"addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim"}


def export(
    folder: Path | str,
    *,
    tokens: int = _TOKENS,
    size: int | None = None,
    scheduler: Path | str | None = None,
    with_scheduler: bool = True,
) -> onnx.ModelProto:
    """Export the denoising network of a pipeline.

    Parameters
    ----------
    folder
        A pipeline's folder (with ``model_index.json``), or that of the network alone.
    tokens
        Length of the text embedding, for a model that takes one.
    size
        Height and width of the sample, if the model's configuration does not say.
    scheduler
        A scheduler's folder; by default that of the pipeline, if there is one.
    with_scheduler
        Whether to write how the model was trained into the file.

    Raises
    ------
    ModelError
        If torch or diffusers is missing, or the model cannot be exported.
    """
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise ModelError(
            f"exporting needs {error.name}: pip install 'ditto-accel[diffusers]'"
        ) from None
    folder = Path(folder)
    place, name = _find(folder)
    try:
        network = getattr(diffusers, name).from_pretrained(
            place, torch_dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False
        )
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"diffusers cannot load the {name} in {place}: {reason}") from error
    metadata: dict[str, str] = {}
    if with_scheduler:
        given = folder if scheduler is None else Path(scheduler)
        if scheduler is not None or (given / "scheduler").is_dir():
            metadata = schedule_metadata(given)
    return to_onnx(network, tokens=tokens, size=size, metadata=metadata)


def _find(folder: Path) -> tuple[Path, str]:
    """Return the folder of the network, and its class."""
    index, place = folder / "model_index.json", folder
    try:
        if index.is_file():
            parts = json.loads(index.read_text("utf-8"))
            names = [part for part in ("unet", "transformer") if part in parts]
            if not names:
                raise ModelError(f"the pipeline in {folder} has neither a unet nor a transformer")
            place = folder / names[0]
        file = place / "config.json"
        if not file.is_file():
            raise ModelError(
                f"there is neither model_index.json nor config.json in {place}; name the folder "
                "that save_pretrained wrote"
            )
        name = json.loads(file.read_text("utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{place} holds no model of diffusers: {error!r}") from error
    if name not in MODELS:
        raise ModelError(f"{place} holds a {name}; {', '.join(MODELS)} can be exported")
    return place, name


def to_onnx(
    network: Any,
    *,
    tokens: int = _TOKENS,
    size: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Export a network of diffusers.

    Parameters
    ----------
    network
        One of :data:`MODELS`. It is set to evaluation mode.
    tokens, size
        As for :func:`export`.
    metadata
        Properties to write into the file.

    Raises
    ------
    ModelError
        If it cannot be exported.
    """
    import torch

    config, kind = network.config, type(network).__name__
    shape = _shape(config, size, kind)
    names, extra, classes = _conditions(config, kind, tokens)
    channels = config.in_channels
    produced = config.out_channels or channels
    if produced not in (channels, 2 * channels):
        raise ModelError(
            f"{kind} makes {produced} channels of {channels}: it does not predict the noise in "
            "its input (inpainting and depth models take further channels)"
        )

    class Denoiser(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, sample: Any, timestep: Any, *given: Any) -> Any:
            conditions = dict(zip(names, given, strict=True))
            if kind == "DiTTransformer2DModel":
                conditions["timestep"] = timestep
                outputs = self.network(sample, return_dict=False, **conditions)
            else:
                outputs = self.network(sample, timestep, return_dict=False, **conditions)
            # What follows the noise is a prediction of its variance, which samplers don't use.
            return outputs[0][:, :channels] if produced > channels else outputs[0]

    # A batch of 1 would be taken for a constant.
    example = (torch.zeros(2, channels, *shape), torch.zeros(2, dtype=torch.int64), *extra)
    inputs = ["sample", "timestep", *("label" if n == "class_labels" else n for n in names)]
    with tempfile.TemporaryDirectory() as place, _silence(), torch.no_grad():
        path = Path(place) / "model.onnx"
        try:
            # The exporter by torch.export leaves shapes open that this one writes as constants,
            # and needs a package more.
            torch.onnx.export(
                Denoiser().eval(),
                example,
                str(path),
                input_names=inputs,
                output_names=["noise"],
                dynamic_axes={name: {0: "batch"} for name in [*inputs, "noise"]},
                opset_version=OPSET,
                dynamo=False,
            )
            result = onnx.load(path)
        except Exception as error:  # whatever a tracer can meet in foreign code
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(f"torch cannot export this {kind}: {reason}") from error
    if result.ByteSize() >= 1 << 31:
        raise ModelError(f"this {kind} is larger than the 2 GiB that a single ONNX file can hold")
    properties = {"ditto.classes": str(classes)} if classes else {}
    helper.set_model_props(result, {**properties, **(metadata or {})})
    return result


def _shape(config: Any, size: int | None, kind: str) -> tuple[int, int]:
    known = size or config.sample_size
    if known is None:
        raise ModelError(
            f"the configuration of this {kind} has no sample_size; say what it was trained with "
            "(--size N)"
        )
    return (known, known) if isinstance(known, int) else (known[0], known[1])


def _conditions(config: Any, kind: str, tokens: int) -> tuple[list[str], list[Any], int]:
    """Return names and examples of what conditions a network, and the number of its classes."""
    import torch

    for name in sorted(_UNKNOWN):
        if config.get(name) is not None:
            raise ModelError(f"this {kind} takes inputs that are not exported: {name} is set")
    embedding = config.get("class_embed_type")
    if embedding is not None:
        raise ModelError(
            f"this {kind} takes no class numbers: class_embed_type is {embedding}; only embedded "
            "classes (num_class_embeds) can be exported"
        )
    names, extra = [], []
    if kind == "UNet2DConditionModel":
        width = config.cross_attention_dim
        if not isinstance(width, int):
            raise ModelError(f"this {kind} takes contexts of more than one width: {width}")
        names.append("encoder_hidden_states")
        extra.append(torch.zeros(2, tokens, width))
    key = "num_embeds_ada_norm" if kind == "DiTTransformer2DModel" else "num_class_embeds"
    classes = config.get(key) or 0
    if classes:
        names.append("class_labels")
        extra.append(torch.zeros(2, dtype=torch.int64))
    return names, extra, classes


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what the tracer warns of in foreign code away from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ditto.host.diffusers",
        description="Export the denoising network of a diffusers pipeline to ONNX.",
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="a pipeline's folder, or its network's")
    add("-o", "--output", type=Path, required=True, metavar="ONNX", help="file to write")
    add(
        "--tokens",
        type=int,
        default=_TOKENS,
        metavar="N",
        help=f"length of the text embedding, for a model that takes one (default: {_TOKENS})",
    )
    add("--size", type=int, metavar="N", help="size of the sample (default: the configuration's)")
    add(
        "--scheduler",
        type=Path,
        metavar="DIR",
        help="scheduler that says how the model was trained (default: the pipeline's)",
    )
    add(
        "--no-scheduler",
        action="store_true",
        help="leave out how the model was trained: Ditto's samplers assume linear betas then",
    )
    options = parser.parse_args(arguments)
    for name in ("tokens", "size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, not {value}")
    from rich.console import Console

    console = Console(stderr=True)
    try:
        with OutputFile(options.output) as output:
            with console.status("exporting") if console.is_terminal else contextlib.nullcontext():
                model = export(
                    options.folder,
                    tokens=options.tokens,
                    size=options.size,
                    scheduler=options.scheduler,
                    with_scheduler=not options.no_scheduler,
                )
            output.write(model.SerializeToString())
    except (ModelError, OutputError) as error:
        print(f"ditto: {error}", file=sys.stderr)
        return 1
    properties = {entry.key: entry.value for entry in model.metadata_props}
    if "ditto.train_steps" not in properties:
        print("no scheduler: Ditto's samplers assume 1000 steps of linear betas")
    for value in model.graph.input:
        sizes = [dim.dim_param or str(dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        print(f"input {value.name}: {' x '.join(sizes)}")
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
