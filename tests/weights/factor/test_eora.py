from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from laconic.errors import ConfigError, LaconicWarning, LayerError, RecipeError
from laconic.forms.dense import Dense
from laconic.task import Task, TensorSplit
from laconic.weights.base import Site, Statistics
from laconic.weights.calibrate import gather_
from laconic.weights.factor import _metric
from laconic.weights.factor._metric import diagonal_root, metric_factors
from laconic.weights.factor.eora import Eora, eora_factors
from laconic.weights.prune.magnitude import Magnitude
from laconic.weights.prune.sparsegpt import SparseGpt
from laconic.weights.quantize.gptq import Gptq
from laconic.weights.quantize.round_to_nearest import RoundToNearest
from laconic.weights.sites import find_sites


def case(seed, rows=12, cols=10, tokens=60, inner=10):
    source = torch.Generator().manual_seed(seed)
    delta = torch.randn(rows, cols, generator=source)
    x = torch.randn(tokens, inner, generator=source) @ torch.randn(inner, cols, generator=source)
    return delta, x, x.T @ x / tokens


def objective(delta, gram, B, A):
    missing = (delta - B @ A).double()
    return float((missing @ gram.double() * missing).sum())


def test_by_hand():
    # G = diag(1, 4, 9), D = diag(3, 2, 1): D S = diag(3, 4, 3). The best rank 1 mends the
    # second column alone, though the first has the largest weight.
    delta, gram = torch.diag(torch.tensor([3.0, 2.0, 1.0])), torch.diag(torch.tensor([1.0, 4, 9]))
    B, A, info = eora_factors(delta, gram, 1)
    torch.testing.assert_close(B @ A, torch.diag(torch.tensor([0.0, 2.0, 0.0])))
    assert info.energy == pytest.approx(16 / 34)
    assert (info.retained, info.dead) == (3, 0)
    assert float(B.norm()) == pytest.approx(2.0)  # sqrt(4): the factors as in the paper
    assert float(A.norm()) == pytest.approx(1.0)  # sqrt(4) / 2


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_objective_is_the_sum_of_dropped_squares_and_the_best(seed, rank):
    delta, _, gram = case(seed)
    B, A, info = eora_factors(delta, gram, rank)
    reached = objective(delta, gram, B, A)
    # Any square root of G gives the same: here by Cholesky, in float64.
    half = torch.linalg.cholesky(gram.double() + 1e-9 * torch.eye(10))
    values = torch.linalg.svdvals(delta.double() @ half).square()
    assert reached == pytest.approx(float(values[rank:].sum()), rel=1e-3, abs=1e-4)
    assert info.total == pytest.approx(float(values.sum()), rel=1e-4)
    assert 1 - info.energy == pytest.approx(float(values[rank:].sum() / values.sum()), abs=1e-4)
    source = torch.Generator().manual_seed(seed)
    for step in (1e-3, 1e-1):
        for _ in range(20):
            other = [
                part + step * torch.randn(part.shape, generator=source) * part.abs().mean()
                for part in (B, A)
            ]
            assert objective(delta, gram, *other) >= reached * (1 - 1e-5)
    for root in (torch.ones(10), gram.diagonal().sqrt()):  # plain and weighted decomposition
        b, a, _ = metric_factors(delta, diagonal_root(root), rank)
        assert objective(delta, gram, b, a) >= reached * (1 - 1e-5)


def test_objective_falls_with_rank_and_info_tells_the_curve():
    delta, _, gram = case(0)
    full = eora_factors(delta, gram, 10)[2].explained
    reached = [objective(delta, gram, *eora_factors(delta, gram, r)[:2]) for r in range(1, 11)]
    assert reached == sorted(reached, reverse=True)
    total = objective(delta, gram, torch.zeros(12, 1), torch.zeros(1, 10))
    for value, share in zip(reached, full.tolist(), strict=True):
        assert value / total == pytest.approx(1 - share, abs=1e-4)


