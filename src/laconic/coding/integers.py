"""Short bytes for small tables of integers: frequencies and code lengths.

Values, or their zig-zag differences, go down as Exp-Golomb codes of the order that comes out
smallest (Elias, 1975, gamma codes are order 0). Runs of zeros take one code for their length.
The first byte holds the mode (bit 7: differences) and the order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from laconic.coding._errors import CodingError
from laconic.coding.bits import Array, put_codes

Integers = npt.NDArray[np.int64]
_ORDERS = 25
_RUN_ORDER = 1
_DIFFERENCES = 128
_LIMIT = 1 << 26


def zigzag(values: Array) -> Integers:
    """Map integers to non-negative ones: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    wide = values.astype(np.int64)
    return (wide << 1) ^ (wide >> 63)


def unzigzag(codes: Array) -> Integers:
    """Undo :func:`zigzag`."""
    wide = codes.astype(np.int64)
    return (wide >> 1) ^ -(wide & 1)


def put_golomb(values: Integers, order: npt.NDArray[np.int64] | int) -> bytes:
    """Lay down non-negative values below 2**32 - 2**order as Exp-Golomb codes."""
    shifted = values + (np.int64(1) << np.int64(order))
    bits = _bit_length(shifted)
    codes = np.stack([np.zeros_like(shifted), shifted], 1).ravel()
    return put_codes(codes, np.stack([bits - 1 - order, bits], 1).ravel())


def golomb_bits(values: Integers, order: int) -> int:
    """Return the bits that :func:`put_golomb` takes."""
    return int((2 * _bit_length(values + (1 << order)) - 1 - order).sum())


class GolombReader:
    """Read Exp-Golomb codes one at a time."""

    def __init__(self, data: bytes, *, where: str) -> None:
        self.bits = f"{int.from_bytes(data):0{8 * len(data)}b}" if data else ""
        self.where, self.at = where, 0

    def take(self, order: int) -> int:
        """Return the next value."""
        one = self.bits.find("1", self.at)
        end = 2 * one - self.at + 1 + order
        if one < 0 or end > len(self.bits) or end - one > 33:
            raise CodingError(f"{self.where}: the table ends inside a code; data is damaged.")
        self.at = end
        return int(self.bits[one:end], 2) - (1 << order)

    def close(self) -> None:
        """Raise unless less than a byte of zero bits is left."""
        rest = self.bits[self.at :]
        if len(rest) > 7 or "1" in rest:
            raise CodingError(f"{self.where}: bytes too many after the table; data is damaged.")


def pack_integers(values: Array) -> bytes:
    """Write non-negative integers below 2**26 in few bytes; the count is not stored."""
    wide = values.astype(np.int64)
    tokens, is_run = _tokens(wide)
    differences = zigzag(np.diff(wide, prepend=0))
    best: tuple[int, int] | None = None
    for order in range(_ORDERS):
        plain = golomb_bits(tokens[~is_run], order) + golomb_bits(tokens[is_run], _RUN_ORDER)
        options = (plain, order), (golomb_bits(differences, order), order | _DIFFERENCES)
        best = min(options if best is None else (best, *options))
    head = best[1] if best else 0
    if head & _DIFFERENCES:
        return bytes([head]) + put_golomb(differences, head & 127)
    return bytes([head]) + put_golomb(tokens, np.where(is_run, _RUN_ORDER, head))


def unpack_integers(data: bytes, count: int, *, where: str) -> Integers:
    """Read ``count`` integers back.

    Args:
        data: What :func:`pack_integers` gave.
        count: How many integers there are.
        where: What messages call the table.

    Raises:
        CodingError: Too few or too many bytes, or values out of range.
    """
    if not data or (data[0] & 127) >= _ORDERS or len(data) > 8 * count + 16:
        raise CodingError(f"{where}: no table of {count} integers stands here; data is damaged.")
    reader, order = GolombReader(data[1:], where=where), data[0] & 127
    if data[0] & _DIFFERENCES:
        coded = np.array([reader.take(order) for _ in range(count)], np.int64)
        values = np.cumsum(unzigzag(coded))
    else:
        values = np.zeros(count, np.int64)
        at = 0
        while at < count:
            values[at] = value = reader.take(order)
            at += 1 if value else 1 + reader.take(_RUN_ORDER)
        if at != count:
            raise CodingError(f"{where}: a run of zeros leaves the table; data is damaged.")
    reader.close()
    if count and (values.min() < 0 or values.max() >= _LIMIT):
        raise CodingError(f"{where}: a value outside 0..{_LIMIT - 1}; data is damaged.")
    return values


def _bit_length(values: Integers) -> Integers:
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def _tokens(values: Integers) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Replace every run of zeros by a zero and its length less one."""
    zero = values == 0
    starts = np.flatnonzero(np.diff(zero.astype(np.int8), prepend=0) == 1)
    ends = np.flatnonzero(np.diff(zero.astype(np.int8), append=0) == -1)
    keep = ~zero
    keep[starts] = True
    # Token index of each kept value: one more for every run that starts before it.
    runs_before = np.cumsum(keep & zero) - (keep & zero)
    at = np.cumsum(keep) - 1 + runs_before
    tokens = np.zeros(int(keep.sum()) + starts.size, np.int64)
    is_run = np.zeros(tokens.size, np.bool_)
    tokens[at[keep]] = values[keep]
    tokens[at[starts] + 1] = ends - starts
    is_run[at[starts] + 1] = True
    return tokens, is_run
