"""Codebook: indexes into a table of values or sub-vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.forms.base import Form, Part
from laconic.forms.packing import pack, unpack

_LARGEST_TABLE = 2**16


class Codebook(Form):
    """Stands for ``table[index]``, times a scale per group where there is one.

    Args:
        codes: (rows, cols / vector) uint8, or int32 for more than 256 entries.
        table: (entries, vector), any float type; a Parameter.
        shape: Shape that the form stands for.
        dtype: Type that the form stands for.
        scale: (rows, cols / group_size) factors, for example the absmax of NF4; None for 1.
        group_size: Columns that share a scale; needed with ``scale``.

    Raises:
        ConfigError: Shapes, types or symbols that do not belong together.
    """

    kind = "codebook"

    def __init__(
        self,
        codes: Tensor,
        table: Tensor,
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        scale: Tensor | None = None,
        group_size: int | None = None,
    ) -> None:
        super().__init__(shape, dtype)
        if table.dim() != 2 or not table.is_floating_point() or not table.numel():
            raise ConfigError(f"codebook: table must be (entries, vector), got {table.shape}.")
        self.entries, self.vector = table.shape
        self.group_size = group_size
        self._check_codes(codes)
        self._check_scale(scale)
        self.table = nn.Parameter(table.detach(), requires_grad=table.requires_grad)
        flat = codes.reshape(-1)
        self.register_buffer("packed", pack(flat, self.bits) if self.bits <= 8 else flat)
        held = None if scale is None else nn.Parameter(scale.detach(), requires_grad=False)
        self.register_parameter("scale", held)

    packed: Tensor
    scale: nn.Parameter | None

    @property
    def bits(self) -> int:
        """Bits of a packed index; 32 where the table has more than 256 entries."""
        return max(1, (self.entries - 1).bit_length()) if self.entries <= 256 else 32

    def _check_codes(self, codes: Tensor) -> None:
        wanted = torch.uint8 if self.entries <= 256 else torch.int32
        right = not self.cols % self.vector and tuple(codes.shape) == (
            self.rows,
            self.cols // self.vector,
        )
        if not right or codes.dtype != wanted or self.entries > _LARGEST_TABLE:
            raise ConfigError(
                f"codebook: codes {tuple(codes.shape)} {codes.dtype} do not index a table of "
                f"{self.entries} entries of {self.vector} for ({self.rows}, {self.cols}); they "
                f"must be {wanted}, and entries at most {_LARGEST_TABLE}."
            )
        if not codes.is_meta and codes.numel():
            low, high = int(codes.min()), int(codes.max())
            if low < 0 or high >= self.entries:
                raise ConfigError(f"codebook: index {low}..{high} outside 0..{self.entries - 1}.")

    def _check_scale(self, scale: Tensor | None) -> None:
        if (scale is None) != (self.group_size is None):
            raise ConfigError("codebook: scale and group_size go together.")
        if scale is None or self.group_size is None:
            return
        fits = self.group_size > 0 and not self.cols % self.group_size
        if not fits or tuple(scale.shape) != (self.rows, self.cols // self.group_size):
            raise ConfigError(
                f"codebook: scale {tuple(scale.shape)} does not fit ({self.rows}, {self.cols}) in "
                f"groups of {self.group_size}."
            )

    def codes(self) -> Tensor:
        """Return the indexes, (rows, cols / vector)."""
        count = self.rows * (self.cols // self.vector)
        flat = unpack(self.packed, self.bits, count) if self.bits <= 8 else self.packed
        return flat.view(self.rows, -1) if count else flat.view(self.rows, 0)

    def dense(self) -> Tensor:
        """Return the gathered values; gradients reach the table, summed over each entry."""
        values = self.table[self.codes().long()].float().reshape(self.rows, self.cols)
        if self.scale is not None:
            grouped = values.view(self.rows, -1, int(self.group_size or 1))
            values = (grouped * self.scale.unsqueeze(-1).float()).view(self.rows, self.cols)
        return values.to(self.dtype).view(self.shape)

    def parts(self) -> dict[str, Part]:
        """Return ``codes``, ``table`` and, where there is one, ``scale``."""
        found = {
            "codes": Part(self.codes(), alphabet=self.entries),
            "table": Part(self.table.detach()),
        }
        return found if self.scale is None else found | {"scale": Part(self.scale.detach())}

    def settings(self) -> dict[str, Any]:
        """Return ``group_size`` where there are scales."""
        return {} if self.group_size is None else {"group_size": self.group_size}

    @classmethod
    def from_parts(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        settings: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        children: Mapping[str, Form],
    ) -> Codebook:
        """Build from ``codes``, ``table`` and, where there is one, ``scale``."""
        if not {"codes", "table"} <= set(parts) or not shape:
            raise ConfigError(f"codebook: parts codes and table are needed, got {list(parts)}.")
        group_size = settings.get("group_size")
        if group_size is not None and type(group_size) is not int:
            raise ConfigError(f"codebook: group_size={group_size!r} must be a whole number.")
        return cls(
            parts["codes"],
            parts["table"],
            shape=shape,
            dtype=dtype,
            scale=parts.get("scale"),
            group_size=group_size,
        )
