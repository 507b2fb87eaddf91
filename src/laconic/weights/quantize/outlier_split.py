"""Keep the columns that meet outlier inputs in full precision; round the rest, and its inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isinf
from typing import ClassVar, Self

import torch
from torch import Tensor

from laconic.forms.activations import Activations
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.quantized import Quantized
from laconic.forms.sparse import Sparse
from laconic.forms.sum import Sum
from laconic.registry import method
from laconic.settings import setting
from laconic.weights.base import LayerStep, Site, SiteKind, Statistic
from laconic.weights.checks import finite_matrix
from laconic.weights.quantize._uniform import ScaleType, fit_grid


@method("outlier-split", family="quantize", source="Dettmers, Lewis, Belkada, Zettlemoyer 2022")
@dataclass(frozen=True, kw_only=True)
class OutlierSplit(LayerStep):
    """Split a layer by its inputs: outliers in full precision, the rest in integers.

    An input is an outlier where calibration saw a magnitude of ``threshold`` or more. The others
    are rounded for each token at each call, over themselves alone, and meet weights with one
    scale a row; so one huge input no longer takes the levels from all others.

    Args:
        bits: Stored bits per weight of the columns that are rounded, 2..8; 8 in the paper.
        threshold: Magnitude from which an input is an outlier, 0 or more; 6.0 in the paper. 0
            keeps the whole layer as it is, infinity keeps nothing.
        activation_bits: Bits that inputs are rounded to, 2..8; none leaves inputs as they are.
        scale_dtype: Type that scales are stored in.

    Shapes:
        weight (rows, cols), absmax (cols,) -> codes (rows, cols - outliers), scale (rows, 1),
        values (rows, outliers)

    Raises:
        LayerError: Weights are not finite.
        RecipeError: The form is not dense.

    Source: Dettmers, Lewis, Belkada and Zettlemoyer 2022, LLM.int8(), section 3.2.
    Differs: outliers are found once, on calibration data, and not at each call, so that the other
    columns need no second copy; the sketch is drawn as if there were none, and what they take
    comes on top. Scales reach ``max|x| / 127.5`` as those of every method here, the paper's 127.
    """

    shorthand: ClassVar[str | None] = "threshold"
    default_types: ClassVar[tuple[SiteKind, ...]] = ("linear",)
    supported_types: ClassVar[tuple[SiteKind, ...]] = ("linear",)

    bits: int = setting(8, help="Stored bits per weight that is rounded.", low=2, high=8)
    threshold: float = setting(6.0, help="Magnitude from which an input is an outlier.", low=0.0)
    activation_bits: int | None = setting(8, help="Bits of inputs; none: kept.", low=2, high=8)
    scale_dtype: ScaleType = setting("float16", help="Type that scales are stored in.")

    @property
    def needs(self) -> frozenset[Statistic]:
        """Return the largest magnitudes of inputs, unless the threshold settles it."""
        settled = self.threshold == 0 or isinf(self.threshold)
        return frozenset() if settled else frozenset({"absmax"})

    def levels(self) -> tuple[Self, ...]:
        """Return the step at 2, 3, 4, 5, 6 and 8 bits."""
        return tuple(replace(self, bits=bits) for bits in (2, 3, 4, 5, 6, 8))

    def sketch(self, form: Form, *, site: str) -> Form:
        """Return the form as if no input were an outlier, on the meta device."""
        self._check_form(form)
        if self.threshold == 0:
            return form
        return Quantized.empty(
            form.shape,
            form.dtype,
            bits=self.bits,
            group_size=max(form.cols, 1),
            scale_dtype=getattr(torch, self.scale_dtype),
            symmetric=True,
            activations=self._activations(),
        )

    def fit(self, site: Site, generator: torch.Generator) -> Form:
        """Return the site's form, split where it has outliers."""
        self._check_form(site.form)
        matrix = finite_matrix(site)
        outlier = self.outliers(site)
        if bool(outlier.all()):
            return site.form
        rest = self._rounded(matrix[:, ~outlier], site)
        if not bool(outlier.any()):
            return rest
        kept = Dense(matrix[:, outlier].to(site.form.dtype))
        shape, dtype = site.form.shape, site.form.dtype
        return Sum(
            Sparse(outlier, kept, shape=shape, dtype=dtype, pattern="column"),
            Sparse(~outlier, rest, shape=shape, dtype=dtype, pattern="column"),
            shape=shape,
            dtype=dtype,
        )

    def outliers(self, site: Site) -> Tensor:
        """Return which inputs are outliers, (cols,) bool."""
        if not self.needs:
            device = site.original.device
            return torch.full((site.form.cols,), self.threshold == 0, device=device)
        return site.need("absmax").to(site.original.device) >= self.threshold

    def _check_form(self, form: Form) -> None:
        if not isinstance(form, Dense):
            raise self.refuse(form, "columns are split off a dense weight.")

    def _activations(self) -> Activations | None:
        return None if self.activation_bits is None else Activations(bits=self.activation_bits)

    def _rounded(self, matrix: Tensor, site: Site) -> Quantized:
        grid = fit_grid(
            matrix.unsqueeze(1),
            bits=self.bits,
            symmetric=True,
            search="absmax",
            scale_type=self.scale_dtype,
            site=site.name,
        )
        return Quantized(
            grid.encode(matrix.unsqueeze(1)).squeeze(1).to(torch.uint8),
            grid.scale.squeeze(-1).to(getattr(torch, self.scale_dtype)),
            None,
            bits=self.bits,
            group_size=matrix.shape[1],
            shape=tuple(matrix.shape),
            dtype=site.form.dtype,
            symmetric=True,
            activations=self._activations(),
        )
