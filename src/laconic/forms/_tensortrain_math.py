"""Digits, sizes, contraction sweeps and the sequential SVD behind ``TensorTrain``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from laconic.errors import ConfigError

# The widest allowed spread of digits, largest over smallest, before a size is padded.
_SPREAD = 3.0


def balanced_modes(size: int, count: int) -> tuple[int, ...]:
    """Return ``count`` digits as equal as possible whose product is ``size`` or just above.

    A size that has no such digits within a spread of 3 (a prime, for example) gets the digits of
    the next size that has; the rows or columns added are zero and never leave the form.

    >>> balanced_modes(4096, 3), balanced_modes(768, 2), balanced_modes(97, 2)
    ((16, 16, 16), (24, 32), (7, 14))

    Raises:
        ConfigError: ``size`` or ``count`` below 1.
    """
    if size < 1 or count < 1:
        raise ConfigError(f"tensor-train: size={size} and count={count} must be at least 1.")
    if count == 1:
        return (size,)
    for padded in range(size, 2 * size + 2**count):
        best = min(_splits(padded, count, 1), key=lambda digits: digits[-1] / digits[0])
        if best[-1] <= _SPREAD * best[0]:
            return best
    return (1,) * (count - 1) + (size,)


def _splits(size: int, count: int, low: int) -> list[tuple[int, ...]]:
    """Return all ways to write ``size`` as ``count`` ascending digits from ``low`` up."""
    if count == 1:
        return [(size,)]
    found: list[tuple[int, ...]] = []
    digit = low
    while digit**count <= size:
        if size % digit == 0:
            found += [(digit, *rest) for rest in _splits(size // digit, count - 1, digit)]
        digit += 1
    return found


def full_ranks(row_modes: Sequence[int], col_modes: Sequence[int]) -> tuple[int, ...]:
    """Return the bonds at which a tensor train is exact, the two outer ones (1) left out."""
    sizes = [m * n for m, n in zip(row_modes, col_modes, strict=True)]
    return tuple(min(prod(sizes[:k]), prod(sizes[k:])) for k in range(1, len(sizes)))


def capped_ranks(row_modes: Sequence[int], col_modes: Sequence[int], bond: int) -> tuple[int, ...]:
    """Return the inner bonds for a cap: ``bond``, or the exact bond where that is smaller."""
    if bond < 1:
        raise ConfigError(f"tensor-train: bond={bond} must be at least 1.")
    return tuple(min(bond, full) for full in full_ranks(row_modes, col_modes))


def parameter_count(
    row_modes: Sequence[int], col_modes: Sequence[int], ranks: Sequence[int]
) -> int:
    """Return the numbers that the cores hold, for inner bonds ``ranks``.

    >>> parameter_count((6, 6, 6), (6, 6, 6), (5, 5)) == 2 * 36 * 5 + 36 * 25
    True
    """
    bonds = (1, *ranks, 1)
    return sum(
        left * m * n * right
        for (left, right), m, n in zip(pairwise(bonds), row_modes, col_modes, strict=True)
    )


def bond_for_ratio(row_modes: Sequence[int], col_modes: Sequence[int], allowed: int) -> int:
    """Return the largest bond cap whose cores hold at most ``allowed`` numbers.

    Raises:
        ConfigError: Even a bond of 1 holds more.
    """
    low, high = 0, max(full_ranks(row_modes, col_modes), default=1)
    while low < high:
        middle = (low + high + 1) // 2
        ranks = capped_ranks(row_modes, col_modes, middle)
        if parameter_count(row_modes, col_modes, ranks) <= allowed:
            low = middle
        else:
            high = middle - 1
    if low < 1:
        least = parameter_count(row_modes, col_modes, (1,) * (len(row_modes) - 1))
        raise ConfigError(
            f"tensor-train: {allowed} numbers are allowed, but a bond of 1 takes {least}. "
            f"Raise the ratio or use more, smaller digits."
        )
    return low


def decompose(
    matrix: Tensor,
    row_modes: Sequence[int],
    col_modes: Sequence[int],
    *,
    ranks: Sequence[int] | None,
    tolerance: float,
) -> list[Tensor]:
    """Split a matrix into cores by one SVD a bond, left to right, in float64.

    Every cut is made in an orthonormal basis, so the squared error is the sum of all squared
    singular values cut off.

    Args:
        matrix: (prod(row_modes), prod(col_modes)).
        row_modes: Row digits.
        col_modes: Column digits.
        ranks: Largest inner bonds; None for no cap.
        tolerance: Relative error ``|W - W'| / |W|`` that may be spent, evenly over the cuts; 0
            keeps every bond that the cap allows.

    Returns:
        Cores (r_k, m_k, n_k, r_{k+1}) in float64; all but the last are orthonormal.

    Source: Oseledets, 2011, Tensor-train decomposition, algorithm 1; Tomut et al., 2024,
    CompactifAI, section II.
    """
    count = len(row_modes)
    order = [axis for k in range(count) for axis in (k, count + k)]
    left = matrix.double().reshape(*row_modes, *col_modes).permute(order).reshape(1, -1)
    spend = (tolerance * float(left.norm())) ** 2 / max(count - 1, 1)
    cores: list[Tensor] = []
    bond = 1
    for k in range(count - 1):
        u, s, v = torch.linalg.svd(
            left.reshape(bond * row_modes[k] * col_modes[k], -1), full_matrices=False
        )
        keep = _kept(s, spend) if tolerance else s.numel()
        keep = min(keep, ranks[k]) if ranks is not None else keep
        cores.append(u[:, :keep].reshape(bond, row_modes[k], col_modes[k], keep))
        left, bond = s[:keep, None] * v[:keep], keep
    cores.append(left.reshape(bond, row_modes[-1], col_modes[-1], 1))
    return cores


def _kept(s: Tensor, spend: float) -> int:
    """Return how many singular values must stay so that the rest's squares sum to ``spend``."""
    tail = s.square().flip(0).cumsum(0)
    return max(1, s.numel() - int((tail <= spend).sum()))


