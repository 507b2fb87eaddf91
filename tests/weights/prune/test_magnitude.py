from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.errors import ConfigError, LayerError, RecipeError
from laconic.forms.dense import Dense
from laconic.forms.sparse import Sparse
from laconic.weights.base import Override, Site
from laconic.weights.prune._select import count_below, smallest
from laconic.weights.prune.magnitude import Magnitude
from laconic.weights.quantize.round_to_nearest import RoundToNearest

HAND = torch.tensor([[1.0, -5.0, 2.0, 0.5], [-3.0, 0.1, 4.0, -0.2], [6.0, 7.0, -8.0, 9.0]])


def fit(weight, form=None, name="w", **options):
    site = Site(name, "linear", form or Dense(weight), weight)
    return Magnitude(**options).fit(site, torch.Generator())


def test_by_hand():
    assert fit(HAND, sparsity=0.5).dense().tolist() == [[0, -5, 0, 0], [0, 0, 4, 0], [6, 7, -8, 9]]
    assert fit(HAND, sparsity=0.5, scope="row").dense().tolist() == [
        [0, -5, 2, 0], [-3, 0, 4, 0], [0, 0, -8, 9]
    ]  # fmt: skip
    two = fit(HAND, pattern="1:2")
    assert two.dense().tolist() == [[0, -5, 2, 0], [-3, 0, 4, 0], [0, 7, 0, 9]]
    assert two.pattern == "1:2"
    assert two.values.shape == (3, 2)


def test_ties_go_to_the_lowest_index():
    form = fit(torch.ones(2, 4), sparsity=0.375)
    assert form.dense().tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]
    assert fit(torch.ones(1, 4), pattern="2:4").dense().tolist() == [[0, 0, 1, 1]]


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(1, 7),
    cols=st.integers(1, 20),
    sparsity=st.floats(0, 0.999),
    scope=st.sampled_from(["layer", "row"]),
    seed=st.integers(0, 99),
)
def test_count_is_exact_and_what_is_kept_is_largest(rows, cols, sparsity, scope, seed):
    source = torch.Generator().manual_seed(seed)
    weight = torch.randint(-3, 4, (rows, cols), generator=source).float() + 0.5  # many ties
    form = fit(weight, sparsity=sparsity, scope=scope)
    zeros = (form.dense() == 0).sum(1)
    if scope == "row":
        assert set(zeros.tolist()) == {round(sparsity * cols)}
    assert int(zeros.sum()) == (
        rows * round(sparsity * cols) if scope == "row" else round(sparsity * rows * cols)
    )
    kept, gone = weight[form.mask].abs(), weight[~form.mask].abs()
    if scope == "layer" and len(kept) and len(gone):
        assert float(kept.min()) >= float(gone.max())
    assert torch.equal(form.dense()[form.mask], weight[form.mask])
    sketch = Magnitude(sparsity=sparsity, scope=scope).sketch(
        Dense(torch.empty(rows, cols, device="meta")), site="w"
    )
    assert (sketch.signature, sketch.nbytes) == (form.signature, form.nbytes)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 999), st.floats(0, 0.97), st.floats(0.97, 0.999))
def test_global_counts_match_a_sorted_list(seed, sparsity, cap):
    source = torch.Generator().manual_seed(seed)
    scores = [torch.randint(0, 9, (size,), generator=source).float() / 4 for size in (40, 7, 64, 1)]
    sizes = [len(s) for s in scores]
    total = round(sparsity * sum(sizes))
    counts = count_below(scores, total, sizes)
    owner = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])
    order = torch.cat(scores).sort(stable=True).indices[:total]
    assert counts == torch.bincount(owner[order], minlength=4).tolist()
    caps = [int(cap * size) for size in sizes]
    total = min(total, sum(caps))
    capped = count_below(scores, total, caps)
    assert sum(capped) == total
    assert all(count <= limit for count, limit in zip(capped, caps, strict=True))


def test_global_scope_is_one_threshold_with_a_floor_for_small_layers():
    torch.manual_seed(0)
    big, small = torch.randn(40, 50), torch.randn(10, 10) * 0.01
    sites = [Site(n, "linear", Dense(w), w) for n, w in (("big", big), ("small", small))]
    step = Magnitude(sparsity=0.5, scope="global", max_layer_sparsity=0.9)
    resolved = step.resolve(sites)
    forms = {s.name: resolved[s.name].fit(s, torch.Generator()) for s in sites}
    zeros = {name: int((form.dense() == 0).sum()) for name, form in forms.items()}
    assert zeros["small"] == 90  # without the floor all of it would go
    assert zeros["big"] + zeros["small"] == 1050
    limit = big.abs().flatten().kthvalue(960).values
    assert torch.equal(forms["big"].mask, big.abs() > limit)
    free = Magnitude(sparsity=0.5, scope="global", max_layer_sparsity=0.999).resolve(sites)
    assert round(free["small"].sparsity * 100) == 99


