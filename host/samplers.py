"""Samplers: how noise becomes an image, step by step."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ditto.host.model import ModelError

__all__ = ["DDIM", "Callback", "Network", "Predict", "Schedule", "denoise", "inputs_of", "noise_of"]

Predict = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
"""Predicts the noise in an image at a timestep."""

Callback = Callable[[int, int, dict[str, Any]], Mapping[str, Any] | None]
"""Called after each step with its number, its timestep and ``{"latents": …, "estimate": …}``.

It may return a dictionary with ``latents`` to go on with.
"""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a model was trained: linear betas, and a prediction of the noise.

    Parameters
    ----------
    train_steps
        Number of noising steps.
    beta_start, beta_end
        Variance that the first and the last of them add.
    clip_sample
        Whether the predicted image is clipped to -1..1 in every step.
    classes
        Number of classes, if the model takes a label.
    """

    train_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    clip_sample: bool = True
    classes: int = 10

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "Schedule":
        """Read a schedule from the ``ditto.*`` properties of a model; defaults for what is absent.

        Raises
        ------
        ModelError
            If a property is not a number, or asks for something else than this sampler does.
        """
        for key, only in (("ditto.schedule", "linear"), ("ditto.prediction", "epsilon")):
            value = metadata.get(key, only)
            if value != only:
                raise ModelError(f"the model has {key} = {value}, but only {only} is known")
        values: dict[str, Any] = {}
        kinds: dict[str, Callable[[str], Any]] = {
            "train_steps": int,
            "beta_start": float,
            "beta_end": float,
            "clip_sample": lambda text: text.strip().lower() in ("1", "true", "yes"),
            "classes": int,
        }
        for name, kind in kinds.items():
            text = metadata.get(f"ditto.{name}")
            if text is None:
                continue
            try:
                values[name] = kind(text)
            except ValueError:
                raise ModelError(
                    f"the model's property ditto.{name} = {text!r} is no number"
                ) from None
        schedule = cls(**values)
        if schedule.train_steps < 1 or not 0 < schedule.beta_start <= schedule.beta_end < 1:
            raise ModelError(f"the model's noise schedule is impossible: {schedule}")
        return schedule

    @property
    def alphas_cumprod(self) -> NDArray[Any]:
        """Share of signal power that is left after each noising step."""
        betas = np.linspace(self.beta_start, self.beta_end, self.train_steps)
        return np.cumprod(1.0 - betas)


