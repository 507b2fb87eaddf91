"""Send every gradient as it is: what the other methods are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from laconic.gradients.base import CommState, Value
from laconic.registry import method


@method("dense", family="dense", source="plain data parallelism", wing="gradients")
@dataclass(kw_only=True, eq=False, repr=False)
class Dense(CommState):
    """All-reduce every bucket in its own type; bit-equal to DDP without a hook.

    Use it to count bytes of the uncompressed run in the same place as those of the others.
    """

    route: ClassVar[Literal["gather", "reduce"]] = "reduce"

    def default_dense(self, name: str, parameter: Tensor) -> bool:
        """Return true: everything stays dense."""
        return True

    def payload_bytes_at(self, name: str, value: Value) -> int:
        """Return the bytes of the gradient."""
        return self.dense_bytes(name)
