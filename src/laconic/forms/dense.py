"""Dense: the values themselves, in any type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.forms.base import Form, Part


class Dense(Form):
    """The values themselves.

    Args:
        value: Tensor of any shape; a Parameter is made of it where it is floating point.
    """

    kind = "dense"

    def __init__(self, value: Tensor) -> None:
        super().__init__(tuple(value.shape), value.dtype)
        held = value.detach()
        if held.is_floating_point():
            self.value = nn.Parameter(held, requires_grad=value.requires_grad)
        else:
            self.register_buffer("value", held)

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
        value = parts.get("value")
        if value is None or tuple(value.shape) != tuple(shape) or value.dtype != dtype:
            got = None if value is None else (tuple(value.shape), value.dtype)
            raise ConfigError(f"dense: value must be {tuple(shape)} {dtype}, got {got}.")
        return cls(value)
