"""The level that removes a whole weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.lowrank import LowRank
from laconic.weights.base import LayerStep, Site, SiteKind


@dataclass(frozen=True, kw_only=True)
class Drop(LayerStep):
    """Set a whole weight to zero; its bias stays.

    The form is a product of two thin factors of zeros: it runs as two thin products and takes
    next to nothing at rest. It is a level of a search, and no method of a recipe: alone it
    leaves nothing of a weight.
    """

    method_name: ClassVar[str] = "drop"
    default_types: ClassVar[tuple[SiteKind, ...]] = ("linear", "conv", "experts")

    def sketch(self, form: Form, *, site: str) -> Form:
        """Return the thin factors, on the meta device."""
        return _zeros(form, torch.device("meta"))

    def fit(self, site: Site, generator: torch.Generator) -> Form:
        """Return the thin factors of zeros."""
        return _zeros(site.form, site.original.device)


def _zeros(form: Form, device: torch.device) -> LowRank:
    left = torch.zeros(form.rows, 1, dtype=form.dtype, device=device)
    right = torch.zeros(1, form.cols, dtype=form.dtype, device=device)
    return LowRank(Dense(left), Dense(right), shape=form.shape, dtype=form.dtype)
