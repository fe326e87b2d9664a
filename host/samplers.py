"""Samplers: how noise becomes an image, step by step."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ditto.host.model import ModelError
from ditto.host.npz import read_npz

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
    "load_inputs",
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


PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")
"""What a model predicts, by diffusers' names: the noise, the velocity (Salimans and Ho, 2022), the
image, or the way from the image to the noise (rectified flow)."""

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""How betas grow, by diffusers' names: evenly, evenly in their roots, or by a cosine."""


_MOST_STEPS = 1_000_000
"""Noising steps that a schedule may have: far more than any model, and no danger for the memory."""


class SamplerError(ValueError):
    """A sampler that does not go with a model, or with an option."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a model was trained: how noise was added, and what it predicts.

    Parameters
    ----------
    train_steps
        Number of noising steps.
    kind
        How betas grow, see :data:`SCHEDULES`.
    beta_start, beta_end
        Variance that the first and the last step add; a cosine has its own.
    clip_sample
        Whether the predicted image is clipped to -1..1 in every step.
    classes
        Number of classes, if the model takes a label.
    prediction
        What the model predicts, see :data:`PREDICTIONS`. A flow has no betas: at timestep ``t`` the
        share of noise is ``t / train_steps``.
    """

    train_steps: int = 1000
    kind: str = "linear"
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
        known = {"schedule": ("kind", SCHEDULES), "prediction": ("prediction", PREDICTIONS)}
        for key, (name, choices) in known.items():
            values[name] = metadata.get(f"ditto.{key}", choices[0])
            if values[name] not in choices:
                raise ModelError(
                    f"the model has ditto.{key} = {values[name]}, but only {', '.join(choices)} "
                    "is known"
                )
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
        if (
            not 1 <= schedule.train_steps <= _MOST_STEPS
            or not 0 < schedule.beta_start <= schedule.beta_end < 1
        ):
            raise ModelError(f"the model's noise schedule is impossible: {schedule}")
        return schedule

    @property
    def alphas_cumprod(self) -> NDArray[Any]:
        """Share of signal power that is left after each noising step."""
        if self.kind == "squaredcos_cap_v2":
            times = np.arange(self.train_steps + 1) / self.train_steps
            power = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1.0 - power[1:] / power[:-1], 0.999)
        elif self.kind == "scaled_linear":
            first, last = math.sqrt(self.beta_start), math.sqrt(self.beta_end)
            betas = np.linspace(first, last, self.train_steps) ** 2
        else:
            betas = np.linspace(self.beta_start, self.beta_end, self.train_steps)
        return np.cumprod(1.0 - betas)

    def noise_in(
        self, x: NDArray[np.float32], predicted: NDArray[np.float32], power: float
    ) -> NDArray[Any]:
        """Return the noise in an image, from what the model predicts.

        Parameters
        ----------
        x
            The image with noise.
        predicted
            The model's output for it.
        power
            Share of signal power that is left in it.
        """
        if self.prediction == "v_prediction":
            return math.sqrt(power) * predicted + math.sqrt(1.0 - power) * x
        if self.prediction == "sample":
            return (x - math.sqrt(power) * predicted) / math.sqrt(1.0 - power)
        return predicted


