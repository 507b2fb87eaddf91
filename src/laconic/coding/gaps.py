"""A pattern of zeros and ones as the gaps between its ones (Han et al., 2016, section 2).

A gap symbol below the filler is the number of zeros before a one; the filler (the largest symbol)
stands for as many zeros as its own value and no one. Zeros after the last one are not stored.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from laconic.coding._errors import CodingError
from laconic.coding.bits import Array

WIDTHS = range(1, 9)
_WHERE = "gaps"


def zeros_before(bits: Array) -> npt.NDArray[np.int64]:
    """Return the number of zeros right before each one: (ones,)."""
    return np.diff(np.flatnonzero(bits), prepend=-1) - 1


def to_symbols(runs: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.uint8]:
    """Turn runs of zeros into gap symbols of ``width`` bits with fillers.

    >>> to_symbols(np.array([0, 3, 2]), 2)  # the filler is 3
    array([0, 3, 0, 2], dtype=uint8)
    """
    filler = (1 << width) - 1
    fillers, last = np.divmod(runs, filler)
    symbols = np.full(int(fillers.sum()) + runs.size, filler, np.uint8)
    symbols[np.cumsum(fillers + 1) - 1] = last
    return symbols


def counts(runs: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    """Return the histogram of :func:`to_symbols` without making the symbols."""
    filler = (1 << width) - 1
    result = np.bincount(runs % filler, minlength=filler + 1)
    result[filler] = int((runs // filler).sum())
    return result


def from_symbols(symbols: Array, width: int, count: int) -> npt.NDArray[np.uint8]:
    """Rebuild the pattern of ``count`` bits.

    Raises:
        CodingError: The gaps reach past the end, or fillers come after the last one.
    """
    filler = (1 << width) - 1
    is_one = symbols != filler
    if symbols.size and not is_one[-1]:
        raise CodingError(f"{_WHERE}: fillers after the last one; the data is damaged.")
    ends = np.cumsum(symbols.astype(np.int64) + is_one)
    if ends.size and int(ends[-1]) > count:
        raise CodingError(
            f"{_WHERE}: gaps reach to {ends[-1]}, the pattern has {count} bits; data is damaged."
        )
    bits = np.zeros(count, np.uint8)
    bits[ends[is_one] - 1] = 1
    return bits
