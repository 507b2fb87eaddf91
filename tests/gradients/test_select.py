"""Selection of the largest entries against a full sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from laconic.errors import ConfigError, LayerError
from laconic.gradients import select
from laconic.gradients.select import sample_stride, select_top


def oracle(values: Tensor, count: int) -> list[int]:
    """Sort by falling magnitude, then rising index."""
    order = sorted(range(len(values)), key=lambda i: (-abs(float(values[i])), i))
    return sorted(order[:count])


def by_sort(values: Tensor, count: int) -> Tensor:
    """The same for long vectors: a stable sort keeps equal magnitudes in index order."""
    order = torch.sort(values.abs(), descending=True, stable=True).indices
    return order[:count].sort().values


def test_by_hand() -> None:
    values = torch.tensor([0.5, -4.0, 2.0, -2.0, 2.0, 0.0, 4.0])
    assert select_top(values, 1).tolist() == [1]  # the lower of the two fours
    assert select_top(values, 2).tolist() == [1, 6]
    assert select_top(values, 4).tolist() == [1, 2, 3, 6]  # index 4 loses the tie
    assert select_top(values, 0).tolist() == []
    assert select_top(values, 7).tolist() == list(range(7))


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-30, -3e8]), min_size=1), st.data())
@settings(deadline=None, max_examples=50)
def test_short_vectors_with_ties(entries: list[float], data: st.DataObject) -> None:
    values = torch.tensor(entries)
    count = data.draw(st.integers(0, len(entries)))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        typed = values.to(dtype)
        assert select_top(typed, count).tolist() == oracle(typed, count)


def heavy(n: int) -> Tensor:
    return torch.randn(n) * torch.randn(n).mul(3).exp()


def sparse(n: int) -> Tensor:
    values = torch.zeros(n)
    at = torch.randperm(n)[: max(1, n // 5000)]
    values[at] = torch.randn(len(at))
    return values


def periodic(n: int) -> Tensor:
    """Every sampled entry is tiny or every one is large: the threshold misleads."""
    values = torch.full((n,), 1e-3)
    values[:: sample_stride(n, max(1, n // 1000))] = 1.0
    return values * torch.rand(n)


KINDS = {
    "normal": torch.randn,
    "heavy": heavy,
    "sparse": sparse,
    "periodic": periodic,
    "constant": torch.ones,
    "zero": torch.zeros,
    "few distinct": lambda n: torch.randint(-3, 4, (n,)).float(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 999, 4096, 100_003, 1_000_000])
def test_equals_a_stable_sort(kind: str, n: int) -> None:
    values = KINDS[kind](n)
    for density in (0.001, 0.03):
        count = max(1, int(density * n))
        found = select_top(values, count)
        assert torch.equal(found, by_sort(values, count))
        assert found.dtype == torch.int64
        assert bool((found.diff() > 0).all())


def test_both_paths_agree_and_sampling_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    values = heavy(200_000)
    assert sample_stride(len(values), 200) > 1
    found = select_top(values, 200)
    assert torch.equal(select._select_torch(values, 200, 0.01), found)
    calls: list[int] = []
    exact = select._exact_numpy

    def counted(magnitude: np.ndarray, count: int) -> np.ndarray:
        calls.append(len(magnitude))
        return exact(magnitude, count)

    monkeypatch.setattr(select, "_exact_numpy", counted)
    assert torch.equal(select_top(values, 200), found)
    assert len(calls) == 1
    assert 200 <= calls[0] < 2000  # the exact part saw survivors, not the vector


def test_views_and_gradients_do_not_matter() -> None:
    base = torch.randn(50_000, 2, requires_grad=True)
    assert torch.equal(select_top(base[:, 0], 40), by_sort(base[:, 0].detach(), 40))


@pytest.mark.parametrize(
    ("values", "count", "said"),
    [
        (torch.ones(3, 3), 1, r"\(3, 3\)"),
        (torch.ones(3, dtype=torch.int64), 1, "int64"),
        (torch.ones(3), 4, "count=4"),
        (torch.ones(3), -1, "count=-1"),
    ],
)
def test_refused(values: Tensor, count: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        select_top(values, count)


def test_refused_ratio_and_nan() -> None:
    with pytest.raises(ConfigError, match="sample_ratio=0"):
        select_top(torch.ones(3), 1, sample_ratio=0)
    values = torch.full((64,), torch.nan)
    for path in (select._select_torch, lambda v, k, r: select_top(v, k)):
        with pytest.raises(LayerError, match="not a number"):
            path(values, 3, 0.01)
