"""Replace a weight by two thin factors: the best approximation of its rank."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from laconic.errors import ConfigError, LaconicWarning
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.lowrank import LowRank
from laconic.registry import method
from laconic.settings import setting
from laconic.weights.base import LayerStep, Site
from laconic.weights.checks import finite_matrix
from laconic.weights.factor._leading import leading_svd

_DEFAULT_KEEP = 0.5
_LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@method("svd", family="factor", source="Eckart and Young 1936")
@dataclass(frozen=True, kw_only=True)
class Svd(LayerStep):
    """Factor a weight by its truncated singular value decomposition.

    Give one of ``rank``, ``keep`` and ``energy``; ``keep=0.5`` where none is given. A layer
    whose factors would not be smaller than the weight stays dense, with a warning.

    Args:
        rank: Rank of the factors.
        keep: Share of the layer's parameters that the two factors hold.
        energy: Least share of the sum of squares of the weight that the factors keep.

    Shapes:
        weight (rows, cols) -> B (rows, rank) @ A (rank, cols); a convolution's weight
        (out, in, kh, kw) is (out, in*kh*kw)

    Raises:
        ConfigError: More than one of rank, keep and energy.
        LayerError: Weights are not finite.
        RecipeError: The weight is not dense.

    Source: Eckart and Young 1936; singular values are shared evenly by both factors.
    """

    shorthand: ClassVar[str | None] = "rank"

    rank: int | None = setting(None, help="Rank of the factors.", low=1)
    keep: float | None = setting(None, help="Share of parameters kept.", low=0.001, high=1.0)
    energy: float | None = setting(None, help="Share of squares kept.", low=0.0, high=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [n for n in ("rank", "keep", "energy") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ConfigError(f"svd: {' and '.join(given)} are given; give one of them.")

    def levels(self) -> tuple[Self, ...]:
        """Return the step keeping from 5 % to 90 % of the parameters."""
        return tuple(replace(self, rank=None, energy=None, keep=keep) for keep in _LEVELS)

    def sketch(self, form: Form, *, site: str) -> Form:
        """Return empty factors; with ``energy`` those of the largest rank that saves anything."""
        self._check_form(form)
        rank = self._wanted(form.rows, form.cols)
        if rank is None:
            rank = max((form.rows * form.cols - 1) // (form.rows + form.cols), 1)
        if not _saves(rank, form):
            return form
        B = torch.empty(form.rows, rank, dtype=form.dtype, device="meta")
        A = torch.empty(rank, form.cols, dtype=form.dtype, device="meta")
        return LowRank(Dense(B), Dense(A), shape=form.shape, dtype=form.dtype)

    def fit(self, site: Site, generator: torch.Generator) -> Form:
        """Return the two factors, or the site's own form where they would save nothing."""
        form = site.form
        self._check_form(form)
        matrix = finite_matrix(site)
        rank = self._wanted(form.rows, form.cols)
        if rank is None:
            rank = _rank_for_energy(matrix, float(self.energy or 0.0))
        if not _saves(rank, form):
            warnings.warn(
                f"{site.name}: rank {rank} of a {form.rows} x {form.cols} weight saves nothing; "
                "it stays dense. Ask for less, or exclude this layer.",
                LaconicWarning,
                stacklevel=2,
            )
            return form
        B, A = balanced(*leading_svd(matrix, rank, generator=generator))
        factors = (Dense(B.to(form.dtype)), Dense(A.to(form.dtype)))
        return LowRank(*factors, shape=form.shape, dtype=form.dtype)

    def _check_form(self, form: Form) -> None:
        if not isinstance(form, Dense):
            raise self.refuse(form, "factors are taken of a dense weight; put svd first.")

    def _wanted(self, rows: int, cols: int) -> int | None:
        """Return the rank asked for; None where the weight's energy decides."""
        if self.energy is not None:
            return None
        rank = self.rank
        if rank is None:
            keep = _DEFAULT_KEEP if self.keep is None else self.keep
            rank = max(int(keep * rows * cols / (rows + cols)), 1)
        return min(rank, rows, cols)


def balanced(U: Tensor, s: Tensor, Vt: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``U sqrt(s)`` and ``sqrt(s) Vt``."""
    root = s.sqrt()
    return U * root, root.unsqueeze(1) * Vt


def _saves(rank: int, form: Form) -> bool:
    return rank * (form.rows + form.cols) < form.rows * form.cols


def _rank_for_energy(matrix: Tensor, share: float) -> int:
    squares = torch.linalg.svdvals(matrix).double().square()
    total = float(squares.sum())
    if total == 0:
        return 1
    reached = squares.cumsum(0) >= share * total * (1 - 1e-12)
    return int(reached.int().argmax()) + 1 if bool(reached.any()) else len(squares)
