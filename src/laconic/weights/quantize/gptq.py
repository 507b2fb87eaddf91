"""Round column by column; the columns to come make up for each error."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from laconic.errors import LaconicWarning
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.permuted import Permuted
from laconic.forms.sparse import Sparse
from laconic.registry import method
from laconic.settings import setting
from laconic.weights.base import CompensatedStep, Site, Statistic
from laconic.weights.checks import finite_matrix, rows_by_group
from laconic.weights.quantize._step import UniformStep
from laconic.weights.quantize._uniform import Grid
from laconic.weights.second_order import inverse_factor, sweep


@method("gptq", family="quantize", source="Frantar, Ashkboos, Hoefler, Alistarh 2023")
@dataclass(frozen=True, kw_only=True)
class Gptq(CompensatedStep, UniformStep):
    """Round weights so that the layer's output on calibration data changes least.

    After sparse forms the zeros stay zero and only the kept values are rounded.

    Args:
        bits: Stored bits per weight, 2..8, without scales.
        group_size: Weights that share one scale, along the input axis; must divide it.
        group_limit: Largest group that group_size ``"auto"`` may choose.
        symmetric: No zero point; else one of ``bits`` bits a group.
        range: How the range of a group is chosen, as for round-to-nearest.
        scale_dtype: Type that scales are stored in.
        activations: How inputs are rounded at each call, as for round-to-nearest.
        order: ``"static"`` fits scales beforehand and visits columns from the largest input on,
            so that groups stay where they are; ``"none"`` goes from left to right and fits each
            group's scale when it is reached, from weights that carry earlier errors;
            ``"dynamic"`` does so from the largest input on: groups are of columns that follow
            each other in that order, which is kept in the form and costs a gather a product.
        damping: Share of the mean diagonal added to the Gram matrix; 0.01 in the paper. Raised
            tenfold, up to 1, where the matrix cannot be factored.
        block: Columns after which the error is carried on; changes speed, not the result.
        true_sequential: Layers of a block go in the order in which they run, and each sees what
            the compressed ones before it give; else all of a block see its original layers.

    Shapes:
        weight (rows, cols), gram (cols, cols) -> codes (rows, cols), scale (rows, cols / group)

    Raises:
        LayerError: ``group_size`` does not divide a row, values are not finite, or the Gram
            matrix cannot be factored.
        RecipeError: The form is neither dense nor sparse with dense values.

    Source: Frantar et al. 2023, algorithm 1.
    Differs: inputs that were always zero keep their rounded weights, for they may be met later;
    group scales are static by default, as later codes do.
    """

    order: Literal["static", "none", "dynamic"] = setting(
        "static", help="Order in which columns go."
    )
    damping: float = setting(0.01, help="Share of the mean diagonal added.", low=0.0, high=1.0)
    block: int = setting(128, help="Columns after which the error is carried on.", low=1)

    @property
    def needs(self) -> frozenset[Statistic]:
        """Return the Gram matrix of the inputs, and what a static scale of them is made of."""
        return super().needs | {"gram"}

    def check_form(self, form: Form) -> None:
        """Refuse a form that is neither dense nor sparse with dense values."""
        inner = form.values if isinstance(form, Sparse) else form
        if not isinstance(inner, Dense):
            raise self.refuse(form, "it takes a dense weight, or a sparse one with dense values.")
        if inner is not form and self.order == "dynamic":
            raise self.refuse(
                form, "order='dynamic' moves columns, zeros stay; set it to 'static'."
            )
        self.check_activations(form)

    def sketch(self, form: Form, *, site: str) -> Form:
        """Return the form with its values quantized, on the meta device."""
        sketch = super().sketch(form, site=site)
        if not self.moves(form.cols, site=site):
            return sketch
        order = torch.empty(form.cols, dtype=torch.int32, device="meta")
        return Permuted(sketch, order, shape=form.shape, dtype=form.dtype)

    def moves(self, cols: int, *, site: str) -> bool:
        """Return whether columns of a row lie in another order; not where they are one group."""
        return self.order == "dynamic" and self.resolve_group(cols, site=site) < cols

    def fit(self, site: Site, generator: torch.Generator) -> Form:
        """Return the site's form with its values rounded."""
        self.check_form(site.form)
        matrix = finite_matrix(site)
        gram = site.need("gram")
        grams = gram if gram.dim() == 3 else gram.unsqueeze(0)
        moved = None
        if self.moves(matrix.shape[1], site=site.name):  # one order for all parts
            moved = grams.diagonal(dim1=1, dim2=2).sum(0).argsort(descending=True, stable=True)
            matrix, grams = matrix[:, moved], grams[:, moved][:, :, moved]
        levels = self._levels(site, matrix)
        blind = 0
        for rows, part in zip(rows_by_group(site), grams, strict=True):
            blind += self._round(levels, rows, matrix[rows], part, site.name)
        if blind:
            warnings.warn(
                f"{site.name}: {blind} of {site.groups} parts met no calibration input and are "
                "rounded to nearest. More calibration data reaches them.",
                LaconicWarning,
                stacklevel=2,
            )
        form = levels.form(self, site.form, self.seen(site))
        if moved is None:
            return form
        return Permuted(form, moved, shape=form.shape, dtype=form.dtype)

    def _levels(self, site: Site, matrix: Tensor) -> _Levels:
        if isinstance(site.form, Sparse):
            mask = site.form.mask.to(matrix.device)
            values = matrix[mask].reshape(site.form.values.rows, site.form.values.cols)
            place = torch.zeros(matrix.shape, dtype=torch.long, device=matrix.device)
            place[mask] = torch.arange(values.numel(), device=matrix.device)
        else:
            mask, values = None, matrix
            place = torch.arange(matrix.numel(), device=matrix.device).reshape(matrix.shape)
        grid, size = self.grid(values, site=site.name)
        return _Levels(grid, size, place, mask, matrix.new_zeros(values.shape))

    def _round(self, levels: _Levels, rows: slice, matrix: Tensor, gram: Tensor, site: str) -> bool:
        """Round some rows that share a Gram matrix; return whether it was all zero."""
        order = torch.arange(matrix.shape[1], device=matrix.device)
        grouped = levels.size < matrix.shape[1]
        if self.order == "static" or (self.order == "dynamic" and not grouped):
            order = gram.diagonal().argsort(descending=True, stable=True)
        factor = inverse_factor(gram[order][:, order], damping=self.damping, site=site)
        block = self.block
        moving = self.order != "static" and levels.mask is None and grouped
        if moving:  # a group must lie in one block, where its weights carry all earlier errors
            block = levels.size * max(1, block // levels.size)
        column = _Round(self, levels, rows, order, moving, site)
        sweep(matrix[:, order], factor.upper, column, block=block)
        return factor.blind


@dataclass
class _Levels:
    """Levels of all weights of a site, and the codes found so far.

    Attributes:
        grid: Levels of the values (values' rows, groups, 1).
        size: Group size along the values' rows.
        place: (rows, cols) index of each weight among the values.
        mask: (rows, cols) weights that are kept; None where all are.
        codes: The values' codes so far.
    """

    grid: Grid
    size: int
    place: Tensor
    mask: Tensor | None
    codes: Tensor

    def form(self, step: UniformStep, like: Form, absmax: Tensor | None) -> Form:
        """Return the form with the codes in the place of the dense values."""
        inner = like.values if isinstance(like, Sparse) else like
        packed = step.pack(self.codes, self.grid, self.size, inner, absmax)
        if not isinstance(like, Sparse) or self.mask is None:
            return packed
        return Sparse(self.mask, packed, shape=like.shape, dtype=like.dtype, pattern=like.pattern)


@dataclass
class _Round:
    """Rounds the columns that the sweep visits, and writes down their codes."""

    step: UniformStep
    levels: _Levels
    rows: slice
    order: Tensor
    moving: bool
    site: str
    _place: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._place = self.levels.place[self.rows]

    def begin(self, start: int, stop: int, weight: Tensor) -> None:
        """Do nothing: scales are fitted before, or group by group."""

    def __call__(self, index: int, weight: Tensor) -> Tensor:
        levels = self.levels
        if self.moving and index % levels.size == 0:
            self._refit(index, weight)
        at = int(self.order[index])
        place = self._place[:, at]
        group = place // levels.size
        scale = levels.grid.scale.view(-1)[group]
        zero = levels.grid.zero.view(-1)[group]
        codes = ((weight[:, 0] / scale).round() + zero).clamp_(0, 2**self.step.bits - 1)
        value = scale * (codes - zero)
        if levels.mask is None:
            levels.codes.view(-1)[place] = codes
            return value
        kept = levels.mask[self.rows, at]
        levels.codes.view(-1)[place[kept]] = codes[kept]
        return torch.where(kept, value, torch.zeros_like(value))

    def _refit(self, index: int, weight: Tensor) -> None:
        grid, _ = self.step.grid(weight[:, : self.levels.size], site=self.site)
        self.levels.grid.scale[self.rows, index // self.levels.size] = grid.scale[:, 0]
        self.levels.grid.zero[self.rows, index // self.levels.size] = grid.zero[:, 0]
