"""Codes in 32-bit words: a little-endian bit string along a row, each row a whole number of words.

The layout of compressed-tensors from version 0.14 on, for every width: element ``i`` of a row lies
at bits ``i*bits ... i*bits + bits - 1`` of the row's string, across word borders. Older versions
put ten codes of three bits into a word; 1, 2, 4 and 8 bits never changed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms.packing import pack, unpack

_WORD = 32


def words_in_row(count: int, bits: int) -> int:
    """Return the words that ``count`` codes of ``bits`` bits take."""
    return -(-count * bits // _WORD)


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Pack codes (rows, cols) uint8 into (rows, words) int32."""
    rows, cols = codes.shape
    full = -(-cols // _WORD) * _WORD  # so many codes fill whole words at every width
    padded = torch.nn.functional.pad(codes, (0, full - cols))
    packed = pack(padded.reshape(-1), bits).view(rows, full * bits // 8)
    return packed.view(torch.int32)[:, : words_in_row(cols, bits)].contiguous()


def unpack_rows(words: Tensor, bits: int, cols: int) -> Tensor:
    """Return codes (rows, cols) uint8 of words (rows, words) int32.

    Raises:
        ConfigError: The words are not those of rows of ``cols`` codes.
    """
    if words.dtype != torch.int32 or words.dim() != 2:
        raise ConfigError(f"packed codes must be an int32 matrix, got {words.dtype}.")
    rows, width = words.shape
    if width != words_in_row(cols, bits):
        raise ConfigError(
            f"packed codes: {width} words a row are not {cols} codes of {bits} bits; that takes "
            f"{words_in_row(cols, bits)}."
        )
    full = -(-cols // _WORD) * _WORD
    padded = torch.nn.functional.pad(words, (0, full * bits // _WORD - width))
    flat = padded.contiguous().view(torch.uint8).reshape(-1)
    return unpack(flat, bits, rows * full).view(rows, full)[:, :cols].contiguous()


def pack_columns(codes: Tensor, bits: int) -> Tensor:
    """Pack codes (rows, cols) uint8 along the rows axis into (words, cols) int32."""
    return pack_rows(codes.T.contiguous(), bits).T.contiguous()


def unpack_columns(words: Tensor, bits: int, rows: int) -> Tensor:
    """Return codes (rows, cols) uint8 of words (words, cols) int32."""
    return unpack_rows(words.T.contiguous(), bits, rows).T.contiguous()
