"""Samplers against the schedulers of diffusers, and these schedulers in their place."""

# Torch and diffusers come with an extra.
# pyright: reportMissingImports=false

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ditto.host.model import ModelError
from ditto.host.samplers import (
    DDIM,
    DPMSolver,
    Euler,
    Sampler,
    SamplerError,
    Schedule,
    denoise,
    noise_of,
    sampler_of,
)
from ditto.host.schedulers import Scheduler, load_scheduler, schedule_metadata
from ditto.host.trace import draw_batch

pytest.importorskip("torch")
pytest.importorskip("diffusers")
# What transformers says of optional parts when diffusers imports it.
pytestmark = pytest.mark.filterwarnings("ignore")

SHAPE, STEPS = (1, 2, 4, 4), 10


def predict(x: NDArray[np.float32], timestep: float) -> NDArray[np.float32]:
    return (0.7 * x + 0.1 * np.tanh(x) + np.float32(timestep / 3000)).astype(np.float32)


def make(name: str, **options: Any) -> Any:
    import diffusers

    return getattr(diffusers, name)(**options)


def pipeline(
    scheduler: Any,
    sample: int = 0,
    *,
    fresh: str | None = None,
    spread: float | None = None,
    **options: Any,
) -> NDArray[np.float32]:
    """Draw as the pipelines of diffusers do; options are for each step."""
    import torch

    rng = noise_of(0, sample)
    x = torch.from_numpy(rng.standard_normal(SHAPE).astype(np.float32))
    x = x * (spread or getattr(scheduler, "init_noise_sigma", 1.0))
    scales = hasattr(scheduler, "scale_model_input")
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if scales else x
        own = dict(options)
        if fresh == "noise":
            own["variance_noise"] = torch.from_numpy(rng.standard_normal(SHAPE).astype(np.float32))
        elif fresh == "generator":
            own["generator"] = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        output = torch.from_numpy(predict(scaled.numpy(), round(float(t))))
        x = scheduler.step(output, t, x, **own).prev_sample
    return x.numpy()


def at(sampler: Any, scheduler: Any) -> Any:
    """Give a sampler the timesteps of a scheduler: spacings differ."""
    sampler.timesteps = tuple(int(t) for t in scheduler.timesteps)
    return sampler


