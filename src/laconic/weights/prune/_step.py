"""Settings that all pruning methods share: how many zeros and in which pattern."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Self

import torch
from torch import Tensor

from laconic.errors import ConfigError, LayerError
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.sparse import Sparse
from laconic.settings import setting
from laconic.weights.base import LayerStep

_LEVELS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3)


@dataclass(frozen=True, kw_only=True)
class PruneStep(LayerStep, ABC):
    """A step that sets a share of the weights to zero and keeps the rest as they are.

    Args:
        sparsity: Share of the weights that become zero; not used with a pattern.
        pattern: ``"N:M"`` keeps N of every M consecutive inputs, for example ``"2:4"``.
    """

    shorthand: ClassVar[str | None] = "sparsity"

    sparsity: float = setting(0.5, help="Share of weights that become zero.", low=0.0, high=0.999)
    pattern: str | None = setting(None, help="'N:M' keeps N of M consecutive inputs, as '2:4'.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern is not None:
            self.n_m()

    def n_m(self) -> tuple[int, int]:
        """Return N and M of the pattern.

        Raises:
            ConfigError: The pattern is not ``"N:M"`` with 0 < N < M.
        """
        words = (self.pattern or "").split(":")
        if len(words) == 2 and all(word.isdecimal() for word in words):
            n, m = map(int, words)
            if 0 < n < m:
                return n, m
        raise ConfigError(
            f"{self.method_name}: pattern={self.pattern!r} must be 'N:M' with 0 < N < M, "
            "such as '2:4', or none."
        )

    def levels(self) -> tuple[Self, ...]:
        """Return the step at sparsities from 0.95 down to 0.3; none with a pattern."""
        if self.pattern is not None:
            return ()
        return tuple(replace(self, sparsity=level) for level in _LEVELS)

    def check_form(self, form: Form) -> None:
        """Refuse a form whose zeros would not make it smaller."""
        if isinstance(form, Dense):
            return
        if isinstance(form, Sparse):
            if isinstance(form.values, Dense):
                return
            raise self.refuse(form, "its values are coded already; prune before quantizing.")
        raise self.refuse(form, "zeros save nothing in it; prune before this form is made.")

    def check_width(self, cols: int, *, site: str) -> None:
        """Check that M of the pattern divides the inputs of a row.

        Raises:
            LayerError: It does not.
        """
        if self.pattern is not None and cols % self.n_m()[1]:
            raise LayerError(
                f"{site}: pattern={self.pattern!r} does not divide the {cols} inputs of a row. "
                f"Exclude this layer, or give sparsity without a pattern."
            )

    def pattern_sketch(self, form: Form, *, site: str) -> Form | None:
        """Return the sketch of an N:M pattern; None where the step has no pattern."""
        if self.pattern is None:
            return None
        self.check_width(form.cols, site=site)
        n, m = self.n_m()
        kept = form.cols // m * n
        if isinstance(form, Sparse):
            self.check_superset(held_values(form), form.rows * kept, site=site)
        return sparse_sketch(form, (form.rows, kept), self.pattern)

    def check_superset(self, held: int, wanted: int, *, site: str) -> None:
        """Check that pruning again keeps no more values than there are.

        Raises:
            LayerError: The step would keep more; zeros do not come back.
        """
        if wanted > held:
            raise LayerError(
                f"{site}: {self.method_name} would keep {wanted} weights and only {held} are left "
                "by an earlier step. Ask for a higher sparsity, or remove the earlier step."
            )


def held_values(form: Sparse) -> int:
    """Return how many values a sparse form holds."""
    return prod(form.values.shape)


def sparse_form(matrix: Tensor, mask: Tensor, like: Form, pattern: str) -> Sparse:
    """Return the sparse form of a matrix where ``mask`` tells what is kept.

    Values have the shape (rows, kept) where every row keeps as many, else (1, kept in all).

    Shapes:
        matrix (rows, cols) float32, mask (rows, cols) bool
    """
    counts = mask.sum(1)
    equal = counts.numel() > 0 and bool((counts == counts[0]).all())
    shape = (mask.shape[0], int(counts[0])) if equal else (1, int(counts.sum()))
    values = matrix[mask].reshape(shape).to(like.dtype)
    return Sparse(mask, Dense(values), shape=like.shape, dtype=like.dtype, pattern=pattern)


def sparse_sketch(like: Form, values_shape: tuple[int, ...], pattern: str) -> Sparse:
    """Return a sparse form without values, on the meta device."""
    mask = torch.empty(like.rows, like.cols, dtype=torch.bool, device="meta")
    values = Dense(torch.empty(values_shape, dtype=like.dtype, device="meta"))
    return Sparse(mask, values, shape=like.shape, dtype=like.dtype, pattern=pattern)