def test_overrides_keep_their_other_settings():
    step = Magnitude(overrides=(Override(("w*",), {"sparsity": 0.75}),))
    site = Site("w1", "linear", Dense(HAND), HAND)
    assert int((step.resolve([site])["w1"].fit(site, torch.Generator()).dense() == 0).sum()) == 9


def test_convolutions_too():
    weight = torch.randn(8, 4, 3, 3)
    form = fit(weight, pattern="2:4")
    assert form.shape == (8, 4, 3, 3)
    assert bool(((form.dense().reshape(-1, 4) != 0).sum(1) == 2).all())
    with pytest.raises(LayerError, match=r"w: pattern='2:4' does not divide the 27 inputs"):
        fit(torch.randn(8, 3, 3, 3), pattern="2:4")
    with pytest.raises(LayerError, match=r"w: pattern='2:4' does not divide"):
        Magnitude(pattern="2:4").sketch(Dense(torch.empty(8, 27, device="meta")), site="w")


def test_pruning_again_keeps_the_zeros_or_is_refused():
    torch.manual_seed(0)
    weight = torch.randn(8, 16)
    first = fit(weight, sparsity=0.5)
    again = fit(weight, form=first, sparsity=0.75)
    assert int((again.dense() == 0).sum()) == 96
    assert bool((~first.mask <= ~again.mask).all())
    assert torch.equal(again.dense()[again.mask], weight[again.mask])
    with pytest.raises(LayerError, match=r"w: magnitude would keep 96 weights and only 64"):
        fit(weight, form=first, sparsity=0.25)
    meta = Magnitude(sparsity=0.5).sketch(Dense(torch.empty(8, 16, device="meta")), site="w")
    assert Magnitude(sparsity=0.75).sketch(meta, site="w").nbytes == again.nbytes
    with pytest.raises(LayerError, match="would keep 96 weights"):
        Magnitude(sparsity=0.25).sketch(meta, site="w")


def test_refusals():
    weight = torch.randn(4, 16)
    quantized = RoundToNearest().fit(Site("w", "linear", Dense(weight), weight), torch.Generator())
    with pytest.raises(RecipeError, match="magnitude cannot follow quantized: zeros save nothing"):
        fit(weight, form=quantized)
    sparse = fit(weight)
    coded = RoundToNearest().fit(Site("w", "linear", sparse, weight), torch.Generator())
    with pytest.raises(RecipeError, match="values are coded already; prune before quantizing"):
        fit(weight, form=coded)
    bad = weight.clone()
    bad[0, 0] = float("nan")
    with pytest.raises(LayerError, match="w: 1 of 64 values of the weight are NaN"):
        fit(bad)
    for wrong in ("2/4", "4:4", "0:4", "a:b", "2:4:8"):
        with pytest.raises(ConfigError, match=r"magnitude: pattern=.* must be 'N:M'"):
            Magnitude(pattern=wrong)
    with pytest.raises(ConfigError, match="scope='row' does not go with pattern='2:4'"):
        Magnitude(pattern="2:4", scope="row")
    with pytest.raises(ConfigError, match=r"sparsity=0.99 is above max_layer_sparsity=0.98"):
        Magnitude(sparsity=0.99, scope="global")


def test_levels_go_from_small_to_large():
    weight = torch.randn(32, 32)
    sizes = [
        level.fit(Site("w", "linear", Dense(weight), weight), torch.Generator()).nbytes
        for level in Magnitude().levels()
    ]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(sizes)
    assert Magnitude(pattern="2:4").levels() == ()


def test_the_site_is_not_changed():
    weight = torch.randn(8, 8)
    before = weight.clone()
    site = Site("w", "linear", Dense(weight), weight)
    Magnitude().fit(site, torch.Generator())
    assert torch.equal(weight, before)
    assert isinstance(site.form, Dense)


def test_smallest_counts():
    scores = torch.tensor([3.0, 1.0, 1.0, 2.0])
    assert smallest(scores, 0).tolist() == [False] * 4
    assert smallest(scores, 1).tolist() == [False, True, False, False]
    assert smallest(scores, 4).tolist() == [True] * 4
    assert isinstance(fit(HAND), Sparse)
