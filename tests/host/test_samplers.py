import math
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from ditto.host.model import Model, ModelError
from ditto.host.samplers import (
    DDIM,
    SAMPLERS,
    DPMSolver,
    Euler,
    SamplerError,
    Schedule,
    denoise,
    inputs_of,
    sampler_of,
)
from ditto.host.trace import draw_batch


def predict(x: NDArray[np.float32], timestep: int) -> NDArray[np.float32]:
    return (0.9 * x + np.float32(timestep / 2000)).astype(np.float32)


def plain(steps: int, eta: float, seed: int, sample: int) -> NDArray[np.float64]:
    """Formula (12) of the DDIM paper, in float64, with the clipped estimate of the image."""
    rng = np.random.default_rng([seed, sample])
    x = rng.standard_normal((1, 1, 4, 4))
    power = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    times = [round(999 - 999 * i / (steps - 1)) for i in range(steps)] if steps > 1 else [999]
    for i, t in enumerate(times):
        a = power[t]
        b = power[times[i + 1]] if i + 1 < steps else 1.0
        noise = 0.9 * x + t / 2000
        estimate = np.clip((x - math.sqrt(1 - a) * noise) / math.sqrt(a), -1, 1)
        noise = (x - math.sqrt(a) * estimate) / math.sqrt(1 - a)
        sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        fresh = rng.standard_normal(x.shape) if sigma > 0 else 0
        x = math.sqrt(b) * estimate + math.sqrt(1 - b - sigma**2) * noise + sigma * fresh
    return x


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_against_the_formula(steps: int, eta: float) -> None:
    sampler = DDIM(Schedule(), steps=steps, eta=eta)
    got = denoise(predict, sampler, (1, 1, 4, 4), seed=5, sample=2)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, plain(steps, eta, 5, 2), atol=1e-4)


def test_timesteps() -> None:
    assert DDIM(Schedule(), steps=5).timesteps == (999, 749, 500, 250, 0)
    assert DDIM(Schedule(train_steps=10), steps=10).timesteps == tuple(range(9, -1, -1))
    with pytest.raises(ValueError, match=r"steps must be in 1\.\.1000, not 1001"):
        DDIM(Schedule(), steps=1001)
    with pytest.raises(ValueError, match=r"eta must be in 0\.\.1, not 2"):
        DDIM(Schedule(), eta=2)


def test_callback() -> None:
    calls = []

    def callback(step: int, timestep: int, state: dict[str, Any]) -> dict[str, Any] | None:
        calls.append((step, timestep))
        assert state["estimate"].shape == state["latents"].shape == (1, 1, 4, 4)
        return {"latents": np.zeros((1, 1, 4, 4))} if step == 2 else None

    result = denoise(
        predict, DDIM(Schedule(), steps=3), (1, 1, 4, 4), callback_on_step_end=callback
    )
    assert calls == [(0, 999), (1, 500), (2, 0)]
    assert not result.any()


def test_schedule_from_metadata() -> None:
    assert Schedule.from_metadata({}) == Schedule()
    properties = {"ditto.train_steps": "100", "ditto.clip_sample": "0", "ditto.beta_end": "0.1"}
    want = Schedule(train_steps=100, clip_sample=False, beta_end=0.1)
    assert Schedule.from_metadata(properties) == want
    with pytest.raises(ModelError, match="ditto.beta_end = 'much' is no number"):
        Schedule.from_metadata({"ditto.beta_end": "much"})
    with pytest.raises(ModelError, match="ditto.prediction = v, but only epsilon, v_pred"):
        Schedule.from_metadata({"ditto.prediction": "v"})
    with pytest.raises(ModelError, match="noise schedule is impossible"):
        Schedule.from_metadata({"ditto.beta_start": "2"})


def test_inputs_of_a_model(denoiser_proto: onnx.ModelProto, make_graph: Any) -> None:
    shape, make = inputs_of(Model(denoiser_proto))
    assert shape == (1, 1, 6, 6)
    made = make(np.ones(shape, np.float32), 7, 3)
    assert made["timestep"].tolist() == [7] and made["label"].dtype == np.int64
    g = make_graph()
    x = g.quantized(g.input("x", [1, 4]))
    model = Model(g.model(g.node("Gemm", x, g.weights(np.ones((4, 2), np.int8), 0.1))), "m.onnx")
    with pytest.raises(ModelError, match="m.onnx is not a network for denoising: .* has x and 1"):
        inputs_of(model)


def of_gaussian(spread: float) -> Any:
    """Return the best prediction of noise for normal pixels, and what it belongs to."""
    schedule = Schedule(clip_sample=False)
    power = schedule.alphas_cumprod

    def best(x: NDArray[np.float32], timestep: int) -> NDArray[np.float32]:
        p = power[timestep]
        return (math.sqrt(1 - p) * x / (p * spread**2 + 1 - p)).astype(np.float32)

    return best, schedule, math.sqrt(power[-1] * spread**2 + 1 - power[-1])


