from __future__ import annotations

import warnings

import pytest
import torch

from laconic.artifact.exchange.scheme import grid_of
from laconic.errors import LaconicWarning, LayerError, RecipeError
from laconic.forms.dense import Dense
from laconic.pipeline import compress
from laconic.recipe import Recipe
from laconic.task import Task, TensorSplit
from laconic.weights.quantize.hqq import Hqq
from laconic.weights.quantize.round_to_nearest import RoundToNearest


def test_by_hand(make_site, generator):
    # Levels 0, 1, 2, 3 times the scale 1: three weights lie on levels, one 0.1 off. The start
    # has zero = 0; shrinking leaves e = 0.1 - 0.1**-0.3 / 10 < 0, so 0: the next zero point is
    # the mean of code - weight = (0 + 0 - 0.1 + 0) / 4, which is worse on average and not taken.
    weight = torch.tensor([[0.0, 1.0, 2.1, 3.0]])
    form = Hqq(bits=2, scale_dtype="float32").fit(make_site(weight), generator)
    assert form.zero().tolist() == [[0.0]]
    assert form.codes().tolist() == [[0, 1, 2, 3]]
    assert form.dense().tolist() == [[0.0, 1.0, 2.0, 3.0]]


def slow(group, bits, p=0.7, beta=10.0, rounds=20):
    """Oracle: one group in float64, in the words of the method; returns scale, zero and codes."""
    w = group.double()
    top = 2**bits - 1
    inverse = min(top / float(w.max() - w.min()), 2e4)
    zero = -float(w.min()) * inverse

    def codes_of(z):
        return (w * inverse + z).round().clamp(0, top)

    best, least = zero, float((w - (codes_of(zero) - zero) / inverse).abs().mean())
    for _ in range(rounds):
        q = codes_of(zero)
        gap = w - (q - zero) / inverse
        shrunk = gap.sign() * (gap.abs() - gap.abs() ** (p - 1) / beta).clamp_min(0)
        zero = float((q - (w - shrunk) * inverse).mean())
        beta *= 1.01
        error = float((w - (codes_of(zero) - zero) / inverse).abs().mean())
        if error >= least:
            break
        best, least = zero, error
    return 1 / inverse, best, codes_of(best)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_is_the_slow_reference(make_site, generator, bits):
    gaps = []
    for seed in range(9):  # one group at a time, as the rounds end for all groups together
        weight = torch.randn(1, 64, generator=torch.Generator().manual_seed(seed))
        form = Hqq(bits=bits, scale_dtype="float32").fit(make_site(weight), generator)
        scale, zero, codes = slow(weight[0], bits)
        assert form.scale.item() == pytest.approx(scale, rel=1e-5)
        assert float((form.codes()[0] == codes).float().mean()) >= 63 / 64
        gaps.append(abs(form.zero().item() - zero))
    # Where errors hardly fall any more, float32 may stop a round earlier or later.
    assert sorted(gaps)[4] < 2e-4
    assert max(gaps) < 0.02


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_beats_rounding_with_a_whole_zero_point(make_site, generator, bits):
    weight = torch.randn(64, 256)
    site = make_site(weight)
    found = Hqq(bits=bits, group_size=64).fit(site, generator).dense().detach()
    plain = RoundToNearest(bits=bits, group_size=64, symmetric=False).fit(site, generator)
    gaps = [float((w - weight).abs().mean()) for w in (found, plain.dense().detach())]
    assert gaps[0] < 0.95 * gaps[1]


def test_a_zero_point_that_is_rounded_costs(make_site, generator):
    weight = torch.randn(64, 256)
    form = Hqq(bits=3, group_size=64).fit(make_site(weight), generator)
    zero = form.zero().detach().float()
    assert float((zero - zero.round()).abs().mean()) > 0.1  # no whole numbers in disguise
    groups = weight.reshape(64, 4, 64)
    scale = form.scale.detach().float().unsqueeze(-1)

    def gap(z):
        codes = (groups / scale + z.unsqueeze(-1)).round().clamp(0, 7)
        return float((scale * (codes - z.unsqueeze(-1)) - groups).abs().mean())

    assert gap(zero) < 0.97 * gap(zero.round())
    assert gap(zero) == pytest.approx(
        float((form.dense().detach() - weight).abs().mean()), rel=1e-4
    )


