"""What each setting of a compressor spoils of a probe gradient, without running it each time.

One pass serves all candidates of a family. All errors are Euclidean norms of what is lost, not
squares. Alimohammadi, Markov, Frantar and Alistarh 2024 (L-GreCo), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from laconic.gradients.select import select_top


def topk_errors(probe: Tensor, counts: Sequence[int]) -> list[float]:
    """Return the norm of what stays behind when the ``count`` largest entries are sent.

    >>> topk_errors(torch.tensor([3.0, -12.0, 4.0, 0.0]), [0, 1, 2, 3])
    [13.0, 5.0, 3.0, 0.0]

    Args:
        probe: Gradient of any shape, finite.
        counts: Entries sent, each 0..n, in any order.
    """
    flat = probe.detach().reshape(-1).float()
    most = max(counts, default=0)
    kept = select_top(flat, most)
    rest = flat.clone()
    rest[kept] = 0
    squares = flat[kept].double().square().sort().values  # rising: small ones add up first
    behind = torch.cat([squares.new_zeros(1), squares.cumsum(0)]) + _square(rest)
    return [float(behind[most - count].sqrt()) for count in counts]


def rank_errors(
    probe: Tensor, ranks: Sequence[int], *, iterations: int = 5, seed: int = 0
) -> list[float]:
    """Return the norm of what a low-rank approximation loses, for each rank.

    ``iterations`` steps of subspace iteration from random columns, as PowerSGD would do with a
    standing gradient. Column r of an orthogonal iteration does not depend on the columns after
    it, so one run at the largest rank holds the runs at all smaller ones.

    Args:
        probe: Matrix (n, m), finite.
        ranks: Each 1 or more; from min(n, m) on the error is 0.
        iterations: Steps, 1 or more (5, as in the code of the paper).
        seed: Of the first columns.

    Source: Alimohammadi et al. 2024, section 4; Vogels, Karimireddy and Jaggi 2019, Algorithm 1.
    """
    matrix = probe.detach().float()
    full = min(matrix.shape)
    inner = sorted({rank for rank in ranks if rank < full})
    errors: dict[int, float] = {}
    if inner:
        generator = torch.Generator().manual_seed(seed)
        right = torch.randn(matrix.shape[1], inner[-1], generator=generator).to(matrix.device)
        left = matrix
        for _ in range(iterations):
            # Both sides: columns as long as squared singular values would lose the small ones.
            left = torch.linalg.qr(matrix @ torch.linalg.qr(right).Q).Q
            right = matrix.T @ left
        rest = matrix.clone()
        for low, high in pairwise([0, *inner]):
            rest -= left[:, low:high] @ right[:, low:high].T
            errors[high] = _square(rest) ** 0.5
    return [errors.get(rank, 0.0) for rank in ranks]


def tail_errors(probe: Tensor, ranks: Sequence[int]) -> list[float]:
    """Return the least loss that any approximation of each rank has: the singular tail.

    >>> tail_errors(torch.diag(torch.tensor([7.0, 4.0, 3.0])), [1, 2, 3])
    [5.0, 3.0, 0.0]

    Source: Eckart and Young 1936.
    """
    values = torch.linalg.svdvals(probe.detach().double())  # falling
    tails = torch.cat([values.flip(0).square().cumsum(0).flip(0), values.new_zeros(1)]).sqrt()
    return [float(tails[min(rank, len(values))]) for rank in ranks]


def rounding_error(probe: Tensor, levels: int, scale: Tensor) -> float:
    """Return the root of the expected square that stochastic rounding to a grid loses.

    An entry at share f between two neighbours of a grid of step h is rounded up with probability
    f, which has the variance ``h**2 * f * (1 - f)``.

    Args:
        probe: (buckets, entries).
        levels: Steps s of the grid between 0 and the scale, 1 or more.
        scale: (buckets, 1) what level s stands for; a bucket of scale 0 loses nothing.

    Source: Alistarh, Grubic, Li, Tomioka and Vojnovic 2017 (QSGD), section 3.1.
    """
    step = scale.double() / levels
    place = probe.detach().double().abs() / step.where(step > 0, torch.ones_like(step))
    share = place - place.floor()
    return float((step.square() * share * (1 - share)).sum().sqrt())


def _square(values: Tensor) -> float:
    """Return the sum of squares, added up in double precision."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2
