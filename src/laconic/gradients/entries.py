"""Some entries of a vector as bytes: their values, then where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from laconic.gradients.indices import (
    IndexChoice,
    decode_indices,
    encode_indices,
    index_bytes,
    index_code,
)
from laconic.gradients.wire import as_bytes, as_values

ValueChoice = Literal["float32", "bfloat16", "float16"]


def value_dtype(choice: ValueChoice, work: torch.dtype) -> torch.dtype:
    """Return what values are sent as; float32 stands for float64 where that is worked in."""
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    return half.get(choice, work)


@dataclass(frozen=True)
class Entries:
    """How ``count`` of ``length`` entries are written.

    Where all are sent there are no indices.

    Attributes:
        length: Entries of the vector.
        count: Entries that are sent.
        dtype: What values are sent as.
        indices: How indices are written; ``"auto"`` is the smallest.
    """

    length: int
    count: int
    dtype: torch.dtype
    indices: IndexChoice = "auto"

    @property
    def split(self) -> int:
        """Bytes of the values."""
        return self.count * self.dtype.itemsize

    @property
    def total(self) -> int:
        """Bytes in all."""
        if self.count == self.length:
            return self.split
        code = index_code(self.length, self.count, self.indices)
        return self.split + index_bytes(self.length, self.count, code)

    def write_(self, flat: Tensor, chosen: Tensor, out: Tensor) -> None:
        """Write entries to ``out`` and take what was written off ``flat``, both in place.

        Args:
            flat: (length,) float32 or float64; zero at ``chosen`` afterwards, but for what
                rounding to ``dtype`` lost.
            chosen: (count,) int64, rising.
            out: (total,) uint8.
        """
        values = flat[chosen]
        sent = rounded(values, self.dtype)
        out[: self.split].copy_(as_bytes(sent))
        if self.count < self.length:
            code = index_code(self.length, self.count, self.indices)
            out[self.split :].copy_(encode_indices(chosen, self.length, code))
        flat[chosen] = values - sent.to(values.dtype)

    def add_(self, payload: Tensor, flat: Tensor) -> None:
        """Add the entries of a message (total,) to ``flat`` (length,), in place.

        Raises:
            CodingError: The indices are not what :meth:`write_` writes.
        """
        values = as_values(payload[: self.split], self.dtype).to(flat.dtype)
        if self.count == self.length:
            flat.add_(values)
            return
        code = index_code(self.length, self.count, self.indices)
        chosen = decode_indices(payload[self.split :], self.length, self.count, code)
        flat.index_add_(0, chosen, values)


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values in a type of fewer bits; the largest finite one instead of infinity."""
    if dtype == values.dtype:
        return values
    limit = torch.finfo(dtype).max
    return values.clamp(-limit, limit).to(dtype)
