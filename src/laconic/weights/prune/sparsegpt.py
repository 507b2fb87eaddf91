"""Prune column by column; the columns to come make up for what is removed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from laconic.errors import ConfigError, LaconicWarning
from laconic.forms.base import Form
from laconic.forms.quantized import Quantized
from laconic.forms.sparse import Sparse
from laconic.registry import method
from laconic.settings import setting
from laconic.weights.base import CompensatedStep, Site, Statistic
from laconic.weights.checks import finite_matrix, rows_by_group
from laconic.weights.prune._select import smallest, smallest_in_groups
from laconic.weights.prune._step import PruneStep, held_values, sparse_form, sparse_sketch
from laconic.weights.quantize._uniform import (
    AUTO_MOST,
    Grid,
    ScaleType,
    fit_grid,
    resolve_group_size,
)
from laconic.weights.second_order import inverse_factor, sweep


@method("sparsegpt", family="prune", source="Frantar and Alistarh 2023")
@dataclass(frozen=True, kw_only=True)
class SparseGpt(CompensatedStep, PruneStep):
    """Prune so that the layer's output on calibration data changes least.

    Args:
        sparsity: Share of the weights that become zero: ``round(sparsity * n)`` of the n
            weights of every block of columns.
        pattern: ``"N:M"`` keeps N of every M consecutive inputs, chosen when they are reached.
        damping: Share of the mean diagonal added to the Gram matrix; 0.01 in the paper.
        block: Columns whose weights compete, over all rows; 128 in the paper.
        true_sequential: Layers of a block go in the order in which they run, and each sees what
            the compressed ones before it give; else all of a block see its original layers.
        bits: Bits of the weights that stay, 2..8, rounded in the same sweep, so that later
            columns make up for both errors; none leaves them. Without a pattern the result is
            a quantized weight whose zeros are exact: entropy coding makes them small at rest.
        group_size: Inputs that share one scale; divides the row and is a multiple of M.
            ``"auto"`` is the largest up to 128, ``"channel"`` one scale a row. Only with bits.
        scale_dtype: Type that scales are stored in. Only with bits.

    Shapes:
        weight (rows, cols), gram (cols, cols) -> mask (rows, cols), values; with bits and no
        pattern: codes (rows, cols), scale (rows, cols / group)

    Raises:
        ConfigError: ``group_size`` without bits, or no multiple of M.
        LayerError: M or ``group_size`` does not divide a row, fewer zeros are asked for than there
            are, or values are not finite.
        RecipeError: The form is neither dense nor sparse with dense values.

    Source: Frantar and Alistarh 2023, algorithm 1, sections 3.3 and 3.5 (joint quantization).
    Differs: exact counts, ties by index; the published code prunes all ties. Scales are symmetric
    and by group, fitted when a group is reached, as GPTQ does; a block is of whole groups then.
    """

    damping: float = setting(0.01, help="Share of the mean diagonal added.", low=0.0, high=1.0)
    block: int = setting(128, help="Columns whose weights compete.", low=1)
    bits: int | None = setting(None, help="Bits of the weights that stay.", low=2, high=8)
    group_size: int | Literal["auto", "channel"] = setting(
        "auto", help="Inputs that share one scale, where bits are given."
    )
    scale_dtype: ScaleType = setting("float16", help="Type of scales, where bits are given.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits is None and self.group_size != "auto":
            raise ConfigError(
                f"sparsegpt: group_size={self.group_size!r} is of no use without bits; set bits, "
                "or leave it out."
            )
        size, unit = self.group_size, self._unit
        if isinstance(size, int) and (size < 1 or size % unit):
            raise ConfigError(
                f"sparsegpt: group_size={size} must be a multiple of {unit}, as "
                f"pattern={self.pattern!r} asks; use {(max(size, 0) // unit + 1) * unit}."
            )

    @property
    def _unit(self) -> int:
        """Inputs among which a pattern chooses."""
        return 1 if self.pattern is None else self.n_m()[1]

    def levels(self) -> tuple[Self, ...]:
        """Return the step at 2 to 8 bits where bits are given, else at several sparsities."""
        if self.bits is None:
            return super().levels()
        return tuple(replace(self, bits=bits) for bits in (2, 3, 4, 5, 6, 8))

    @property
    def needs(self) -> frozenset[Statistic]:
        """Return the Gram matrix of the inputs."""
        return frozenset({"gram"})

    def sketch(self, form: Form, *, site: str) -> Form:
        """Return the form without values: sparse, or quantized where bits are without pattern."""
        self.check_form(form)
        patterned = self.pattern_sketch(form, site=site)
        if self.bits is not None:
            return self._joint_sketch(form, patterned, site=site)
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

    def _joint_sketch(self, form: Form, patterned: Form | None, *, site: str) -> Form:
        n, m = (1, 1) if self.pattern is None else self.n_m()
        shape = form.shape if patterned is None else (form.rows, form.cols // m * n)
        values = Quantized.empty(
            shape,
            form.dtype,
            bits=self.bits or 0,
            group_size=self._group(form.cols, site=site) * n // m,
            scale_dtype=getattr(torch, self.scale_dtype),
            symmetric=True,
        )
        if patterned is None:
            return values
        mask = torch.empty(form.rows, form.cols, dtype=torch.bool, device="meta")
        return Sparse(mask, values, shape=form.shape, dtype=form.dtype, pattern=self.pattern or "")

    def _group(self, cols: int, *, site: str) -> int:
        """Return the inputs that share a scale: a multiple of M."""
        unit, size = self._unit, self.group_size
        wanted = size // unit if isinstance(size, int) else size
        return unit * resolve_group_size(wanted, cols // unit, site=site, most=AUTO_MOST // unit)

    def _rounder(self, matrix: Tensor, *, site: str) -> Rounder | None:
        """Return what rounds the weights that stay; None where they are not rounded."""
        if self.bits is None:
            return None
        size = self._group(matrix.shape[1], site=site)
        codes = torch.full_like(matrix, 2 ** (self.bits - 1))
        return Rounder(self.grid(matrix, size, site=site), size, codes, self, site)

    def grid(self, matrix: Tensor, size: int, *, site: str) -> Grid:
        """Fit the levels of a matrix (rows, cols) in groups of ``size`` columns."""
        return fit_grid(
            matrix.reshape(matrix.shape[0], -1, size),
            bits=self.bits or 0,
            symmetric=True,
            search="absmax",
            scale_type=self.scale_dtype,
            site=site,
        )

    def fit(self, site: Site, generator: torch.Generator) -> Form:
        """Return the sparse form of a site, its values updated."""
        self.check_form(site.form)
        self.check_width(site.form.cols, site=site.name)
        matrix = finite_matrix(site)
        earlier = site.form.mask if isinstance(site.form, Sparse) else None
        gram = site.need("gram")
        grams = gram if gram.dim() == 3 else gram.unsqueeze(0)
        mask, values, blind = torch.empty_like(matrix, dtype=torch.bool), matrix.clone(), 0
        rounder = self._rounder(matrix, site=site.name)
        for rows, part in zip(rows_by_group(site), grams, strict=True):
            factor = inverse_factor(part, damping=self.damping, site=site.name)
            held = None if earlier is None else earlier[rows]
            dead = None if factor.blind else factor.dead
            diagonal = factor.upper.diagonal()
            column = _Prune(self, diagonal, dead, held, mask[rows], rounder, first=rows.start)
            values[rows] = sweep(matrix[rows], factor.upper, column, block=self._block(rounder))
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
        if rounder is not None:
            return rounder.form(site.form, mask if self.pattern else None)
        return sparse_form(values, mask, site.form, self.pattern or "unstructured")

    def _block(self, rounder: Rounder | None) -> int:
        """Return the columns of a block: what is chosen or scaled together lies in one."""
        size = rounder.size if rounder is not None and rounder.moving else self._unit
        return size * max(1, self.block // size)

    def _widths(self, cols: int) -> list[int]:
        return [min(self.block, cols - start) for start in range(0, cols, self.block)]


@dataclass
class Rounder:
    """Rounds what stays, and writes down its codes.

    Attributes:
        grid: Levels of all weights (rows, groups, 1); fitted anew when a group is reached.
        size: Columns of a group.
        codes: (rows, cols) codes so far; that of zero where nothing was written.
        step: Fits levels.
        site: Name for messages.
    """

    grid: Grid
    size: int
    codes: Tensor
    step: SparseGpt
    site: str

    @property
    def moving(self) -> bool:
        """Levels are fitted group by group, to weights that carry all earlier errors."""
        return self.size < self.codes.shape[1]

    def __call__(self, index: int, weight: Tensor, kept: Tensor, first: int) -> Tensor:
        """Return column ``index`` of rows from ``first`` on, rounded where it is kept.

        ``weight`` holds that column and the rest of its block.
        """
        rows = slice(first, first + len(weight))
        if self.moving and index % self.size == 0:
            fresh = self.step.grid(weight[:, : self.size], self.size, site=self.site)
            self.grid.scale[rows, index // self.size] = fresh.scale[:, 0]
        scale = self.grid.scale[rows, index // self.size, 0]
        zero = float(2 ** (self.grid.bits - 1))
        codes = ((weight[:, 0] / scale).round() + zero).clamp(0, 2**self.grid.bits - 1)
        codes = torch.where(kept, codes, torch.full_like(codes, zero))
        self.codes[rows, index] = codes
        return scale * (codes - zero)

    def form(self, like: Form, mask: Tensor | None) -> Form:
        """Return the codes as a form: of the kept ones, or of all where there is no pattern."""
        step = self.step
        n, m = step.n_m() if mask is not None else (1, 1)
        codes = self.codes.to(torch.uint8)
        shape = like.shape
        if mask is not None:
            codes = codes[mask].reshape(len(codes), -1)
            shape = tuple(codes.shape)
        values = Quantized(
            codes,
            self.grid.scale.squeeze(-1).to(getattr(torch, step.scale_dtype)),
            None,
            bits=self.grid.bits,
            group_size=self.size * n // m,
            shape=shape,
            dtype=like.dtype,
            symmetric=True,
        )
        if mask is None:
            return values
        return Sparse(mask, values, shape=like.shape, dtype=like.dtype, pattern=step.pattern or "")


@dataclass
class _Prune:
    """Chooses what the sweep removes; writes it into ``mask`` (rows, cols)."""

    step: PruneStep
    diagonal: Tensor
    dead: Tensor | None
    earlier: Tensor | None
    mask: Tensor
    rounder: Rounder | None = None
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
        kept = self.mask[:, index]
        if self.earlier is not None:
            kept = kept & self.earlier[:, index]
        if self.rounder is not None:
            return self.rounder(index, weight, kept, self.first)
        return weight[:, 0] * kept

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
