"""Symbols of 1 to 8 bits, packed without gaps into bytes.

A little-endian bit string: element ``i`` lies at bits ``i*bits ... i*bits + bits - 1``; byte ``k``
holds bits ``8k ... 8k + 7``, lowest first. Eight symbols fill exactly ``bits`` bytes.

Eight symbols are one 64-bit word. Three shift-and-mask steps close the gaps between neighbours,
then pairs, then fours, for all words at once; ``unpack`` takes the steps backwards. Words are the
machine's own, which must be little-endian as all that PyTorch is built for are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laconic.errors import ConfigError

_CHUNK = 2**15  # words worked on at once: they stay in the nearest cache
_INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that ``count`` symbols of ``bits`` bits take."""
    return (count * bits + 7) // 8


def pack(symbols: Tensor, bits: int) -> Tensor:
    """Pack symbols (n,) uint8 below ``2**bits`` into (ceil(n*bits/8),) uint8.

    Higher bits of a symbol would run into its neighbour; forms check their symbols before.

    >>> pack(torch.tensor([1, 2, 7], dtype=torch.uint8), 3).tolist()
    [209, 1]

    Raises:
        ConfigError: ``bits`` outside 1..8, or not a flat uint8 tensor.
    """
    _check(symbols, bits, "pack")
    count = symbols.numel()
    size = packed_bytes(count, bits)
    if symbols.is_meta:
        return symbols.new_empty(size)
    if bits == 8:
        return symbols.clone()
    words = _words(symbols, -(-count // 8) * 8).view(torch.int64)
    out = torch.empty(len(words), bits, dtype=torch.uint8, device=symbols.device)
    for start in range(0, len(words), _CHUNK):
        stop = start + _CHUNK
        _take(_close(words[start:stop], bits), out[start:stop])
    flat = out.view(-1)
    return flat if flat.numel() == size else flat[:size].clone()


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
        return packed.new_empty(count)
    if bits == 8:
        return packed.clone()
    groups = -(-count // 8)
    source = _words(packed, groups * bits).view(groups, bits)
    words = torch.empty(groups, dtype=torch.int64, device=packed.device)
    scratch = torch.zeros(_CHUNK, dtype=torch.int64, device=packed.device)
    for start in range(0, groups, _CHUNK):
        stop = start + _CHUNK
        words[start:stop] = _open(_put(source[start:stop], scratch), bits)
    return words.view(torch.uint8)[:count]


def unpack_rows(packed: Tensor, bits: int, size: tuple[int, int], rows: Tensor) -> Tensor:
    """Return rows of a packed matrix; only those are unpacked where rows fill whole bytes.

    Args:
        packed: All symbols of the matrix, row after row.
        bits: Bits of a symbol.
        size: Rows and columns of the matrix.
        rows: (n,) int64, which rows.

    Shapes:
        -> (n, cols) uint8

    Raises:
        IndexError: A row that is not there.
    """
    count, cols = size
    if not cols and bool(((rows < 0) | (rows >= count)).any()):
        raise IndexError(f"rows {rows.tolist()[:8]} are not all among the {count} there are")
    if cols * bits % 8:
        return unpack(packed, bits, count * cols).view(count, cols).index_select(0, rows)
    picked = packed.view(count, cols * bits // 8).index_select(0, rows)
    return unpack(picked.view(-1), bits, len(rows) * cols).view(len(rows), cols)


def _words(flat: Tensor, size: int) -> Tensor:
    """Return bytes padded with zeros to ``size``, aligned for views of wider types."""
    if flat.numel() != size:
        return torch.cat([flat, flat.new_zeros(size - flat.numel())])
    aligned = flat.is_contiguous() and not flat.storage_offset() % 8
    return flat if aligned else flat.clone(memory_format=torch.contiguous_format)


def _steps(bits: int) -> list[tuple[int, int, int, int]]:
    """Return ``(shift, low, high, apart)`` of the three steps: neighbours, pairs, fours.

    ``low`` covers the lower field of every couple, ``high`` the upper one where it lies next to
    it, and ``apart`` the upper one ``shift`` bits further up, before the gap is closed.
    """
    steps = []
    for lane in (8, 16, 32):
        width = bits * lane // 8
        low = sum(((1 << width) - 1) << at for at in range(0, 64, 2 * lane))
        steps.append((lane - width, low, low << width, low << lane))
    return steps


def _close(words: Tensor, bits: int) -> Tensor:
    for shift, low, high, _ in _steps(bits):
        words = (words & low).bitwise_or_((words >> shift).bitwise_and_(high))
    return words


def _open(words: Tensor, bits: int) -> Tensor:
    for shift, low, _, apart in reversed(_steps(bits)):
        words = (words & low).bitwise_or_((words << shift).bitwise_and_(apart))
    return words


def _take(words: Tensor, target: Tensor) -> None:
    """Write the lowest bytes of each word into the rows of ``target``."""
    whole = _INTS.get(target.shape[1])
    if whole is not None:
        target.view(whole).view(-1).copy_(words)
    else:
        target.copy_(words.view(torch.uint8).view(-1, 8)[:, : target.shape[1]])


def _put(source: Tensor, words: Tensor) -> Tensor:
    """Return each row of bytes as a word; ``words`` is scratch, zero above those bytes."""
    size = source.shape[1]
    whole = _INTS.get(size)
    if whole is not None:  # sign bits that come along are masked away by the first step
        return source.view(whole).view(-1).to(torch.int64)
    words = words[: len(source)]
    words.view(torch.uint8).view(-1, 8)[:, :size].copy_(source)
    return words


def _check(tensor: Tensor, bits: int, verb: str) -> None:
    if type(bits) is not int or not 1 <= bits <= 8:
        raise ConfigError(f"{verb}: bits={bits!r} must be a whole number between 1 and 8.")
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise ConfigError(
            f"{verb}: a flat uint8 tensor is needed, got {tuple(tensor.shape)} {tensor.dtype}."
        )
