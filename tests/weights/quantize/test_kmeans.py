from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.errors import LayerError, RecipeError
from laconic.forms.dense import Dense
from laconic.forms.sparse import Sparse
from laconic.weights.base import Site
from laconic.weights.quantize._clusters import cluster, nearest
from laconic.weights.quantize.kmeans import KMeans
from laconic.weights.quantize.round_to_nearest import RoundToNearest


def squared_error(values, centres, weights=None):
    error = (values.double() - centres.double()[nearest(values, centres)]).square()
    return float((error if weights is None else error * weights.double()).sum())


def test_by_hand():
    # Linear start at 0 and 10; {0, 1, 2} and {9, 10} give the means 1 and 9.5.
    values = torch.tensor([10.0, 0.0, 9.0, 2.0, 1.0])
    assert cluster(values, 2).tolist() == [1.0, 9.5]


def test_weights_pull_the_centre():
    values, weights = torch.tensor([0.0, 1.0, 10.0]), torch.tensor([3.0, 1.0, 1.0])
    assert cluster(values, 2, weights=weights).tolist() == [0.25, 10.0]


def test_few_distinct_values_are_exact():
    values = torch.tensor([3.0, -1.0, 3.0, 0.5])
    centres = cluster(values, 8)
    assert centres.tolist() == [-1.0, 0.5, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]
    assert torch.equal(centres[nearest(values, centres)], values)


def test_empty_centres_are_put_to_use():
    # Between 0 and 100 a linear start leaves the middle centres without values.
    values = torch.cat([torch.linspace(0, 1, 50), torch.tensor([100.0])])
    centres = cluster(values, 4)
    assert len(set(centres.tolist())) == 4
    assert squared_error(values, centres) < 1.0


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(6, 40))
def test_ends_in_a_fixed_point_below_the_linear_start(seed, count, size):
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed)).float()
    centres = cluster(values, count)
    start = torch.linspace(float(values.min()), float(values.max()), count)
    assert squared_error(values, centres) <= squared_error(values, start) + 1e-9
    assignment = nearest(values, centres)
    for index in range(count):  # every centre is the mean of what is nearest to it
        mine = values[assignment == index]
        assert len(mine)
        assert float(centres[index]) == pytest.approx(float(mine.double().mean()), abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_is_the_best_of_all_splits_of_few_values(seed):
    values = torch.randn(14, generator=torch.Generator().manual_seed(seed)).sort().values
    best = min(
        sum(
            float((part - part.mean()).square().sum())
            for part in torch.tensor_split(values, list(cuts))
        )
        for cuts in combinations(range(1, 14), 2)
    )
    assert squared_error(values, cluster(values, 3)) == pytest.approx(best, rel=1e-4)


def test_reaches_the_known_optimum_of_a_normal_law():
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    # Mean squared errors of the best 4 and 16 levels (Max 1960, table 1).
    for count, optimum in ((4, 0.1175), (16, 0.009497)):
        assert squared_error(values, cluster(values, count)) / 1e5 == pytest.approx(
            optimum, rel=0.02
        )


def test_an_outlier_far_away_does_not_blind_it():
    values = torch.cat([torch.randn(5000), torch.tensor([1e6])])
    centres = cluster(values, 16)
    assert float(centres[-1]) == 1e6
    crowd = values[:-1]
    assert squared_error(crowd, centres) / 5000 < 0.02


def test_nearest_takes_the_nearest():
    values = torch.randn(200)
    centres = torch.tensor([-1.0, -0.2, 0.3, 2.0])
    distance = (values.unsqueeze(1) - centres).abs()
    assert torch.equal(nearest(values, centres), distance.argmin(1))


def test_beats_even_levels_with_one_range_a_layer():
    weight = torch.randn(1, 4096)
    site = Site("w", "linear", Dense(weight), weight)
    for bits in (2, 3, 4):
        shared = KMeans(bits=bits).fit(site, torch.Generator())
        rounded = RoundToNearest(bits=bits, group_size="channel", range="mse")
        even = rounded.fit(site, torch.Generator())
        error, other = (float((form.dense().detach() - weight).norm()) for form in (shared, even))
        assert error < 0.93 * other


def test_sparse_values_keep_zeros_and_use_no_centre_for_them():
    mask = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    values = torch.randn(1, int(mask.sum()))
    sparse = Sparse(mask, Dense(values), shape=(8, 8), dtype=torch.float32)
    form = KMeans(bits=2).fit(Site("w", "linear", sparse, sparse.dense()), torch.Generator())
    assert form.signature == "sparse(codebook)"
    assert torch.equal(form.dense() != 0, mask)
    assert len(set(form.values.table.detach().flatten().tolist())) == 4


def test_gram_weighting_serves_inputs_that_are_large(make_site, generator):
    weight, x = torch.randn(32, 16), torch.randn(500, 16)
    x[:, :4] *= 20
    site = make_site(weight, x=x)
    plain = KMeans(bits=4).fit(site, generator).dense().detach()
    weighted = KMeans(bits=4, weighting="gram").fit(site, generator).dense().detach()
    assert KMeans(bits=2, weighting="gram").needs == {"sumsq"}

    def error(dense):
        return float(((dense - weight) @ x.T).norm())

    assert error(weighted) < 0.9 * error(plain)


def test_gram_weighting_of_a_sparse_form_takes_the_kept_columns(make_site, generator):
    weight = torch.tensor([[1.0, 5.0, 2.0, 9.0]])
    mask = torch.tensor([[True, False, True, True]])
    sparse = Sparse(mask, Dense(weight[mask].reshape(1, -1)), shape=(1, 4), dtype=torch.float32)
    site = make_site(weight, x=torch.tensor([[2.0, 7.0, 1.0, 1.0]]), form=sparse)
    form = KMeans(bits=1, weighting="gram").fit(site, generator)
    # 1 counts 4 and 2 counts 1: their centre is (4 * 1 + 1 * 2) / 5.
    torch.testing.assert_close(form.dense(), torch.tensor([[1.2, 0.0, 1.2, 9.0]]))


def test_table_is_trainable_and_rounded_to_the_type_of_the_weight():
    weight = torch.randn(16, 16).to(torch.bfloat16)
    form = KMeans(bits=3).fit(Site("w", "linear", Dense(weight), weight), torch.Generator())
    assert form.table.dtype == torch.bfloat16
    table = form.table.detach().float().flatten()
    distance = (weight.float().reshape(-1, 1) - table).abs().min(1).values
    assert torch.equal((form.dense().detach().float() - weight.float()).abs().flatten(), distance)


def test_refusals_and_sketch():
    weight = torch.randn(8, 16)
    site = Site("w", "linear", Dense(weight), weight)
    form = KMeans(bits=3).fit(site, torch.Generator())
    sketch = KMeans(bits=3).sketch(Dense(torch.empty(8, 16, device="meta")), site="w")
    assert (sketch.signature, sketch.nbytes) == (form.signature, form.nbytes)
    with pytest.raises(RecipeError, match="kmeans cannot follow codebook"):
        KMeans().fit(Site("w", "linear", form, weight), torch.Generator())
    weight[0, 0] = float("inf")
    with pytest.raises(LayerError, match="w: 1 of 128"):
        KMeans().fit(Site("w", "linear", Dense(weight), weight), torch.Generator())
