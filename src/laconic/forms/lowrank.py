"""LowRank: a product of two or more thin factors."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms.base import Form, Part


class LowRank(Form):
    """Stands for ``factors[0] @ factors[1] @ ...``; every factor is a form.

    Args:
        factors: Two or more forms, (rows, r1), (r1, r2), ..., (rk, cols).
        shape: Shape that the product stands for.
        dtype: Type that the product stands for.

    Raises:
        ConfigError: Factors whose shapes do not chain to the matrix view of ``shape``.
    """

    kind = "low-rank"

    def __init__(self, *factors: Form, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__(shape, dtype)
        shapes = [(f.rows, f.cols) for f in factors]
        chained = all(a[1] == b[0] for a, b in pairwise(shapes))
        ends = shapes and (shapes[0][0], shapes[-1][1]) == (self.rows, self.cols)
        if len(factors) < 2 or not chained or not ends:
            raise ConfigError(
                f"low-rank: factors {shapes} do not multiply to ({self.rows}, {self.cols})."
            )
        for index, factor in enumerate(factors):
            self.add_module(f"factor{index}", factor)

    @property
    def factors(self) -> list[Form]:
        """The factors, left to right."""
        return list(self.children_forms().values())

    @property
    def rank(self) -> int:
        """The smallest inner dimension."""
        return min(factor.cols for factor in self.factors[:-1])

    def dense(self) -> Tensor:
        """Return the product."""
        product: Tensor | None = None
        for factor in self.factors:
            matrix = factor.dense().reshape(factor.rows, factor.cols).float()
            product = matrix if product is None else product @ matrix
        if product is None:
            raise ConfigError("low-rank: no factors.")
        return product.to(self.dtype).reshape(self.shape)

    def matmul(self, x: Tensor) -> Tensor:
        """Multiply through the factors, right to left; the product is never built."""
        for factor in reversed(self.factors):
            x = factor.matmul(x)
        return x

    def embed(self, ids: Tensor) -> Tensor:
        """Look up rows of the first factor and multiply them by the others."""
        first, *rest = self.factors
        rows = first.embed(ids)
        for factor in rest:
            rows = rows @ factor.dense().reshape(factor.rows, factor.cols).to(rows.dtype)
        return rows.to(self.dtype).reshape(*ids.shape, *self.shape[1:])

    def parts(self) -> dict[str, Part]:
        """Return nothing: all is in the factors."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Return nothing: the factors say it all."""
        return {}

    @classmethod
    def from_parts(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        settings: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        children: Mapping[str, Form],
    ) -> LowRank:
        """Build from ``factor0``, ``factor1``, ..."""
        names = [f"factor{index}" for index in range(len(children))]
        if list(children) != names:
            raise ConfigError(f"low-rank: children must be {names}, got {list(children)}.")
        return cls(*children.values(), shape=shape, dtype=dtype)