class DDIM:
    """Denoising diffusion implicit models (Song et al., 2020).

    Parameters
    ----------
    schedule
        How the model was trained.
    steps
        Number of steps, evenly spaced from the last timestep to 0.
    eta
        Share of the noise that each step replaces by fresh noise: 0 is deterministic, 1 is DDPM.

    Attributes
    ----------
    timesteps : tuple of int
        The timesteps, the noisiest first.
    """

    def __init__(self, schedule: Schedule, *, steps: int = 50, eta: float = 0.0) -> None:
        if not 1 <= steps <= schedule.train_steps:
            raise ValueError(f"steps must be in 1..{schedule.train_steps}, not {steps}")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in 0..1, not {eta}")
        self.schedule = schedule
        self.eta = eta
        times = np.linspace(schedule.train_steps - 1, 0, steps).round().astype(int)
        self.timesteps: tuple[int, ...] = tuple(times.tolist())
        self._power = schedule.alphas_cumprod

    def step(
        self,
        index: int,
        noise: NDArray[np.float32],
        x: NDArray[np.float32],
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Do a step.

        Parameters
        ----------
        index
            Number of the step.
        noise
            The noise that the model predicts in ``x``.
        x
            The image with noise.
        rng
            Source of the fresh noise, for ``eta > 0``.

        Returns
        -------
        x : array
            The image with less noise.
        estimate : array
            The image without noise, as the step predicts it.
        """
        power = float(self._power[self.timesteps[index]])
        is_last = index + 1 == len(self.timesteps)
        after = 1.0 if is_last else float(self._power[self.timesteps[index + 1]])
        # Python's floats take the type of the arrays: everything is computed in float32.
        clean: NDArray[Any] = (x - math.sqrt(1.0 - power) * noise) / math.sqrt(power)
        rest: NDArray[Any] = noise
        if self.schedule.clip_sample:
            clean = np.clip(clean, -1.0, 1.0)
            rest = (x - math.sqrt(power) * clean) / math.sqrt(1.0 - power)
        sigma = self.eta * math.sqrt((1.0 - after) / (1.0 - power) * (1.0 - power / after))
        result = math.sqrt(after) * clean + math.sqrt(max(1.0 - after - sigma**2, 0.0)) * rest
        if sigma > 0:
            result = result + sigma * rng.standard_normal(x.shape).astype(np.float32)
        return result.astype(np.float32), clean.astype(np.float32)


def noise_of(seed: int, sample: int) -> np.random.Generator:
    """Return the source of a sample's noise, which is the same whatever else is drawn."""
    return np.random.default_rng([seed, sample])


def denoise(
    predict: Predict,
    sampler: DDIM,
    shape: Sequence[int],
    *,
    seed: int = 0,
    sample: int = 0,
    callback_on_step_end: Callback | None = None,
) -> NDArray[np.float32]:
    """Draw a sample.

    Parameters
    ----------
    predict
        The model.
    sampler
        The sampler.
    shape
        Shape of the sample, with the batch of 1.
    seed, sample
        Give the noise: sample ``i`` of a seed is the same whatever the number of samples.
    callback_on_step_end
        Called after each step.

    Returns
    -------
    array of shape ``shape``
        The image, -1..1.
    """
    rng = noise_of(seed, sample)
    x = rng.standard_normal(tuple(shape)).astype(np.float32)
    for index, timestep in enumerate(sampler.timesteps):
        x, estimate = sampler.step(index, predict(x, timestep), x, rng)
        if callback_on_step_end is not None:
            changed = callback_on_step_end(index, timestep, {"latents": x, "estimate": estimate})
            if changed and "latents" in changed:
                x = np.asarray(changed["latents"], np.float32)
    return x


class Network(Protocol):
    """What a sampler has to know of a model, such as :class:`ditto.host.model.Model`."""

    @property
    def name(self) -> str:
        """How messages call it."""
        ...

    @property
    def inputs(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and type of each input, with a batch of 1."""
        ...

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs."""
        ...


def inputs_of(
    model: Network,
) -> tuple[tuple[int, ...], Callable[..., dict[str, NDArray[Any]]]]:
    """Return the shape of a model's sample, and a function that makes its inputs.

    The function takes the sample, the timestep and the label.

    Raises
    ------
    ModelError
        If the model is no network that predicts the noise in a sample at a timestep.
    """
    known = {"sample", "timestep", "label"}
    names = set(model.inputs)
    if not {"sample", "timestep"} <= names <= known or len(model.outputs) != 1:
        raise ModelError(
            f"{model.name} is not a network for denoising: it must have the inputs sample and "
            f"timestep, perhaps label, and one output, but has {', '.join(model.inputs)} and "
            f"{len(model.outputs)}"
        )
    shape = model.inputs["sample"][0]
    if len(shape) != 4 or 0 in shape:
        raise ModelError(
            f"input sample of {model.name} must have the shape (1, channels, height, width) with "
            f"fixed sizes, not ({', '.join(str(size) if size else '?' for size in shape)})"
        )

    def make(x: NDArray[np.float32], timestep: int, label: int) -> dict[str, NDArray[Any]]:
        values: dict[str, Any] = {"sample": x, "timestep": timestep, "label": label}
        made = {}
        for name, (size, dtype) in model.inputs.items():
            made[name] = np.broadcast_to(np.asarray(values[name]).astype(dtype), size)
        return made

    return shape, make
