"""Round weights to evenly spaced levels, one scale per group: the base of all quantizers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.registry import method
from laconic.weights.base import Site
from laconic.weights.checks import finite, replace_dense
from laconic.weights.quantize._step import UniformStep


@method("round-to-nearest", family="quantize", source="folklore; the baseline of all others")
@dataclass(frozen=True, kw_only=True)
class RoundToNearest(UniformStep):
    """Round every weight to the nearest of ``2**bits`` evenly spaced levels.

    Works on whatever is dense in a form: the values that pruning left, the factors of a low
    rank, the cores of a tensor train. Needs no data.

    With ``Q = 2**bits - 1`` the symmetric scale is ``max|w| / (Q/2)`` and codes lie around
    ``2**(bits - 1)``, so that the largest positive weight may be clipped by half a step; the
    asymmetric range is widened to hold zero, which stays exact. The scale is rounded to
    ``scale_dtype`` before any code is chosen.

    Args:
        bits: Stored bits per weight, 2..8, without scales.
        group_size: Weights that share one scale, along the input axis; must divide it.
        group_limit: Largest group that group_size ``"auto"`` may choose.
        symmetric: No zero point; else one of ``bits`` bits a group.
        range: ``"absmax"``, or ``"mse"``: ends shrunk by 1 - i/100, i = 0..79, to the least
            ``sum |w' - w|**2.4`` of the group.
        scale_dtype: Type that scales are stored in.
        activations: How inputs are rounded at each call: ``{bits, granularity, symmetric, clip}``
            as ``forms.activations.Activations`` has them; ``static`` needs calibration data.

    Shapes:
        weight (rows, cols) -> codes (rows, cols) of ``bits`` bits, scale (rows, cols / group)

    Raises:
        LayerError: ``group_size`` does not divide a row, or weights are not finite.
        RecipeError: Nothing dense is left in the form.

    Source: absmax rounding as in Frantar et al. 2023 (GPTQ), section 3; the range search is that
    of the published GPTQ quantizer.
    """

    def fit(self, site: Site, generator: torch.Generator) -> Form:
        """Return the site's form with its dense parts quantized."""
        self.check_form(site.form)

        def change(dense: Dense, path: str) -> Form:
            name = f"{site.name} ({path})" if path else site.name
            finite(dense.dense().detach(), site=name)
            return self.round_dense(dense, site=name, absmax=self.seen(site))

        return replace_dense(site.form, change)