def test_codes_are_those_of_the_stored_scale_and_zero(make_site, generator):
    weight = 0.02 * torch.randn(8, 128)
    for store in ("float16", "bfloat16", "float32"):
        form = Hqq(bits=4, scale_dtype=store).fit(make_site(weight), generator)
        scale = form.scale.detach().float().unsqueeze(-1)
        zero = form.zero().detach().float().unsqueeze(-1)
        inside = (weight.reshape(8, 2, 64) / scale + zero).clamp(0, 15)
        assert torch.equal(form.codes().reshape(8, 2, 64).float(), inside.round())


@pytest.mark.parametrize("value", [0.0, 3.0, -0.02, 500.0, 1e-6])
def test_groups_of_one_value(make_site, generator, value):
    weight = torch.full((2, 64), value)
    form = Hqq().fit(make_site(weight), generator)
    torch.testing.assert_close(form.dense().detach(), weight, rtol=1e-3, atol=3e-5)


def test_weights_beyond_the_type_of_scales(make_site, generator):
    with pytest.raises(LayerError, match="give scales beyond float16"):
        Hqq(bits=2).fit(make_site(torch.tensor([[3e5, -3e5]])), generator)
    Hqq(bits=2, scale_dtype="float32").fit(make_site(torch.tensor([[3e5, -3e5]])), generator)


def test_sketch_is_the_form(make_site, generator):
    step = Hqq(bits=3, scale_dtype="bfloat16")
    form = step.fit(make_site(torch.randn(5, 96)), generator)
    sketch = step.sketch(Dense(torch.empty(5, 96, device="meta")), site="w")
    assert (sketch.signature, sketch.nbytes) == (form.signature, form.nbytes)
    with pytest.raises(RecipeError, match="no dense part left"):
        step.sketch(form, site="w")


def with_outliers():
    """A layer of which two inputs are large and the weights that they meet are small."""
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, generator=source)
    x = torch.randn(200, 64, generator=source)
    x[:, [3, 40]] *= 60
    weight[:, [3, 40]] /= 60
    return weight, x


def test_says_that_it_is_blind_to_activations(make_site, generator):
    weight, x = with_outliers()
    match = r"layer\.weight: hqq is activation-blind, and 2 of 64 inputs are up to \d+ times"
    with pytest.warns(LaconicWarning, match=match):
        form = Hqq(bits=4).fit(make_site(weight, x=x), generator)
    even = RoundToNearest(bits=4, symmetric=False, group_size=64)
    plain = even.fit(make_site(weight, x=x), generator)
    gaps = [float(((f.dense().detach() - weight) @ x.T).norm()) for f in (form, plain)]
    assert gaps[0] > 2 * gaps[1]  # and it is right to


def test_is_silent_without_outliers_or_without_small_weights(make_site, generator):
    weight, x = with_outliers()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Hqq().fit(make_site(torch.randn(32, 64), x=x), generator)
        Hqq().fit(make_site(weight, x=torch.randn(200, 64)), generator)
        Hqq().fit(make_site(weight), generator)


def test_a_run_with_data_warns_and_a_run_without_needs_none():
    weight, x = with_outliers()
    model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    with torch.no_grad():
        model[0].weight.copy_(weight)
    split = TensorSplit({"x": x, "y": x[:, :32].argmax(1)})
    task = Task(kind="classification", test=split, train=split)
    recipe = Recipe(steps=(Hqq(),))
    with pytest.warns(LaconicWarning, match="activation-blind"):
        result = compress(model, recipe, task)
    assert any("activation-blind" in text for text in result.report.warnings)
    compress(model, recipe)


def test_export_writes_it_dense_rather_than_round_zero_points(make_site, generator):
    form = Hqq(bits=4).fit(make_site(torch.randn(8, 64)), generator)
    assert grid_of(form) is None