KINDS = {
    "linear": Schedule(),
    "scaled_linear": Schedule(kind="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "squaredcos_cap_v2": Schedule(kind="squaredcos_cap_v2"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_schedules(kind: str) -> None:
    own = KINDS[kind]
    theirs = make(
        "DDIMScheduler", beta_schedule=kind, beta_start=own.beta_start, beta_end=own.beta_end
    )
    np.testing.assert_allclose(own.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=2e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_is_theirs(prediction: str, clip: bool, eta: float) -> None:
    theirs = make("DDIMScheduler", prediction_type=prediction, clip_sample=clip)
    theirs.set_timesteps(STEPS)
    schedule = Schedule(prediction=prediction, clip_sample=clip)
    own = at(DDIM(schedule, steps=STEPS, eta=eta), theirs)
    options: dict[str, Any] = {"use_clipped_model_output": True}
    if eta:
        options |= {"eta": eta, "fresh": "noise"}
    np.testing.assert_allclose(
        denoise(predict, own, SHAPE), pipeline(theirs, **options), rtol=1e-3, atol=2e-4
    )


def test_ddpm_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no noise of ours, so its own draw is replaced."""
    import torch
    from diffusers.schedulers import scheduling_ddpm

    rng = noise_of(0, 0)
    rng.standard_normal(SHAPE)  # the noise that the image starts from

    def drawn(shape: Any, **_: Any) -> Any:
        return torch.from_numpy(rng.standard_normal(tuple(shape)).astype(np.float32))

    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", drawn)
    theirs = make("DDPMScheduler")
    theirs.set_timesteps(STEPS)
    own = at(DDIM(Schedule(), steps=STEPS, eta=1.0), theirs)
    np.testing.assert_allclose(denoise(predict, own, SHAPE), pipeline(theirs), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, STEPS, 25])
def test_dpm_solver_is_theirs(prediction: str, steps: int) -> None:
    theirs = make("DPMSolverMultistepScheduler", prediction_type=prediction)
    theirs.set_timesteps(steps)
    schedule = Schedule(prediction=prediction, clip_sample=False)
    own = DPMSolver(schedule, steps=steps)
    assert own.timesteps == tuple(int(t) for t in theirs.timesteps)
    np.testing.assert_allclose(denoise(predict, own, SHAPE), pipeline(theirs), rtol=1e-3, atol=5e-4)


def test_euler_for_noise_is_theirs() -> None:
    theirs = make("EulerDiscreteScheduler")
    theirs.set_timesteps(STEPS)
    own = Euler(Schedule(clip_sample=False), steps=STEPS)
    assert own.timesteps == tuple(int(t) for t in theirs.timesteps)
    # With this spacing theirs starts from a little less noise than the model was trained with.
    spread = float(theirs.sigmas[0] ** 2 + 1) ** 0.5
    np.testing.assert_allclose(
        denoise(predict, own, SHAPE), pipeline(theirs, spread=spread), rtol=1e-3, atol=5e-4
    )


def test_euler_for_a_flow_is_theirs() -> None:
    theirs = make("FlowMatchEulerDiscreteScheduler")
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / STEPS, STEPS).tolist())
    own = Euler(Schedule(prediction="flow"), steps=STEPS)
    assert own.timesteps == tuple(round(float(t)) for t in theirs.timesteps)
    np.testing.assert_allclose(denoise(predict, own, SHAPE), pipeline(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "evaluations", "fresh"),
    [
        ("DDIMScheduler", 10, "generator"),
        ("DDPMScheduler", 10, "generator"),
        ("DPMSolverMultistepScheduler", 10, "generator"),
        ("EulerDiscreteScheduler", 10, "generator"),
        ("EulerAncestralDiscreteScheduler", 10, "generator"),
        ("FlowMatchEulerDiscreteScheduler", 10, "generator"),
        ("HeunDiscreteScheduler", 19, None),
        ("PNDMScheduler", 19, None),
        ("UniPCMultistepScheduler", 10, None),
    ],
)
def test_schedulers_as_samplers(name: str, evaluations: int, fresh: str | None) -> None:
    """Alone and in a batch, a sample is what a pipeline draws; nothing is left over."""
    scheduler = make(name)
    sampler: Sampler = sampler_of(scheduler, Schedule(), steps=STEPS)
    assert sampler.name == f"{name} of diffusers" and len(sampler.timesteps) == evaluations
    for _ in range(2):
        batch = draw_batch(
            lambda feed, t: predict(feed["x"], t),
            lambda x, t, label: {"x": x},
            SHAPE,
            sampler,
            [0, 3],
        )
        for got, sample in zip(batch, (0, 3), strict=True):
            theirs = make(name)
            theirs.set_timesteps(STEPS)
            want = pipeline(theirs, sample, fresh=fresh)[0]
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
            alone = denoise(predict, sampler, SHAPE, sample=sample)[0]
            np.testing.assert_array_equal(got, alone)


def test_schedulers_that_are_refused() -> None:
    with pytest.raises(SamplerError, match="Schedule is no scheduler of diffusers"):
        sampler_of(Schedule(), Schedule())
    with pytest.raises(SamplerError, match="DDIMScheduler does not take 2000 steps: "):
        Scheduler(make("DDIMScheduler"), steps=2000)
    with pytest.raises(SamplerError, match="eta is for DDIM; UniPCMultistepScheduler has none"):
        Scheduler(make("UniPCMultistepScheduler"), steps=5, eta=0.5)


def test_configurations(tmp_path: Path) -> None:
    scheduler = make("DDPMScheduler", beta_schedule="squaredcos_cap_v2", clip_sample=False)
    scheduler.save_pretrained(tmp_path / "scheduler")
    for path in (tmp_path, tmp_path / "scheduler", tmp_path / "scheduler/scheduler_config.json"):
        assert type(load_scheduler(path)).__name__ == "DDPMScheduler"
        schedule = Schedule.from_metadata(schedule_metadata(path))
        assert schedule == Schedule(kind="squaredcos_cap_v2", clip_sample=False)
    make("FlowMatchEulerDiscreteScheduler").save_pretrained(tmp_path / "flow")
    assert Schedule.from_metadata(schedule_metadata(tmp_path / "flow")).prediction == "flow"
    with pytest.raises(ModelError, match="there is no scheduler_config.json in "):
        load_scheduler(tmp_path / "none")
    file = tmp_path / "scheduler_config.json"
    for config, message in (
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.1]}, "has trained_betas, which"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"}, "schedule = sigmoid, but"),
        ({"_class_name": "X", "clip_sample": True, "clip_sample_range": 2.0}, "clips images to 2,"),
        ({"beta_start": 0.1}, "is no configuration of a scheduler: KeyError"),
    ):
        file.write_text(json.dumps(config))
        with pytest.raises(ModelError, match=message):
            schedule_metadata(file)
    file.write_text(json.dumps({"_class_name": "NoSuchScheduler"}))
    with pytest.raises(ModelError, match="diffusers cannot make the scheduler in "):
        load_scheduler(file)
