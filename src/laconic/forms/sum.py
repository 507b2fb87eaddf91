"""Sum: several forms added up, such as a quantized weight and its low-rank correction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms._check import check_children, wide
from laconic.forms.base import Form, Part


class Sum(Form):
    """Stands for the sum of its terms.

    Args:
        terms: One or more forms of that shape, all different objects.
        shape: Shape that the sum stands for.
        dtype: Type that the sum stands for.

    Raises:
        ConfigError: No terms, or a term of another shape.
    """

    kind = "sum"

    def __init__(self, *terms: Form, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__(shape, dtype)
        shapes = [term.shape for term in terms]
        if not terms or set(shapes) != {self.shape} or len(set(terms)) < len(terms):
            raise ConfigError(
                f"sum: terms of shapes {shapes} do not add up to {self.shape}; there must be one "
                "or more, all different, of that shape."
            )
        for index, term in enumerate(terms):
            self.add_module(f"term{index}", term)

    @property
    def terms(self) -> list[Form]:
        """The terms, in order."""
        return list(self.children_forms().values())

    def dense(self) -> Tensor:
        """Return the sum, accumulated in float32 or wider."""
        kind = wide(self.dtype)
        first, *rest = (term.dense().to(kind) for term in self.terms)
        return sum(rest, start=first).to(self.dtype)

    def matmul(self, x: Tensor) -> Tensor:
        """Multiply by each term and add: a low-rank term is never expanded."""
        first, *rest = (term.matmul(x) for term in self.terms)
        return sum(rest, start=first)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up rows of each term and add."""
        kind = wide(self.dtype)
        first, *rest = (term.embed(ids).to(kind) for term in self.terms)
        return sum(rest, start=first).to(self.dtype)

    def parts(self) -> dict[str, Part]:
        """Return nothing: all is in the terms."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Return nothing: the terms say it all."""
        return {}

    @classmethod
    def from_parts(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        settings: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        children: Mapping[str, Form],
    ) -> Sum:
        """Build from ``term0``, ``term1``, ..."""
        check_children(cls.kind, "term", children, parts)
        return cls(*children.values(), shape=shape, dtype=dtype)
