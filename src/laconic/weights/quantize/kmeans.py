"""Share weights: every weight becomes the nearest of a few learned values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from laconic.forms.codebook import Codebook
from laconic.forms.dense import Dense
from laconic.registry import method
from laconic.weights.checks import finite
from laconic.weights.quantize._clusters import cluster, nearest
from laconic.weights.quantize._codebooks import CodebookStep


@method("kmeans", family="quantize", source="Han, Mao, Dally 2016 (Deep Compression)")
@dataclass(frozen=True, kw_only=True)
class KMeans(CodebookStep):
    """Replace weights by the nearest of ``2**bits`` values per layer, found by k-means.

    Works on whatever is dense in a form, such as the values that pruning left. The table can be
    trained afterwards: the gradient of a centre is the sum of those of its weights.

    Args:
        bits: Stored bits per weight, 1..8, without the table.
        weighting: ``"gram"`` counts the squared error of each weight by the mean square of its
            input, which needs calibration data; ``"none"`` counts all alike. Only for dense
            weights and values of sparse ones.

    Shapes:
        weight (rows, cols) -> codes (rows, cols) of ``bits`` bits, table (2**bits, 1)

    Raises:
        LayerError: Weights are not finite.
        RecipeError: Nothing dense is left in the form.

    Source: Han, Mao and Dally 2016, section 3.
    Differs: beside their linear start one by dynamic programming is tried and the better end is
    kept; a centre that loses all its weights is moved to the weight that is served worst.
    """

    def levels(self) -> tuple[Self, ...]:
        """Return the step at 1 to 6 and 8 bits."""
        return tuple(replace(self, bits=bits) for bits in (1, 2, 3, 4, 5, 6, 8))

    def codebook_sketch(self, dense: Dense, *, site: str) -> Codebook:
        """Return the codes and one table, without values."""
        codes = torch.empty(dense.rows, dense.cols, dtype=torch.uint8, device="meta")
        table = torch.empty(2**self.bits, 1, dtype=dense.dtype, device="meta")
        return Codebook(codes, table, shape=dense.shape, dtype=dense.dtype)

    def codebook(self, dense: Dense, importance: Tensor | None, *, site: str) -> Codebook:
        """Return the codes of the nearest centres, and the centres."""
        values = finite(dense.dense().detach(), site=site).float().reshape(-1)
        if values.numel() == 0:
            centres = values.new_zeros(2**self.bits)
        else:
            centres = cluster(values, 2**self.bits, weights=importance)
        # Rounded to the stored type first, so that codes point to the nearest stored value.
        centres = centres.to(dense.dtype).float()
        codes = nearest(values, centres).to(torch.uint8).reshape(dense.rows, dense.cols)
        table = centres.to(dense.dtype).unsqueeze(1)
        return Codebook(codes, table, shape=dense.shape, dtype=dense.dtype)