def test_full_rank_brings_the_weight_back():
    delta, x, gram = case(1)
    B, A, info = eora_factors(delta, gram, 10)
    assert float(((delta - B @ A) @ x.T).norm() / (delta @ x.T).norm()) < 1e-4
    torch.testing.assert_close(B @ A, delta, rtol=1e-3, atol=1e-3)
    assert info.energy == pytest.approx(1.0)


def test_identity_metric_is_plain_svd():
    delta, _, _ = case(2)
    U, s, Vt = torch.linalg.svd(delta)
    B, A, _ = eora_factors(delta, torch.eye(10), 3)
    torch.testing.assert_close(B @ A, U[:, :3] * s[:3] @ Vt[:3], rtol=1e-4, atol=1e-5)


def test_diagonal_metric_is_weighted_svd():
    delta, _, _ = case(3)
    scale = torch.linspace(0.5, 4, 10)
    B, A, _ = eora_factors(delta, torch.diag(scale**2), 3)
    b, a, _ = metric_factors(delta, diagonal_root(scale), 3)
    torch.testing.assert_close(B @ A, b @ a, rtol=1e-4, atol=1e-5)


def test_scale_of_the_gram_does_not_matter():
    delta, _, gram = case(4)
    B, A, _ = eora_factors(delta, gram, 3)
    for factor in (1e-6, 1e6):
        b, a, _ = eora_factors(delta, gram * factor, 3)
        torch.testing.assert_close(b @ a, B @ A, rtol=1e-3, atol=1e-4)


def test_a_rotation_of_inputs_rotates_the_answer():
    delta, _, gram = case(5)
    R = torch.linalg.qr(torch.randn(10, 10)).Q
    B, A, _ = eora_factors(delta, gram, 3)
    b, a, _ = eora_factors(delta @ R, R.T @ gram @ R, 3)
    torch.testing.assert_close(b @ a, B @ A @ R, rtol=1e-3, atol=1e-3)


def test_deficient_gram_gives_finite_factors_and_leaves_dead_inputs_alone():
    delta, x, _ = case(6, inner=4)
    x[:, 3] = 0
    gram = x.T @ x / len(x)
    B, A, info = eora_factors(delta, gram, 6)
    assert torch.isfinite(B).all()
    assert torch.isfinite(A).all()
    assert A[:, 3].abs().max() == 0
    assert (info.retained, info.dead) == (4, 1)
    assert float(A.abs().max()) < 1e3  # noise eigenvalues were not divided by
    assert float(((delta - B @ A) @ x.T).norm() / (delta @ x.T).norm()) < 1e-3
    B, A, info = eora_factors(delta, torch.zeros(10, 10), 2)
    assert not (B @ A).any()
    assert info.retained == 0


def test_pure_function_checks_its_input():
    delta, _, gram = case(7)
    with pytest.raises(ConfigError, match="eora: rank=0 must be at least 1"):
        eora_factors(delta, gram, 0)
    with pytest.raises(ConfigError, match=r"gram has the shape \(9, 9\)"):
        eora_factors(delta, gram[:9, :9], 2)
    with pytest.raises(ConfigError, match="NaN or infinite"):
        eora_factors(delta, gram * float("nan"), 2)


def compressed(make_site, weight, x, step):
    site = make_site(weight, x=x)
    return make_site(weight, x=x, form=step.fit(site, torch.Generator()))


def error(form, weight, x):
    return float(((form.dense().detach() - weight) @ x.T).norm() / (weight @ x.T).norm())


@pytest.mark.parametrize(
    "step",
    [
        RoundToNearest(bits=3),
        Magnitude(pattern="2:4"),
        Gptq(bits=3),
        SparseGpt(pattern="2:4"),
        RoundToNearest(bits=2, group_size=16),
    ],
)
def test_beats_its_baselines_on_data_it_did_not_see(make_site, generator, layer, step):
    weight, x = layer
    site = compressed(make_site, weight, x[:700], step)
    errors = {
        metric: error(Eora(rank=12, metric=metric).fit(site, generator), weight, x[700:])
        for metric in ("gram", "absmean", "identity")
    }
    assert errors["identity"] < error(site.form, weight, x[700:])
    assert errors["gram"] < 0.8 * min(errors["absmean"], errors["identity"])


