"""Sites made by hand, for tests of methods alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.weights.base import Site, Statistics

MakeSite = Callable[..., Site]


def statistics_of(x: Tensor) -> Statistics:
    """Statistics of rows (rows, cols), as calibration defines them."""
    return Statistics(
        count=len(x),
        gram=x.T @ x / len(x),
        absmax=x.abs().amax(0),
        absmean=x.abs().mean(0),
        sumsq=x.square().mean(0),
    )


@pytest.fixture
def make_site() -> MakeSite:
    def make(weight: Tensor, *, x: Tensor | None = None, form: Form | None = None, **other) -> Site:
        held = Dense(weight) if form is None else form
        found = None if x is None else statistics_of(x)
        return Site("layer.weight", "linear", held, weight, statistics=found, **other)

    return make


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def layer() -> tuple[Tensor, Tensor]:
    """A weight (48, 64) and correlated inputs (1000, 64) for it."""
    source = torch.Generator().manual_seed(1)
    weight = torch.randn(48, 64, generator=source)
    mixed = torch.randn(1000, 16, generator=source) @ torch.randn(16, 64, generator=source)
    return weight, mixed + 0.3 * torch.randn(1000, 64, generator=source)
