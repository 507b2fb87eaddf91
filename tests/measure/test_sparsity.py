"""PQ Index, Gini, Hoyer: golden values, axioms of a measure of sparsity, and the theorem."""

from __future__ import annotations

from math import ceil, pi, sqrt
from statistics import mean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms.dense import Dense
from laconic.forms.sparse import Sparse
from laconic.measure import form_sparsity, gini, hoyer, pqi, retain_bound, sparsity

PAIRS = [(0.5, 1.0), (1.0, 2.0), (0.2, 1.0), (1.0, 1.3), (0.1, 3.0)]
MEASURES = [*(lambda w, p=p, q=q, **more: pqi(w, p, q, **more) for p, q in PAIRS), gini, hoyer]
NAMES = [*(f"pqi {p}, {q}" for p, q in PAIRS), "gini", "hoyer"]
GOLDEN = [
    ([1, 2, 3, 4], 0.5, 1.0, 0.055586, 3.7777, 4),
    ([1, 2, 3, 4], 1.0, 2.0, 0.087129, 3.3333, 4),
    ([1, 0, 0, 0], 0.5, 1.0, 0.75, 1.0, 1),
    ([1, 0, 0, 0], 1.0, 2.0, 0.5, 1.0, 1),
    ([4, 1, 1, 1, 1], 0.5, 1.0, 0.1, 4.5, 5),
    ([4, 1, 1, 1, 1], 1.0, 2.0, 0.2, 3.2, 4),
]
measures = pytest.mark.parametrize("measure", MEASURES, ids=NAMES)
steady = settings(deadline=None, max_examples=40)


