"""All-reduce gradients in 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from laconic.gradients.base import ReduceState, Value
from laconic.registry import method
from laconic.settings import setting


@method("half", family="quantize", source="as DDP's own fp16 and bf16 hooks", wing="gradients")
@dataclass(kw_only=True, eq=False, repr=False)
class Half(ReduceState):
    """Send every gradient as float16 or bfloat16, added up in that type.

    Gradients are divided by the number of ranks before they are rounded, so that the sum does
    not overflow. Nothing is remembered; a loss scale stays on, as float16 needs it.

    Args:
        dtype: ``"float16"`` has 11 significant bits, from 6e-8 to 65504; ``"bfloat16"`` has 8,
            and the range of float32.

    Differs: DDP's bf16 hook wants CUDA and NCCL; this one runs wherever the process group adds
        up bfloat16, as gloo does.
    """

    dtype: Literal["float16", "bfloat16"] = setting("float16", help="Type on the wire.")

    def default_dense(self, name: str, parameter: Tensor) -> bool:
        """Return false: short tensors gain as much as long ones."""
        return False

    def payload_bytes_at(self, name: str, value: Value) -> int:
        """Return two bytes an entry."""
        return 2 * self.named[name].numel()

    def reduce_dtype(self, name: str) -> torch.dtype:
        """Return the type on the wire."""
        return torch.float16 if self.dtype == "float16" else torch.bfloat16

    def reduce_size(self, name: str, stage: int) -> int:
        """Return the number of entries."""
        return self.named[name].numel()

    def encode(self, name: str, grad: Tensor, out: Tensor) -> None:
        """Write gradient / ranks."""
        out.copy_((grad / self.transport.size).view(-1))

    def finish(self, name: str, reduced: Tensor, out: Tensor) -> None:
        """Widen the sum."""
        out.view(-1).copy_(reduced)
