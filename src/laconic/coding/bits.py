"""Bits in byte strings: fixed-width fields, variable-width codes, variable-length integers.

Fixed-width fields of up to 8 bits are one little-endian bit string: field ``i`` occupies bits
``i * width`` to ``(i + 1) * width - 1``, bit 0 being the lowest bit of byte 0. Wider fields are
split into a plane of low bytes and a plane of the bits above. Variable-width codes are laid
down most significant bit first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from laconic.coding._errors import CodingError

Array = npt.NDArray[np.integer[Any]]
_WORD = 32
_SLAB = 1 << 18  # codes laid down at once; bounds the working memory


def width_of(alphabet: int) -> int:
    """Return the bits that hold any symbol of an alphabet: 0 for 1, 4 for 9..16."""
    return (alphabet - 1).bit_length()


def fixed_size(count: int, width: int) -> int:
    """Return the bytes that ``count`` fields of ``width`` bits take."""
    if width > 8:
        return count + fixed_size(count, width - 8)
    return (count * width + 7) // 8


def pack_fixed(values: Array, width: int) -> bytes:
    """Lay down values below ``2**width`` one after another, ``width`` 0..32."""
    if width > 8:
        high = values >> 8
        return (values & 255).astype(np.uint8).tobytes() + pack_fixed(high, width - 8)
    if width == 8:
        return values.astype(np.uint8).tobytes()
    if width == 0 or not values.size:
        return b""
    padded = np.zeros(-(-values.size // 8) * 8, np.uint8)
    padded[: values.size] = values
    octets = padded.view("<u8")
    return (
        _spread(octets, 8, width)
        .view(np.uint8)
        .reshape(-1, 8)[:, :width]
        .tobytes()[: fixed_size(values.size, width)]
    )


def unpack_fixed(data: bytes, width: int, count: int) -> Array:
    """Read ``count`` fields back: uint8 up to 8 bits, int32 above.

    Raises:
        CodingError: Too few or too many bytes, or a padding bit that is set.
    """
    if len(data) != fixed_size(count, width):
        raise CodingError(
            f"packed: {len(data)} bytes came, {count} fields of {width} bits take "
            f"{fixed_size(count, width)}. The data is cut short or from another tensor."
        )
    if width > 8:
        low = np.frombuffer(data, np.uint8, count).astype(np.int32)
        return low | unpack_fixed(data[count:], width - 8, count).astype(np.int32) << 8
    if width == 8:
        return np.frombuffer(data, np.uint8).copy()
    if width == 0:
        return np.zeros(count, np.uint8)
    rows = -(-count // 8)
    padded = np.zeros((rows, 8), np.uint8)
    whole = np.frombuffer(data + bytes(rows * width - len(data)), np.uint8)
    padded[:, :width] = whole.reshape(rows, width)
    octets = _spread(padded.ravel().view("<u8"), width, 8)
    fields = octets.astype("<u8", copy=False).view(np.uint8)
    if fields[count:].any():
        raise CodingError("packed: padding bits after the last field are set; data is damaged.")
    return fields[:count]


def _spread(octets: npt.NDArray[np.uint64], old: int, new: int) -> npt.NDArray[np.uint64]:
    """Move 8 fields in each 64-bit word from a pitch of ``old`` bits to ``new`` bits.

    Pairs, then pairs of pairs, are moved at once: 3 rounds where 8 would move each field alone.
    """
    rounds = ((1, 4), (2, 2), (4, 1)) if new < old else ((4, 1), (2, 2), (1, 4))
    for group, pairs in rounds:
        source, target = group * old, group * new
        # Before this round a pair lies at pitch `before`; fields inside it are packed already
        # (or, on the way out, still are).
        pitch = 2 * group * (old if new < old else new)
        inside = group * min(old, new)
        low = sum(((1 << inside) - 1) << (pitch * i) for i in range(pairs))
        if new < old:
            octets = (octets & np.uint64(low)) | (
                (octets & np.uint64((low << source) & (2**64 - 1))) >> np.uint64(source - target)
            )
        else:
            octets = (octets & np.uint64(low)) | (
                (octets & np.uint64((low << source) & (2**64 - 1))) << np.uint64(target - source)
            )
    return octets


def put_codes(codes: Array, lengths: Array) -> bytes:
    """Lay down codes one after another, most significant bit first, zero bits up to a byte.

    Args:
        codes: (n,) values below ``2**length``.
        lengths: (n,) bits of each code, 0..32.
    """
    total = int(lengths.sum(dtype=np.int64))
    words = np.zeros(total // _WORD + 2, np.uint64)
    done = 0
    for first in range(0, lengths.size, _SLAB):
        sizes = lengths[first : first + _SLAB].astype(np.int64)
        ends = done + np.cumsum(sizes)
        done = int(ends[-1])
        word, offset = (ends - sizes) >> 5, (ends - sizes) & 31
        room = (64 - offset - sizes).astype(np.uint64)
        # A code of no bits leaves no trace; a shift by 64 would be undefined.
        placed = codes[first : first + _SLAB].astype(np.uint64) << (room & np.uint64(63))
        placed[room == 64] = 0
        heads = np.flatnonzero(np.diff(word, prepend=-1))
        both = np.add.reduceat(placed, heads)  # disjoint bits: the sum is the union
        words[word[heads]] |= both >> np.uint64(_WORD)
        words[word[heads] + 1] |= both & np.uint64(0xFFFFFFFF)
    return words.astype(">u4").tobytes()[: (total + 7) // 8]


def put_varint(value: int) -> bytes:
    """Write a non-negative integer, 7 bits a byte, lowest first; the top bit says "more"."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


class Reader:
    """Read fields from the front of a byte string; running out is a :class:`CodingError`."""

    def __init__(self, data: bytes, *, where: str) -> None:
        self.data, self.where, self.at = data, where, 0

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        if size > len(self.data) - self.at:
            left = len(self.data) - self.at
            raise CodingError(f"{self.where}: cut short: {size} bytes are needed, {left} are left.")
        self.at += size
        return self.data[self.at - size : self.at]

    def rest(self) -> bytes:
        """Return all bytes that are left."""
        return self.take(len(self.data) - self.at)

    def byte(self) -> int:
        """Return the next byte as a number."""
        return self.take(1)[0]

    def varint(self) -> int:
        """Return the next variable-length integer, below 2**63 and in its shortest form."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
            if shift > 56:
                raise CodingError(f"{self.where}: a length above 2**63; data is damaged.")
        if shift and not byte:
            raise CodingError(f"{self.where}: a length with leading zeros; data is damaged.")
        return value

    def close(self) -> None:
        """Raise unless everything has been read."""
        if self.at != len(self.data):
            extra = len(self.data) - self.at
            raise CodingError(f"{self.where}: {extra} bytes too many after the end.")
