"""Sorted indices on the wire, in a size that every rank knows beforehand.

- ``delta16``: the zeros between neighbours, 16 bits each. A slot of 65535 skips 65535 places and
  names none; ``ceil(length / 65535)`` spare slots hold as many of them as there can be, so that
  the size does not depend on where the indices lie. The rest are filled with 65535.
- ``int32``: each index in 32 bits.
- ``bitmap``: a bit a place.

Numbers are little-endian. The 16-bit code is that of Lin, Han, Mao, Wang and Dally 2018 (section
3), who send a zero value with a skip; here a skip has no value.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from laconic.coding import CodingError
from laconic.errors import ConfigError, nearest
from laconic.forms.packing import pack, packed_bytes, unpack

IndexCode = Literal["delta16", "int32", "bitmap"]
IndexChoice = Literal["auto", "delta16", "int32", "bitmap"]
_SKIP = 65535


def index_bytes(length: int, count: int, code: IndexCode) -> int:
    """Return the bytes that ``count`` sorted indices below ``length`` take on the wire.

    >>> [index_bytes(1_000_000, 1000, code) for code in ("delta16", "int32", "bitmap")]
    [2032, 4000, 125000]

    Raises:
        ConfigError: ``count`` or ``length`` out of bounds, or an unknown code.
    """
    known = get_args(IndexCode)
    if code not in known:
        raise ConfigError(
            f"indices: code={code!r} must be one of {', '.join(known)}.{nearest(str(code), known)}"
        )
    if not 0 <= count <= length:
        raise ConfigError(f"indices: count={count} must be between 0 and {length}, the length.")
    if code == "delta16":
        return 2 * (count + -(-length // _SKIP))
    if code == "bitmap":
        return packed_bytes(length, 1)
    if length > 2**31:
        raise ConfigError(
            f"indices: int32 cannot tell {length} places apart, only {2**31}. Use delta16."
        )
    return 4 * count


def index_code(length: int, count: int, choice: IndexChoice = "auto") -> IndexCode:
    """Return the code to use: the smallest for these numbers where ``choice`` is ``auto``.

    >>> index_code(10_000, 10), index_code(10_000, 1000)
    ('delta16', 'bitmap')
    """
    if choice != "auto":
        index_bytes(length, count, choice)
        return choice
    codes: tuple[IndexCode, ...] = ("delta16", "bitmap", "int32")
    fitting = codes if length <= 2**31 else codes[:2]
    return min(fitting, key=lambda code: index_bytes(length, count, code))


def encode_indices(indices: Tensor, length: int, code: IndexCode) -> Tensor:
    """Return the wire bytes of sorted indices.

    Args:
        indices: (count,) int64, strictly increasing, each 0..length - 1.
        length: n, the places that an index can name.
        code: How they are written.

    Shapes:
        indices (count,) -> bytes (``index_bytes(length, count, code)``,) uint8, same device.

    Raises:
        ConfigError: ``indices`` is not a flat int64 tensor, or too long.
        CodingError: Indices out of range or out of order.
    """
    if indices.dim() != 1 or indices.dtype != torch.int64:
        raise ConfigError(
            f"indices: {indices.dtype} of shape {tuple(indices.shape)} must be a flat int64 tensor."
        )
    size = index_bytes(length, len(indices), code)
    gaps = torch.diff(indices, prepend=indices.new_full((1,), -1)) - 1
    if len(indices) and not bool(((gaps >= 0).all() & (indices[-1] < length)).item()):
        raise CodingError(
            f"indices: they must rise strictly within 0..{length - 1}; sort them and drop doubles."
        )
    if code == "int32":
        return indices.to(torch.int32).view(torch.uint8)
    if code == "bitmap":
        bits = torch.zeros(length, dtype=torch.uint8, device=indices.device)
        bits[indices] = 1
        return pack(bits, 1)
    slots = torch.full((size // 2,), -1, dtype=torch.int16, device=indices.device)
    at = torch.arange(len(indices), device=indices.device) + (gaps // _SKIP).cumsum(0)
    slots[at] = (gaps % _SKIP).to(torch.int16)  # 32768 and more wrap round: the same 16 bits
    return slots.view(torch.uint8)


def decode_indices(buffer: Tensor, length: int, count: int, code: IndexCode) -> Tensor:
    """Return the (count,) int64 indices that :func:`encode_indices` wrote.

    Args:
        buffer: (``index_bytes(length, count, code)``,) uint8.
        length: n, the places that an index can name.
        count: K, how many there are.
        code: How they were written.

    Raises:
        CodingError: The buffer is truncated, too long, or not what the encoder writes for these
            numbers: wrong count, an index out of range or out of order, padding that is not.
    """
    size = index_bytes(length, count, code)
    if buffer.dtype != torch.uint8 or buffer.dim() != 1 or buffer.numel() != size:
        raise CodingError(
            f"indices: {code} of {count} of {length} takes {size} bytes (flat uint8), but "
            f"{buffer.numel()} of {buffer.dtype} came. The sender has another plan or version."
        )
    if code == "bitmap":
        indices = unpack(buffer, 1, length).nonzero().view(-1)
        spare = -length % 8
        sound = len(indices) == count and not (spare and int(buffer[-1]) >> (8 - spare))
        return _sound(indices, sound=sound, code=code, length=length, count=count)
    if code == "int32":
        indices = _aligned(buffer, torch.int32).to(torch.int64)
        rising = torch.diff(indices, prepend=indices.new_full((1,), -1)) > 0
        sound = not count or bool((rising.all() & (indices[-1] < length)).item())
        return _sound(indices, sound=sound, code=code, length=length, count=count)
    return _decode_gaps(buffer, length, count)


def _decode_gaps(buffer: Tensor, length: int, count: int) -> Tensor:
    slots = _aligned(buffer, torch.int16).to(torch.int64) & 0xFFFF
    named = slots < _SKIP
    indices = (slots + named).cumsum(0)[named] - 1
    sound = len(indices) == count and (not count or int(indices[-1]) < length)
    return _sound(indices, sound=sound, code="delta16", length=length, count=count)


def _aligned(buffer: Tensor, dtype: torch.dtype) -> Tensor:
    """View bytes as wider numbers, by way of a copy where they do not lie on a boundary."""
    if buffer.storage_offset() % dtype.itemsize or not buffer.is_contiguous():
        buffer = buffer.clone(memory_format=torch.contiguous_format)
    return buffer.view(dtype)


def _sound(indices: Tensor, *, sound: bool, code: IndexCode, length: int, count: int) -> Tensor:
    if not sound:
        raise CodingError(
            f"indices: the bytes are not the {code} code of {count} rising indices below {length}; "
            f"they hold {len(indices)}, or name places out of order or out of range. "
            "The message is damaged, or the sender has another plan or version."
        )
    return indices
