"""Optimal code lengths under a limit, and the canonical codes that belong to them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from laconic.coding._errors import CodingError

Integers = npt.NDArray[np.int64]


def code_lengths(counts: Integers, limit: int) -> Integers:
    """Return optimal prefix code lengths of at most ``limit`` bits.

    Package-merge: (Larmore & Hirschberg, 1990). At each of ``limit`` levels the symbols and the
    pairs of the level below are merged by weight; the ``2 * (n - 1)`` cheapest of the top level
    are taken, and a symbol's length is how many levels take it.

    Args:
        counts: (n,) positive counts, ``n`` at most ``2**limit``.
        limit: Longest code, in bits.

    Shapes:
        (n,) -> (n,) int64; a sole symbol gets length 1.
    """
    if counts.size == 1:
        return np.ones(1, np.int64)
    order = np.argsort(counts, kind="stable")
    leaves = counts[order]
    leaf_flags: list[npt.NDArray[np.bool_]] = []
    packages = np.zeros(0, np.int64)
    for _ in range(limit):
        weights = np.concatenate([leaves, packages])
        merged = np.argsort(weights, kind="stable")
        leaf_flags.append(merged < leaves.size)
        weights = weights[merged]
        packages = weights[: weights.size // 2 * 2].reshape(-1, 2).sum(1)
    lengths = np.zeros(counts.size, np.int64)
    take = 2 * (counts.size - 1)
    for flags in reversed(leaf_flags):
        used = int(flags[:take].sum())
        lengths[:used] += 1
        take = 2 * (take - used)
    result = np.empty_like(lengths)
    result[order] = lengths
    return result


def canonical_codes(lengths: Integers) -> tuple[Integers, Integers]:
    """Return the canonical codes: shorter first, then by symbol, counting upwards.

    Args:
        lengths: (K,) code lengths, 0 where a symbol does not occur.

    Returns:
        codes (K,) int64 and the used symbols in code order (n,) int64.
    """
    order = np.argsort(lengths, kind="stable")
    order = order[int((lengths == 0).sum()) :]
    codes = np.zeros(lengths.size, np.int64)
    if order.size:
        # On the scale of the longest code every code fills a range, one after another.
        longest = int(lengths[order[-1]])
        spans = np.int64(1) << (longest - lengths[order])
        codes[order] = (np.cumsum(spans) - spans) >> (longest - lengths[order])
    return codes, order


def check_complete(lengths: Integers, *, longest: int, where: str) -> None:
    """Raise unless the lengths form a code in which every bit string decodes (Kraft sum 1)."""
    used = lengths[lengths > 0]
    if not used.size or used.max() > longest:
        raise CodingError(f"{where}: no codes, or one above {longest} bits; data is damaged.")
    if int((np.int64(1) << (longest - used)).sum()) != 1 << longest:
        raise CodingError(f"{where}: the code lengths are not those of a full code.")
