"""Evenly spaced levels: ranges, scales, zero points and codes of groups of weights.

Shapes: ``groups`` is (rows, groups a row, group size) float32; ``scale`` and ``zero`` are
(rows, groups a row, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Literal

import torch
from torch import Tensor

from laconic.errors import LayerError

GroupSize = int | Literal["auto", "channel"]
Range = Literal["absmax", "mse"]
ScaleType = Literal["float16", "bfloat16", "float32"]

AUTO_MOST = 128
_AUTO_LEAST = 16
_GRID = 80  # shrink factors 1 - i/100, i = 0..79
_NORM = 2.4  # exponent of the error in the range search
_CHUNK = 2**20  # weights whose range is searched at once


@dataclass(frozen=True)
class Grid:
    """The levels of groups: ``scale * (code - zero)`` for codes in ``[0, 2**bits)``.

    Attributes:
        scale: (rows, groups, 1) float32, already rounded to the type it is stored in.
        zero: (rows, groups, 1) float32 whole numbers; ``2**(bits - 1)`` where symmetric.
        bits: Bits of a code.
    """

    scale: Tensor
    zero: Tensor
    bits: int

    def encode(self, groups: Tensor) -> Tensor:
        """Return the nearest codes, as float32 whole numbers."""
        return ((groups / self.scale).round_() + self.zero).clamp_(0, 2**self.bits - 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the values of codes."""
        return self.scale * (codes - self.zero)


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive number in order."""
    low = [d for d in range(1, isqrt(number) + 1) if number % d == 0]
    return low + [number // d for d in reversed(low) if d * d != number]


def resolve_group_size(wanted: GroupSize, cols: int, *, site: str, most: int = AUTO_MOST) -> int:
    """Return the group size for rows of ``cols`` weights.

    ``"auto"`` is the largest divisor of ``cols`` up to ``most``; where that is below 16, the
    smallest divisor above ``most`` if it is at most 1024, else the whole row.

    Raises:
        LayerError: A number that does not divide ``cols``; offers those that do.
    """
    if wanted == "channel" or cols == 0:
        return max(cols, 1)
    sizes = divisors(cols)
    if wanted == "auto":
        best = max(d for d in sizes if d <= most)
        if best >= min(_AUTO_LEAST, cols):
            return best
        return next((d for d in sizes if most < d <= 1024), cols)
    if cols % wanted:
        offers = [d for d in sizes if d <= wanted][-3:] + [d for d in sizes if d > wanted][:1]
        raise LayerError(
            f"{site}: group_size={wanted} does not divide the {cols} weights of a row. "
            f"Use one of {offers}, 'auto' or 'channel'."
        )
    return wanted


def fit_grid(
    groups: Tensor,
    *,
    bits: int,
    symmetric: bool,
    search: Range,
    scale_type: ScaleType,
    site: str,
) -> Grid:
    """Fit the range of every group; the scale is rounded first, codes come from the rounded one.

    Raises:
        LayerError: Scales too large or too small for the type they are stored in.
    """
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    store = getattr(torch, scale_type)
    if search == "absmax" or groups.numel() == 0:
        grid = _grid(low, high, bits, symmetric, store)
    else:
        size = max(1, _CHUNK // max(groups[0].numel(), 1))
        spans = [slice(i, i + size) for i in range(0, len(groups), size)]
        pieces = [_searched(groups[s], low[s], high[s], bits, symmetric, store) for s in spans]
        grid = Grid(torch.cat([p.scale for p in pieces]), torch.cat([p.zero for p in pieces]), bits)
    _check_scales(grid, low, high, store, site)
    return grid


def _grid(low: Tensor, high: Tensor, bits: int, symmetric: bool, store: torch.dtype) -> Grid:
    top = 2**bits - 1
    if symmetric:
        scale = torch.maximum(-low, high) / (top / 2)
    else:
        low, high = low.clamp_max(0), high.clamp_min(0)
        scale = (high - low) / top
    scale = torch.where(scale > 0, scale.clamp_min(_least_scale(store)), torch.ones_like(scale))
    scale = scale.to(store).float()
    zero = (
        torch.full_like(scale, 2 ** (bits - 1))
        if symmetric
        else (-low / scale).round_().clamp_(0, top)
    )
    return Grid(scale, zero, bits)


def _least_scale(store: torch.dtype) -> float:
    # Float16 keeps five significant bits down to here, below its smallest normal number.
    return 2.0**-19 if store == torch.float16 else torch.finfo(store).smallest_normal


def _searched(
    groups: Tensor, low: Tensor, high: Tensor, bits: int, symmetric: bool, store: torch.dtype
) -> Grid:
    best = _grid(low, high, bits, symmetric, store)
    least = _error(groups, best)
    for step in range(1, _GRID):
        share = 1 - step / 100
        trial = _grid(low * share, high * share, bits, symmetric, store)
        error = _error(groups, trial)
        better = error < least
        least = torch.where(better, error, least)
        best = Grid(
            torch.where(better, trial.scale, best.scale),
            torch.where(better, trial.zero, best.zero),
            bits,
        )
    return best


def _error(groups: Tensor, grid: Grid) -> Tensor:
    return (grid.decode(grid.encode(groups)) - groups).abs_().pow_(_NORM).sum(-1, keepdim=True)


def _check_scales(grid: Grid, low: Tensor, high: Tensor, store: torch.dtype, site: str) -> None:
    largest = float(torch.maximum(-low, high).amax()) if low.numel() else 0.0
    if not bool(torch.isfinite(grid.scale).all()):
        raise LayerError(
            f"{site}: weights up to {largest:.3g} give scales beyond {store}. "
            "Set scale_dtype to 'float32'."
        )
    if 0 < largest / (2**grid.bits - 1) < 2 * _least_scale(store):
        raise LayerError(
            f"{site}: all weights are below {largest:.3g}, too small for scales in {store}. "
            "Set scale_dtype to 'float32'."
        )
