"""Settings that all methods with evenly spaced levels share, and their sketch."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.quantized import Quantized
from laconic.settings import setting
from laconic.weights.base import LayerStep
from laconic.weights.checks import has_dense, replace_dense
from laconic.weights.quantize._uniform import (
    AUTO_MOST,
    Grid,
    Range,
    ScaleType,
    fit_grid,
    resolve_group_size,
)


@dataclass(frozen=True, kw_only=True)
class UniformStep(LayerStep, ABC):
    """A step that leaves evenly spaced levels, one scale per group of a row.

    Args:
        bits: Stored bits per weight, 2..8, without scales.
        group_size: Weights that share one scale, along the input axis; must divide it.
            ``"auto"`` is the largest divisor up to ``group_limit``, ``"channel"`` one scale a row.
        group_limit: Largest group that ``"auto"`` may choose, 16..1024.
        symmetric: One scale a group and levels around zero; else a zero point beside it.
        range: ``"absmax"`` covers every weight; ``"mse"`` shrinks the range in 80 steps to
            the least error.
        scale_dtype: Type that scales are stored in.
    """

    shorthand: ClassVar[str | None] = "bits"

    bits: int = setting(4, help="Stored bits per weight, without scales.", low=2, high=8)
    group_size: int | Literal["auto", "channel"] = setting(
        "auto", help="Weights that share one scale; must divide the layer's input.", low=1
    )
    group_limit: int = setting(
        AUTO_MOST, help="Largest group that group_size 'auto' may choose.", low=16, high=1024
    )
    symmetric: bool = setting(True, help="Levels around zero, without a zero point.")
    range: Range = setting("absmax", help="How the range of a group is chosen.")
    scale_dtype: ScaleType = setting("float16", help="Type that scales are stored in.")

    def levels(self) -> tuple[Self, ...]:
        """Return the step at 2, 3, 4, 5, 6 and 8 bits."""
        return tuple(replace(self, bits=bits) for bits in (2, 3, 4, 5, 6, 8))

    def sketch(self, form: Form, *, site: str) -> Form:
        """Return the form with its dense parts quantized, on the meta device."""
        self.check_form(form)

        def change(dense: Dense, path: str) -> Form:
            name = f"{site} ({path})" if path else site
            return Quantized.empty(
                dense.shape,
                dense.dtype,
                bits=self.bits,
                group_size=self.resolve_group(dense.cols, site=name),
                scale_dtype=getattr(torch, self.scale_dtype),
                symmetric=self.symmetric,
            )

        return replace_dense(form, change)

    def resolve_group(self, cols: int, *, site: str) -> int:
        """Return the group size for rows of ``cols`` weights."""
        return resolve_group_size(self.group_size, cols, site=site, most=self.group_limit)

    def check_form(self, form: Form) -> None:
        """Refuse a form that has nothing left to quantize."""
        if not has_dense(form):
            raise self.refuse(form, "it has no dense part left; quantize a weight once.")

    def grid(self, matrix: Tensor, *, site: str) -> tuple[Grid, int]:
        """Fit the levels of a matrix (rows, cols); return them and the group size."""
        size = self.resolve_group(matrix.shape[1], site=site)
        grid = fit_grid(
            matrix.reshape(matrix.shape[0], -1, size),
            bits=self.bits,
            symmetric=self.symmetric,
            search=self.range,
            scale_type=self.scale_dtype,
            site=site,
        )
        return grid, size

    def pack(
        self, codes: Tensor, grid: Grid, size: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Quantized:
        """Return the form of codes (rows, cols) on the levels of a grid."""
        return Quantized(
            codes.to(torch.uint8),
            grid.scale.squeeze(-1).to(getattr(torch, self.scale_dtype)),
            None if self.symmetric else grid.zero.squeeze(-1).to(torch.uint8),
            bits=self.bits,
            group_size=size,
            shape=shape,
            dtype=dtype,
            symmetric=self.symmetric,
        )

    def round_dense(self, dense: Dense, *, site: str) -> Quantized:
        """Return a dense form rounded to the nearest levels."""
        matrix = dense.dense().detach().float().reshape(dense.rows, dense.cols)
        grid, size = self.grid(matrix, site=site)
        codes = grid.encode(matrix.reshape(dense.rows, -1, size)).reshape(matrix.shape)
        return self.pack(codes, grid, size, dense.shape, dense.dtype)
