"""The level that removes a whole weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.sparse import Sparse
from laconic.weights.base import LayerStep, Site, SiteKind


@dataclass(frozen=True, kw_only=True)
class Drop(LayerStep):
    """Set a whole weight to zero; its bias stays.

    The form keeps no row or column: it runs in no time and takes next to nothing at rest. It
    is a level of a search, and no method of a recipe: alone it leaves nothing of a weight.
    """

    method_name: ClassVar[str] = "drop"
    default_types: ClassVar[tuple[SiteKind, ...]] = ("linear", "conv", "experts")

    def sketch(self, form: Form, *, site: str) -> Form:
        """Return the empty form, on the meta device."""
        return _zeros(form, torch.device("meta"))

    def fit(self, site: Site, generator: torch.Generator) -> Form:
        """Return the empty form."""
        return _zeros(site.form, site.original.device)


def _zeros(form: Form, device: torch.device) -> Sparse:
    """Return a form that keeps no row, or no column where these are fewer to tell apart."""
    rows = form.rows >= form.cols
    kept = torch.zeros(form.rows if rows else form.cols, dtype=torch.bool, device=device)
    shape = (0, form.cols) if rows else (form.rows, 0)
    values = Dense(torch.zeros(shape, dtype=form.dtype, device=device))
    pattern = "row" if rows else "column"
    return Sparse(kept, values, shape=form.shape, dtype=form.dtype, pattern=pattern)
