"""How the inputs of a quantized weight are rounded, at each call, before they are multiplied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from laconic.errors import ConfigError, nearest
from laconic.forms._check import wide

Granularity = Literal["token", "tensor", "static"]
Axes = Literal["last", "example"]
LOW_BITS, HIGH_BITS = 2, 8
_TINY = 1e-30  # smallest scale: what only holds zeros is divided by it


@dataclass(frozen=True)
class Activations:
    """Rounding of activations to evenly spaced levels.

    With ``Q = 2**bits - 1`` the symmetric scale is ``clip * max|x| / (Q/2)`` and codes lie in
    ``-2**(bits-1) .. 2**(bits-1) - 1``; the asymmetric range is widened to hold zero, shrunk by
    ``clip``, and split into ``Q`` steps with a whole zero point. Zero stays exact in both.

    Args:
        bits: Bits of a rounded value, 2..8.
        granularity: What shares a scale: ``"token"``, every row of the input (every example of a
            convolution), or ``"tensor"``, the whole input of a call; both are measured at each
            call. ``"static"`` is one scale for all calls, fixed by calibration.
        symmetric: Levels around zero, without a zero point; static scales always are.
        clip: Share of the range that is kept, 0.1..1; 0.9 in QuaRot.

    Raises:
        ConfigError: A value of the wrong type or outside its bounds.

    Source: Xiao et al. 2023 (SmoothQuant), section 2, for the granularities; Ashkboos et al. 2024
    (QuaRot), section 5, for the clip.
    """

    bits: int = 8
    granularity: Granularity = "token"
    symmetric: bool = True
    clip: float = 1.0

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not LOW_BITS <= self.bits <= HIGH_BITS:
            raise ConfigError(
                f"activations: bits={self.bits!r} must be a whole number between {LOW_BITS} and "
                f"{HIGH_BITS}."
            )
        allowed = get_args(Granularity)
        if self.granularity not in allowed:
            hint = nearest(str(self.granularity), allowed)
            raise ConfigError(
                f"activations: granularity={self.granularity!r} must be one of "
                f"{', '.join(allowed)}.{hint}"
            )
        if type(self.symmetric) is not bool:
            raise ConfigError(f"activations: symmetric={self.symmetric!r} must be true or false.")
        number = type(self.clip) in (int, float)
        if not number or not 0.1 <= self.clip <= 1:
            raise ConfigError(
                f"activations: clip={self.clip!r} must be a number between 0.1 and 1."
            )
        if self.static and not self.symmetric:
            raise ConfigError(
                "activations: granularity='static' with symmetric=False: static scales come from "
                "the largest magnitude and are symmetric. Set symmetric, or granularity 'tensor'."
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Build from plain values, as a recipe or a manifest holds them.

        Raises:
            ConfigError: An unknown name, or a value out of bounds.
        """
        names = [field.name for field in fields(cls)]
        for name in settings:
            if name not in names:
                raise ConfigError(
                    f"activations: no setting {name!r}.{nearest(str(name), names)} Allowed: "
                    f"{', '.join(names)}."
                )
        return cls(**settings)

    def settings(self) -> dict[str, Any]:
        """Return plain values: the inverse of :meth:`of`."""
        return asdict(self)

    @property
    def static(self) -> bool:
        """The scale is fixed by calibration."""
        return self.granularity == "static"

    @property
    def top(self) -> int:
        """The highest code, counted from 0."""
        return int(2**self.bits) - 1

    def fixed_scale(self, absmax: Tensor) -> Tensor:
        """Return the static scale for inputs of a largest magnitude: (1,) float32."""
        largest = absmax.detach().float().amax().reshape(1)
        return (self.clip * largest / (self.top / 2)).clamp_min(_TINY)

    def levels(
        self, x: Tensor, fixed: Tensor | None = None, *, axes: Axes = "last"
    ) -> tuple[Tensor, Tensor, Tensor | int]:
        """Return codes, scales and zero points: the rounded input is ``scale * (code - zero)``.

        Args:
            x: Input (..., cols) of any float type; computed in float32 or wider.
            fixed: The static scale (1,), where the granularity is static.
            axes: ``"last"``: a token is a row of the last axis; ``"example"``: all axes but the
                first, as for a convolution.

        Returns:
            Whole numbers ``0 .. 2**bits - 1`` as floats, shaped as ``x``; scales that broadcast
            over it; zero points that do too, or one number.
        """
        held = x.detach().to(wide(x.dtype))
        if self.symmetric:
            middle = 2 ** (self.bits - 1)
            if fixed is None:
                scale = self._most(held.abs(), axes).mul(self.clip).div(self.top / 2)
                scale = scale.clamp_min(_TINY)
            else:
                scale = fixed.to(held.dtype)
            codes = (held / scale).round_().add_(middle).clamp_(0, self.top)
            return codes, scale, middle
        low = -self._most(-held, axes).clamp_min(0) * self.clip
        high = self._most(held, axes).clamp_min(0) * self.clip
        scale = ((high - low) / self.top).clamp_min(_TINY)
        zero = (-low / scale).round_().clamp_(0, self.top)
        return (held / scale).round_().add_(zero).clamp_(0, self.top), scale, zero

    def _most(self, x: Tensor, axes: Axes) -> Tensor:
        """Return the largest value of each part that shares a scale."""
        if x.numel() == 0:
            return x.new_zeros((1,) * x.dim())
        if self.granularity == "token" and axes == "last":
            return x.amax(-1, keepdim=True)
        if self.granularity == "token":
            return x.amax(tuple(range(1, x.dim())), keepdim=True) if x.dim() > 1 else x
        return x.amax().reshape((1,) * x.dim())

    def round(self, x: Tensor, fixed: Tensor | None = None, *, axes: Axes = "last") -> Tensor:
        """Return the rounded input, in float32 or wider.

        Gradients pass straight through, but not where a value was clipped.
        """
        codes, scale, zero = self.levels(x, fixed, axes=axes)
        rounded = codes.sub_(zero).mul_(scale)
        if torch.is_grad_enabled() and x.requires_grad:
            return _straight(x, rounded, scale)
        return rounded


class _Straight(torch.autograd.Function):
    """Gives the rounded values; the gradient is that of the input where nothing was clipped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return rounded.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return grads[0] * kept, None, None


def _straight(x: Tensor, rounded: Tensor, scale: Tensor) -> Tensor:
    held = x.to(rounded.dtype)
    kept = (held.detach() - rounded).abs() <= 1.001 * scale
    out: Tensor = _Straight.apply(held, rounded, kept)  # type: ignore[no-untyped-call]  # torch
    return out
