"""One bit an entry: the sign, times the mean magnitude, with error feedback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laconic.forms.packing import pack, packed_bytes, unpack
from laconic.gradients.base import GatherState, Keep, Value
from laconic.gradients.buckets import bucket_count, cut, join
from laconic.gradients.wire import aligned, as_bytes, as_values
from laconic.registry import method
from laconic.settings import setting


@method(
    "signsgd",
    family="quantize",
    source="Seide, Fu, Droppo, Li and Yu 2014; Karimireddy, Rebjock, Stich and Jaggi 2019",
    wing="gradients",
)
@dataclass(kw_only=True, eq=False, repr=False)
class SignSGD(GatherState):
    """Send signs and one scale, and remember what that lost.

    On each rank, with error memory e: ``v = e + g``; sent is ``mean|v| * sign(v)``, and
    ``e = v - sent``. Zero counts as positive.

    Args:
        bucket: Entries that share a scale; None is the whole tensor, as in the paper.

    Shapes:
        gradient (...) of n entries -> scales (buckets,), zeros up to a multiple of 16 bytes,
        then n bits, 1 for positive.

    Source: Karimireddy et al. 2019 (EF-signSGD), Algorithm 1; Seide et al. 2014, section 3.
    Differs: Seide et al. have one scale for each sign of each column.
    """

    bucket: int | None = setting(None, help="Entries that share a scale.", low=8)

    slots: ClassVar[Mapping[str, Keep]] = {"residual": "sum"}

    def _bits_at(self, name: str) -> int:
        size = self.named[name].numel()
        return aligned(bucket_count(size, self.bucket) * self.work_dtype(name).itemsize)

    def payload_bytes_at(self, name: str, value: Value) -> int:
        """Return the bytes of scales and signs."""
        return self._bits_at(name) + packed_bytes(self.named[name].numel(), 1)

    def encode(self, name: str, grad: Tensor, out: Tensor) -> None:
        """Write scales, then signs."""
        total, size = self.corrected(name, grad), grad.numel()
        runs = cut(total.view(-1), self.bucket)
        # The zeros behind the last run must not make its mean smaller.
        filled = torch.full((len(runs), 1), runs.shape[1], dtype=runs.dtype, device=runs.device)
        filled[-1] -= runs.numel() - size
        scale = torch.linalg.vector_norm(runs, 1, dim=1, keepdim=True) / filled
        signs = (runs >= 0).to(torch.uint8)
        out[: scale.numel() * scale.element_size()].copy_(as_bytes(scale))
        out[self._bits_at(name) :].copy_(pack(join(signs, size), 1))
        sent = join(_values(signs, scale), size).view(grad.shape)
        self.draft(name, residual=total.sub_(sent))

    def accumulate(self, name: str, payload: Tensor, out: Tensor) -> None:
        """Add one rank's values."""
        size = out.numel()
        buckets = bucket_count(size, self.bucket)
        scale = as_values(payload[: buckets * out.element_size()], out.dtype).view(-1, 1)
        signs = unpack(payload[self._bits_at(name) :].contiguous(), 1, size)
        out.view(-1).add_(join(_values(cut(signs, self.bucket), scale), size))


def _values(signs: Tensor, scale: Tensor) -> Tensor:
    return signs.to(scale.dtype).mul_(2).sub_(1).mul_(scale)
