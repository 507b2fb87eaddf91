"""The leading singular vectors of a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

_LARGE = 1536  # smaller side from which subspace iteration is faster than a full decomposition
_OVERSAMPLE = 16
_ROUNDS = 6


def leading_svd(
    matrix: Tensor, rank: int, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ``rank`` leading singular triplets.

    Exact for matrices whose smaller side is below 1536 or where ``rank`` is more than an eighth
    of it; else by randomised subspace iteration (Halko, Martinsson and Tropp 2011, algorithm
    4.4) with 16 extra directions and 6 rounds.

    Shapes:
        matrix (rows, cols) -> U (rows, rank), s (rank,) falling, Vt (rank, cols)

    Args:
        matrix: Real matrix.
        rank: From 1 to the smaller side.
        generator: Source of the first directions of the iteration; a fixed one if None.
    """
    small = min(matrix.shape)
    if small < _LARGE or 8 * (rank + _OVERSAMPLE) > small:
        U, s, Vt = torch.linalg.svd(matrix, full_matrices=False)
        return U[:, :rank], s[:rank], Vt[:rank]
    source = generator or torch.Generator().manual_seed(0)
    width = rank + _OVERSAMPLE
    start = torch.randn(matrix.shape[1], width, generator=source, dtype=matrix.dtype)
    Q = torch.linalg.qr(matrix @ start.to(matrix.device)).Q
    for _ in range(_ROUNDS):
        Q = torch.linalg.qr(matrix.T @ Q).Q
        Q = torch.linalg.qr(matrix @ Q).Q
    inner, s, Vt = torch.linalg.svd(Q.T @ matrix, full_matrices=False)
    return (Q @ inner)[:, :rank], s[:rank], Vt[:rank]
