"""How much two sets of images differ."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEATURES", "Features", "decibels", "enough", "features", "frechet", "psnr", "ssim"]

Images = NDArray[np.float32]

Features = Callable[[Images], NDArray[np.float64]]
"""Makes features of images, of shape (count, features)."""

FEATURES = 16
"""Features of an image that :func:`features` makes."""

_WINDOW = 7


def psnr(images: Images, reference: Images, peak: float = 2.0) -> NDArray[np.float64]:
    """Return the peak signal-to-noise ratio of each image, in decibels; infinity if equal.

    Parameters
    ----------
    images, reference
        Of shape (count, channels, height, width).
    peak
        Largest difference that two pixels can have.
    """
    error = ((images.astype(np.float64) - reference) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(peak**2 / error)


def ssim(images: Images, reference: Images, peak: float = 2.0) -> NDArray[np.float64]:
    """Return the structural similarity of each image (Wang et al., 2004).

    Windows are squares of 7 pixels, or the whole image if it is smaller, all of the same weight.
    """
    size = min(_WINDOW, *images.shape[2:])
    windows = [
        np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (size, size), axis=(2, 3))
        for x in (images, reference)
    ]
    (a, b), axes = windows, (-2, -1)
    mean_a, mean_b = a.mean(axis=axes), b.mean(axis=axes)
    var_a, var_b = a.var(axis=axes), b.var(axis=axes)
    both = (a * b).mean(axis=axes) - mean_a * mean_b
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    same = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    largest = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return (same / largest).mean(axis=(1, 2, 3))


def features(images: Images) -> NDArray[np.float64]:
    """Return features of images: (count, ``FEATURES``).

    A fixed random network: 16 filters of 3x3, mean magnitude. It knows nothing of what images show,
    so distances compare two sets of one model, and nothing else.
    """
    rng = np.random.default_rng(0)
    filters = rng.standard_normal((FEATURES, images.shape[1], 3, 3)) / 3
    padded = np.pad(images.astype(np.float64), [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    response = np.tensordot(windows, filters, ([1, 4, 5], [1, 2, 3]))
    return np.maximum(response, 0).mean(axis=(1, 2))


def enough(count: int) -> int:
    """Return how many images a distance by as many features needs.

    Four for each: with fewer, the covariance would be noise.
    """
    return 4 * count


def frechet(images: Images, reference: Images, net: Features = features) -> float | None:
    """Return the Fréchet distance of two sets of images; None if they are too few.

    Parameters
    ----------
    images, reference
        Of shape (count, channels, height, width).
    net
        Makes the features that are compared.
    """
    a, b = net(images), net(reference)
    if min(len(a), len(b)) < enough(a.shape[1]):
        return None
    root_a = _root(np.atleast_2d(np.cov(a, rowvar=False)))
    cov_b = np.atleast_2d(np.cov(b, rowvar=False))
    cross = _root(root_a @ cov_b @ root_a)
    gap = a.mean(axis=0) - b.mean(axis=0)
    distance = gap @ gap + np.trace(root_a @ root_a + cov_b - 2 * cross)
    return max(float(distance), 0.0)


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T


def decibels(values: NDArray[np.float64], peak: float = 2.0) -> float:
    """Return the ratio of the mean squared error of images with these ratios."""
    error = float(np.mean(peak**2 / 10 ** (values / 10)))
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)
