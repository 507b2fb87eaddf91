"""Codebook: indexes into a table of values or sub-vectors."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.forms._check import (
    FLOATS,
    check_names,
    check_shape,
    check_symbols,
    check_tensor,
    parameter,
    whole,
    wide,
)
from laconic.forms.base import Form, Part
from laconic.forms.packing import pack, unpack, unpack_rows

_LARGEST_TABLE = 2**16
_INTEGERS = (torch.uint8, torch.int32, torch.int64)


class Codebook(Form):
    """Stands for ``table[index]``, times a scale per group where there is one.

    Args:
        codes: (rows, cols / vector) whole numbers below the table's entries; held packed in
            ``ceil(log2(entries))`` bits up to 256 entries, in int32 above.
        table: (entries, vector), any float type; a Parameter. One value an entry is scalar
            clustering (k-means, NF4), several are a product quantizer.
        shape: Shape that the form stands for.
        dtype: Type that the form stands for.
        scale: (rows, cols / group_size) factors, for example the absmax of NF4 blocks; None for 1.
            Or a form that stands for them one after another, row by row: any form of at least as
            many elements and less than one row more, whose last ones are not used (double
            quantization, in blocks that need not end where rows do).
        group_size: Columns that share a scale; needed with ``scale``, and divides cols.

    Raises:
        ConfigError: Shapes, types or symbols that do not belong together.

    Source: Han, Mao & Dally, 2016, Deep Compression, section 3; Dettmers et al., 2023, QLoRA,
    section 3 (NF4: a fixed table with a scale a block).
    """

    kind = "codebook"
    packed: Tensor
    scale: nn.Parameter | Form | None

    def __init__(
        self,
        codes: Tensor,
        table: Tensor,
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        scale: Tensor | Form | None = None,
        group_size: int | None = None,
    ) -> None:
        super().__init__(shape, dtype)
        check_shape(self.kind, self.shape)
        self.entries, self.vector = _table_size(table, self.cols)
        self.group_size = group_size
        check_tensor(self.kind, "codes", codes, (self.rows, self.cols // self.vector), _INTEGERS)
        check_symbols(self.kind, "codes", codes, self.entries)
        self._check_scale(scale)
        flat = codes.reshape(-1)
        packed = pack(flat.to(torch.uint8), self.bits) if self.bits <= 8 else flat.to(torch.int32)
        self.register_buffer("packed", packed)
        self.table = parameter(table)
        if isinstance(scale, Form):
            self.scale = scale
        else:
            self.register_parameter("scale", None if scale is None else parameter(scale))

    @property
    def bits(self) -> int:
        """Bits of a held index; 32 where the table has more than 256 entries."""
        return max(1, (self.entries - 1).bit_length()) if self.entries <= 256 else 32

    def _check_scale(self, scale: Tensor | Form | None) -> None:
        size = self.group_size
        if scale is None or size is None:
            if scale is not None or size is not None:
                raise ConfigError(
                    f"codebook: scale and group_size go together; got group_size={size} and "
                    f"{'no ' if scale is None else 'a '}scale."
                )
            return
        if size < 1 or self.cols % size:
            raise ConfigError(
                f"codebook: group_size={size} does not divide cols={self.cols}; it must be at "
                "least 1 and divide them."
            )
        if not isinstance(scale, Form):
            check_tensor(self.kind, "scale", scale, (self.rows, self.cols // size), FLOATS)
            return
        count, held = self.rows * (self.cols // size), scale.rows * scale.cols
        if not count <= held < count + max(scale.cols, 1):
            raise ConfigError(
                f"codebook: a form of {scale.shape} was given for {count} scales; it must stand "
                "for as many, with less than one row to spare."
            )

    @classmethod
    def empty(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        entries: int,
        vector: int = 1,
        table_dtype: torch.dtype | None = None,
        scale_dtype: torch.dtype | None = None,
        scale: Form | None = None,
        group_size: int | None = None,
    ) -> Self:
        """Return a sketch on the meta device: shapes and bytes without values.

        Args:
            shape: Shape that the form stands for.
            dtype: Type that the form stands for.
            entries: Entries of the table.
            vector: Values of an entry; divides cols.
            table_dtype: Type of the table; ``dtype`` where None.
            scale_dtype: Type of the scales; ``dtype`` where None.
            scale: Sketch of a form of the scales; plain ones where None.
            group_size: Columns that share a scale; None for no scales.

        Raises:
            ConfigError: Sizes that do not fit the shape.
        """
        check_shape(cls.kind, shape)
        rows, cols = shape[0], prod(shape[1:])
        table = torch.empty(max(entries, 0), max(vector, 0), dtype=table_dtype or dtype).to("meta")
        _table_size(table, cols)
        held: Tensor | Form | None = scale
        if group_size is not None and scale is None:
            width = cols // max(group_size, 1)
            held = torch.empty(rows, width, dtype=scale_dtype or dtype, device="meta")
        codes = torch.empty(rows, cols // vector, dtype=torch.int32, device="meta")
        return cls(codes, table, shape=shape, dtype=dtype, scale=held, group_size=group_size)

    def codes(self) -> Tensor:
        """Return the indexes, (rows, cols / vector): uint8, or int32 above 256 entries."""
        width = self.cols // self.vector
        if self.bits > 8:
            return self.packed.view(self.rows, width)
        return unpack(self.packed, self.bits, self.rows * width).view(self.rows, width)

    def dense(self) -> Tensor:
        """Return the gathered values; gradients reach the table, summed over each entry."""
        return self._values(self.codes(), self.scales()).view(self.shape)

    def scales(self) -> Tensor | None:
        """Return the scales, (rows, cols / group_size); None where there are none."""
        if not isinstance(self.scale, Form) or self.group_size is None:
            return self.scale if isinstance(self.scale, Tensor) else None
        width = self.cols // self.group_size
        return self.scale.dense().reshape(-1)[: self.rows * width].view(self.rows, width)

    def _values(self, codes: Tensor, scale: Tensor | None) -> Tensor:
        kind = wide(self.dtype)
        values = F.embedding(codes.to(torch.int32), self.table.to(kind))
        if scale is not None and self.group_size is not None:
            grouped = values.reshape(len(codes), self.cols // self.group_size, self.group_size)
            values = grouped * scale.to(kind).unsqueeze(-1)
        return values.to(self.dtype).reshape(len(codes), self.cols)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up rows and gather only their values."""
        flat, width = ids.reshape(-1), self.cols // self.vector
        if self.bits > 8:
            codes = self.packed.view(self.rows, width).index_select(0, flat)
        else:
            codes = unpack_rows(self.packed, self.bits, (self.rows, width), flat)
        scales = self.scales()
        scale = None if scales is None else scales.index_select(0, flat)
        return self._values(codes, scale).view(*ids.shape, *self.shape[1:])

    def parts(self) -> dict[str, Part]:
        """Return ``codes``, ``table`` and, where it is a plain tensor, ``scale``."""
        found = {
            "codes": Part(self.codes(), alphabet=self.entries),
            "table": Part(self.table.detach()),
        }
        if not isinstance(self.scale, Tensor):
            return found
        return found | {"scale": Part(self.scale.detach())}

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
        """Build from ``codes``, ``table`` and, where there is one, ``scale``: a part or a child."""
        check_shape(cls.kind, shape)
        grouped = settings.get("group_size") is not None
        check_names(cls.kind, "children", children, [], ["scale"] if grouped else [])
        plain = grouped and not children
        names = ["codes", "table", "scale"] if plain else ["codes", "table"]
        check_names(cls.kind, "parts", parts, names)
        entries, vector = _table_size(parts["table"], prod(shape[1:]))
        stored = torch.uint8 if entries <= 256 else torch.int32
        size = (*shape[:1], prod(shape[1:]) // vector)
        check_tensor(cls.kind, "codes", parts["codes"], size, (stored,))
        return cls(
            parts["codes"],
            parts["table"],
            shape=shape,
            dtype=dtype,
            scale=parts.get("scale") if plain else children.get("scale"),
            group_size=whole(cls.kind, settings, "group_size") if grouped else None,
        )


def _table_size(table: Tensor, cols: int) -> tuple[int, int]:
    """Return entries and values of an entry, or refuse the table."""
    right = table.dim() == 2 and table.dtype in FLOATS
    entries, vector = table.shape if right else (0, 0)
    if not 1 <= entries <= _LARGEST_TABLE or vector < 1 or cols % vector:
        raise ConfigError(
            f"codebook: a table of shape {tuple(table.shape)} {table.dtype} does not fit "
            f"cols={cols}; it must be floating (entries, vector) with 1 to {_LARGEST_TABLE} "
            "entries, and vector must divide cols."
        )
    return entries, vector
