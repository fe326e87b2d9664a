"""``ditto denoise --resume``: what a run must have in common with one that takes it up."""

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditto.hdl.config import Config

if TYPE_CHECKING:
    from ditto.host.resume import Checkpoint

__all__ = ["add_resume", "checkpoint_of"]

# Options that change nothing in the images. The device's parameters count by its configuration.
_FREE = frozenset(
    "baud board check debug jobs json max_wide model monitor output port quiet resume run "
    "words".split()
) | frozenset(Config.__dataclass_fields__)


def add_resume(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on after the last finished step of the same command, which has failed or was "
        "interrupted; the images are the same",
    )


def checkpoint_of(options: argparse.Namespace, config: Config, model: Path) -> "Checkpoint":
    """Return where the finished steps of a run are kept: in a file beside its image.

    Parameters
    ----------
    options
        The command's options.
    config
        The device.
    model
        The model's file.
    """
    from ditto.host.resume import Checkpoint

    given: dict[str, Any] = {name: v for name, v in vars(options).items() if name not in _FREE}
    identity = {f"--{name.replace('_', '-')}": str(value) for name, value in given.items()}
    identity["the model's hash"] = _hash(model)
    if options.inputs is not None:
        identity["the inputs' hash"] = _hash(options.inputs)
    identity["the device's configuration"] = config.digest.hex()
    path = options.output.with_name(f"{options.output.name}.state")
    return Checkpoint(path, identity, resume=options.resume)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
