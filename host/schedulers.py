"""Schedulers of the package diffusers, as samplers."""

# Torch and diffusers come with an extra.
# pyright: reportMissingImports=false

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditto.host.model import ModelError
from ditto.host.samplers import SamplerError, Schedule

__all__ = ["Scheduler", "load_scheduler", "schedule_metadata"]

_CONFIG = "scheduler_config.json"


class Scheduler:
    """A scheduler of diffusers, such as ``UniPCMultistepScheduler``, as a sampler.

    Parameters
    ----------
    scheduler
        The scheduler. It is copied.
    schedule
        What the model's file says; the scheduler itself knows how noise was added.
    steps
        Number of steps to set; None if the scheduler's ``set_timesteps`` was called already.
    eta
        Passed on to schedulers that know it (``DDIMScheduler``).

    Attributes
    ----------
    timesteps : tuple of int
        What the model sees, the noisiest first, rounded. Schedulers of second order take two
        timesteps for a step.
    keeps_history : bool
        True: what a scheduler keeps between steps is its own.

    Raises
    ------
    SamplerError
        If it is no scheduler, or it does not take these steps or ``eta``.
    """

    keeps_history = True

    def __init__(
        self,
        scheduler: Any,
        schedule: Schedule | None = None,
        *,
        steps: int | None = None,
        eta: float = 0.0,
    ) -> None:
        import copy

        if not all(hasattr(scheduler, name) for name in ("set_timesteps", "step", "config")):
            raise SamplerError(f"{type(scheduler).__name__} is no scheduler of diffusers")
        self.schedule = schedule or Schedule()
        self._scheduler = copy.deepcopy(scheduler)
        if steps is not None:
            try:
                self._scheduler.set_timesteps(steps)
            except Exception as error:
                raise SamplerError(
                    f"{type(scheduler).__name__} does not take {steps} steps: {error}"
                ) from error
        known = inspect.signature(self._scheduler.step).parameters
        if eta and "eta" not in known:
            raise SamplerError(f"eta is for DDIM; {type(scheduler).__name__} has none")
        self._options: dict[str, Any] = {"eta": eta} if eta else {}
        self._draws = "generator" in known
        times = self._scheduler.timesteps
        self.timesteps: tuple[int, ...] = tuple(round(float(t)) for t in times)
        suffix = f", eta {eta:g}" if eta else ""
        self.name = f"{type(scheduler).__name__} of diffusers{suffix}"

    def begin(self, noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the model sees first, see :meth:`ditto.host.samplers.Sampler.begin`."""
        spread = float(getattr(self._scheduler, "init_noise_sigma", 1.0))
        return (noise * np.float32(spread * self._scale(0))).astype(np.float32)

    def _scale(self, index: int) -> float:
        """Return the factor from the scheduler's image to what the model sees."""
        import torch

        if not hasattr(self._scheduler, "scale_model_input"):
            return 1.0
        one = torch.ones(1, dtype=torch.float64)
        return float(self._scheduler.scale_model_input(one, self._scheduler.timesteps[index]))

    def step(
        self,
        index: int,
        noise: NDArray[np.float32],
        x: NDArray[np.float32],
        rng: np.random.Generator,
        last: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Do a step, see :meth:`ditto.host.samplers.Sampler.step`.

        The estimate is the next image where the scheduler tells none.
        """
        import torch

        options = dict(self._options)
        if self._draws:
            options["generator"] = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        sample = x / np.float32(self._scale(index))
        result = self._scheduler.step(
            torch.from_numpy(np.ascontiguousarray(noise)),
            self._scheduler.timesteps[index],
            torch.from_numpy(np.ascontiguousarray(sample)),
            return_dict=True,
            **options,
        )
        image = result.prev_sample.numpy().astype(np.float32)
        estimate = getattr(result, "pred_original_sample", None)
        known = image if estimate is None else estimate.numpy().astype(np.float32)
        if index + 1 < len(self.timesteps):
            image = image * np.float32(self._scale(index + 1))
        return image, known


def _read(path: Path) -> tuple[Path, dict[str, Any]]:
    """Find and read a scheduler's configuration: a file, or in a folder, or a pipeline's."""
    places = [path, path / _CONFIG, path / "scheduler" / _CONFIG]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ModelError(f"there is no {_CONFIG} in {path}")
    try:
        config = json.loads(file.read_text("utf-8"))
        config["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file} is no configuration of a scheduler: {error!r}") from error
    return file, config


def load_scheduler(path: Path | str) -> Any:
    """Make the scheduler of diffusers that a file, or a folder with one, describes.

    Raises
    ------
    ModelError
        If there is none, or diffusers is not installed or does not know it.
    """
    file, config = _read(Path(path))
    try:
        import diffusers
    except ImportError:
        raise ModelError(
            "schedulers of diffusers need it: pip install 'ditto-accel[diffusers]'"
        ) from None
    try:
        return getattr(diffusers, config["_class_name"]).from_config(config)
    except Exception as error:
        raise ModelError(f"diffusers cannot make the scheduler in {file}: {error}") from error


def schedule_metadata(path: Path | str) -> dict[str, str]:
    """Return the ``ditto.*`` properties that say the same as a scheduler's configuration.

    Raises
    ------
    ModelError
        If there is none, or Ditto's own samplers cannot do what it says.
    """
    file, config = _read(Path(path))
    is_flow = "FlowMatch" in config["_class_name"]
    for name in ("trained_betas", "rescale_betas_zero_snr", "thresholding"):
        if config.get(name):
            raise ModelError(
                f"{file} has {name}, which Ditto's own samplers don't know; export without a "
                "scheduler (--no-scheduler), and draw with the scheduler itself (--scheduler)"
            )
    reach = config.get("clip_sample_range", 1.0)
    if config.get("clip_sample") and reach != 1.0:
        raise ModelError(f"{file} clips images to {reach:g}, but Ditto's own samplers clip to 1")
    # The schedulers' own defaults, which a configuration need not repeat.
    known = {
        "train_steps": config.get("num_train_timesteps", 1000),
        "prediction": "flow" if is_flow else config.get("prediction_type", "epsilon"),
        "clip_sample": int(
            config.get("clip_sample", config["_class_name"] in ("DDPMScheduler", "DDIMScheduler"))
        ),
    }
    if not is_flow:
        known |= {
            "schedule": config.get("beta_schedule", "linear"),
            "beta_start": config.get("beta_start", 1e-4),
            "beta_end": config.get("beta_end", 0.02),
        }
    result = {f"ditto.{name}": str(value) for name, value in known.items()}
    try:
        Schedule.from_metadata(result)
    except ModelError as error:
        raise ModelError(f"the scheduler in {file} cannot be used: {error}") from error
    return result
