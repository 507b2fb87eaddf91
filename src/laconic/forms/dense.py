"""Dense: the values themselves, in any type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from laconic.forms._check import check_names, check_shape, check_tensor, parameter
from laconic.forms.base import Form, Part


class Dense(Form):
    """The values themselves.

    Args:
        value: Tensor of any shape; a Parameter is made of it where it is floating point, and a
            Parameter is held as it is.
    """

    kind = "dense"
    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__(tuple(value.shape), value.dtype)
        if value.is_floating_point():
            self.value = parameter(value)
        else:
            self.register_buffer("value", value.detach())

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: torch.dtype) -> Self:
        """Return a sketch on the meta device: shape and bytes without values."""
        return cls(torch.empty(shape, dtype=dtype, device="meta"))

    def dense(self) -> Tensor:
        """Return the values."""
        return self.value

    def parts(self) -> dict[str, Part]:
        """Return ``value`` (shape) as plain values."""
        return {"value": Part(self.value.detach())}

    def settings(self) -> dict[str, Any]:
        """Return nothing: shape and type say it all."""
        return {}

    @classmethod
    def from_parts(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        settings: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        children: Mapping[str, Form],
    ) -> Dense:
        """Build from ``value``."""
        check_names(cls.kind, "parts", parts, ["value"])
        check_names(cls.kind, "children", children, [])
        check_shape(cls.kind, shape, axes=0)
        check_tensor(cls.kind, "value", parts["value"], shape, (dtype,))
        return cls(parts["value"])
