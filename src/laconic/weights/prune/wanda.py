"""Remove the weights that contribute least: magnitude times the size of the input."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor

from laconic.forms.base import Form
from laconic.forms.sparse import Sparse
from laconic.registry import method
from laconic.weights.base import CompensatedStep, Site, Statistic
from laconic.weights.checks import finite_matrix
from laconic.weights.prune._select import smallest_in_groups, smallest_per_row
from laconic.weights.prune._step import PruneStep, held_values, sparse_form, sparse_sketch

_SLACK = 1e-9  # so that 0.29 * 100 counts as 29


@method("wanda", family="prune", source="Sun, Liu, Bair, Kolter 2024")
@dataclass(frozen=True, kw_only=True)
class Wanda(CompensatedStep, PruneStep):
    """Set the weights of least ``|w| * ||x||`` in every row to zero; the others stay as they are.

    ``||x||`` is the root mean square of the weight's input on calibration data. Weights compete
    with those of the same output only, or, with a pattern, of the same group of inputs.

    Args:
        sparsity: Share of the weights that become zero: ``floor(sparsity * cols)`` a row.
        pattern: ``"N:M"`` keeps N of every M consecutive inputs, for example ``"2:4"``.
        true_sequential: Layers of a block go in the order in which they run, and each sees what
            the pruned ones before it give; else all of a block see its original layers.

    Shapes:
        weight (rows, cols), sumsq (cols,) -> mask (rows, cols), values (rows, kept)

    Raises:
        LayerError: M does not divide a row, fewer zeros are asked for than there are, or values
            are not finite.
        RecipeError: The form is neither dense nor sparse with dense values.

    Source: Sun, Liu, Bair and Kolter 2024, section 3 and algorithm 1; ties go to the lowest index.
    """

    @property
    def needs(self) -> frozenset[Statistic]:
        """Return the mean squares of the inputs."""
        return frozenset({"sumsq"})

    def sketch(self, form: Form, *, site: str) -> Form:
        """Return the sparse form without values: every row keeps as many."""
        self.check_form(form)
        patterned = self.pattern_sketch(form, site=site)
        if patterned is not None:
            return patterned
        kept = form.cols - self.zeros_in_row(form.cols)
        if isinstance(form, Sparse):
            self.check_superset(held_values(form), form.rows * kept, site=site)
        return sparse_sketch(form, (form.rows, kept), "unstructured")

    def fit(self, site: Site, generator: torch.Generator) -> Form:
        """Return the sparse form of a site."""
        self.check_form(site.form)
        self.check_width(site.form.cols, site=site.name)
        matrix = finite_matrix(site)
        scores = self.scores(site, matrix)
        if self.pattern is not None:
            mask = ~smallest_in_groups(scores, *self.n_m())
        else:
            mask = ~smallest_per_row(scores, self.zeros_in_row(scores.shape[1]))
        if isinstance(site.form, Sparse):
            self.check_superset(held_values(site.form), int(mask.sum()), site=site.name)
        return sparse_form(matrix, mask, site.form, self.pattern or "unstructured")

    def zeros_in_row(self, cols: int) -> int:
        """Return how many weights of a row become zero."""
        return floor(self.sparsity * cols + _SLACK)

    def scores(self, site: Site, matrix: Tensor) -> Tensor:
        """Return ``|w| * ||x||`` (rows, cols); -1 where an earlier step pruned."""
        norms = site.need("sumsq").to(matrix.device).sqrt().reshape(site.groups, 1, -1)
        scores = matrix.abs().reshape(site.groups, -1, matrix.shape[1]) * norms
        scores = scores.reshape(matrix.shape)
        if isinstance(site.form, Sparse):
            scores = scores.masked_fill(~site.form.mask, -1.0)
        return scores
