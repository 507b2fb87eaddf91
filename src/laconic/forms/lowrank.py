"""LowRank: a product of two or more thin factors."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import Any, Self

import torch
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms._check import check_children, check_shape, wide
from laconic.forms.base import Form, Part
from laconic.forms.dense import Dense


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
        check_shape(self.kind, self.shape)
        sizes = [(f.rows, f.cols) for f in factors]
        chained = all(a[1] == b[0] for a, b in pairwise(sizes))
        ends = (sizes[0][0], sizes[-1][1]) if sizes else None
        if len(set(factors)) < max(2, len(factors)) or not chained or ends != self._size:
            raise ConfigError(
                f"low-rank: factors {sizes} do not multiply to {self._size}; there must be two or "
                "more, all different, whose inner sizes agree."
            )
        for index, factor in enumerate(factors):
            self.add_module(f"factor{index}", factor)

    @property
    def _size(self) -> tuple[int, int]:
        return self.rows, self.cols

    @classmethod
    def empty(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        rank: int,
        factor_dtype: torch.dtype | None = None,
    ) -> Self:
        """Return a sketch of two dense factors on the meta device.

        Args:
            shape: Shape that the product stands for.
            dtype: Type that the product stands for.
            rank: Columns of the first factor.
            factor_dtype: Type of the factors; ``dtype`` where None.

        Raises:
            ConfigError: A rank below 0.
        """
        check_shape(cls.kind, (*shape, rank))
        kind = factor_dtype or dtype
        left = Dense.empty((shape[0], rank), kind)
        return cls(left, Dense.empty((rank, prod(shape[1:])), kind), shape=shape, dtype=dtype)

    @property
    def factors(self) -> list[Form]:
        """The factors, left to right."""
        return list(self.children_forms().values())

    @property
    def rank(self) -> int:
        """The smallest inner dimension."""
        return min(factor.cols for factor in self.factors[:-1])

    def dense(self) -> Tensor:
        """Return the product, computed in float32 or wider in the cheapest order."""
        kind = wide(self.dtype)
        matrices = [_matrix(factor, kind) for factor in self.factors]
        product = matrices[0] @ matrices[1] if len(matrices) == 2 else _chain(matrices)
        return product.to(self.dtype).reshape(self.shape)

    def matmul(self, x: Tensor) -> Tensor:
        """Multiply through the factors, right to left; the product is never built."""
        for factor in reversed(self.factors):
            x = factor.matmul(x)
        return x

    def embed(self, ids: Tensor) -> Tensor:
        """Look up rows of the first factor and multiply them by the others."""
        first, *rest = self.factors
        kind = wide(self.dtype)
        rows = first.embed(ids.reshape(-1)).reshape(-1, first.cols).to(kind)
        for factor in rest:
            rows = rows @ _matrix(factor, kind)
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
        check_children(cls.kind, "factor", children, parts)
        return cls(*children.values(), shape=shape, dtype=dtype)


def _matrix(factor: Form, dtype: torch.dtype) -> Tensor:
    return factor.dense().reshape(factor.rows, factor.cols).to(dtype)


def _chain(matrices: list[Tensor]) -> Tensor:
    product: Tensor = torch.linalg.multi_dot(matrices)
    return product