def drawn(seed: int, count: int = 40) -> Tensor:
    """Positive values with a heavy tail, none equal."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=source, dtype=torch.float64).exp()


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("w", "p", "q", "index", "bound", "whole"), GOLDEN)
def test_golden_values(
    w: list[int], p: float, q: float, index: float, bound: float, whole: int
) -> None:
    weights, d = torch.tensor(w, dtype=torch.float32), len(w)
    found = pqi(weights, p, q)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(index, abs=1e-6)
    assert d * (1 - float(found)) ** (p * q / (q - p)) == pytest.approx(bound, abs=1e-4)
    assert int(retain_bound(found, d, p, q)) == whole
    everything = torch.ones(d, dtype=torch.bool)
    assert float(pqi(weights, p, q, mask=everything)) == pytest.approx(float(found), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "p", "q", "limit"),
    [
        ("gauss", 0.5, 1.0, 0.15279),
        ("gauss", 1.0, 2.0, 1 - sqrt(2 / pi)),
        ("laplace", 0.5, 1.0, 1 - pi / 4),
        ("laplace", 1.0, 2.0, 1 - 1 / sqrt(2)),
    ],
)
def test_of_many_values_of_a_known_law(name: str, p: float, q: float, limit: float) -> None:
    source = torch.Generator().manual_seed(0)
    w = torch.randn(1_000_000, generator=source)
    if name == "laplace":
        w = torch.empty(1_000_000).exponential_(generator=source) * w.sign()
    assert float(pqi(w, p, q)) == pytest.approx(limit, abs=1e-3)


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_ends_of_the_scale(p: float, q: float) -> None:
    for d in (1, 2, 7, 100):
        assert float(pqi(torch.full((d,), -3.0), p, q)) == pytest.approx(0, abs=1e-12)
        assert float(gini(torch.full((d,), 2.0))) == pytest.approx(0, abs=1e-12)
        assert float(hoyer(torch.full((d,), 2.0))) == pytest.approx(0, abs=1e-6)
        one = torch.zeros(d)
        one[d // 2] = -0.25
        assert float(pqi(one, p, q)) == pytest.approx(1 - d ** (1 / q - 1 / p), abs=1e-12)
        assert float(gini(one)) == pytest.approx(1 - 1 / d, abs=1e-12)
        assert float(hoyer(one)) == pytest.approx(float(d > 1), abs=1e-12)


def test_gini_and_hoyer_by_hand() -> None:
    w = torch.tensor([3.0, -1.0, 0.0, 4.0])
    # Gini: mean of |a - b| over all pairs / (2 mean): (2+3+1 + 1+3 + 4) * 2 / 16 / (2 * 2)
    assert float(gini(w)) == pytest.approx(28 / 64)
    assert float(hoyer(w)) == pytest.approx((2 - 8 / sqrt(26)) / 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_no_scale_and_no_small_norm_overflows(dtype: torch.dtype, scale: float) -> None:
    if dtype == torch.float16:
        scale = {1e-30: 1e-3, 1e30: 1e3}.get(scale, scale)
    base = torch.tensor([1.0, 2.0, 3.0, 4.0])
    w = (base * scale).to(dtype)
    for p, q in ((0.01, 1.0), (0.5, 1.0), (2.0, 50.0)):
        plain, many = pqi(base, p, q), pqi(w.repeat(5000), p, q)
        assert float(many) == pytest.approx(float(plain), rel=2e-2)
        assert 0 < float(many) < 1
    w = torch.cat([w, torch.zeros(3, dtype=dtype)])
    assert 0 < float(pqi(w, 0.001, 1.0)) <= 1


def test_float32_and_float64_agree_at_ten_million() -> None:
    w = torch.randn(10_000_000, generator=torch.Generator().manual_seed(0))
    for p, q in ((0.5, 1.0), (1.0, 2.0)):
        exact = w[:1_000_000].double()
        assert float(pqi(w[:1_000_000], p, q)) == pytest.approx(float(pqi(exact, p, q)), abs=1e-9)
    assert float(pqi(w)) == pytest.approx(0.15279, abs=1e-4)


def test_axes_and_masks_agree_with_vectors_taken_out() -> None:
    source = torch.Generator().manual_seed(0)
    w = torch.randn(4, 3, 5, generator=source)
    mask = torch.rand(4, 3, 5, generator=source) > 0.4
    mask[2] = False
    for measure in MEASURES:
        rows = measure(w, mask=mask, dim=(-1, 1))
        assert rows.shape == (4,)
        for row, values, kept in zip(rows, w, mask, strict=True):
            alone = float(measure(values[kept])) if kept.any() else 0.0
            assert float(row) == pytest.approx(alone, abs=1e-12)
        assert float(measure(w, mask=mask)) == pytest.approx(float(measure(w[mask])), abs=1e-12)
        assert measure(w, dim=0).shape == (3, 5)
        assert float(measure(w, dim=0)[1, 2]) == pytest.approx(float(measure(w[:, 1, 2])))


def test_nothing_and_zeros_alone_have_none() -> None:
    for measure in MEASURES:
        assert float(measure(torch.zeros(5))) == 0
        assert float(measure(torch.zeros(0))) == 0
        assert measure(torch.zeros(3, 0), dim=1).tolist() == [0, 0, 0]
        assert measure(torch.zeros(0, 3), dim=1).shape == (0,)
        assert float(measure(torch.ones(4), mask=torch.zeros(4, dtype=torch.bool))) == 0


# --- axioms (Hurley and Rickard 2009, section II) -----------------------------------------------


@measures
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-6, 1e6))
@steady
def test_scale_and_sign_do_not_count(measure, seed: int, scale: float) -> None:
    w = drawn(seed)
    signs = torch.where(drawn(seed + 1) > 1, 1.0, -1.0)
    assert float(measure(scale * signs * w)) == pytest.approx(float(measure(w)), abs=1e-9)


@pytest.mark.parametrize("measure", MEASURES[:-1], ids=NAMES[:-1])  # Hoyer's does not have it
@given(seed=st.integers(0, 10_000), times=st.integers(2, 5))
@steady
def test_copies_do_not_count(measure, seed: int, times: int) -> None:
    w = drawn(seed)
    assert float(measure(w.repeat(times))) == pytest.approx(float(measure(w)), abs=1e-9)


@measures
@given(seed=st.integers(0, 10_000), zeros=st.integers(1, 30))
@steady
def test_zeros_make_sparser(measure, seed: int, zeros: int) -> None:
    w = drawn(seed)
    assert float(measure(torch.cat([w, w.new_zeros(zeros)]))) > float(measure(w)) + 1e-6


@measures
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.5))
@steady
def test_taking_from_the_rich_makes_less_sparse(measure, seed: int, share: float) -> None:
    w = drawn(seed)
    low, high = w.argmin(), w.argmax()
    moved = w.clone()
    amount = share * (w[high] - w[low])
    moved[high] -= amount
    moved[low] += amount
    assert float(measure(moved)) < float(measure(w)) - 1e-9


@measures
@given(seed=st.integers(0, 10_000), tide=st.floats(0.05, 5))
@steady
def test_a_rising_tide_makes_less_sparse(measure, seed: int, tide: float) -> None:
    w = drawn(seed)
    assert float(measure(w + tide)) < float(measure(w)) - 1e-9


@measures
@given(seed=st.integers(0, 10_000), at=st.integers(0, 39))
@steady
def test_one_very_rich_makes_sparser(measure, seed: int, at: int) -> None:
    w = drawn(seed)
    richer, more = w.clone(), w.clone()
    richer[at] += 100 * w.sum()
    more[at] += 200 * w.sum()
    assert float(measure(w)) < float(measure(richer)) < float(measure(more))


@measures
@given(seed=st.integers(0, 10_000), count=st.integers(1, 200))
@steady
def test_lies_between_zero_and_one(measure, seed: int, count: int) -> None:
    assert 0 <= float(measure(drawn(seed, count))) < 1


# --- the theorem --------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "q"), PAIRS)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 60))
@steady
def test_the_bound_holds_for_every_count_that_is_kept(
    p: float, q: float, seed: int, count: int
) -> None:
    w = drawn(seed, count).sort(descending=True).values
    index, powers = pqi(w, p, q), w**p
    for kept in range(1, count + 1):
        eta = float(powers[kept:].sum() / powers[:kept].sum())
        assert int(retain_bound(index, count, p, q, eta)) <= kept


def test_the_bound_is_reached_by_equal_weights() -> None:
    for count in (1, 3, 1000, 10**7):
        for p, q in PAIRS:
            assert int(retain_bound(0.0, count, p, q)) == count
    some = torch.zeros(1000)
    some[:250] = 3.0  # equal ones and zeros: exactly those 250 must stay
    for p, q in PAIRS:
        assert int(retain_bound(pqi(some, p, q), 1000, p, q)) == 250


def test_the_bound_takes_many_at_once_and_allows_loss() -> None:
    index, d = torch.tensor([0.0, 0.1, 0.75, 0.2]), torch.tensor([5, 5, 4, 0])
    found = retain_bound(index, d)
    assert found.dtype == torch.int64
    assert found.tolist() == [5, 5, 1, 0]
    exact = 100 * (1 + 0.25) ** (-1.0 / 0.5) * (1 - 0.2) ** (0.5 / 0.5)
    assert int(retain_bound(0.2, 100, eta=0.25)) == ceil(exact)
    assert int(retain_bound(0.999, 10)) == 1


# --- mistakes, and what is told -----------------------------------------------------------------


@pytest.mark.parametrize(("p", "q"), [(1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (1, 1e400)])
def test_refuses_norms_out_of_order(p: float, q: float) -> None:
    with pytest.raises(ConfigError, match=rf"p={p}, q={q}; 0 < p < q"):
        pqi(torch.ones(3), p, q)
    with pytest.raises(ConfigError, match="0 < p < q"):
        retain_bound(0.1, 3, p, q)


def test_refuses_what_is_no_number() -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        w = torch.tensor([1.0, bad, 2.0])
        for measure in MEASURES:
            with pytest.raises(ConfigError, match="NaN or infinite"):
                measure(w)
            with pytest.raises(ConfigError, match="NaN or infinite"):
                measure(w, dim=0)
            left = torch.tensor([True, False, True])
            assert float(measure(w, mask=left)) == pytest.approx(float(measure(w[left])))


def test_refuses_masks_axes_and_shares_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"mask torch.bool \(2,\) for weights \(3,\)"):
        pqi(torch.ones(3), mask=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"mask torch.float32"):
        gini(torch.ones(3), mask=torch.ones(3))
    with pytest.raises(ConfigError, match=r"no axis 1"):
        hoyer(torch.ones(3), dim=1)
    for eta in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=f"eta={eta}"):
            retain_bound(0.1, 3, eta=eta)


def test_all_measures_at_once_with_what_makes_them_comparable() -> None:
    w = torch.tensor([[1.0, 2.0, 0.0], [3.0, 4.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = sparsity(w, p=1.0, q=2.0, mask=mask)
    assert (found.survivors, found.zeros, found.p, found.q) == (5, 1, 1.0, 2.0)
    five = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    assert found.pqi == pytest.approx(1 - mean([0, 1, 2, 3, 4]) / sqrt(6))
    assert found.gini == pytest.approx(float(gini(five)))
    assert found.hoyer == pytest.approx(float(hoyer(five)))


def test_a_sparse_form_is_measured_by_what_it_keeps() -> None:
    w = torch.tensor([[1.0, 0.0, 3.0], [0.0, 2.0, 4.0]])
    kept = Dense(torch.tensor([[1.0, 3.0], [2.0, 4.0]]))
    form = Sparse(w != 0, kept, shape=(2, 3), dtype=torch.float32)
    four = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert form_sparsity(form) == sparsity(four)
    assert form_sparsity(Dense(w)) == sparsity(w)
    assert form_sparsity(form).pqi == pytest.approx(0.055586, abs=1e-6)
    assert form_sparsity(Dense(w)).zeros == 2