def test_form_is_a_sum_that_counts_its_bytes(make_site, generator, layer):
    weight, x = layer
    site = compressed(make_site, weight, x, RoundToNearest(bits=4))
    held = site.form.nbytes
    for name, size in (("bfloat16", 2), ("float16", 2), ("float32", 4)):
        step = Eora(rank=5, factor_dtype=name)
        form = step.fit(site, generator)
        assert form.signature == "sum(quantized, low-rank(dense, dense))"
        assert form.terms[0] is site.form
        assert form.nbytes == held + (48 + 64) * 5 * size
        meta = RoundToNearest(bits=4).sketch(Dense(torch.empty(48, 64, device="meta")), site="w")
        sketch = step.sketch(meta, site="w")
        assert (sketch.signature, sketch.nbytes) == (form.signature, form.nbytes)
        out = form.matmul(x[:8])
        torch.testing.assert_close(out, x[:8] @ form.dense().T, rtol=2e-2, atol=2e-1)


def test_quantized_factors_lose_little(make_site, generator, layer):
    weight, x = layer
    site = compressed(make_site, weight, x, RoundToNearest(bits=3))
    exact = Eora(rank=16, factor_dtype="float32").fit(site, generator)
    step = Eora(rank=16, factor_bits=4)
    small = step.fit(site, generator)
    assert small.signature == "sum(quantized, low-rank(quantized, quantized))"
    assert small.nbytes < site.form.nbytes + 0.2 * (exact.nbytes - site.form.nbytes)
    gain = error(site.form, weight, x) - error(exact, weight, x)
    assert error(site.form, weight, x) - error(small, weight, x) > 0.85 * gain
    meta = RoundToNearest(bits=3).sketch(Dense(torch.empty(48, 64, device="meta")), site="w")
    sketch = step.sketch(meta, site="w")
    assert (sketch.signature, sketch.nbytes) == (small.signature, small.nbytes)


def test_a_second_correction_joins_the_sum(make_site, generator, layer):
    weight, x = layer
    site = compressed(make_site, weight, x, RoundToNearest(bits=2))
    first = Eora(rank=4).fit(site, generator)
    second = Eora(rank=4).fit(make_site(weight, x=x, form=first), generator)
    assert second.signature == "sum(quantized, low-rank(dense, dense), low-rank(dense, dense))"
    assert error(second, weight, x) < error(first, weight, x)


def test_needs_follow_the_metric_and_propagate_is_a_setting():
    assert Eora().needs == {"gram"}
    assert Eora(metric="absmean").needs == {"absmean"}
    assert Eora(metric="identity").needs == frozenset()
    assert Eora().propagate == "original"
    assert Eora(propagate="compensated").propagate == "compensated"
    ranks = [step.rank for step in Eora(rank=32).levels()]
    assert ranks == [4, 8, 16, 32, 64]


def test_identity_needs_no_statistics(make_site, generator, layer):
    weight, _ = layer
    site = make_site(weight, form=RoundToNearest(bits=2).fit(make_site(weight), generator))
    assert Eora(rank=4, metric="identity").fit(site, generator).signature.startswith("sum(")
    with pytest.raises(ConfigError, match=r"layer.weight: no statistic 'gram' was gathered"):
        Eora(rank=4).fit(site, generator)


def test_warnings_name_the_site_once(make_site, generator, layer):
    weight, x = layer
    site = compressed(make_site, weight, x, RoundToNearest(bits=3))
    with pytest.warns(LaconicWarning, match=r"layer.weight: eora rank 99 .*; 48 is used") as seen:
        form = Eora(rank=99).fit(site, generator)
    assert len(seen) == 1
    assert form.terms[1].rank == 48
    few = compressed(make_site, weight, x[:20], RoundToNearest(bits=3))
    with pytest.warns(LaconicWarning, match=r"layer.weight: .* span 20 of 64 directions") as seen:
        Eora(rank=4).fit(few, generator)
    assert len(seen) == 1
    dead = x.clone()
    dead[:, :5] = 0  # not the user's to mend: silent
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Eora(rank=4).fit(compressed(make_site, weight, dead, RoundToNearest(bits=3)), generator)


