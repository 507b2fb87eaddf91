"""Quantized: packed integer codes with a scale, and a zero point, per group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.forms.base import Form, Part
from laconic.forms.packing import pack, packed_bytes, unpack


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
        _check_settings(bits, group_size, self.rows, self.cols)
        if symmetric != (zero is None):
            raise ConfigError(f"quantized: symmetric={symmetric} but zero is {type(zero)}.")
        self._check("codes", codes, (self.rows, self.cols), symbols=True)
        self._check("scale", scale, (self.rows, self.groups), symbols=False)
        self.register_buffer("packed", pack(codes.reshape(-1), bits))
        self.scale = nn.Parameter(scale.detach(), requires_grad=scale.requires_grad)
        packed_zero = None
        if zero is not None:
            self._check("zero", zero, (self.rows, self.groups), symbols=True)
            packed_zero = pack(zero.reshape(-1), bits)
        self.register_buffer("packed_zero", packed_zero)

    packed: Tensor
    packed_zero: Tensor | None

    @property
    def groups(self) -> int:
        """Scales in a row."""
        return self.cols // self.group_size if self.group_size else 0

    def _check(self, name: str, tensor: Tensor, shape: tuple[int, ...], *, symbols: bool) -> None:
        right = tensor.dtype == torch.uint8 if symbols else tensor.is_floating_point()
        if tuple(tensor.shape) != shape or not right:
            kind = "uint8" if symbols else "floating point"
            raise ConfigError(
                f"quantized: {name} must be {shape} {kind}, got {tuple(tensor.shape)} "
                f"{tensor.dtype}."
            )
        if symbols and not tensor.is_meta and tensor.numel() and int(tensor.max()) >> self.bits:
            raise ConfigError(f"quantized: {name} holds {int(tensor.max())} in {self.bits} bits.")

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
        """Return a sketch on the meta device: shapes and bytes without values."""
        rows = shape[0]
        cols = int(torch.Size(shape[1:]).numel())
        _check_settings(bits, group_size, rows, cols)
        groups = cols // group_size if group_size else 0
        codes = torch.empty(rows, cols, dtype=torch.uint8, device="meta")
        zero = torch.empty(rows, groups, dtype=torch.uint8, device="meta")
        return cls(
            codes,
            torch.empty(rows, groups, dtype=scale_dtype, device="meta"),
            None if symmetric else zero,
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
        return unpack(self.packed_zero, self.bits, self.rows * self.groups).view(self.rows, -1)

    def dense(self) -> Tensor:
        """Return ``scale * (code - zero)``, computed in float32."""
        return self._values(self.codes(), self.scale, self.zero()).to(self.dtype).view(self.shape)

    def _values(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        grouped = codes.view(*codes.shape[:-1], self.groups, -1).float()
        offset = float(2 ** (self.bits - 1)) if zero is None else zero.unsqueeze(-1).float()
        return ((grouped - offset) * scale.unsqueeze(-1).float()).reshape(codes.shape)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up rows and dequantize only those."""
        zero = self.zero()
        rows = self._values(self.codes()[ids], self.scale[ids], None if zero is None else zero[ids])
        return rows.to(self.dtype).view(*ids.shape, *self.shape[1:])

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
        if not {"codes", "scale"} <= set(parts) or not shape:
            raise ConfigError(f"quantized: parts codes and scale are needed, got {list(parts)}.")
        bits, group_size = settings.get("bits"), settings.get("group_size")
        if type(bits) is not int or type(group_size) is not int:
            raise ConfigError(f"quantized: bits={bits!r}, group_size={group_size!r} are needed.")
        return cls(
            parts["codes"],
            parts["scale"],
            parts.get("zero"),
            bits=bits,
            group_size=group_size,
            shape=shape,
            dtype=dtype,
            symmetric=bool(settings.get("symmetric")),
        )

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed codes alone."""
        return packed_bytes(self.rows * self.cols, self.bits)


def _check_settings(bits: int, group_size: int, rows: int, cols: int) -> None:
    if not 1 <= bits <= 8:
        raise ConfigError(f"quantized: bits={bits} must be between 1 and 8.")
    if cols and (group_size < 1 or cols % group_size):
        raise ConfigError(f"quantized: group_size={group_size} does not divide cols={cols}.")
    if rows < 0:
        raise ConfigError(f"quantized: rows={rows} must be at least 0.")
