"""Samplers: how noise becomes an image, step by step."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ditto.host.model import ModelError

__all__ = [
    "DDIM",
    "SAMPLERS",
    "Callback",
    "DPMSolver",
    "Euler",
    "Network",
    "Predict",
    "Sampler",
    "SamplerError",
    "Schedule",
    "State",
    "denoise",
    "inputs_of",
    "noise_of",
    "sampler_of",
]

Predict = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
"""Predicts the noise in an image at a timestep."""

Callback = Callable[[int, int, dict[str, Any]], Mapping[str, Any] | None]
"""Called after each step with its number, its timestep and what the sample has come to:
``{"latents": …, "estimate": …, "rng": …}``, see :class:`State`.

It may return a dictionary with ``latents`` to go on with.
"""


PREDICTIONS = ("epsilon", "flow")
"""What a model predicts: the noise, or the way from the image to the noise (rectified flow)."""


class SamplerError(ValueError):
    """A sampler that does not go with a model, or with an option."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a model was trained: linear betas and a prediction of the noise, or a rectified flow.

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
    prediction
        What the model predicts, see :data:`PREDICTIONS`. A flow has no betas: at timestep ``t`` the
        share of noise is ``t / train_steps``.
    """

    train_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    clip_sample: bool = True
    classes: int = 10
    prediction: str = "epsilon"

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "Schedule":
        """Read a schedule from the ``ditto.*`` properties of a model; defaults for what is absent.

        Raises
        ------
        ModelError
            If a property is not a number, or asks for something else than this sampler does.
        """
        values: dict[str, Any] = {}
        for key, known in (("schedule", ("linear",)), ("prediction", PREDICTIONS)):
            value = metadata.get(f"ditto.{key}", known[0])
            if value not in known:
                raise ModelError(
                    f"the model has ditto.{key} = {value}, but only {', '.join(known)} is known"
                )
        values["prediction"] = metadata.get("ditto.prediction", PREDICTIONS[0])
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


class Sampler(Protocol):
    """How each step goes on from the model's prediction; it keeps nothing between steps."""

    schedule: Schedule
    #: The timesteps, the noisiest first.
    timesteps: tuple[int, ...]

    @property
    def name(self) -> str:
        """How reports call it."""
        ...

    def step(
        self,
        index: int,
        noise: NDArray[np.float32],
        x: NDArray[np.float32],
        rng: np.random.Generator,
        last: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Do a step.

        Parameters
        ----------
        index
            Number of the step.
        noise
            What the model predicts for ``x``.
        x
            The image with noise.
        rng
            Source of fresh noise.
        last
            The estimate of the step before; none in the first.

        Returns
        -------
        x : array
            The image with less noise.
        estimate : array
            The image without noise, as the step predicts it.
        """
        ...


def _evenly(schedule: Schedule, steps: int, first: int, last: float) -> tuple[int, ...]:
    """Return evenly spaced timesteps."""
    if not 1 <= steps <= schedule.train_steps:
        raise SamplerError(f"steps must be in 1..{schedule.train_steps}, not {steps}")
    times = np.linspace(first, last, steps).round().astype(int)
    return tuple(times.tolist())


def _expect_noise(schedule: Schedule, name: str) -> None:
    if schedule.prediction != "epsilon":
        raise SamplerError(
            f"{name} needs a model that predicts noise, but this one has ditto.prediction = "
            f"{schedule.prediction}; take the sampler euler"
        )


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
        _expect_noise(schedule, "DDIM")
        if not 0 <= eta <= 1:
            raise SamplerError(f"eta must be in 0..1, not {eta}")
        self.schedule = schedule
        self.eta = eta
        self.timesteps: tuple[int, ...] = _evenly(schedule, steps, schedule.train_steps - 1, 0)
        self._power = schedule.alphas_cumprod

    @property
    def name(self) -> str:
        """How reports call it."""
        return {0.0: "DDIM", 1.0: "DDPM"}.get(self.eta, f"DDIM, eta {self.eta:g}")

    def step(
        self,
        index: int,
        noise: NDArray[np.float32],
        x: NDArray[np.float32],
        rng: np.random.Generator,
        last: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Do a step, see :meth:`Sampler.step`; fresh noise is taken for ``eta > 0``."""
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


class DPMSolver:
    """DPM-Solver++(2M): second order, from the estimates of two steps (Lu et al., 2022, alg. 2).

    The first step and the last one, which ends without noise, are of first order.

    Parameters
    ----------
    schedule
        How the model was trained.
    steps
        Number of steps, evenly spaced from the last timestep on. Timestep 0 is left out: on the
        scale of this method it is too far from the one before it.

    Attributes
    ----------
    timesteps : tuple of int
        The timesteps, the noisiest first.
    """

    name = "DPM-Solver++(2M)"

    def __init__(self, schedule: Schedule, *, steps: int = 50) -> None:
        _expect_noise(schedule, self.name)
        self.schedule = schedule
        first = schedule.train_steps - 1
        self.timesteps: tuple[int, ...] = _evenly(schedule, steps, first, first / steps)
        self._power = schedule.alphas_cumprod

    def _half_log_snr(self, index: int) -> float:
        power = float(self._power[self.timesteps[index]])
        return 0.5 * math.log(power / (1.0 - power))

    def step(
        self,
        index: int,
        noise: NDArray[np.float32],
        x: NDArray[np.float32],
        rng: np.random.Generator,
        last: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Do a step, see :meth:`Sampler.step`."""
        power = float(self._power[self.timesteps[index]])
        clean: NDArray[Any] = (x - math.sqrt(1.0 - power) * noise) / math.sqrt(power)
        if self.schedule.clip_sample:
            clean = np.clip(clean, -1.0, 1.0)
        estimate = clean.astype(np.float32)
        if index + 1 == len(self.timesteps):
            return estimate, estimate
        after = float(self._power[self.timesteps[index + 1]])
        h = self._half_log_snr(index + 1) - self._half_log_snr(index)
        target: NDArray[Any] = clean
        if index and last is not None:
            r = (self._half_log_snr(index) - self._half_log_snr(index - 1)) / h
            target = (1.0 + 0.5 / r) * clean - 0.5 / r * last
        scale = math.sqrt((1.0 - after) / (1.0 - power))
        result = scale * x - math.sqrt(after) * math.expm1(-h) * target
        return result.astype(np.float32), estimate


class Euler:
    """Euler's method along the model's probability flow, without fresh noise.

    For a prediction of the noise, along the share of noise relative to the signal (Karras et al.,
    2022); for a rectified flow (Liu et al., 2022), along the timestep itself.

    Parameters
    ----------
    schedule
        How the model was trained. Nothing is clipped.
    steps
        Number of steps, evenly spaced: down to timestep 0 for noise; for a flow, from
        ``train_steps`` on.

    Attributes
    ----------
    timesteps : tuple of int
        The timesteps, the noisiest first.
    """

    name = "Euler"

    def __init__(self, schedule: Schedule, *, steps: int = 50) -> None:
        self.schedule = schedule
        total = schedule.train_steps
        if schedule.prediction == "flow":
            self.timesteps: tuple[int, ...] = _evenly(schedule, steps, total, total / steps)
            noise = [t / total for t in self.timesteps]
            signal = [1.0 - share for share in noise]
        else:
            self.timesteps = _evenly(schedule, steps, total - 1, 0)
            power = [float(schedule.alphas_cumprod[t]) for t in self.timesteps]
            noise = [math.sqrt(1.0 - share) for share in power]
            signal = [math.sqrt(share) for share in power]
        self._noise, self._signal = [*noise, 0.0], [*signal, 1.0]

    def step(
        self,
        index: int,
        noise: NDArray[np.float32],
        x: NDArray[np.float32],
        rng: np.random.Generator,
        last: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Do a step, see :meth:`Sampler.step`."""
        now, after = self._noise[index], self._noise[index + 1]
        if self.schedule.prediction == "flow":
            estimate: NDArray[Any] = x - now * noise
            result: NDArray[Any] = x + (after - now) * noise
        else:
            signal, later = self._signal[index], self._signal[index + 1]
            estimate = (x - now * noise) / signal
            result = later * (x / signal + (after / later - now / signal) * noise)
        return result.astype(np.float32), estimate.astype(np.float32)


SAMPLERS = ("ddim", "ddpm", "dpm++", "euler")
"""Names of the samplers, see :func:`sampler_of`."""


def sampler_of(name: str, schedule: Schedule, *, steps: int = 50, eta: float = 0.0) -> Sampler:
    """Make a sampler.

    Parameters
    ----------
    name
        One of :data:`SAMPLERS`; ``ddpm`` is ``ddim`` with ``eta = 1``.
    schedule, steps
        As for :class:`DDIM`, :class:`DPMSolver` and :class:`Euler`.
    eta
        Share of the noise that each step of ``ddim`` replaces.

    Raises
    ------
    SamplerError
        If the sampler does not go with ``eta`` or with what the model predicts, or a number is out
        of range.
    """
    if name == "ddim":
        return DDIM(schedule, steps=steps, eta=eta)
    if eta:
        raise SamplerError(f"eta is for the sampler ddim; {name} has none")
    if name == "ddpm":
        return DDIM(schedule, steps=steps, eta=1.0)
    if name == "dpm++":
        return DPMSolver(schedule, steps=steps)
    if name == "euler":
        return Euler(schedule, steps=steps)
    raise SamplerError(f"no sampler is called {name}; there are {', '.join(SAMPLERS)}")


class State(NamedTuple):
    """What a sample has come to between two steps."""

    #: Finished steps.
    step: int
    #: The image with noise.
    latents: NDArray[np.float32]
    #: The image without noise, as the last step predicts it.
    estimate: NDArray[np.float32]
    #: State of the source of noise, as NumPy's bit generators give it.
    rng: Mapping[str, Any]


def noise_of(seed: int, sample: int) -> np.random.Generator:
    """Return the source of a sample's noise, which is the same whatever else is drawn."""
    return np.random.default_rng([seed, sample])


def denoise(
    predict: Predict,
    sampler: Sampler,
    shape: Sequence[int],
    *,
    seed: int = 0,
    sample: int = 0,
    start: State | None = None,
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
    start
        Go on from there instead of from noise.
    callback_on_step_end
        Called after each step.

    Returns
    -------
    array of shape ``shape``
        The image, -1..1.
    """
    rng = noise_of(seed, sample)
    x = rng.standard_normal(tuple(shape)).astype(np.float32)
    estimate: NDArray[np.float32] | None = None
    first = 0
    if start is not None:
        first, x, estimate = start.step, start.latents, start.estimate
        rng.bit_generator.state = start.rng
    for index, timestep in enumerate(sampler.timesteps[first:], first):
        x, estimate = sampler.step(index, predict(x, timestep), x, rng, estimate)
        if callback_on_step_end is not None:
            reached = {"latents": x, "estimate": estimate, "rng": rng.bit_generator.state}
            changed = callback_on_step_end(index, timestep, reached)
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
