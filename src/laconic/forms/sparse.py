"""Sparse: a pattern and the surviving values, themselves a form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms.base import Form, Part
from laconic.forms.packing import pack, unpack


class Sparse(Form):
    """Stands for the values where the mask is set and for zeros elsewhere.

    Args:
        mask: (rows, cols) bool, True where a value is kept; held as one bit a weight.
        values: Form of the kept values in row-major order: (rows, kept in a row) where every row
            keeps as many, else (1, kept in all).
        shape: Shape that the form stands for.
        dtype: Type that the form stands for.
        pattern: Name of the pattern, for example ``"unstructured"`` or ``"2:4"``.

    Raises:
        ConfigError: The mask does not fit the shape, or keeps another number of values.
    """

    kind = "sparse"
    packed_mask: Tensor

    def __init__(
        self,
        mask: Tensor,
        values: Form,
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        pattern: str = "unstructured",
    ) -> None:
        super().__init__(shape, dtype)
        self.pattern = pattern
        if tuple(mask.shape) != (self.rows, self.cols) or mask.dtype != torch.bool:
            raise ConfigError(
                f"sparse: mask must be ({self.rows}, {self.cols}) bool, got "
                f"{tuple(mask.shape)} {mask.dtype}."
            )
        held = values.rows * values.cols
        if not mask.is_meta and int(mask.sum()) != held:
            raise ConfigError(f"sparse: the mask keeps {int(mask.sum())} of {held} values.")
        self.register_buffer("packed_mask", pack(mask.reshape(-1).to(torch.uint8), 1))
        self.values = values

    @property
    def mask(self) -> Tensor:
        """Which weights are kept, (rows, cols) bool."""
        flat = unpack(self.packed_mask, 1, self.rows * self.cols)
        return flat.view(self.rows, self.cols).bool()

    def dense(self) -> Tensor:
        """Return the values in their places and zeros elsewhere; differentiable in the values."""
        kept = self.values.dense().reshape(-1).to(self.dtype)
        zeros = torch.zeros(self.rows, self.cols, dtype=self.dtype, device=kept.device)
        return zeros.masked_scatter(self.mask, kept).view(self.shape)

    def parts(self) -> dict[str, Part]:
        """Return ``mask`` (rows, cols) as symbols 0 and 1."""
        symbols = self.mask.to(torch.uint8)
        return {"mask": Part(symbols, alphabet=2, sparse_pattern=True)}

    def settings(self) -> dict[str, Any]:
        """Return the name of the pattern."""
        return {"pattern": self.pattern}

    @classmethod
    def from_parts(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        settings: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        children: Mapping[str, Form],
    ) -> Sparse:
        """Build from ``mask`` and the child ``values``."""
        if set(parts) != {"mask"} or set(children) != {"values"} or not shape:
            raise ConfigError(
                f"sparse: mask and values are needed, got {list(parts)} and {list(children)}."
            )
        symbols = parts["mask"]
        if symbols.dtype != torch.uint8 or (symbols.numel() and int(symbols.max()) > 1):
            raise ConfigError("sparse: the mask must be uint8 symbols 0 and 1.")
        pattern = settings.get("pattern", "unstructured")
        if not isinstance(pattern, str):
            raise ConfigError(f"sparse: pattern={pattern!r} must be a text.")
        return cls(symbols.bool(), children["values"], shape=shape, dtype=dtype, pattern=pattern)