def test_refusals(make_site, generator, layer):
    weight, x = layer
    with pytest.raises(RecipeError, match="eora cannot follow dense: nothing to compensate"):
        Eora().fit(make_site(weight, x=x), generator)
    with pytest.raises(RecipeError, match="nothing to compensate"):
        Eora().sketch(Dense(torch.empty(4, 4, device="meta")), site="w")
    kernel = torch.randn(4, 2, 3, 3)
    form = RoundToNearest().fit(Site("c", "conv", Dense(kernel), kernel), generator)
    site = Site("c", "conv", form, kernel, groups=2)
    with pytest.raises(LayerError, match=r"c: eora has no correction for .* 2 groups"):
        Eora(rank=2).resolve([site])
    held = compressed(make_site, weight, x, RoundToNearest(bits=3))
    held.statistics.gram[0, 0] = float("inf")
    with pytest.raises(LayerError, match=r"layer.weight: 1 of 4096 values of the Gram matrix"):
        Eora(rank=2).fit(held, generator)
    wide = compressed(
        make_site, weight * 1e9, x * 1e-9, RoundToNearest(bits=3, scale_dtype="float32")
    )
    with pytest.raises(LayerError, match="factor A in float16"):
        Eora(rank=2, factor_dtype="float16").fit(wide, generator)


def test_sites_that_share_a_gram_share_its_decomposition(monkeypatch, layer):
    weight, x = layer
    gram, made = x.T @ x / len(x), []
    inner = _metric._decompose
    monkeypatch.setattr(
        _metric, "_decompose", lambda gram, rtol: made.append(1) or inner(gram, rtol)
    )
    for name in ("q", "k", "v"):
        form = RoundToNearest(bits=3).fit(Site(name, "linear", Dense(weight), weight), None)
        site = Site(name, "linear", form, weight, statistics=Statistics(1000, gram=gram))
        Eora(rank=4).fit(site, torch.Generator())
    assert len(made) == 1
    assert gram in _metric._ROOTS
    held = len(_metric._ROOTS)
    del gram, site
    assert len(_metric._ROOTS) == held - 1


def test_convolution_end_to_end(generator):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 16, 3, padding=1)
    model = nn.Sequential(layer)
    x = torch.randn(20, 4, 6, 6).cumsum(-1)
    split = TensorSplit({"x": x})
    task = Task(kind="custom", test=split, calibration=split, loss=lambda out, batch: out)
    (site,) = find_sites(model)
    site.form = RoundToNearest(bits=2).fit(site, generator)
    for _ in gather_(model, [site], task, {site.name: frozenset({"gram", "absmean"})}):
        forms = {m: Eora(rank=4, metric=m).fit(site, generator) for m in ("gram", "identity")}
    with torch.no_grad():
        target = layer(x)
        layer.bias.zero_()
        errors = {}
        for name, form in forms.items():
            out = nn.functional.conv2d(x, form.dense(), layer.bias, padding=1)
            plain = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
            errors[name] = float((out - plain).norm() / target.norm())
    assert errors["gram"] < 0.9 * errors["identity"]


def test_the_site_is_not_changed_and_the_result_is_the_same_twice(make_site, generator, layer):
    weight, x = layer
    site = compressed(make_site, weight, x, RoundToNearest(bits=3))
    state = {name: value.clone() for name, value in site.form.state_dict().items()}
    gram = site.statistics.gram.clone()
    first = Eora(rank=4).fit(site, torch.Generator().manual_seed(1))
    second = Eora(rank=4).fit(site, torch.Generator().manual_seed(1))
    assert torch.equal(first.dense(), second.dense())
    assert all(torch.equal(value, state[name]) for name, value in site.form.state_dict().items())
    assert torch.equal(site.statistics.gram, gram)
