"""Quantized: packed integer codes with a scale, and a zero point, per group."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Self

import torch
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
from laconic.forms.activations import Activations, Axes
from laconic.forms.base import Form, Part
from laconic.forms.packing import pack, packed_bytes, unpack, unpack_rows


class Quantized(Form):
    """Stands for ``scale * (code - zero)``.

    Args:
        codes: (rows, cols) uint8, below ``2**bits``.
        scale: (rows, cols / group_size), any float type; a Parameter.
        zero: (rows, cols / group_size): uint8 below ``2**bits``, held packed; or of any float
            type, a Parameter, where levels need not hold zero; ``2**(bits - 1)`` where None.
        bits: Bits of a code, 1..8.
        group_size: Columns that share a scale; divides cols, and cols is one scale a row.
        shape: Shape that the form stands for.
        dtype: Type that the form stands for.
        symmetric: There is no zero point; must agree with ``zero``.
        activations: How inputs are rounded before each product; None leaves them.
        input_scale: (1,) float32, the static scale of inputs; only with static activations.

    Raises:
        ConfigError: Shapes, types or symbols that do not belong together.
    """

    kind = "quantized"
    packed: Tensor
    packed_zero: Tensor | None
    input_scale: Tensor | None
    float_zero: nn.Parameter | None

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
        activations: Activations | None = None,
        input_scale: Tensor | None = None,
    ) -> None:
        super().__init__(shape, dtype)
        self.activations = activations
        self.bits, self.group_size, self.symmetric = bits, group_size, symmetric
        _check_settings(self.shape, bits, group_size)
        if symmetric != (zero is None):
            raise ConfigError(
                f"quantized: symmetric={symmetric}, but zero points are "
                f"{'missing' if zero is None else 'given'}."
            )
        self._check_codes("codes", codes, self.cols)
        check_tensor(self.kind, "scale", scale, (self.rows, self.groups), FLOATS)
        whole_zero = zero is not None and not zero.is_floating_point()
        if zero is not None and whole_zero:
            self._check_codes("zero", zero, self.groups)
        elif zero is not None:
            check_tensor(self.kind, "zero", zero, (self.rows, self.groups), FLOATS)
        self.register_buffer("packed", pack(codes.reshape(-1), bits))
        self.scale = parameter(scale)
        held = pack(zero.reshape(-1), bits) if zero is not None and whole_zero else None
        self.register_buffer("packed_zero", held)
        self.register_parameter(
            "float_zero", None if zero is None or whole_zero else parameter(zero)
        )
        self.register_buffer("input_scale", self._checked_scale(input_scale))

    def _checked_scale(self, scale: Tensor | None) -> Tensor | None:
        static = self.activations is not None and self.activations.static
        if static != (scale is not None):
            raise ConfigError(
                f"quantized: input_scale is {'missing' if static else 'given'} and activations are "
                f"{self.activations}; it belongs to granularity 'static' alone."
            )
        if scale is None:
            return None
        check_tensor(self.kind, "input_scale", scale, (1,), (torch.float32,))
        if not scale.is_meta and not bool(torch.isfinite(scale) & (scale > 0)):
            raise ConfigError(f"quantized: input_scale={float(scale)} must be finite and above 0.")
        return scale.detach()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        scale = self.input_scale
        super()._apply(fn, recurse)
        if scale is not None and self.input_scale is not None:  # stays float32: it is one number
            moved = self.input_scale
            lost = scale.is_meta or moved.is_meta
            self.input_scale = moved.float() if lost else scale.to(moved.device)
        return self

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
        zero_dtype: torch.dtype = torch.uint8,
        activations: Activations | None = None,
    ) -> Self:
        """Return a sketch on the meta device: shapes and bytes without values.

        Zero points are of ``zero_dtype``: uint8 for packed whole numbers, or a float type.

        Raises:
            ConfigError: Bits or a group size that do not fit the shape.
        """
        _check_settings(shape, bits, group_size)
        rows, cols = shape[0], prod(shape[1:])
        codes = torch.empty(rows, cols, dtype=torch.uint8, device="meta")
        scale = torch.empty(rows, cols // group_size, dtype=scale_dtype, device="meta")
        static = activations is not None and activations.static
        return cls(
            codes,
            scale,
            None if symmetric else torch.empty_like(scale, dtype=zero_dtype),
            bits=bits,
            group_size=group_size,
            shape=shape,
            dtype=dtype,
            symmetric=symmetric,
            activations=activations,
            input_scale=torch.empty(1, device="meta") if static else None,
        )

    def codes(self) -> Tensor:
        """Return the codes, (rows, cols) uint8."""
        flat = unpack(self.packed, self.bits, self.rows * self.cols)
        return flat.view(self.rows, self.cols)

    def zero(self) -> Tensor | None:
        """Return the zero points, (rows, groups); None where the form is symmetric.

        They are uint8, or of a float type where they are not whole numbers.
        """
        if self.packed_zero is None:
            return self.float_zero
        flat = unpack(self.packed_zero, self.bits, self.rows * self.groups)
        return flat.view(self.rows, self.groups)

    def dense(self) -> Tensor:
        """Return ``scale * (code - zero)``, computed in float32 or wider."""
        return self._values(self.codes(), self.scale, self.zero()).to(self.dtype).view(self.shape)

    def incoming(self, x: Tensor, *, axes: Axes = "last") -> Tensor:
        """Return the input, rounded where the form has activations."""
        if self.activations is None:
            return x
        return self.activations.round(x, self.input_scale, axes=axes)

    def operand(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix; beside rounded inputs it is not rounded to the form's own type."""
        if self.activations is None:
            return super().operand(dtype)
        return self._values(self.codes(), self.scale, self.zero()).to(dtype)

    def _values(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        kind = wide(self.dtype)
        values = codes.to(kind).view(len(codes), self.groups, self.group_size)
        offset = float(2 ** (self.bits - 1)) if zero is None else zero.to(kind).unsqueeze(-1)
        scaled = values.sub_(offset) * scale.to(kind).unsqueeze(-1)
        return scaled.view(len(codes), self.cols)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up rows and dequantize only those."""
        flat = ids.reshape(-1)
        zero = None if self.float_zero is None else self.float_zero.index_select(0, flat)
        if self.packed_zero is not None:
            zero = unpack_rows(self.packed_zero, self.bits, (self.rows, self.groups), flat)
        codes = unpack_rows(self.packed, self.bits, (self.rows, self.cols), flat)
        rows = self._values(codes, self.scale.index_select(0, flat), zero)
        return rows.to(self.dtype).view(*ids.shape, *self.shape[1:])

    def parts(self) -> dict[str, Part]:
        """Return ``codes`` (rows, cols) and ``scale``; ``zero`` and ``input_scale`` if any."""
        found = {
            "codes": Part(self.codes(), alphabet=2**self.bits),
            "scale": Part(self.scale.detach()),
        }
        zero = self.zero()
        if zero is not None:
            alphabet = None if zero.is_floating_point() else 2**self.bits
            found["zero"] = Part(zero.detach(), alphabet=alphabet)
        if self.input_scale is not None:
            found["input_scale"] = Part(self.input_scale)
        return found

    def settings(self) -> dict[str, Any]:
        """Return ``bits``, ``group_size``, ``symmetric``, and ``activations`` if any."""
        held = {"bits": self.bits, "group_size": self.group_size, "symmetric": self.symmetric}
        if self.activations is None:
            return held
        return {**held, "activations": self.activations.settings()}

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
        check_names(cls.kind, "parts", parts, names, ["input_scale"])
        return cls(
            parts["codes"],
            parts["scale"],
            parts.get("zero"),
            bits=whole(cls.kind, settings, "bits"),
            group_size=whole(cls.kind, settings, "group_size"),
            shape=shape,
            dtype=dtype,
            symmetric=symmetric,
            activations=_activations(settings.get("activations")),
            input_scale=parts.get("input_scale"),
        )

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed codes alone."""
        return packed_bytes(self.rows * self.cols, self.bits)


def _activations(told: object) -> Activations | None:
    if told is None:
        return None
    if not isinstance(told, Mapping):
        raise ConfigError(f"quantized: activations={str(told)[:40]} must be a mapping, or none.")
    return Activations.of(told)


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