def balance(cores: Sequence[Tensor]) -> list[Tensor]:
    """Rescale cores to equal norms; their contraction stays the same."""
    norms = torch.stack([core.norm() for core in cores])
    if not bool((norms > 0).all()):
        return list(cores)
    mean = norms.log().mean().exp()
    return [core * (mean / norm) for core, norm in zip(cores, norms, strict=True)]


def contract(cores: Sequence[Tensor]) -> Tensor:
    """Return the matrix (prod m, prod n) that cores (r, m, n, r') stand for."""
    rows, cols = 1, 1
    held = cores[0].new_ones(1, 1, 1)  # (rows so far, columns so far, bond)
    for core in cores:
        _, m, n, bond = core.shape
        held = torch.einsum("xyr,rmnq->xmynq", held, core)
        rows, cols = rows * m, cols * n
        held = held.reshape(rows, cols, bond)
    return held.squeeze(-1)


def sweep_costs(shapes: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return multiply-adds a vector for contracting cores left to right, and right to left."""
    forward = backward = 0
    for k, (left, m, n, right) in enumerate(shapes):
        work = left * m * n * right
        forward += prod(s[1] for s in shapes[:k]) * work * prod(s[2] for s in shapes[k + 1 :])
        backward += prod(s[2] for s in shapes[:k]) * work * prod(s[1] for s in shapes[k + 1 :])
    return forward, backward


def sweep(x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """Multiply ``x (N, prod n)`` by the cores' transposed matrix: ``(N, prod m)``.

    The sweep starts at the end that costs less; what is held between two cores is a tensor of
    the batch, never of the weight.
    """
    count, columns = x.shape
    forward, backward = sweep_costs([core.shape for core in cores])
    if forward <= backward:
        held = x.reshape(count, 1, columns)  # (batch and row digits so far, bond, columns to come)
        for core in cores:
            bond, m, n, after = core.shape
            held = held.reshape(held.shape[0], bond, n, held.shape[2] // n)
            held = torch.einsum("xrnz,rmnq->xmqz", held, core)
            held = held.reshape(held.shape[0] * m, after, held.shape[3])
    else:
        held = x.reshape(count * columns, 1, 1)  # (batch and columns to come, bond, row digits)
        for core in reversed(cores):
            bond, m, n, after = core.shape
            held = held.reshape(held.shape[0] // n, n, after, held.shape[2])
            held = torch.einsum("xnqz,rmnq->xrmz", held, core)
            held = held.reshape(held.shape[0], bond, m * held.shape[3])
    return held.reshape(count, prod(core.shape[1] for core in cores))


def gather_rows(cores: Sequence[Tensor], digits: Sequence[Tensor]) -> Tensor:
    """Return rows (N, prod n) whose digits (N,) a core are given."""
    count = digits[0].shape[0]
    held = cores[0].new_ones(count, 1, 1)  # (batch, columns so far, bond)
    for core, digit in zip(cores, digits, strict=True):
        picked = core[:, digit]  # (r, batch, n, q)
        held = torch.einsum("byr,rbnq->bynq", held, picked).flatten(1, 2)
    return held.squeeze(-1)


def split_digits(ids: Tensor, modes: Sequence[int]) -> list[Tensor]:
    """Split flat ids (N,) into row-major digits, the last one running fastest."""
    digits: list[Tensor] = []
    for mode in reversed(modes):
        digits.append(ids % mode)
        ids = torch.div(ids, mode, rounding_mode="floor")
    return digits[::-1]


def khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Return (prod modes, rank): column r is the outer product of the factors' columns r."""
    held = factors[0]
    for factor in factors[1:]:
        held = (held.unsqueeze(-2) * factor.unsqueeze(-3)).flatten(-3, -2)
    return held
