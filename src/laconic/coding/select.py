"""Code symbols with whichever coder measures smallest, and decode them by its name."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from laconic.coding import ans, gaps, huffman, values, zstd
from laconic.coding._errors import CodingError
from laconic.coding.bits import (
    Reader,
    pack_fixed,
    put_varint,
    unpack_fixed,
    width_of,
)  # fmt: skip
from laconic.coding.entropy import entropy_of_counts
from laconic.coding.symbols import check_alphabet, check_count, check_symbols, symbol_type
from laconic.coding.zstd import Effort
from laconic.errors import nearest

CODERS = ("packed", "zstd", "huffman", "rans")
_BY_EFFORT: dict[Effort, tuple[str, ...]] = {"fast": CODERS[:2], "smallest": CODERS}
_GAPS = "gaps-"
_GAP_WIDTHS_TRIED = 3
_OVERHEAD = 1.002  # what coding the gaps costs over their entropy at the least


class Encoded(NamedTuple):
    """Coded symbols or values.

    Attributes:
        coder: Name to decode with.
        data: The bytes; the count and alphabet are kept by the caller.
    """

    coder: str
    data: bytes


def encode(
    symbols: npt.NDArray[np.uint8 | np.int32],
    alphabet: int,
    *,
    effort: Effort,
    coders: Collection[str] | None = None,
) -> Encoded:
    """Code symbols with the coder that comes out smallest.

    Args:
        symbols: (n,) integers in ``[0, alphabet)``.
        alphabet: Number of possible symbols, 1..65536.
        effort: "fast" tries "packed" and "zstd", which decode 100 million symbols a second and
            more; "smallest" tries "huffman" and "rans" too and is never larger.
        coders: Try these instead.

    Raises:
        CodingError: Symbols outside the alphabet, not a one-dimensional integer array, or an
            unknown coder.

    >>> encode(np.zeros(1000, np.uint8), 1, effort="fast")
    Encoded(coder='packed', data=b'')
    """
    checked = check_symbols(symbols, alphabet)
    _check_effort(effort)
    allowed = _BY_EFFORT[effort] if coders is None else coders
    for name in allowed:
        _check_coder(name)
    width = width_of(alphabet)
    best: Encoded | None = None
    if "packed" in allowed:
        best = Encoded("packed", pack_fixed(checked, width))
    if best and len(best.data) < 2:
        return best
    if "zstd" in allowed:
        best = _smaller(best, "zstd", zstd.encode(checked, alphabet, effort=effort))
    if "rans" in allowed:
        best = _smaller(best, "rans", ans.encode(checked, alphabet))
    if "huffman" in allowed:
        planned = huffman.plan(checked, alphabet)
        if best is None or planned.size <= len(best.data):
            best = _smaller(best, "huffman", huffman.encode(checked, alphabet, planned))
    if best is None:
        raise CodingError(f"coders is empty. Give one or more of {', '.join(CODERS)}.")
    return best


def _check_coder(name: str) -> None:
    if name not in CODERS:
        raise CodingError(
            f"no coder {name!r}.{nearest(name, CODERS)} There are: {', '.join(CODERS)}; patterns "
            "also have gaps-* of each."
        )


def _smaller(best: Encoded | None, coder: str, data: bytes) -> Encoded:
    """Return the shorter of two, the first where they tie."""
    return best if best and len(best.data) <= len(data) else Encoded(coder, data)


def decode(coder: str, data: bytes, count: int, alphabet: int) -> npt.NDArray[np.uint8 | np.int32]:
    """Undo :func:`encode` and :func:`encode_pattern`.

    Args:
        coder: The name that came with the data.
        data: The bytes.
        count: How many symbols there are.
        alphabet: Number of possible symbols, 1..65536.

    Returns:
        (count,) uint8, or int32 where the alphabet is above 256.

    Raises:
        CodingError: An unknown coder, damaged, cut short or too long data, or a symbol outside
            the alphabet. Nothing larger than ``count`` asks for has been allocated then.
    """
    check_alphabet(alphabet)
    check_count(count)
    if coder.startswith(_GAPS):
        if alphabet != 2:
            raise CodingError(f"{coder}: codes patterns of 0 and 1, not alphabet {alphabet}.")
        return _decode_gaps(coder.removeprefix(_GAPS), data, count)
    _check_coder(coder)
    if coder == "packed":
        symbols = unpack_fixed(data, width_of(alphabet), count)
    elif coder == "zstd":
        symbols = zstd.decode(data, count, alphabet)
    elif coder == "huffman":
        symbols = huffman.decode(data, count, alphabet)
    else:
        symbols = ans.decode(data, count, alphabet)
    if symbols.size and int(symbols.max()) >= alphabet:
        raise CodingError(f"{coder}: symbol {symbols.max()} is outside 0..{alphabet - 1}.")
    typed = symbols.astype(symbol_type(alphabet), copy=not symbols.flags.writeable)
    return cast("npt.NDArray[np.uint8 | np.int32]", typed)


def encode_pattern(bits: npt.NDArray[np.uint8], *, effort: Effort) -> Encoded:
    """Code a 0/1 pattern, as bits or as the gaps between its ones, whichever is smaller.

    Args:
        bits: (n,) zeros and ones.
        effort: As for :func:`encode`; the gap symbols go through the same coders.

    Source: Han, Mao & Dally, 2016, Deep Compression, section 2 (gaps with filler zeros).
    """
    best = encode(bits, 2, effort=effort)
    if effort == "smallest":
        best = _smaller(best, *encode_pattern(bits, effort="fast"))
    if len(best.data) <= 2:
        return best
    runs = gaps.zeros_before(bits)
    for width in _gap_widths(runs, 8 * len(best.data)):
        symbols = gaps.to_symbols(runs, width)
        inner = encode(symbols, 1 << width, effort=effort)
        data = bytes([width]) + put_varint(symbols.size) + inner.data
        best = _smaller(best, _GAPS + inner.coder, data)
    return best


def _gap_widths(runs: npt.NDArray[np.int64], limit: int) -> list[int]:
    """Return the widths worth trying: least by entropy, and least at fixed width."""
    by_entropy, by_width = [], []
    for width in gaps.WIDTHS:
        counts = gaps.counts(runs, width)
        total = int(counts.sum())
        by_entropy.append((_OVERHEAD * total * entropy_of_counts(counts), width))
        by_width.append((float(total * width), width))
    tried = [*sorted(by_entropy)[:_GAP_WIDTHS_TRIED], min(by_width)]
    return sorted({width for bits, width in tried if bits < limit})


def _decode_gaps(coder: str, data: bytes, count: int) -> npt.NDArray[np.uint8 | np.int32]:
    reader = Reader(data, where=_GAPS + coder)
    width, size = reader.byte(), reader.varint()
    if width not in gaps.WIDTHS or size > count:
        raise CodingError(f"{reader.where}: {size} gaps of {width} bits for {count} positions.")
    if coder.startswith(_GAPS):
        raise CodingError(f"{reader.where}: gaps of gaps are not a coder.")
    symbols = decode(coder, reader.rest(), size, 1 << width)
    return gaps.from_symbols(symbols, width, count)


def encode_values(raw: bytes, itemsize: int, *, effort: Effort) -> Encoded:
    """Code plain little-endian values without loss: "raw", "zstd" or "planes-zstd".

    Args:
        raw: Whole values, ``itemsize`` bytes each.
        itemsize: Bytes of one value, 1 or more.
        effort: "smallest" tries slower levels too and is never larger.
    """
    _check_effort(effort)
    return Encoded(*values.encode(raw, itemsize, effort=effort))


def decode_values(coder: str, data: bytes, size: int, itemsize: int) -> bytes:
    """Undo :func:`encode_values`; ``size`` is the number of bytes due.

    Raises:
        CodingError: An unknown coder, or damaged, cut short or too long data.
    """
    return values.decode(coder, data, size, itemsize)


def _check_effort(effort: str) -> None:
    if effort not in ("fast", "smallest"):
        raise CodingError(f"effort={effort!r} must be 'fast' or 'smallest'.")
