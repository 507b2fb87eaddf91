"""Multiplications by hand, and the outlier ratios that OWL shares by."""

from __future__ import annotations

import pytest
import torch
from search_support import decoder, language_task
from torch import nn

from laconic.errors import ConfigError
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.lowrank import LowRank
from laconic.forms.sparse import Sparse
from laconic.forms.sum import Sum
from laconic.search.build import fill_
from laconic.search.costs import input_shapes, macs, macs_per_row
from laconic.search.database import FormDatabase
from laconic.search.levels import level_set
from laconic.search.outliers import outlier_ratios
from laconic.task import Task, TensorSplit
from laconic.weights.sites import find_sites

pytest.importorskip("transformers", reason="needs the extra hf")


def test_forms_count_what_they_multiply() -> None:
    dense = Dense(torch.ones(6, 8))
    thin: Form = LowRank(Dense(torch.ones(6, 2)), Dense(torch.ones(2, 8)), shape=(6, 8),
                         dtype=torch.float32)  # fmt: skip
    mask = torch.tensor([[True, False] * 4] * 6)
    half = Sparse(mask, Dense(torch.ones(6, 4)), shape=(6, 8), dtype=torch.float32)
    both = Sum(half, thin, shape=(6, 8), dtype=torch.float32)
    assert [macs_per_row(form) for form in (dense, thin, half)] == [48, 28, 24]
    assert macs_per_row(both) == 52


def test_convolutions_count_every_place_and_embeddings_none() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1, stride=2)
            self.head = nn.Linear(8 * 16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x).flatten(1))

    x = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    split = TensorSplit({"x": x, "y": torch.zeros(12, dtype=torch.long)})
    task = Task(kind="classification", test=split, train=split)
    model = Net()
    sites = find_sites(model)
    levels = level_set("rank", data=False)
    database = FormDatabase(levels.names)
    fill_(database, model, sites, levels.of, task)
    found = macs(model, sites, database, task)
    assert found.dense == 16 * 8 * 27 + 128 * 5
    last = len(levels.names) - 1  # as it is
    assert [row[last] for row in found.rows] == [16 * 8 * 27, 128 * 5]
    form = database.form("conv.weight", 3)
    assert isinstance(form, LowRank)
    rank = form.factors[0].cols
    assert found.rows[0][3] == 16 * rank * (8 + 27)

    text, language = decoder(blocks=2), language_task()
    inside = [site for site in find_sites(text) if site.kind == "embedding"]
    assert inside[0].aliases
    calls = input_shapes(text, inside, language)
    assert calls[inside[0].name].given.shape == (1, 14)


def test_a_layer_that_is_not_called_is_told() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    split = TensorSplit({"x": torch.ones(4, 4), "y": torch.zeros(4, dtype=torch.long)})
    model = Idle()
    with pytest.raises(ConfigError, match=r"idle\.weight: its layer is not called"):
        input_shapes(model, find_sites(model), Task(kind="classification", test=split))


def test_outlier_ratios_by_hand() -> None:
    """Two inputs of root mean squares 1 and 3: scores |w| and 3 |w|."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0], [2.0, -4.0]]))
    x = torch.tensor([[1.0, 3.0], [-1.0, -3.0]])
    split = TensorSplit({"x": x, "y": torch.zeros(2, dtype=torch.long)})
    task = Task(kind="classification", test=split, train=split)
    # Scores 1, 3, 2, 12: their mean is 4.5.
    found = outlier_ratios(model, find_sites(model), task, ratios=(0.5, 2.0, 3.0))
    assert found == {0.5: [0.5], 2.0: [0.25], 3.0: [0.0]}


def test_sites_of_a_block_share_its_ratio() -> None:
    model, task = decoder(blocks=2), language_task()
    sites = find_sites(model)
    found = outlier_ratios(model, sites, task)
    assert set(found) == {3.0, 5.0, 7.0, 10.0}
    for values in found.values():
        by_block = {site.block: set() for site in sites if site.block is not None}
        for site, value in zip(sites, values, strict=True):
            if site.block is not None:
                by_block[site.block].add(value)
        assert [len(values) for values in by_block.values()] == [1, 1]
    assert all(a >= b for a, b in zip(found[3.0], found[10.0], strict=True))
