"""Send the largest entries; remember the rest and add it to the next gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laconic.gradients.base import GatherState, Keep, Value
from laconic.gradients.wire import as_bytes, as_values
from laconic.settings import setting


@dataclass(kw_only=True, eq=False, repr=False)
class TopK(GatherState):
    """Send the share ``density`` of a tensor's largest entries, with error feedback."""

    density: float = setting(0.01, help="Share of a tensor's entries that are sent.", low=0, high=1)

    tuned: ClassVar[str | None] = "density"
    slots: ClassVar[Mapping[str, Keep]] = {"residual": "sum"}

    def kept(self, name: str, value: Value) -> int:
        """Return the number of entries sent at a density."""
        return max(1, math.ceil(value * self.named[name].numel()))

    def payload_bytes_at(self, name: str, value: Value) -> int:
        """Return K values and K int32 indices."""
        return self.kept(name, value) * (self.work_dtype(name).itemsize + 4)

    def encode(self, name: str, grad: Tensor, out: Tensor) -> None:
        """Write K values, then their indices."""
        total = self.corrected(name, grad).view(-1)
        count = self.kept(name, self.parameter(name))
        chosen = total.abs().topk(count).indices.sort().values
        values = total[chosen]
        split = count * values.element_size()
        out[:split].copy_(as_bytes(values))
        out[split:].copy_(as_bytes(chosen.to(torch.int32)))
        self.draft(name, residual=total.index_fill_(0, chosen, 0.0).view(grad.shape))

    def accumulate(self, name: str, payload: Tensor, out: Tensor) -> None:
        """Add the entries at their places."""
        split = self.kept(name, self.parameter(name)) * out.element_size()
        values = as_values(payload[:split], out.dtype)
        chosen = as_values(payload[split:], torch.int32).long()
        out.view(-1).index_add_(0, chosen, values)
