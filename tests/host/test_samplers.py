import math
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from ditto.host.model import Model, ModelError
from ditto.host.samplers import DDIM, Schedule, denoise, inputs_of


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
    with pytest.raises(ModelError, match="ditto.prediction = v, but only epsilon is known"):
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
