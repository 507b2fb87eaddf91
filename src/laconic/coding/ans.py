"""Asymmetric numeral systems, one stream for all symbols: the coder named "rans".

Range ANS (Duda, 2013) with a 64-bit state, 32-bit words and 24-bit frequencies. The fast path is
the constriction package; :func:`reference_decode` states the format in plain integers, so that
files stay readable whatever that package becomes.

Layout: group size (1 byte), table of frequencies (varint size, integers that sum to a power of
two), words (little-endian; the last one is not zero).
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Any

import constriction
import numpy as np
import numpy.typing as npt

from laconic.coding._errors import CodingError
from laconic.coding.bits import Array, Reader, put_varint, width_of
from laconic.coding.entropy import histogram
from laconic.coding.integers import pack_integers, unpack_integers
from laconic.coding.symbols import group, group_sizes, symbol_type, ungroup
from laconic.coding.tables import quantize_pmf

_WHERE = "rans"
_PRECISION = 24
_Coder = constriction.stream.stack.AnsCoder
_TABLE_PRECISIONS = (6, 8, 10, 12, 14, 16, 18, 20, 22)
# A symbol of frequency f raises the state by a factor of at least (2**24 / f)**0.99 once the
# state is above 2**31; damaged data that would decode to more symbols than that is refused early.
_LEAST_SHARE = 0.99
_LARGE = 1 << 12  # above, only two precisions are tried


@cache
def backend_version() -> str:
    """Return the version of constriction, for reports."""
    return metadata.version("constriction")


def encode(symbols: Array, alphabet: int) -> bytes:
    """Code symbols; the grouping and the table's precision are those that take the least."""
    if not symbols.size:
        return b""
    sizes = group_sizes(alphabet)
    tables = {size: _best_table(group(symbols, alphabet, size), alphabet**size) for size in
              {sizes[0], sizes[-1]}}  # fmt: skip
    size = min(tables, key=lambda key: (tables[key][0], key))
    _, frequencies = tables[size]
    table = pack_integers(frequencies)
    used = np.flatnonzero(frequencies)
    head = bytes([size]) + put_varint(len(table)) + table
    if used.size == 1:
        return head
    rank = np.zeros(frequencies.size, np.int32)
    rank[used] = np.arange(used.size)
    coder = _Coder(_guard())
    coder.encode_reverse(rank[group(symbols, alphabet, size)], _model(frequencies[used]))
    words: npt.NDArray[np.uint32] = coder.get_compressed()
    return head + words.astype("<u4").tobytes()


def _best_table(joined: Array, alphabet: int) -> tuple[float, npt.NDArray[np.int64]]:
    """Return the expected size in bits with the table, and the frequencies (alphabet,)."""
    counts = histogram(joined, alphabet)
    used = np.flatnonzero(counts)
    if used.size == 1:
        return 0.0, (counts > 0).astype(np.int64)
    least = width_of(used.size) + 1
    fitting = [p for p in _TABLE_PRECISIONS if p >= least] or [least]
    if used.size > _LARGE:
        fitting = fitting[:2]
    best: tuple[float, npt.NDArray[np.int64]] | None = None
    for precision in fitting:
        frequencies = np.zeros(alphabet, np.int64)
        frequencies[used] = quantize_pmf(counts[used], precision)
        bits = float((counts[used] * (precision - np.log2(frequencies[used]))).sum())
        bits += 8 * len(pack_integers(frequencies))
        if best is None or bits < best[0]:
            best = bits, frequencies
        elif bits > 1.01 * best[0]:
            break
    if best is None:
        raise CodingError(f"{_WHERE}: no table precision holds {used.size} symbols.")
    return best


def _guard() -> npt.NDArray[np.uint32]:
    """Return the first state: every symbol then costs bits, so a wrong count is noticed."""
    return np.array([1 << _PRECISION], np.uint32)


def _model(frequencies: npt.NDArray[np.int64]) -> Any:
    """Hand integer frequencies to constriction as exact binary fractions.

    ``perfect=True`` finds the integers closest to the fractions, which are those themselves.
    """
    return constriction.stream.model.Categorical(frequencies / frequencies.sum(), perfect=True)


