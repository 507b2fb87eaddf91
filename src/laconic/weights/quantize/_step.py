"""Settings that all methods with evenly spaced levels share, and their sketch."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms.activations import Activations
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.quantized import Quantized
from laconic.forms.sparse import Sparse
from laconic.settings import setting
from laconic.weights.base import LayerStep, Site, Statistic
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
        activations: How the layer's inputs are rounded at each call: ``bits`` (2..8),
            ``granularity`` (``"token"``, ``"tensor"``, or ``"static"`` from calibration),
            ``symmetric`` and ``clip``; none leaves them.
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
    activations: Mapping[str, Any] | None = setting(
        None, help="How inputs are rounded: bits, granularity, symmetric, clip."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounding is not None and "embedding" in (self.where.types or ()):
            raise ConfigError(
                f"{self.method_name}: activations are set, and where.types has 'embedding'. Rows "
                "of an embedding are looked up and meet no inputs; give embeddings a step of "
                "their own."
            )

    @property
    def rounding(self) -> Activations | None:
        """How inputs are rounded.

        Raises:
            ConfigError: Settings out of their bounds.
        """
        if self.activations is None:
            return None
        try:
            return Activations.of(self.activations)
        except ConfigError as error:
            raise ConfigError(f"{self.method_name}: {error}") from error

    @property
    def needs(self) -> frozenset[Statistic]:
        """Return the largest magnitudes where the scale of inputs is static."""
        static = self.rounding is not None and self.rounding.static
        return frozenset({"absmax"}) if static else frozenset()

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
                activations=self.rounding,
            )

        return replace_dense(form, change)

    def resolve_group(self, cols: int, *, site: str) -> int:
        """Return the group size for rows of ``cols`` weights."""
        return resolve_group_size(self.group_size, cols, site=site, most=self.group_limit)

    def check_form(self, form: Form) -> None:
        """Refuse a form that has nothing left to quantize."""
        if not has_dense(form):
            raise self.refuse(form, "it has no dense part left; quantize a weight once.")
        self.check_activations(form)

    def check_activations(self, form: Form) -> None:
        """Refuse to round inputs where the form does not meet them one by one."""
        if self.rounding is None:
            return
        kinds = {inner.kind for _, inner in form.walk()}
        if self.rounding.static and not kinds <= {"dense", "sparse"}:
            raise self.refuse(
                form,
                "a static scale of inputs is known for dense and sparse weights only; set "
                "activations granularity to 'token' or 'tensor'.",
            )
        if not kinds <= {"dense", "sparse", "low-rank", "sum", "rotated"}:
            raise self.refuse(form, "its parts meet no inputs of their own; leave activations out.")

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
        self,
        codes: Tensor,
        grid: Grid,
        size: int,
        like: Form,
        absmax: Tensor | None = None,
    ) -> Quantized:
        """Return the form of codes (rows, cols) on the levels of a grid.

        Args:
            codes: (rows, cols) whole numbers.
            grid: Their levels.
            size: Group size.
            like: What the codes stand for; gives shape and type.
            absmax: Largest magnitudes of the inputs, for a static scale.
        """
        told = self.rounding
        fixed = None
        if told is not None and told.static and absmax is not None:
            fixed = told.fixed_scale(absmax)
        return Quantized(
            codes.to(torch.uint8),
            grid.scale.squeeze(-1).to(getattr(torch, self.scale_dtype)),
            None if self.symmetric else grid.zero.squeeze(-1).to(torch.uint8),
            bits=self.bits,
            group_size=size,
            shape=like.shape,
            dtype=like.dtype,
            symmetric=self.symmetric,
            activations=told,
            input_scale=fixed,
        )

    def seen(self, site: Site) -> Tensor | None:
        """Return the largest magnitudes of a site's inputs where a static scale is made of them."""
        if "absmax" not in self.needs:
            return None
        absmax = site.need("absmax")
        if isinstance(site.form, Sparse) and site.form.pattern == "column":
            return absmax[..., site.form.kept_index()]
        return absmax

    def round_dense(self, dense: Dense, *, site: str, absmax: Tensor | None = None) -> Quantized:
        """Return a dense form rounded to the nearest levels."""
        matrix = dense.dense().detach().float().reshape(dense.rows, dense.cols)
        grid, size = self.grid(matrix, site=site)
        codes = grid.encode(matrix.reshape(dense.rows, -1, size)).reshape(matrix.shape)
        return self.pack(codes, grid, size, dense, absmax)
