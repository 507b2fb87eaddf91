"""Remove the smallest weights: the baseline of all pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms.base import Form
from laconic.forms.sparse import Sparse
from laconic.registry import method
from laconic.settings import setting
from laconic.weights.base import LayerStep, Site
from laconic.weights.checks import finite_matrix
from laconic.weights.prune._select import (
    count_below,
    smallest,
    smallest_in_groups,
    smallest_per_row,
)
from laconic.weights.prune._step import PruneStep, held_values, sparse_form, sparse_sketch


@method("magnitude", family="prune", source="Han et al. 2015; Zhu and Gupta 2017")
@dataclass(frozen=True, kw_only=True)
class Magnitude(PruneStep):
    """Set the weights of least magnitude to zero, exactly as many as asked.

    Args:
        sparsity: Share of the weights that become zero; exactly ``round(sparsity * n)``.
        pattern: ``"N:M"`` keeps N of every M consecutive inputs, for example ``"2:4"``.
        scope: What competes: the weights of a ``layer``, of a ``row``, or of all layers of the
            step together (``global``: one threshold).
        max_layer_sparsity: With the global scope, no layer loses more than this share.

    Shapes:
        weight (rows, cols) -> mask (rows, cols), values (rows, kept) or (1, kept in all)

    Raises:
        ConfigError: A pattern with a scope other than ``layer``, or a global sparsity above
            ``max_layer_sparsity``.
        LayerError: M does not divide a row, or fewer zeros are asked for than there are.
        RecipeError: The form is neither dense nor sparse with dense values.

    Source: Han, Pool, Tran and Dally 2015, section 3; ties go to the lowest index.
    """

    scope: Literal["layer", "row", "global"] = setting("layer", help="What competes.")
    max_layer_sparsity: float = setting(
        0.98, help="Most that one layer loses with the global scope.", low=0.0, high=0.999
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern is not None and self.scope != "layer":
            raise ConfigError(
                f"magnitude: scope={self.scope!r} does not go with pattern={self.pattern!r}, "
                "which fixes what competes. Leave scope at 'layer'."
            )
        if self.scope == "global" and self.sparsity > self.max_layer_sparsity:
            raise ConfigError(
                f"magnitude: sparsity={self.sparsity} is above max_layer_sparsity="
                f"{self.max_layer_sparsity}, which no split over layers can meet. Raise the latter."
            )

    def sketch(self, form: Form, *, site: str) -> Form:
        """Return the sparse form without values; a global scope is drawn as if per layer."""
        self.check_form(form)
        patterned = self.pattern_sketch(form, site=site)
        if patterned is not None:
            return patterned
        zeros = self.zeros_in(form.rows, form.cols)
        kept = form.rows * form.cols - zeros
        if isinstance(form, Sparse) and self.scope != "global":
            self.check_superset(held_values(form), kept, site=site)
        equal = self.scope == "row" or form.rows == 1
        shape = (form.rows, kept // form.rows) if equal else (1, kept)
        return sparse_sketch(form, shape, "unstructured")

    def fit(self, site: Site, generator: torch.Generator) -> Form:
        """Return the sparse form of a site."""
        self.check_form(site.form)
        self.check_width(site.form.cols, site=site.name)
        matrix = finite_matrix(site)
        mask = ~self.pruned(scores_of(site, matrix))
        if isinstance(site.form, Sparse):
            self.check_superset(held_values(site.form), int(mask.sum()), site=site.name)
        pattern = self.pattern or "unstructured"
        return sparse_form(matrix, mask, site.form, pattern)

    def resolve(self, sites: Sequence[Site]) -> dict[str, LayerStep]:
        """Return the step for each site; with the global scope each gets its own sparsity."""
        if self.scope != "global":
            return super().resolve(sites)
        for site in sites:
            self.check_form(site.form)
        scores = [scores_of(site, finite_matrix(site)).clamp_min(0) for site in sites]
        sizes = [score.numel() for score in scores]
        caps = [int(self.max_layer_sparsity * size) for size in sizes]
        total = min(round(self.sparsity * sum(sizes)), sum(caps))
        counts = count_below(scores, total, caps)
        return {
            site.name: replace(
                self.for_site(site.name), scope="layer", sparsity=count / size, overrides=()
            )
            for site, count, size in zip(sites, counts, sizes, strict=True)
        }

    def zeros_in(self, rows: int, cols: int) -> int:
        """Return how many weights of a matrix become zero."""
        if self.scope == "row":
            return rows * round(self.sparsity * cols)
        return round(self.sparsity * rows * cols)

    def pruned(self, scores: Tensor) -> Tensor:
        """Return the map of the weights to remove, from their scores (rows, cols)."""
        if self.pattern is not None:
            return smallest_in_groups(scores, *self.n_m())
        if self.scope == "row":
            return smallest_per_row(scores, round(self.sparsity * scores.shape[1]))
        return smallest(scores, round(self.sparsity * scores.numel()))


def scores_of(site: Site, matrix: Tensor) -> Tensor:
    """Return ``|w|``, and -1 where an earlier step pruned: those go first."""
    scores = matrix.abs()
    if isinstance(site.form, Sparse):
        scores = scores.masked_fill(~site.form.mask, -1.0)
    return scores