def decode(data: bytes, count: int, alphabet: int) -> Array:
    """Undo :func:`encode`.

    Raises:
        CodingError: Damaged, cut short or too long data.
    """
    reader = Reader(data, where=_WHERE)
    if not count:
        reader.close()
        return np.zeros(0, np.uint8)
    size, frequencies = _read_table(reader, count, alphabet)
    items = -(-count // size)
    used = np.flatnonzero(frequencies)
    kind = symbol_type(frequencies.size)
    if used.size == 1:
        reader.close()
        joined: Array = np.full(items, used[0], kind)
    else:
        words = _read_words(reader)
        least = items * (np.log2(frequencies.sum()) - np.log2(frequencies.max()))
        if _LEAST_SHARE * least > 32 * words.size + 32:
            raise CodingError(f"{_WHERE}: {words.size} words do not hold {count} symbols.")
        coder = _Coder(words)
        ranks: npt.NDArray[np.int32] = coder.decode(_model(frequencies[used]), items)
        if not np.array_equal(coder.get_compressed(), _guard()):
            raise CodingError(f"{_WHERE}: the stream does not end where it began; it is damaged.")
        joined = used.astype(np.int32)[ranks].astype(kind, copy=False)
    return ungroup(joined, alphabet, size, count, where=_WHERE)


def _read_table(reader: Reader, count: int, alphabet: int) -> tuple[int, npt.NDArray[np.int64]]:
    size = reader.byte()
    if size not in group_sizes(alphabet):
        raise CodingError(f"{_WHERE}: groups of {size} do not belong to alphabet {alphabet}.")
    frequencies = unpack_integers(reader.take(reader.varint()), alphabet**size, where=_WHERE)
    total, used = int(frequencies.sum()), int((frequencies > 0).sum())
    if not used or total & (total - 1) or total > 1 << _PRECISION or used > -(-count // size):
        raise CodingError(
            f"{_WHERE}: {used} frequencies that sum to {total} are no table for {count} symbols."
        )
    return size, frequencies


def _read_words(reader: Reader) -> npt.NDArray[np.uint32]:
    data = reader.rest()
    if len(data) % 4:
        raise CodingError(f"{_WHERE}: {len(data)} bytes are not whole 32-bit words.")
    words = np.frombuffer(data, "<u4").astype(np.uint32)
    if words.size and not words[-1]:
        raise CodingError(f"{_WHERE}: the last word is zero; the data is damaged.")
    return words


def reference_decode(data: bytes, count: int, alphabet: int) -> Array:
    """Decode one symbol at a time in plain integers: slow, and the definition of the format.

    The last two words are the state ``x``. A symbol is the one whose range of frequencies, scaled
    to 24 bits, holds ``x mod 2**24``; then ``x = freq * (x >> 24) + x mod 2**24 - start``, and
    while ``x < 2**32`` and words are left, ``x = x << 32 | last word``. It ends at ``x = 2**24``.
    """
    reader = Reader(data, where=_WHERE)
    size, frequencies = _read_table(reader, count, alphabet)
    used = np.flatnonzero(frequencies)
    scaled = frequencies[used] * ((1 << _PRECISION) // int(frequencies.sum()))
    starts = np.cumsum(scaled) - scaled
    words = [int(word) for word in _read_words(reader)]
    joined = np.full(-(-count // size), used[0], symbol_type(frequencies.size))
    if used.size == 1 and not words:
        return ungroup(joined, alphabet, size, count, where=_WHERE)
    state = 0
    for index in range(joined.size):
        while state < 1 << 32 and words:
            state = state << 32 | words.pop()
        slot = state & ((1 << _PRECISION) - 1)
        entry = int(np.searchsorted(starts, slot, "right")) - 1
        state = int(scaled[entry]) * (state >> _PRECISION) + slot - int(starts[entry])
        joined[index] = used[entry]
    if state != 1 << _PRECISION or words:
        raise CodingError(f"{_WHERE}: the stream does not end where it began; it is damaged.")
    return ungroup(joined, alphabet, size, count, where=_WHERE)
