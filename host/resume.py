"""The state of a run that can be taken up again: what each sample has come to, in a file."""

import io
import json
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from ditto.host.npz import read_npz
from ditto.host.output import OutputError, OutputFile
from ditto.host.samplers import State

__all__ = ["Checkpoint", "ResumeError"]

logger = logging.getLogger(__name__)

_FORMAT = 1
_SECONDS = 1.0  # between two writes


class ResumeError(Exception):
    """A run that cannot be taken up again; the message says why."""


class Checkpoint:
    """Keeps the samples of a run in a file while it is at work, and takes them up again.

    A context: when it ends by an exception, the last finished step of each sample is in the file,
    and a note at the exception says how to go on. When it ends well, the file is removed. In
    between, the file is written after a finished step, but not more than once in a second; it is
    always whole.

    Parameters
    ----------
    path
        The file.
    identity
        What a run must have in common with one that takes it up, by name.
    resume
        Whether to take up the run in the file.

    Attributes
    ----------
    states : dict
        What each sample has come to.

    Raises
    ------
    ResumeError
        On entering: if there is nothing to take up, or it belongs to another run; or if there is
        something and it is not to be taken up.
    """

    def __init__(self, path: Path, identity: Mapping[str, str], *, resume: bool) -> None:
        self.path = path
        self.states: dict[int, State] = {}
        self._identity = dict(identity)
        self._resume = resume
        self._lock = threading.Lock()
        self._saved = time.monotonic()
        self._is_new = False  # states has what the file has not

    @property
    def steps(self) -> int:
        """Finished steps of all samples."""
        return sum(state.step for state in self.states.values())

    def __enter__(self) -> Self:
        """Take up the run, or see that there is none."""
        if self._resume:
            self._load()
        elif self.path.exists():
            raise ResumeError(
                f"{self.path} has the finished steps of a run that failed; take it up again with "
                "--resume, or delete the file"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Keep the file after an error, remove it otherwise."""
        if error is None:
            self.path.unlink(missing_ok=True)
        elif self.states:
            with self._lock:
                kept = self._save()
            if kept:
                error.add_note(
                    f"the {self.steps} finished steps are kept in {self.path}: repeat the command "
                    "with --resume to go on"
                )

    def record(self, sample: int, state: State) -> None:
        """Keep what a sample has come to."""
        with self._lock:
            self.states[sample] = state
            self._is_new = True
            if time.monotonic() - self._saved > _SECONDS:
                self._save()

    def _save(self) -> bool:
        """Write the file; tell whether it is there. A run does not end because that fails."""
        if not self._is_new:
            return True
        samples = [
            {"sample": sample, "step": state.step, "rng": state.rng}
            for sample, state in self.states.items()
        ]
        facts = {"format": _FORMAT, "identity": self._identity, "samples": samples}
        raw = io.BytesIO()
        np.savez(
            raw,
            facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
            latents=np.stack([state.latents for state in self.states.values()]),
            estimates=np.stack([state.estimate for state in self.states.values()]),
        )
        try:
            with OutputFile(self.path) as file:
                file.write(raw.getvalue())
        except OutputError as error:
            logger.warning("the run cannot be taken up again if it fails: %s", error)
            return False
        finally:
            self._saved = time.monotonic()
        self._is_new = False
        return True

    def _load(self) -> None:
        try:
            arrays = read_npz(self.path)
            facts = json.loads(arrays["facts"].tobytes())
            identity, version = dict(facts["identity"]), facts["format"]
            states = {}
            for entry, latents, estimate in zip(
                facts["samples"], arrays["latents"], arrays["estimates"], strict=True
            ):
                state = State(entry["step"], latents, estimate, entry["rng"])
                _check(entry["sample"], state)
                states[entry["sample"]] = state
        except FileNotFoundError:
            raise ResumeError(f"there is nothing to take up again: no file {self.path}") from None
        except OSError as error:
            raise ResumeError(f"cannot read {self.path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ResumeError(
                f"{self.path} does not hold the steps of a run ({error}); delete it and repeat the "
                "command without --resume"
            ) from error
        names = identity | self._identity | {"format": ""}
        found, own = identity | {"format": version}, self._identity | {"format": _FORMAT}
        different = [name for name in names if found.get(name) != own.get(name)]
        if different:
            reasons = ", ".join(
                f"{name} was {found.get(name)} and is {own.get(name)}" for name in different
            )
            raise ResumeError(
                f"{self.path} is of another run: {reasons}. Repeat that run's command with "
                "--resume, or delete the file"
            )
        self.states = states


def _check(sample: object, state: State) -> None:
    """Raise an error if a sample can come to no such thing."""
    for name, number in (("sample", sample), ("step", state.step)):
        if type(number) is not int or number < 0:
            raise ValueError(f"{name} {number!r}")
    for array in (state.latents, state.estimate):
        if array.dtype != np.float32 or array.ndim != 4 or array.shape != state.latents.shape:
            raise ValueError(f"an image of {array.shape} {array.dtype}")
    np.random.default_rng().bit_generator.state = state.rng
