from __future__ import annotations

from math import inf

import pytest
import torch

from laconic import artifact
from laconic.errors import RecipeError
from laconic.forms.dense import Dense
from laconic.forms.kernels import decide, prepare_
from laconic.forms.layers import install_
from laconic.forms.quantized import Quantized
from laconic.pipeline import compress
from laconic.recipe import Recipe
from laconic.task import Task, TensorSplit
from laconic.weights.prune.magnitude import Magnitude
from laconic.weights.quantize.outlier_split import OutlierSplit
from laconic.weights.quantize.round_to_nearest import RoundToNearest


def with_outliers(rows=24, cols=40):
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, cols, generator=source)
    x = torch.randn(100, cols, generator=source).clamp(-4, 4)
    x[:, [3, 17]] *= 30
    return weight, x


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_by_hand(make_site, generator):
    # The second input reaches 10: its column 7, 9 stays. The rest has one scale a row, 2 / 7.5
    # and 1 / 7.5 at four bits, so that 2 is clipped to 7 steps and -1 lies at -4 of -3.75.
    weight = torch.tensor([[2.0, 7.0, -1.0], [1.0, 9.0, 0.0]])
    x = torch.tensor([[1.0, -10.0, 0.5], [0.2, 3.0, 1.0]])
    step = OutlierSplit(bits=4, activation_bits=None, scale_dtype="float32")
    form = step.fit(make_site(weight, x=x), generator)
    assert form.signature == "sum(sparse(dense), sparse(quantized))"
    expected = [[2 / 7.5 * 7, 7.0, 2 / 7.5 * -4], [1 / 7.5 * 7, 9.0, 0.0]]
    torch.testing.assert_close(form.dense().detach(), torch.tensor(expected))


def slow(weight, x, threshold):
    """Oracle: LLM.int8 with integers as plain numbers, row by row of the input."""
    out = torch.zeros(len(x), len(weight))
    big = x.abs().amax(0) >= threshold
    rest = [j for j in range(weight.shape[1]) if not bool(big[j])]
    step = (weight[:, rest].abs().amax(1) / 127.5).half().float()
    codes = (weight[:, rest] / step[:, None]).round().clamp(-128, 127)
    for i, row in enumerate(x):
        size = row[rest].abs().max() / 127.5  # as there: the least value is a tie
        levels = (row[rest] / size).round().clamp(-128, 127)
        out[i] = (codes @ levels) * step * size + weight[:, big] @ row[big]
    return out


def test_product_is_the_slow_reference(make_site, generator):
    weight, x = with_outliers()
    form = OutlierSplit().fit(make_site(weight, x=x), generator)
    torch.testing.assert_close(form.matmul(x).detach(), slow(weight, x, 6.0), rtol=1e-4, atol=1e-3)


def test_threshold_zero_is_full_precision(make_site, generator):
    weight, _ = with_outliers()
    site = make_site(weight)  # needs no data
    assert OutlierSplit(threshold=0).fit(site, generator) is site.form
    assert OutlierSplit(threshold=0).needs == frozenset()


def test_threshold_infinity_is_plain_int8(make_site, generator):
    weight, x = with_outliers()
    form = OutlierSplit(threshold=inf).fit(make_site(weight), generator)
    plain = RoundToNearest(
        bits=8, group_size="channel", activations={"bits": 8, "granularity": "token"}
    ).fit(make_site(weight), generator)
    assert isinstance(form, Quantized)
    assert torch.equal(form.matmul(x), plain.matmul(x))
    assert form.settings() == plain.settings()


def test_without_outliers_it_is_plain_int8(make_site, generator):
    weight, x = with_outliers()
    calm = x.clamp(-4, 4)
    form = OutlierSplit().fit(make_site(weight, x=calm), generator)
    assert form.signature == "quantized"
    sketch = OutlierSplit().sketch(Dense(weight.to("meta")), site="w")
    assert (sketch.signature, sketch.nbytes) == (form.signature, form.nbytes)


@pytest.mark.parametrize("bits", [8, 4])
def test_outliers_no_longer_take_the_levels(make_site, generator, bits):
    weight, x = with_outliers()
    site = make_site(weight, x=x)
    split = OutlierSplit(bits=bits, activation_bits=bits).fit(site, generator)
    plain = OutlierSplit(bits=bits, activation_bits=bits, threshold=inf).fit(site, generator)
    calm = x.clone()
    calm[:, [3, 17]] = 0
    gaps = [relative((f.matmul(x) - x @ weight.T).detach() + calm @ weight.T, calm @ weight.T)
            for f in (split, plain)]  # fmt: skip
    assert gaps[0] < 0.15 * gaps[1]


def test_bytes_are_those_of_both_parts(make_site, generator):
    weight, x = with_outliers(rows=64, cols=256)
    form = OutlierSplit().fit(make_site(weight, x=x), generator)
    index = 4 * 256  # which columns lie where
    assert form.nbytes == 64 * 2 * 4 + 64 * 254 + 64 * 2 + index


def test_runs_in_the_integer_kernel(make_site, generator, tmp_path, monkeypatch):
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path))
    weight, x = with_outliers(rows=16, cols=64)
    net = torch.nn.Sequential(torch.nn.Linear(64, 16))
    install_(net, "0.weight", OutlierSplit().fit(make_site(weight, x=x), generator))
    with torch.no_grad():
        before = net(x)
        kernels = prepare_(net, "int8", batches=(32,))
        assert kernels["0.weight"].startswith("int8")
        torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-3)
    assert decide(net, "exact")["0.weight"].by_batch[32] == "form"


def test_a_whole_run_saves_and_loads(tmp_path):
    weight, x = with_outliers()
    net = torch.nn.Sequential(torch.nn.Linear(40, 24))
    with torch.no_grad():
        net[0].weight.copy_(weight)
    split = TensorSplit({"x": x, "y": x[:, :24].argmax(1)})
    task = Task(kind="classification", test=split, train=split)
    recipe = Recipe.from_yaml("steps: [outlier-split: 6.0, eora: {rank: 2}]")
    result = compress(net, recipe, task, out=tmp_path / "out")
    assert result.report.sites[0].form == (
        "sum(sparse(dense), sparse(quantized), low-rank(dense, dense))"
    )
    with torch.no_grad():
        assert torch.equal(artifact.load(tmp_path / "out")(x), result.model(x))


def test_a_budget_counts_what_outliers_take():
    weight, x = with_outliers(rows=64, cols=256)
    net = torch.nn.Sequential(torch.nn.Linear(256, 64))
    with torch.no_grad():
        net[0].weight.copy_(weight)
    split = TensorSplit({"x": x, "y": x[:, :64].argmax(1)})
    task = Task(kind="classification", test=split, train=split)
    result = compress(net, Recipe(steps=(OutlierSplit(),)), task, budget="15kB")
    assert result.report.compressed.bytes <= 15000


def test_refuses_what_is_not_dense(make_site, generator):
    weight, x = with_outliers()
    pruned = Magnitude().fit(make_site(weight), generator)
    with pytest.raises(RecipeError, match="columns are split off a dense weight"):
        OutlierSplit().fit(make_site(weight, x=x, form=pruned), generator)
