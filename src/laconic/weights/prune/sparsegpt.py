"""Prune column by column; the columns to come make up for what is removed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from laconic.errors import LaconicWarning
from laconic.forms.base import Form
from laconic.forms.sparse import Sparse
from laconic.registry import method
from laconic.settings import setting
from laconic.weights.base import Site, SiteKind, Statistic
from laconic.weights.checks import finite_matrix, rows_by_group
from laconic.weights.prune._select import smallest, smallest_in_groups
from laconic.weights.prune._step import PruneStep, held_values, sparse_form, sparse_sketch
from laconic.weights.second_order import inverse_factor, sweep


@method("sparsegpt", family="prune", source="Frantar and Alistarh 2023")
@dataclass(frozen=True, kw_only=True)
class SparseGpt(PruneStep):
    """Prune so that the layer's output on calibration data changes least.

    Args:
        sparsity: Share of the weights that become zero: ``round(sparsity * n)`` of the n
            weights of every block of columns.
        pattern: ``"N:M"`` keeps N of every M consecutive inputs, chosen when they are reached.
        damping: Share of the mean diagonal added to the Gram matrix; 0.01 in the paper.
        block: Columns whose weights compete, over all rows; 128 in the paper.
        true_sequential: Layers of a block go in the order in which they run, and each sees what
            the compressed ones before it give; else all of a block see its original layers.

    Shapes:
        weight (rows, cols), gram (cols, cols) -> mask (rows, cols), values

    Raises:
        LayerError: M does not divide a row, fewer zeros are asked for than there are, or values
            are not finite.
        RecipeError: The form is neither dense nor sparse with dense values.

    Source: Frantar and Alistarh 2023, algorithm 1 and section 3.3.
    Differs: exact counts, ties by index; the published code prunes all ties.
    """

    default_types: ClassVar[tuple[SiteKind, ...]] = ("linear", "conv")
    supported_types: ClassVar[tuple[SiteKind, ...]] = ("linear", "conv", "experts")

    damping: float = setting(0.01, help="Share of the mean diagonal added.", low=0.0, high=1.0)
    block: int = setting(128, help="Columns whose weights compete.", low=1)
    true_sequential: bool = setting(False, help="Layers of a block go one after another.")

    @property
    def needs(self) -> frozenset[Statistic]:
        """Return the Gram matrix of the inputs."""
        return frozenset({"gram"})

    @property
    def propagate(self) -> Literal["original", "compensated"]:
        """Return ``compensated``: each block sees what the compressed blocks before it give."""
        return "compensated"

    @property
    def sequential(self) -> bool:
        """Return whether layers of a block see the compressed ones before them."""
        return self.true_sequential

    def sketch(self, form: Form, *, site: str) -> Form:
        """Return the sparse form without values."""
        self.check_form(form)
        patterned = self.pattern_sketch(form, site=site)
        if patterned is not None:
            return patterned
        kept = sum(
            form.rows * width - round(self.sparsity * form.rows * width)
            for width in self._widths(form.cols)
        )
        if isinstance(form, Sparse):
            self.check_superset(held_values(form), kept, site=site)
        shape = (form.rows, kept) if form.rows == 1 else (1, kept)
        return sparse_sketch(form, shape, "unstructured")

    def fit(self, site: Site, generator: torch.Generator) -> Form:
        """Return the sparse form of a site, its values updated."""
        self.check_form(site.form)
        self.check_width(site.form.cols, site=site.name)
        matrix = finite_matrix(site)
        earlier = site.form.mask if isinstance(site.form, Sparse) else None
        gram = site.need("gram")
        grams = gram if gram.dim() == 3 else gram.unsqueeze(0)
        mask, values, blind = torch.empty_like(matrix, dtype=torch.bool), matrix.clone(), 0
        for rows, part in zip(rows_by_group(site), grams, strict=True):
            factor = inverse_factor(part, damping=self.damping, site=site.name)
            held = None if earlier is None else earlier[rows]
            dead = None if factor.blind else factor.dead
            diagonal = factor.upper.diagonal()
            column = _Prune(self, diagonal, dead, held, mask[rows], first=rows.start)
            values[rows] = sweep(matrix[rows], factor.upper, column, block=self._block())
            blind += factor.blind
        if blind:
            warnings.warn(
                f"{site.name}: {blind} of {site.groups} parts met no calibration input and are "
                "pruned by magnitude. More calibration data reaches them.",
                LaconicWarning,
                stacklevel=2,
            )
        if isinstance(site.form, Sparse):
            self.check_superset(held_values(site.form), int(mask.sum()), site=site.name)
        pattern = self.pattern or "unstructured"
        return sparse_form(values, mask, site.form, pattern)

    def _block(self) -> int:
        if self.pattern is None:
            return self.block
        size = self.n_m()[1]  # a group must lie in one block
        return size * max(1, self.block // size)

    def _widths(self, cols: int) -> list[int]:
        return [min(self.block, cols - start) for start in range(0, cols, self.block)]


@dataclass
class _Prune:
    """Chooses what the sweep removes; writes it into ``mask`` (rows, cols)."""

    step: PruneStep
    diagonal: Tensor
    dead: Tensor | None
    earlier: Tensor | None
    mask: Tensor
    first: int = 0  # rows of the site before these

    def begin(self, start: int, stop: int, weight: Tensor) -> None:
        """Choose the weights of a block, by score over all its rows, where there is no pattern."""
        if self.step.pattern is None:
            scores = self._scores(start, stop, weight)
            removed = smallest(scores, self._zeros(*scores.shape))
            kept = ~removed if self.earlier is None else ~removed & self.earlier[:, start:stop]
            self.mask[:, start:stop] = kept

    def __call__(self, index: int, weight: Tensor) -> Tensor:
        if self.step.pattern is not None:
            keep, size = self.step.n_m()
            if index % size == 0:
                scores = self._scores(index, index + size, weight[:, :size])
                self.mask[:, index : index + size] = ~smallest_in_groups(scores, keep, size)
        value = weight[:, 0] * self.mask[:, index]
        return value if self.earlier is None else value * self.earlier[:, index]

    def _zeros(self, rows: int, width: int) -> int:
        """Return this part's share of the zeros; over all parts they add up to the exact count."""
        done = round(self.step.sparsity * self.first * width)
        return round(self.step.sparsity * (self.first + rows) * width) - done

    def _scores(self, start: int, stop: int, weight: Tensor) -> Tensor:
        scores = (weight / self.diagonal[start:stop]).square()
        if self.dead is not None:  # inputs that are always zero are the first to go
            scores = scores.masked_fill(self.dead[start:stop], 0.0)
        if self.earlier is not None:
            scores = scores.masked_fill(~self.earlier[:, start:stop], -1.0)
        return scores
