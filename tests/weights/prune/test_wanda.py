from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from laconic.errors import LayerError, RecipeError
from laconic.forms.dense import Dense
from laconic.forms.quantized import Quantized
from laconic.weights.base import Site, Statistics
from laconic.weights.prune.magnitude import Magnitude
from laconic.weights.prune.sparsegpt import SparseGpt
from laconic.weights.prune.wanda import Wanda


def test_by_hand():
    # Norms 1, 10, 1: scores 3, 10, 2 and 1, 40, 5. One of three goes in every row.
    weight = torch.tensor([[3.0, 1.0, 2.0], [1.0, 4.0, 5.0]])
    found = Statistics(1, sumsq=torch.tensor([1.0, 100.0, 1.0]))
    site = Site("w", "linear", Dense(weight), weight, statistics=found)
    form = Wanda(sparsity=0.34).fit(site, torch.Generator())
    assert form.dense().tolist() == [[3.0, 1.0, 0.0], [0.0, 4.0, 5.0]]


def slow(weight, norms, sparsity):
    """Oracle: row by row, weight by weight."""
    kept = weight.clone()
    count = int(sparsity * weight.shape[1] + 1e-9)
    for row in range(weight.shape[0]):
        scores = [(abs(float(w)) * float(n), j) for j, (w, n) in enumerate(zip(weight[row], norms))]  # noqa: B905
        for _, j in sorted(scores)[:count]:
            kept[row, j] = 0.0
    return kept


@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.9])
def test_is_the_slow_reference(make_site, generator, layer, sparsity):
    weight, x = layer
    form = Wanda(sparsity=sparsity).fit(make_site(weight, x=x), generator)
    expected = slow(weight, x.square().mean(0).sqrt(), sparsity)
    assert torch.equal(form.dense().detach(), expected)
    sketch = Wanda(sparsity=sparsity).sketch(Dense(weight.to("meta")), site="w")
    assert (sketch.signature, sketch.nbytes) == (form.signature, form.nbytes)


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": "2:4"}])
def test_is_magnitude_where_inputs_are_alike(make_site, generator, options):
    weight = torch.randn(12, 40)
    site = make_site(weight, x=torch.eye(40) * 3)
    plain = Magnitude(**options, scope="layer" if "pattern" in options else "row")
    assert torch.equal(
        Wanda(**options).fit(site, generator).dense(), plain.fit(site, generator).dense()
    )


def test_pattern_keeps_the_best_of_every_group(make_site, generator, layer):
    weight, x = layer
    form = Wanda(pattern="2:4").fit(make_site(weight, x=x), generator)
    groups = form.mask.reshape(-1, 4)
    assert torch.equal(groups.sum(1), torch.full((48 * 16,), 2))
    scores = (weight.abs() * x.square().mean(0).sqrt()).reshape(-1, 4)
    least = torch.where(groups, scores, torch.inf).amin(1)
    most = torch.where(groups, -1.0, scores).amax(1)
    assert bool((least >= most).all())
    assert torch.equal(form.dense()[form.mask], weight[form.mask])  # kept weights do not move


def test_lies_between_magnitude_and_sparsegpt_on_uneven_inputs(make_site, generator, layer):
    weight, x = layer
    x = x * torch.logspace(-1, 1, 64)
    site = make_site(weight, x=x)
    gap = {
        type(step).__name__: float(
            ((step.fit(site, generator).dense().detach() - weight) @ x.T).norm()
        )
        for step in (Magnitude(scope="row"), Wanda(), SparseGpt())
    }
    assert gap["Wanda"] < 0.5 * gap["Magnitude"]
    assert gap["SparseGpt"] < gap["Wanda"]


def test_parts_of_a_stack_meet_their_own_inputs(generator):
    weight = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    found = Statistics(1, sumsq=torch.tensor([[1.0, 1.0], [9.0, 1.0]]))
    site = Site("w", "experts", Dense(weight), weight, "stacked", groups=2, statistics=found)
    assert Wanda().fit(site, generator).dense().tolist() == [[0.0, 2.0], [1.0, 0.0]]


def test_zeros_of_an_earlier_step_stay(make_site, generator, layer):
    weight, x = layer
    before = Magnitude(sparsity=0.3, scope="row").fit(make_site(weight, x=x), generator)
    form = Wanda(sparsity=0.6).fit(replace(make_site(weight, x=x), form=before), generator)
    assert not bool((form.mask & ~before.mask).any())
    with pytest.raises(LayerError, match=r"would keep \d+ weights and only \d+ are left"):
        Wanda(sparsity=0.1).fit(replace(make_site(weight, x=x), form=before), generator)


def test_refuses_coded_weights_and_widths_that_do_not_fit(make_site, generator):
    coded = Quantized.empty((4, 8), torch.float32, bits=4, group_size=8,
                            scale_dtype=torch.float16, symmetric=True)  # fmt: skip
    with pytest.raises(RecipeError, match="zeros save nothing in it"):
        Wanda().sketch(coded, site="w")
    with pytest.raises(LayerError, match="does not divide the 6 inputs"):
        Wanda(pattern="2:4").sketch(Dense(torch.empty(4, 6, device="meta")), site="w")
    assert Wanda(pattern="2:4").levels() == ()
    assert [s.sparsity for s in Wanda().levels()] == sorted(
        (s.sparsity for s in Wanda().levels()), reverse=True
    )
