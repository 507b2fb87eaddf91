"""Symbols of 1 to 8 bits, packed without gaps into bytes.

A little-endian bit string: element ``i`` lies at bits ``i*bits ... i*bits + bits - 1``; byte ``k``
holds bits ``8k ... 8k + 7``, lowest first. Eight symbols fill exactly ``bits`` bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laconic.errors import ConfigError


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that ``count`` symbols of ``bits`` bits take."""
    return (count * bits + 7) // 8


def pack(symbols: Tensor, bits: int) -> Tensor:
    """Pack symbols (n,) uint8 below ``2**bits`` into (ceil(n*bits/8),) uint8.

    Raises:
        ConfigError: ``bits`` outside 1..8, or not a flat uint8 tensor.
    """
    _check(symbols, bits, "pack")
    count = symbols.numel()
    size = packed_bytes(count, bits)
    if symbols.is_meta:
        return torch.empty(size, dtype=torch.uint8, device="meta")
    if bits == 8:
        return symbols.clone()
    groups = (count + 7) // 8
    if count % 8:
        symbols = torch.cat([symbols, symbols.new_zeros(groups * 8 - count)])
    eight = symbols.view(groups, 8)
    out = symbols.new_zeros(groups, bits)
    for index in range(8):
        byte, shift = divmod(index * bits, 8)
        column = eight[:, index]
        out[:, byte] |= column << shift
        if shift + bits > 8:
            out[:, byte + 1] |= column >> (8 - shift)
    return out.view(-1)[:size].clone() if groups * bits != size else out.view(-1)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the ``count`` symbols, (count,) uint8, that :func:`pack` packed.

    Raises:
        ConfigError: ``bits`` outside 1..8, or the bytes are not those of ``count`` symbols.
    """
    _check(packed, bits, "unpack")
    if count < 0 or packed.numel() != packed_bytes(count, bits):
        raise ConfigError(
            f"unpack: {packed.numel()} bytes cannot be {count} symbols of {bits} bits; that takes "
            f"{packed_bytes(max(count, 0), bits)} bytes."
        )
    if packed.is_meta:
        return torch.empty(count, dtype=torch.uint8, device="meta")
    if bits == 8:
        return packed.clone()
    groups = (count + 7) // 8
    if packed.numel() != groups * bits:
        packed = torch.cat([packed, packed.new_zeros(groups * bits - packed.numel())])
    source = packed.view(groups, bits)
    out = torch.empty(groups, 8, dtype=torch.uint8, device=packed.device)
    mask = (1 << bits) - 1
    for index in range(8):
        byte, shift = divmod(index * bits, 8)
        value = source[:, byte] >> shift
        if shift + bits > 8:
            value = value | (source[:, byte + 1] << (8 - shift))
        out[:, index] = value & mask
    return out.view(-1)[:count]


def _check(tensor: Tensor, bits: int, verb: str) -> None:
    if not 1 <= bits <= 8:
        raise ConfigError(f"{verb}: bits={bits} must be between 1 and 8.")
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise ConfigError(
            f"{verb}: a flat uint8 tensor is needed, got {tuple(tensor.shape)} {tensor.dtype}."
        )
