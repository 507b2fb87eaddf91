"""Intervals around measured values: Wilson's for shares, the bootstrap for the rest."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from statistics import NormalDist
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from laconic.errors import ConfigError

_CHUNK = 1 << 22  # drawn indexes held in memory at a time


class Metric(TypedDict):
    """A measured value with its 95 % interval and the number of examples behind it."""

    value: float
    low: float
    high: float
    n: int


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a share.

    Args:
        successes: How often it happened, 0..n.
        n: How often it could have happened, at least 1.
        confidence: Share of such intervals that hold the true share, between 0 and 1.

    Returns:
        Lower and upper end, both within [0, 1].

    Raises:
        ConfigError: ``n`` below 1, ``successes`` outside 0..n, ``confidence`` outside (0, 1).

    Source: E. B. Wilson, 1927, Probable Inference, the Law of Succession, and Statistical
        Inference.

    Example:
        >>> low, high = wilson(8, 10)
        >>> round(low, 3), round(high, 3)
        (0.49, 0.943)
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise ConfigError(f"wilson: successes={successes} of n={n}; give n >= 1 and 0 <= s <= n.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = share + z * z / (2 * n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


def bootstrap(
    sums: Tensor,
    weights: Tensor | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of ``sum(sums) / sum(weights)``.

    Examples are drawn with replacement; with ``weights`` of 1, the default, the quotient is the
    mean. It never lies outside the interval.

    Args:
        sums: What each example adds to the numerator, (n,).
        weights: What each example adds to the denominator, (n,).
        confidence: Share of such intervals that hold the true value, between 0 and 1.
        resamples: Number of draws, at least 1.
        seed: Seed of the draws.

    Raises:
        ConfigError: No examples, shapes that differ, no positive weight, or an option out of its
            bounds.

    Source: B. Efron and R. Tibshirani, 1993, An Introduction to the Bootstrap, section 13.3.
    """
    _check_confidence(confidence)
    top = sums.double().numpy(force=True)
    down = np.ones_like(top) if weights is None else weights.double().numpy(force=True)
    if top.ndim != 1 or top.shape != down.shape or top.size == 0 or resamples < 1:
        raise ConfigError(
            f"bootstrap: sums {top.shape}, weights {down.shape}, resamples={resamples}; give two"
            " vectors of the same length, at least 1, and resamples >= 1."
        )
    drawn = _draws(top, down, resamples, seed)
    if not down.sum() > 0:
        raise ConfigError("bootstrap: weights sum to 0 or less; give positive ones.")
    value = float(top.sum() / down.sum())
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return min(float(low), value), max(float(high), value)


def _draws(
    top: np.ndarray[tuple[int], np.dtype[np.float64]],
    down: np.ndarray[tuple[int], np.dtype[np.float64]],
    resamples: int,
    seed: int,
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    generator, size = np.random.default_rng(seed), top.size
    step = max(1, _CHUNK // size)
    parts = []
    for start in range(0, resamples, step):
        chosen = generator.integers(0, size, (min(step, resamples - start), size))
        bottom = down[chosen].sum(1)
        # A draw whose weights are all zero has no quotient; it is left out.
        parts.append(top[chosen].sum(1)[bottom > 0] / bottom[bottom > 0])
    return np.concatenate(parts)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence={confidence} must lie between 0 and 1, ends excluded.")


def share(hits: int, n: int) -> Metric:
    """Return a share as a metric with Wilson's interval."""
    low, high = wilson(hits, n)
    return {"value": hits / n, "low": low, "high": high, "n": n}


def quotient(
    sums: Tensor,
    weights: Tensor | None = None,
    *,
    n: int | None = None,
    through: Callable[[float], float] = float,
) -> Metric:
    """Return ``through(sum(sums) / sum(weights))`` as a metric with a bootstrap interval.

    Args:
        sums: What each example adds to the numerator, (examples,).
        weights: What each example adds to the denominator; 1 where None.
        n: Count for the metric; the number of examples where None.
        through: Monotone function applied to value and ends, for example ``exp``.
    """
    down = torch.ones_like(sums) if weights is None else weights
    ends = [through(end) for end in bootstrap(sums, down)]
    value = float(sums.double().sum() / down.double().sum())
    return {
        "value": through(value),
        "low": min(ends),
        "high": max(ends),
        "n": len(sums) if n is None else n,
    }
