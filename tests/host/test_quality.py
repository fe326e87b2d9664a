import math

import numpy as np
import pytest
from numpy.typing import NDArray

from ditto.host.quality import FEATURES, decibels, features, frechet, psnr, ssim


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.uniform(-0.5, 0.5, (count, 1, 9, 8))).astype(np.float32)


def test_psnr() -> None:
    a = np.zeros((3, 1, 4, 4), np.float32)
    b = a.copy()
    b[1] = 0.2  # 10 log10(4 / 0.04)
    b[2, 0, 0, 0] = 2.0  # a sixteenth of the pixels is off by the peak: 10 log10(16)
    ratios = psnr(b, a)
    assert ratios.tolist() == [math.inf, pytest.approx(20.0), pytest.approx(12.0412)]
    # The mean is that of the errors, not of the decibels.
    assert decibels(ratios) == pytest.approx(10 * math.log10(4 / ((0.04 + 0.25) / 3)))
    assert decibels(ratios[:1]) == math.inf


def test_ssim() -> None:
    a = images(2)
    assert ssim(a, a).tolist() == pytest.approx([1, 1])
    assert (ssim(images(2, seed=1), a) < 0.3).all()
    # Flat images differ by their means alone.
    flat = np.ones((1, 1, 8, 8), np.float32)
    want = (2 * 0.5 + 0.0004) / (1 + 0.25 + 0.0004)
    assert ssim(0.5 * flat, flat).tolist() == pytest.approx([want])


def test_ssim_of_images_smaller_than_a_window() -> None:
    a = images(1)[:, :, :3, :5]
    assert ssim(a, a).tolist() == pytest.approx([1])


def test_frechet_needs_samples() -> None:
    assert frechet(images(63), images(64)) is None
    assert frechet(images(64), images(64)) == pytest.approx(0, abs=1e-9)


def test_frechet_grows_with_the_difference() -> None:
    a, b = images(80), images(80, seed=1)
    same, near, far = (frechet(a, x) for x in (b, b + np.float32(0.2), b + np.float32(0.8)))
    assert same is not None and near is not None and far is not None
    assert same < near < far
    # Of sets that differ in their mean alone, it is the squared distance of the means.
    rotated = np.concatenate([a, a])
    assert frechet(rotated, a) == pytest.approx(0, abs=1e-4)
    assert features(a).shape == (80, FEATURES)
