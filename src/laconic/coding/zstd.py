"""Zstandard over one byte a symbol or a group of symbols.

On symbols without structure the matches that a dictionary coder finds cost more than they save,
and they are short. So the first candidate looks for long matches only (7 bytes,
a small hash table, the fast strategy), which leaves nearly everything to the Huffman stage that
comes within 1 % of the entropy. Small alphabets are first grouped, several symbols to a byte:
Huffman codes are whole bits, and matches by chance grow rare. Ordinary levels compete, for data
that does repeat.

Layout: one byte (1..8: symbols in a group; 16: two byte planes) and one frame, or for planes a
variable-length size, the frame of low bytes and the frame of high bytes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import zstandard

from laconic.coding._errors import CodingError
from laconic.coding.bits import Array, Reader, put_varint
from laconic.coding.symbols import group, group_sizes, ungroup

Effort = Literal["fast", "smallest"]
_PLANES = 16
_SAMPLE = 1 << 18
_SLICES = 4
_NEAR = 1.01  # candidates this close on the sample are all tried on the whole
_STRUCTURED = 0.25  # bytes out for a byte in: below, Huffman's floor of a bit a byte tells
_LITERALS = 0  # our own setting; other numbers are zstd levels
_QUICK_LEVELS = (_LITERALS, 3)
_DEEP: dict[Effort, tuple[int, ...]] = {"fast": (12,), "smallest": (12, 19)}


class _Candidate(NamedTuple):
    size: float
    group: int
    level: int


def _compressor(level: int, size: int) -> zstandard.ZstdCompressor:
    if level != _LITERALS:
        return zstandard.ZstdCompressor(level=level)
    parameters = zstandard.ZstdCompressionParameters(
        window_log=max(10, min(17, (max(size, 1) - 1).bit_length())),
        hash_log=6, chain_log=6, search_log=1, min_match=7, target_length=0,
        strategy=zstandard.STRATEGY_FAST, write_content_size=True,
    )  # fmt: skip
    return zstandard.ZstdCompressor(compression_params=parameters)


def frame(data: bytes, level: int) -> bytes:
    """Return one frame that declares its content size; level 0 looks for long matches only."""
    return _compressor(level, len(data)).compress(data)


def smallest_frame(data: bytes, levels: tuple[int, ...] = _QUICK_LEVELS) -> bytes:
    """Return the shortest frame over some levels."""
    return min((frame(data, level) for level in levels), key=len)


def unframe(data: bytes, size: int, *, where: str) -> bytes:
    """Decompress one frame whose content has exactly ``size`` bytes.

    Raises:
        CodingError: Not one whole frame, or one that declares another size or a window larger
            than that size needs; nothing has been decompressed then.
    """
    try:
        head = zstandard.get_frame_parameters(data)
        if head.content_size != size:
            declared = head.content_size
            raise CodingError(f"{where}: the frame declares {declared} bytes, {size} are due.")
        if head.window_size > max(2 * size, 1024):
            raise CodingError(f"{where}: the frame asks for a window of {head.window_size} bytes.")
        content = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodingError(f"{where}: {error}; the data is damaged or cut short.") from error
    if len(content) != size:
        raise CodingError(f"{where}: {len(content)} bytes came out, {size} are due.")
    return content


def encode(symbols: Array, alphabet: int, *, effort: Effort) -> bytes:
    """Code symbols; the grouping and level are those that measure smallest."""
    if not symbols.size:
        return b""
    if alphabet > 256:
        planes = [(symbols & 255).astype(np.uint8), (symbols >> 8).astype(np.uint8)]
        low, high = (smallest_frame(plane.tobytes()) for plane in planes)
        return bytes([_PLANES]) + put_varint(len(low)) + low + high
    best = b""
    joined: dict[int, bytes] = {}
    for candidate in _candidates(symbols, alphabet, effort):
        size = candidate.group
        if size not in joined:
            joined[size] = group(symbols, alphabet, size).tobytes()
        data = bytes([size]) + frame(joined[size], candidate.level)
        best = min(best or data, data, key=len)
    return best


def _candidates(symbols: Array, alphabet: int, effort: Effort) -> list[_Candidate]:
    """Return settings worth trying on all symbols, judged on a sample of them."""
    sample = _sample(symbols)
    tried: list[_Candidate] = []

    def attempt(size: int, levels: tuple[int, ...]) -> None:
        data = group(sample, alphabet, size).tobytes()
        tried.extend(_Candidate(len(frame(data, level)), size, level) for level in levels)

    sizes = group_sizes(alphabet)
    for size in sizes:
        attempt(size, _QUICK_LEVELS)
    best = min(tried)
    if best.level != _LITERALS or best.size * best.group < _STRUCTURED * sample.size:
        for size in {sizes[0], best.group, sizes[-1]}:
            attempt(size, _DEEP[effort])
    # Every setting that "fast" would choose is also among those of "smallest".
    quick = [c for c in tried if c.level in (*_QUICK_LEVELS, *_DEEP["fast"])]
    near = [c for c in quick if c.size <= _NEAR * min(quick).size]
    return sorted({*sorted(near)[:3], min(tried)})


def _sample(symbols: Array) -> Array:
    if symbols.size <= _SAMPLE:
        return symbols
    length = _SAMPLE // _SLICES
    starts = np.linspace(0, symbols.size - length, _SLICES).astype(np.int64)
    return np.concatenate([symbols[start : start + length] for start in starts])


def decode(data: bytes, count: int, alphabet: int) -> Array:
    """Undo :func:`encode`; the caller checks symbols against alphabets above 256."""
    reader = Reader(data, where="zstd")
    if not count:
        reader.close()
        return np.zeros(0, np.uint8)
    layout = reader.byte()
    if layout == _PLANES and alphabet > 256:
        low = unframe(reader.take(reader.varint()), count, where="zstd: low bytes")
        high = unframe(reader.rest(), count, where="zstd: high bytes")
        planes = (np.frombuffer(part, np.uint8).astype(np.int32) for part in (low, high))
        return next(planes) | next(planes) << 8
    if layout not in group_sizes(alphabet) or alphabet > 256:
        raise CodingError(f"zstd: layout {layout} does not belong to alphabet {alphabet}.")
    content = unframe(reader.rest(), -(-count // layout), where="zstd")
    return ungroup(np.frombuffer(content, np.uint8), alphabet, layout, count, where="zstd")
