"""The K largest magnitudes of a vector: exact, deterministic, and faster than a full top-k.

A sampled threshold (Lin, Han, Mao, Wang and Dally 2018, section 3.1 and the hierarchical
selection of its code) finds a superset of the answer in one pass over the vector; an exact
selection among those survivors does the rest.
"""

from __future__ import annotations

from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laconic.errors import ConfigError, LayerError

_CHUNK = 2**16  # elements compared at once: magnitudes and mask stay in the nearest caches
_DEVIATIONS = 3  # how far the sampled rank is moved, so that too few survive once in 700 times
_ROUNDS = 4


def select_top(values: Tensor, count: int, *, sample_ratio: float = 0.01) -> Tensor:
    """Return the indices of the ``count`` entries of largest magnitude, in rising order.

    Equal magnitudes are settled by the lower index, so every machine picks the same entries
    from the same vector.

    >>> select_top(torch.tensor([1.0, -3.0, 2.0, 3.0, -2.0]), 3).tolist()
    [1, 2, 3]

    Args:
        values: (n,) floating point, finite, any device.
        count: K, 0..n.
        sample_ratio: Share of the vector that the threshold is read from, above 0 and up to 1
            (0.01, as in the code of the paper).

    Shapes:
        values (n,) -> indices (count,) int64, strictly increasing.

    Raises:
        ConfigError: ``count``, ``sample_ratio`` or the shape of ``values`` out of bounds.
        LayerError: A value is not a number.

    Source: Lin et al. 2018, section 3.1.
    Differs: Survivors of the sampled threshold are never fewer than ``count``, and the choice
        among them is exact; the paper's code keeps the first ``count`` by index. The threshold
        is a rank of the sample with room for chance, not a share of its value: what waits in an
        error memory crowds just below the threshold.
    """
    if values.dim() != 1 or not values.is_floating_point():
        raise ConfigError(
            f"select_top: values are {values.dtype} of shape {tuple(values.shape)}; "
            "they must be a flat floating-point vector. Flatten or convert them first."
        )
    if not 0 <= count <= values.numel():
        raise ConfigError(
            f"select_top: count={count} must be between 0 and {values.numel()}, the length."
        )
    if not 0 < sample_ratio <= 1:
        raise ConfigError(f"select_top: sample_ratio={sample_ratio} must be in (0, 1].")
    if count in (0, values.numel()):
        return torch.arange(count, device=values.device)
    values = values.detach()
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(_select_numpy(values.contiguous().numpy(), count, sample_ratio))
    return _select_torch(values, count, sample_ratio)


def sample_stride(length: int, count: int, sample_ratio: float = 0.01) -> int:
    """Return the step between sampled entries; 1 means that sampling would not pay.

    At least ``2 / density`` entries are sampled, so that two are expected above the threshold.
    The stride is odd, so that it does not walk along one column of an even-sized matrix.
    """
    wanted = max(ceil(sample_ratio * length), ceil(2 * length / count))
    stride = max(1, length // wanted)
    return stride if stride % 2 else stride - 1


def _ranks(sampled: int, length: int, count: int) -> list[int]:
    """Return which of the sampled magnitudes, from the largest, to try as a threshold."""
    expected = sampled * count / length
    first = ceil(expected + _DEVIATIONS * expected**0.5 + 1)
    return [min(sampled, first << doubled) for doubled in range(_ROUNDS)]


def _select_numpy(values: NDArray[np.floating], count: int, ratio: float) -> NDArray[np.int64]:
    stride = sample_stride(len(values), count, ratio)
    if stride > 1:
        sample = np.abs(values[::stride])
        for rank in _ranks(len(sample), len(values), count):
            threshold = np.partition(sample, len(sample) - rank)[-rank]
            if not threshold > 0:
                break  # mostly zeros
            found = _above(values, threshold)
            if len(found) >= count:
                return found[_exact_numpy(np.abs(values[found]), count)]
    return _exact_numpy(np.abs(values), count)


def _above(values: NDArray[np.floating], threshold: np.floating) -> NDArray[np.int64]:
    """Return the indices of magnitudes at or above the threshold, a cache full at a time."""
    size = min(_CHUNK, len(values))
    magnitude, mask = np.empty(size, values.dtype), np.empty(size, np.bool_)
    found = []
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        here, hits = magnitude[: len(part)], mask[: len(part)]
        np.greater_equal(np.abs(part, out=here), threshold, out=hits)
        found.append(np.flatnonzero(hits) + start)
    return np.concatenate(found)


def _exact_numpy(magnitude: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    least = np.partition(magnitude, len(magnitude) - count)[len(magnitude) - count]
    kept = magnitude > least
    ties = np.flatnonzero(magnitude == least)
    kept[ties[: count - int(np.count_nonzero(kept))]] = True
    indices = np.flatnonzero(kept)
    _check_found(len(indices), count)
    return indices


def _select_torch(values: Tensor, count: int, ratio: float) -> Tensor:
    magnitude = values.abs()
    stride = sample_stride(len(values), count, ratio)
    if stride > 1:
        sample = magnitude[::stride]
        for rank in _ranks(len(sample), len(values), count):
            found = (magnitude >= sample.topk(rank).values[-1]).nonzero().view(-1)
            if len(found) == len(values):
                break  # a threshold of nothing: mostly zeros
            if len(found) >= count:
                return found[_exact_torch(magnitude[found], count)]
    return _exact_torch(magnitude, count)


def _exact_torch(magnitude: Tensor, count: int) -> Tensor:
    least = magnitude.topk(count).values[-1]
    kept = magnitude > least
    ties = magnitude == least
    kept |= ties & (ties.cumsum(0) <= count - kept.sum())  # the first ones by index
    indices = kept.nonzero().view(-1)
    _check_found(len(indices), count)
    return indices


def _check_found(found: int, count: int) -> None:
    if found != count:
        raise LayerError(
            f"select_top: {found} entries stand in an order where {count} were asked for: some "
            "value is not a number. Leave out steps whose gradients are not finite."
        )