class Sampler(Protocol):
    """How each step goes on from the model's prediction.

    Each sample is drawn with a copy of its own (``copy.deepcopy``), so that a sampler may keep what
    it likes between steps.
    """

    schedule: Schedule
    #: The timesteps, the noisiest first.
    timesteps: tuple[int, ...]
    #: Whether a step needs nothing of those before it but what it is given: such a sampler can be
    #: taken up in the middle.
    is_memoryless: bool

    @property
    def name(self) -> str:
        """How reports call it."""
        ...

    def begin(self, noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the model sees first, from noise of unit variance."""
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
    if schedule.prediction == "flow":
        raise SamplerError(
            f"{name} is for noise that was added step by step, but this model has "
            f"ditto.prediction = {schedule.prediction}; take the sampler euler"
        )


class _Plain:
    """A sampler whose images start as the noise itself, and that keeps nothing between steps."""

    is_memoryless = True

    def begin(self, noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the noise."""
        return noise


class DDIM(_Plain):
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
        noise = self.schedule.noise_in(x, noise, power)
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


class DPMSolver(_Plain):
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
        noise = self.schedule.noise_in(x, noise, power)
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


class Euler(_Plain):
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
            noise = self.schedule.noise_in(x, noise, signal**2)
            estimate = (x - now * noise) / signal
            result = later * (x / signal + (after / later - now / signal) * noise)
        return result.astype(np.float32), estimate.astype(np.float32)


SAMPLERS = ("ddim", "ddpm", "dpm++", "euler")
"""Names of the samplers, see :func:`sampler_of`."""


def sampler_of(name: Any, schedule: Schedule, *, steps: int = 50, eta: float = 0.0) -> Sampler:
    """Make a sampler.

    Parameters
    ----------
    name
        One of :data:`SAMPLERS`; ``ddpm`` is ``ddim`` with ``eta = 1``. Or a scheduler of the
        package diffusers, see :class:`ditto.host.schedulers.Scheduler`.
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
    if not isinstance(name, str):
        from ditto.host import schedulers

        scheduler: Any = schedulers.Scheduler
        return scheduler(name, schedule, steps=steps, eta=eta)
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
    rng, sampler = noise_of(seed, sample), copy.deepcopy(sampler)
    x = sampler.begin(rng.standard_normal(tuple(shape)).astype(np.float32))
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
    model: Network, extra: Mapping[str, NDArray[Any]] | None = None
) -> tuple[tuple[int, ...], Callable[..., dict[str, NDArray[Any]]]]:
    """Return the shape of a model's sample, and a function that makes its inputs.

    The function takes the sample, the timestep and the label.

    Parameters
    ----------
    model
        The model.
    extra
        Values of all inputs beyond ``sample``, ``timestep`` and ``label``, such as the embedding of
        a text: of one sample, without a batch or with a batch of 1.

    Raises
    ------
    ModelError
        If the model is no network that predicts the noise in a sample at a timestep, or the extra
        inputs do not fit it.
    """
    names = set(model.inputs)
    if not {"sample", "timestep"} <= names or len(model.outputs) != 1:
        raise ModelError(
            f"{model.name} is not a network for denoising: it must have the inputs sample and "
            f"timestep and one output, but has {', '.join(model.inputs)} and {len(model.outputs)}"
        )
    shape = model.inputs["sample"][0]
    if len(shape) != 4 or 0 in shape:
        raise ModelError(
            f"input sample of {model.name} must have the shape (1, channels, height, width) with "
            f"fixed sizes, not {_sizes(shape)}; export it with fixed sizes"
        )
    fixed = _extra(model, extra or {})

    def make(x: NDArray[np.float32], timestep: int, label: int) -> dict[str, NDArray[Any]]:
        values: dict[str, Any] = {"sample": x, "timestep": timestep, "label": label, **fixed}
        made = {}
        for name, (size, dtype) in model.inputs.items():
            if name not in fixed:
                values[name] = np.broadcast_to(np.asarray(values[name]).astype(dtype), size)
            made[name] = values[name]
        return made

    return shape, make


def _sizes(shape: Sequence[int]) -> str:
    return f"({', '.join(str(size) if size else '?' for size in shape)})"


def _extra(model: Network, extra: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the extra inputs with a batch of 1 and in the model's types, after a check."""
    wanted = [name for name in model.inputs if name not in ("sample", "timestep", "label")]
    missing = [name for name in wanted if name not in extra]
    unknown = [name for name in extra if name not in wanted]
    if missing:
        sizes = ", ".join(f"{name} of shape {_sizes(model.inputs[name][0])}" for name in missing)
        raise ModelError(f"{model.name} also takes {sizes}: give them in a file (--inputs NPZ)")
    if unknown:
        raise ModelError(
            f"the file of inputs has {', '.join(unknown)}, which {model.name} does not take; "
            + (f"it takes {', '.join(wanted)}" if wanted else "it takes no further inputs")
        )
    result = {}
    for name in wanted:
        shape, dtype = model.inputs[name]
        values = np.asarray(extra[name])
        if values.ndim == len(shape) - 1:
            values = values[None]
        if values.ndim != len(shape) or any(
            want and want != got for want, got in zip(shape, values.shape, strict=True)
        ):
            raise ModelError(
                f"input {name} must have the shape {_sizes(shape)}, with or without the batch, not "
                f"{np.shape(extra[name])}"
            )
        if not np.can_cast(values.dtype, dtype, "same_kind"):
            raise ModelError(f"input {name} is of type {values.dtype}, but the model takes {dtype}")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ModelError(f"input {name} contains values that are no numbers")
        result[name] = values.astype(dtype)
    return result


def load_inputs(path: Path | str) -> dict[str, NDArray[Any]]:
    """Read extra inputs of a model, or calibration data: an ``.npz`` file, one array per input.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    try:
        return read_npz(path)
    except FileNotFoundError:
        raise ModelError(f"cannot read {path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not a usable .npz file: {error}") from error
