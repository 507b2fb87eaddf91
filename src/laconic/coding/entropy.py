"""How few bits a symbol can take when symbols are coded one by one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from laconic.coding.bits import Array
from laconic.coding.symbols import check_symbols

_SLAB = 1 << 20  # counted at once; bounds the working memory


def histogram(symbols: Array, alphabet: int) -> npt.NDArray[np.int64]:
    """Count each symbol: (alphabet,) int64."""
    counts = np.zeros(alphabet, np.int64)
    for first in range(0, symbols.size, _SLAB):
        counts += np.bincount(symbols[first : first + _SLAB], minlength=alphabet)
    return counts


def entropy_of_counts(counts: Array) -> float:
    """Return the entropy of a histogram in bits a symbol; 0 for an empty one."""
    used = counts[counts > 0].astype(np.float64)
    if used.size < 2:
        return 0.0
    p = used / used.sum()
    return float(-(p * np.log2(p)).sum())


def entropy(symbols: Array, alphabet: int) -> float:
    """Return the order-0 entropy of symbols in bits a symbol (Shannon, 1948, section 6).

    Args:
        symbols: (n,) integers in ``[0, alphabet)``.
        alphabet: Number of possible symbols, 1..65536.

    Raises:
        CodingError: Symbols outside the alphabet or not integers.

    >>> entropy(np.array([0, 1, 2, 3]), 4)
    2.0
    """
    return entropy_of_counts(histogram(check_symbols(symbols, alphabet), alphabet))
