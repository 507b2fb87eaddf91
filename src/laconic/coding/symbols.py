"""What counts as a symbol array, and several small symbols as one larger one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from laconic.coding._errors import CodingError
from laconic.coding.bits import Array

MAX_ALPHABET = 1 << 16
_BYTE = 256


def check_alphabet(alphabet: int) -> None:
    """Raise unless the alphabet has 1 to 65536 symbols."""
    if not 1 <= alphabet <= MAX_ALPHABET:
        raise CodingError(f"alphabet={alphabet} must be between 1 and {MAX_ALPHABET}.")


def check_count(count: int) -> None:
    """Raise unless the declared number of symbols is a whole number that is not negative."""
    if count < 0:
        raise CodingError(f"count={count} must not be negative.")


def check_symbols(symbols: Array, alphabet: int) -> Array:
    """Return the symbols as (n,) uint8 (int32 above 256) after checking every one.

    Raises:
        CodingError: Not integers, not one-dimensional, or outside ``[0, alphabet)``.
    """
    check_alphabet(alphabet)
    if symbols.ndim != 1 or symbols.dtype.kind not in "iu":
        raise CodingError(
            f"symbols are {symbols.dtype} of shape {symbols.shape}; a one-dimensional array of "
            "integers is needed. Flatten it and cast it to uint8 or int32."
        )
    if symbols.size:
        low, high = int(symbols.min()), int(symbols.max())
        if low < 0 or high >= alphabet:
            wrong = low if low < 0 else high
            raise CodingError(
                f"symbol {wrong} is outside the alphabet 0..{alphabet - 1}. Give a larger "
                "alphabet or clamp the symbols."
            )
    return np.ascontiguousarray(symbols, symbol_type(alphabet))


def symbol_type(alphabet: int) -> type[np.uint8 | np.int32]:
    """Return uint8 for up to 256 symbols, int32 above."""
    return np.uint8 if alphabet <= _BYTE else np.int32


def group_sizes(alphabet: int) -> list[int]:
    """Return how many symbols fit one byte as digits to the base ``alphabet``, 8 at most."""
    if alphabet < 2 or alphabet > _BYTE:
        return [1]
    return [size for size in range(1, 9) if alphabet**size <= _BYTE]


def group(symbols: Array, alphabet: int, size: int) -> Array:
    """Join ``size`` symbols to one: ``sum(symbol[i] * alphabet**i)``, zeros after the last.

    Shapes:
        symbols (n,) -> (ceil(n / size),) uint8 (unchanged where ``size`` is 1)
    """
    if size == 1:
        return symbols
    padded = np.zeros(-(-symbols.size // size) * size, np.uint8)
    padded[: symbols.size] = symbols
    digits = padded.reshape(-1, size)
    joined = digits[:, size - 1].copy()
    for place in range(size - 2, -1, -1):
        joined *= np.uint8(alphabet)
        joined += digits[:, place]
    return joined


def ungroup(joined: Array, alphabet: int, size: int, count: int, *, where: str) -> Array:
    """Undo :func:`group`.

    Raises:
        CodingError: A value that no group of symbols has, or padding that is not zero.
    """
    if size == 1:
        if joined.size and int(joined.max()) >= alphabet:
            raise CodingError(
                f"{where}: symbol {joined.max()} is outside the alphabet 0..{alphabet - 1}; "
                "the data is damaged or from another tensor."
            )
        return joined
    values = alphabet**size
    if values < _BYTE and joined.size and int(joined.max()) >= values:
        raise CodingError(
            f"{where}: {joined.max()} stands for no {size} symbols of 0..{alphabet - 1}; "
            "the data is damaged or from another tensor."
        )
    flat: npt.NDArray[np.uint8] = _digits(alphabet, size).take(joined, axis=0).ravel()
    if flat[count:].any():
        raise CodingError(f"{where}: padding after the last symbol is not zero; data is damaged.")
    return flat[:count]


def _digits(alphabet: int, size: int) -> npt.NDArray[np.uint8]:
    values = np.arange(alphabet**size)[:, None]
    return (values // alphabet ** np.arange(size) % alphabet).astype(np.uint8)