@pytest.mark.parametrize("name", ["ddim", "dpm++", "euler"])
def test_samplers_follow_the_probability_flow(name: str) -> None:
    spread = 0.5
    best, schedule, widest = of_gaussian(spread)
    start = np.random.default_rng([0, 0]).standard_normal((1, 1, 8, 8))
    # The flow scales each pixel by the spread; Song et al., 2021, appendix D.
    exact = start * spread / widest
    errors = [
        np.abs(denoise(best, sampler_of(name, schedule, steps=n), exact.shape) - exact).max()
        for n in (20, 80)
    ]
    assert errors[1] < errors[0] / 2 and errors[1] < 0.05


def test_second_order_is_nearer() -> None:
    best, schedule, widest = of_gaussian(0.5)
    start = np.random.default_rng([0, 0]).standard_normal((1, 1, 8, 8))
    errors = []
    for sampler in (DDIM(schedule, steps=25), DPMSolver(schedule, steps=25)):
        states: list[Any] = []
        denoise(
            best,
            sampler,
            start.shape,
            callback_on_step_end=lambda i, t, state, kept=states: kept.append(state["latents"]),
        )
        # The last step, to no noise at all, is of first order with both.
        power = schedule.alphas_cumprod[sampler.timesteps[-1]]
        exact = start * math.sqrt(power * 0.25 + 1 - power) / widest
        errors.append(np.abs(states[-2] / exact - 1).max())
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_dpm_solver_against_the_formula(steps: int) -> None:
    """Algorithm 2 of the DPM-Solver++ paper, in float64, with the clipped estimate of the image."""
    rng = np.random.default_rng([5, 2])
    x = rng.standard_normal((1, 1, 4, 4))
    power = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    times = np.linspace(999, 999 / steps, steps).round().astype(int)
    alpha, sigma = np.sqrt(power[times]), np.sqrt(1 - power[times])
    half = np.log(alpha / sigma)
    estimates: list[NDArray[np.float64]] = []
    for i, t in enumerate(times):
        estimates.append(np.clip((x - sigma[i] * (0.9 * x + t / 2000)) / alpha[i], -1, 1))
        if i + 1 == steps:
            x = estimates[-1]
            break
        h, d = half[i + 1] - half[i], estimates[-1]
        if i:
            r = (half[i] - half[i - 1]) / h
            d = (1 + 1 / (2 * r)) * estimates[-1] - 1 / (2 * r) * estimates[-2]
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (math.exp(-h) - 1) * d
    got = denoise(predict, DPMSolver(Schedule(), steps=steps), x.shape, seed=5, sample=2)
    np.testing.assert_allclose(got, x, atol=1e-4)


def test_euler_for_noise_is_ddim_without_clipping() -> None:
    schedule = Schedule(clip_sample=False)
    got, want = (
        denoise(predict, sampler, (1, 1, 4, 4), seed=3)
        for sampler in (Euler(schedule, steps=12), DDIM(schedule, steps=12))
    )
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_euler_for_a_flow() -> None:
    image = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    seen = []

    def straight(x: NDArray[np.float32], timestep: int) -> NDArray[np.float32]:
        seen.append(timestep)
        return (x - image) / np.float32(timestep / 100)

    schedule = Schedule.from_metadata({"ditto.prediction": "flow", "ditto.train_steps": "100"})
    got = denoise(straight, sampler_of("euler", schedule, steps=4), image.shape)
    np.testing.assert_allclose(got, image, atol=1e-5)
    assert seen == [100, 75, 50, 25]
    for name in ("ddim", "ddpm", "dpm++"):
        with pytest.raises(SamplerError, match=r"ditto.prediction = flow; take the sampler euler"):
            sampler_of(name, schedule, steps=4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_batch_is_what_each_sample_is_alone(name: str) -> None:
    sampler = sampler_of(name, Schedule(), steps=6)
    shape = (1, 1, 4, 4)
    batch = draw_batch(
        lambda feed, t: predict(feed["x"], t), lambda x, t, label: {"x": x}, shape, sampler, [1, 4]
    )
    alone = [denoise(predict, sampler, shape, sample=i) for i in (1, 4)]
    np.testing.assert_array_equal(batch, np.concatenate(alone))


def test_choice_of_a_sampler() -> None:
    names = [sampler_of(name, Schedule(), steps=2).name for name in SAMPLERS]
    assert names == ["DDIM", "DDPM", "DPM-Solver++(2M)", "Euler"]
    assert sampler_of("ddim", Schedule(), steps=2, eta=0.5).name == "DDIM, eta 0.5"
    with pytest.raises(SamplerError, match="eta is for the sampler ddim; euler has none"):
        sampler_of("euler", Schedule(), eta=0.5)
    with pytest.raises(SamplerError, match=r"no sampler is called lms; there are ddim, ddpm"):
        sampler_of("lms", Schedule())
