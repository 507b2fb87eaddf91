"""Intervals against published tables and draws that can be counted."""

from __future__ import annotations

from math import exp

import pytest
import torch

from laconic.errors import ConfigError
from laconic.measure import bootstrap, wilson
from laconic.measure.intervals import quotient, share


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_the_table_of_newcombe(
    successes: int, n: int, low: float, high: float
) -> None:
    # R. G. Newcombe, 1998, Two-sided confidence intervals for the single proportion, table I,
    # method 3.
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_worked_by_hand() -> None:
    # z = 1.959964, z^2 = 3.841459; none of n: the upper end is z^2 / (n + z^2).
    assert wilson(0, 10) == pytest.approx((0.0, 3.841459 / 13.841459), abs=1e-7)
    # Half of 4: 1/2 -+ z / 2 / sqrt(4 + z^2), for the centre stays at one half.
    half = 1.959964 / 2 / 7.841459**0.5
    assert wilson(2, 4) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


def test_wilson_is_symmetric_and_widens_with_confidence() -> None:
    low, high = wilson(3, 11)
    assert wilson(8, 11) == pytest.approx((1 - high, 1 - low))
    wide_low, wide_high = wilson(3, 11, confidence=0.99)
    assert 0 < wide_low < low < 3 / 11 < high < wide_high < 1
    assert wilson(11, 11)[1] == 1.0


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 4), (5, 4)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ConfigError, match=rf"wilson: successes={successes} of n={n}"):
        wilson(successes, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(ConfigError, match=rf"confidence={confidence}"):
        wilson(1, 2, confidence=confidence)
    with pytest.raises(ConfigError, match=rf"confidence={confidence}"):
        bootstrap(torch.ones(2), confidence=confidence)


def test_bootstrap_of_two_examples_can_be_counted() -> None:
    # The mean of two draws from {0, 1} is 0, 1/2, 1 with chances 1/4, 1/2, 1/4.
    values = torch.tensor([0.0, 1.0])
    assert bootstrap(values) == (0.0, 1.0)
    assert bootstrap(values, confidence=0.4) == (0.5, 0.5)


def test_bootstrap_draws_examples_with_their_weights() -> None:
    # Every example has the quotient 2, so every draw has; means of the sums would differ.
    low, high = bootstrap(torch.tensor([2.0, 6.0, 20.0]), torch.tensor([1, 3, 10]))
    assert (low, high) == pytest.approx((2.0, 2.0))


def test_bootstrap_has_the_width_of_the_normal_interval() -> None:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(3))
    low, high = bootstrap(values, resamples=2000)
    expected = 2 * 1.96 * float(values.std()) / 4000**0.5
    assert high - low == pytest.approx(expected, rel=0.08)
    assert low < float(values.mean()) < high


def test_bootstrap_is_deterministic_by_seed() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values, seed=1) != bootstrap(values)
    assert torch.equal(torch.get_rng_state(), state)


def test_bootstrap_holds_the_value_even_with_one_draw() -> None:
    values = torch.tensor([0.0, 0.0, 9.0])
    for seed in range(8):
        low, high = bootstrap(values, resamples=1, seed=seed)
        assert low <= 3.0 <= high


def test_bootstrap_leaves_out_draws_without_weight() -> None:
    low, high = bootstrap(torch.tensor([4.0, 0.0]), torch.tensor([2.0, 0.0]))
    assert (low, high) == (2.0, 2.0)


def test_bootstrap_draws_in_parts_where_examples_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(2))
    whole = bootstrap(values)
    monkeypatch.setattr("laconic.measure.intervals._CHUNK", 250)
    assert bootstrap(values) == whole


@pytest.mark.parametrize(
    ("sums", "weights", "resamples"),
    [
        (torch.ones(0), None, 10),
        (torch.ones(2, 2), None, 10),
        (torch.ones(2), torch.ones(3), 10),
        (torch.ones(2), None, 0),
        (torch.ones(2), torch.zeros(2), 10),
    ],
)
def test_bootstrap_refuses_what_it_cannot_draw(
    sums: torch.Tensor, weights: torch.Tensor | None, resamples: int
) -> None:
    with pytest.raises(ConfigError, match="bootstrap: "):
        bootstrap(sums, weights, resamples=resamples)


def test_a_share_is_a_metric() -> None:
    low, high = wilson(3, 4)
    assert share(3, 4) == {"value": 0.75, "low": low, "high": high, "n": 4}


def test_a_quotient_goes_through_a_function_and_keeps_its_ends_in_order() -> None:
    sums = torch.tensor([1.0, 2.0, 3.0, 4.0])
    plain = quotient(sums)
    up, down = quotient(sums, through=exp), quotient(sums, through=lambda v: 1 - v, n=7)
    assert plain["value"] == 2.5
    assert up == {k: pytest.approx(exp(v)) if k != "n" else 4 for k, v in plain.items()}
    assert down["value"] == -1.5
    assert (down["low"], down["high"]) == (1 - plain["high"], 1 - plain["low"])
    assert down["n"] == 7
