"""Quantized: packed integer codes with a scale, and a zero point, per group."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Self

import torch
from torch import Tensor

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
from laconic.forms.packing import pack, packed_bytes, unpack, unpack_rows


class Quantized(Form):
    """Stands for ``scale * (code - zero)``.

    Args:
        codes: (rows, cols) uint8, below ``2**bits``.
        scale: (rows, cols / group_size), any float type; a Parameter.
        zero: (rows, cols / group_size) uint8 below ``2**bits``; ``2**(bits - 1)`` where None.
        bits: Bits of a code, 1..8.
        group_size: Columns that share a scale; divides cols, and cols is one scale a row.
        shape: Shape that the form stands for.
        dtype: Type that the form stands for.
        symmetric: There is no zero point; must agree with ``zero``.

    Raises:
        ConfigError: Shapes, types or symbols that do not belong together.
    """

    kind = "quantized"
    packed: Tensor
    packed_zero: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        *,
        bits: int,
        group_size: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        symmetric: bool,
    ) -> None:
        super().__init__(shape, dtype)
        self.bits, self.group_size, self.symmetric = bits, group_size, symmetric
        _check_settings(self.shape, bits, group_size)
        if symmetric != (zero is None):
            raise ConfigError(
                f"quantized: symmetric={symmetric}, but zero points are "
                f"{'missing' if zero is None else 'given'}."
            )
        self._check_codes("codes", codes, self.cols)
        check_tensor(self.kind, "scale", scale, (self.rows, self.groups), FLOATS)
        if zero is not None:
            self._check_codes("zero", zero, self.groups)
        self.register_buffer("packed", pack(codes.reshape(-1), bits))
        self.scale = parameter(scale)
        held = None if zero is None else pack(zero.reshape(-1), bits)
        self.register_buffer("packed_zero", held)

    @property
    def groups(self) -> int:
        """Scales in a row."""
        return self.cols // self.group_size

    def _check_codes(self, name: str, codes: Tensor, width: int) -> None:
        check_tensor(self.kind, name, codes, (self.rows, width), (torch.uint8,))
        check_symbols(self.kind, name, codes, 2**self.bits)

    @classmethod
    def empty(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        bits: int,
        group_size: int,
        scale_dtype: torch.dtype,
        symmetric: bool,
    ) -> Self:
        """Return a sketch on the meta device: shapes and bytes without values.

        Raises:
            ConfigError: Bits or a group size that do not fit the shape.
        """
        _check_settings(shape, bits, group_size)
        rows, cols = shape[0], prod(shape[1:])
        codes = torch.empty(rows, cols, dtype=torch.uint8, device="meta")
        scale = torch.empty(rows, cols // group_size, dtype=scale_dtype, device="meta")
        return cls(
            codes,
            scale,
            None if symmetric else torch.empty_like(scale, dtype=torch.uint8),
            bits=bits,
            group_size=group_size,
            shape=shape,
            dtype=dtype,
            symmetric=symmetric,
        )

    def codes(self) -> Tensor:
        """Return the codes, (rows, cols) uint8."""
        flat = unpack(self.packed, self.bits, self.rows * self.cols)
        return flat.view(self.rows, self.cols)

    def zero(self) -> Tensor | None:
        """Return the zero points, (rows, groups) uint8; None where the form is symmetric."""
        if self.packed_zero is None:
            return None
        flat = unpack(self.packed_zero, self.bits, self.rows * self.groups)
        return flat.view(self.rows, self.groups)

    def dense(self) -> Tensor:
        """Return ``scale * (code - zero)``, computed in float32 or wider."""
        return self._values(self.codes(), self.scale, self.zero()).view(self.shape)

    def _values(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        kind = wide(self.dtype)
        values = codes.to(kind).view(len(codes), self.groups, self.group_size)
        offset = float(2 ** (self.bits - 1)) if zero is None else zero.to(kind).unsqueeze(-1)
        scaled = values.sub_(offset) * scale.to(kind).unsqueeze(-1)
        return scaled.to(self.dtype).view(len(codes), self.cols)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up rows and dequantize only those."""
        flat = ids.reshape(-1)
        zero = None
        if self.packed_zero is not None:
            zero = unpack_rows(self.packed_zero, self.bits, (self.rows, self.groups), flat)
        codes = unpack_rows(self.packed, self.bits, (self.rows, self.cols), flat)
        rows = self._values(codes, self.scale.index_select(0, flat), zero)
        return rows.view(*ids.shape, *self.shape[1:])

    def parts(self) -> dict[str, Part]:
        """Return ``codes`` (rows, cols), ``scale`` and, if asymmetric, ``zero`` (rows, groups)."""
        found = {
            "codes": Part(self.codes(), alphabet=2**self.bits),
            "scale": Part(self.scale.detach()),
        }
        zero = self.zero()
        return found if zero is None else found | {"zero": Part(zero, alphabet=2**self.bits)}

    def settings(self) -> dict[str, Any]:
        """Return ``bits``, ``group_size`` and ``symmetric``."""
        return {
            "bits": self.bits, "group_size": self.group_size, "symmetric": self.symmetric
        }  # fmt: skip

    @classmethod
    def from_parts(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        settings: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        children: Mapping[str, Form],
    ) -> Quantized:
        """Build from ``codes``, ``scale`` and, where asymmetric, ``zero``."""
        check_names(cls.kind, "children", children, [])
        symmetric = settings.get("symmetric")
        if type(symmetric) is not bool:
            raise ConfigError(f"quantized: symmetric={symmetric!r} must be true or false.")
        names = ["codes", "scale"] if symmetric else ["codes", "scale", "zero"]
        check_names(cls.kind, "parts", parts, names)
        return cls(
            parts["codes"],
            parts["scale"],
            parts.get("zero"),
            bits=whole(cls.kind, settings, "bits"),
            group_size=whole(cls.kind, settings, "group_size"),
            shape=shape,
            dtype=dtype,
            symmetric=symmetric,
        )

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed codes alone."""
        return packed_bytes(self.rows * self.cols, self.bits)


def _check_settings(shape: tuple[int, ...], bits: int, group_size: int) -> None:
    check_shape("quantized", shape)
    cols = prod(shape[1:])
    if not 1 <= bits <= 8:
        raise ConfigError(f"quantized: bits={bits} must be between 1 and 8.")
    if group_size < 1 or cols % group_size:
        raise ConfigError(
            f"quantized: group_size={group_size} does not divide cols={cols}; it must be at least "
            "1 and divide them."
        )
