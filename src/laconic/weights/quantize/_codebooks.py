"""What methods that put a table of values in a weight's place have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from laconic.forms.base import Form
from laconic.forms.codebook import Codebook
from laconic.forms.dense import Dense
from laconic.forms.sparse import Sparse
from laconic.settings import setting
from laconic.weights.base import LayerStep, Site, Statistic
from laconic.weights.checks import has_dense, replace_dense
from laconic.weights.quantize._importance import input_squares


@dataclass(frozen=True, kw_only=True)
class CodebookStep(LayerStep, ABC):
    """A step that leaves a codebook in place of whatever is dense in a form.

    Args:
        bits: Stored bits per weight, 1..8, without the table.
        weighting: ``"gram"`` counts the squared error of each weight by the mean square of its
            input, which needs calibration data; ``"none"`` counts all alike. Only for dense
            weights and values of sparse ones.
    """

    shorthand: ClassVar[str | None] = "bits"

    bits: int = setting(4, help="Stored bits per weight, without the table.", low=1, high=8)
    weighting: Literal["none", "gram"] = setting("none", help="How errors count.")

    @property
    def needs(self) -> frozenset[Statistic]:
        """Return the mean squares of inputs, where errors are weighted."""
        return frozenset({"sumsq"}) if self.weighting == "gram" else frozenset()

    @abstractmethod
    def codebook(self, dense: Dense, importance: Tensor | None, *, site: str) -> Codebook:
        """Return the codebook of a dense part.

        Args:
            dense: The part.
            importance: What the squared error of each weight counts, shaped as the site's
                matrix; None counts all alike.
            site: Name for messages.
        """

    @abstractmethod
    def codebook_sketch(self, dense: Dense, *, site: str) -> Codebook:
        """Return that codebook without values, on the meta device."""

    def sketch(self, form: Form, *, site: str) -> Form:
        """Return the form with a codebook in place of its dense parts, on the meta device."""
        self._check_form(form)
        return replace_dense(
            form, lambda dense, path: self.codebook_sketch(dense, site=_named(site, path))
        )

    def fit(self, site: Site, generator: torch.Generator) -> Form:
        """Return the site's form with a codebook in place of its dense parts."""
        self._check_form(site.form)
        importance = input_squares(site) if self.weighting == "gram" else None
        return replace_dense(
            site.form,
            lambda dense, path: self.codebook(dense, importance, site=_named(site.name, path)),
        )

    def _check_form(self, form: Form) -> None:
        if not has_dense(form):
            raise self.refuse(form, "it has no dense part left; quantize a weight once.")
        inner = form.values if isinstance(form, Sparse) else form
        if self.weighting == "gram" and not isinstance(inner, Dense):
            raise self.refuse(
                form, "weighting='gram' needs a dense weight or values of a sparse one."
            )


def _named(site: str, path: str) -> str:
    return f"{site} ({path})" if path else site
