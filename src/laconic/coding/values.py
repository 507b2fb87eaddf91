"""Lossless coding of plain values: byte planes of floats and integers.

The first bytes of neighbouring values (sign and exponent of floats) are alike, the last ones are
noise; apart, the alike ones compress.
"""

from __future__ import annotations

import numpy as np

from laconic.coding import zstd
from laconic.coding._errors import CodingError
from laconic.coding.bits import Reader, put_varint

_LEVELS: dict[zstd.Effort, tuple[int, ...]] = {"fast": (0, 3), "smallest": (0, 3, 12, 19)}
_STORED, _FRAME = 0, 1
CODERS = ("raw", "zstd", "planes-zstd")


def encode(raw: bytes, itemsize: int, *, effort: zstd.Effort) -> tuple[str, bytes]:
    """Return the name and bytes of the smallest of raw, zstd and planes-zstd."""
    _check(len(raw), itemsize)
    options = [("raw", raw)]
    if raw:
        options.append(("zstd", zstd.smallest_frame(raw, _LEVELS[effort])))
    if raw and itemsize > 1:
        planes = np.frombuffer(raw, np.uint8).reshape(-1, itemsize).T
        coded = (_encode_plane(plane.tobytes(), effort) for plane in planes)
        options.append(("planes-zstd", b"".join(coded)))
    return min(options, key=lambda option: len(option[1]))


def _encode_plane(plane: bytes, effort: zstd.Effort) -> bytes:
    framed = zstd.smallest_frame(plane, _LEVELS[effort])
    if len(framed) >= len(plane):
        return bytes([_STORED]) + plane
    return bytes([_FRAME]) + put_varint(len(framed)) + framed


def decode(coder: str, data: bytes, size: int, itemsize: int) -> bytes:
    """Undo :func:`encode`.

    Raises:
        CodingError: An unknown coder, or damaged, cut short or too long data.
    """
    _check(size, itemsize)
    if coder == "raw":
        if len(data) != size:
            raise CodingError(f"raw values: {len(data)} bytes came, {size} are due.")
        return bytes(data)
    if coder == "zstd":
        return zstd.unframe(data, size, where="values: zstd")
    if coder != "planes-zstd":
        raise CodingError(f"no coder {coder!r} for values. There are: {', '.join(CODERS)}.")
    count = size // itemsize
    reader = Reader(data, where="values: planes-zstd")
    planes = [_decode_plane(reader, count) for _ in range(itemsize)]
    reader.close()
    return np.stack([np.frombuffer(plane, np.uint8) for plane in planes], 1).tobytes()


def _decode_plane(reader: Reader, count: int) -> bytes:
    mode = reader.byte()
    if mode == _STORED:
        return reader.take(count)
    if mode != _FRAME:
        raise CodingError(f"{reader.where}: plane mode {mode} is not known; data is damaged.")
    return zstd.unframe(reader.take(reader.varint()), count, where=reader.where)


def _check(size: int, itemsize: int) -> None:
    if itemsize < 1 or size < 0 or size % itemsize:
        raise CodingError(f"values: {size} bytes are not whole values of {itemsize} bytes.")
