from __future__ import annotations

import pytest
import torch

from laconic.errors import ConfigError, LaconicWarning, LayerError, RecipeError
from laconic.forms.dense import Dense
from laconic.forms.sparse import Sparse
from laconic.weights.base import Site, Statistics
from laconic.weights.prune.magnitude import Magnitude
from laconic.weights.prune.sparsegpt import SparseGpt
from laconic.weights.quantize.round_to_nearest import RoundToNearest
from laconic.weights.second_order import inverse_factor


def output_error(form, weight, x):
    return float(((form.dense().detach() - weight) @ x.T).norm() / (weight @ x.T).norm())


def test_by_hand():
    # Inputs with Gram [[1, .5], [.5, 1]]: removing the first weight w moves the second by w / 2.
    # Scores w**2 / U_ii**2 with U_00**2 = 4/3 and U_11**2 = 1: 1 / (4/3) against 4.
    weight = torch.tensor([[1.0, 2.0]])
    gram = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    site = Site("w", "linear", Dense(weight), weight, statistics=Statistics(1, gram=gram))
    form = SparseGpt(sparsity=0.5, damping=0.0).fit(site, torch.Generator())
    torch.testing.assert_close(form.dense().detach(), torch.tensor([[0.0, 2.5]]))


def test_score_is_not_magnitude():
    # The first weight is larger, but its input nearly repeats the second's, which makes up for it.
    weight = torch.tensor([[1.1, 1.0, 1.0]])
    gram = torch.tensor([[1.0, 0.95, 0.0], [0.95, 1.0, 0.0], [0.0, 0.0, 1.0]])
    site = Site("w", "linear", Dense(weight), weight, statistics=Statistics(1, gram=gram))
    form = SparseGpt(sparsity=1 / 3, damping=0.0).fit(site, torch.Generator())
    assert form.mask.tolist() == [[False, True, True]]
    assert float(form.dense().detach()[0, 1]) == pytest.approx(1.0 + 1.1 * 0.95, rel=1e-4)


def test_is_magnitude_per_block_where_inputs_are_uncorrelated(make_site, generator):
    weight = torch.randn(16, 40)
    site = make_site(weight, x=torch.eye(40))
    form = SparseGpt(sparsity=0.3, block=16).fit(site, generator)
    for start in (0, 16, 32):
        part = weight[:, start : start + 16].contiguous()
        alone = Magnitude(sparsity=0.3).fit(Site("w", "linear", Dense(part), part), generator)
        assert torch.equal(form.dense()[:, start : start + 16], alone.dense())
    pattern = SparseGpt(pattern="2:4").fit(site, generator)
    assert torch.equal(pattern.dense(), Magnitude(pattern="2:4").fit(site, generator).dense())


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.77])
def test_every_block_has_its_exact_share(make_site, generator, layer, sparsity):
    weight, x = layer
    step = SparseGpt(sparsity=sparsity, block=24)
    form = step.fit(make_site(weight, x=x), generator)
    for start in (0, 24, 48):
        part = form.mask[:, start : start + 24]
        assert int((~part).sum()) == round(sparsity * part.numel())
    sketch = step.sketch(Dense(torch.empty(48, 64, device="meta")), site="w")
    assert (sketch.signature, sketch.nbytes) == (form.signature, form.nbytes)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
def test_patterns_are_exact_in_every_group(make_site, generator, layer, pattern):
    weight, x = layer
    n, m = map(int, pattern.split(":"))
    step = SparseGpt(pattern=pattern, block=30)
    form = step.fit(make_site(weight, x=x), generator)
    assert bool((form.mask.reshape(-1, m).sum(1) == n).all())
    sketch = step.sketch(Dense(torch.empty(48, 64, device="meta")), site="w")
    assert (sketch.signature, sketch.nbytes) == (form.signature, form.nbytes)


def test_mask_of_a_pattern_is_chosen_from_updated_weights(make_site, generator, layer):
    weight, x = layer
    site = make_site(weight, x=x)
    form = SparseGpt(pattern="2:4", damping=0.01).fit(site, generator)
    upper = inverse_factor(site.statistics.gram, damping=0.01, site="w").upper
    scores = (weight / upper.diagonal()).square().reshape(-1, 4)
    at_start = torch.zeros(scores.shape, dtype=torch.bool)
    at_start.scatter_(1, scores.topk(2).indices, True)
    at_start = at_start.reshape(weight.shape)
    assert torch.equal(form.mask[:, :4], at_start[:, :4])  # nothing was updated yet
    assert not torch.equal(form.mask[:, 4:], at_start[:, 4:])


def test_beats_magnitude_on_data_it_did_not_see(make_site, generator, layer):
    weight, x = layer
    site = make_site(weight, x=x[:700])
    for options in ({"sparsity": 0.3}, {"sparsity": 0.5}, {"pattern": "2:4"}):
        plain = Magnitude(**options).fit(site, generator)
        found = SparseGpt(**options).fit(site, generator)
        assert output_error(found, weight, x[700:]) < 0.65 * output_error(plain, weight, x[700:])


def test_earlier_zeros_stay(make_site, generator, layer):
    weight, x = layer
    first = Magnitude(sparsity=0.3).fit(make_site(weight, x=x), generator)
    site = make_site(weight, x=x, form=first)
    for options in ({"sparsity": 0.6}, {"pattern": "2:4"}):
        form = SparseGpt(**options).fit(site, generator)
        assert not form.dense()[~first.mask].any()
    with pytest.raises(LayerError, match=r"layer.weight: sparsegpt would keep"):
        SparseGpt(sparsity=0.1).sketch(
            Magnitude(sparsity=0.3).sketch(Dense(torch.empty(48, 64, device="meta")), site="w"),
            site="layer.weight",
        )


def test_inputs_that_are_always_zero_go_first(make_site, generator, layer):
    weight, x = layer
    x = x.clone()
    x[:, 10:20] = 0
    form = SparseGpt(sparsity=0.5).fit(make_site(weight, x=x), generator)
    assert not form.mask[:, 10:20].any()
    with pytest.warns(LaconicWarning, match=r"layer.weight: 1 of 1 parts met no calibration"):
        blind = SparseGpt(sparsity=0.5).fit(make_site(weight, x=torch.zeros(5, 64)), generator)
    assert torch.equal(blind.mask, Magnitude().fit(make_site(weight), generator).mask)


def test_grouped_convolution(generator):
    weight = torch.randn(6, 8, 1, 1)
    xs = [torch.randn(300, 3) @ torch.randn(3, 8) + 0.1 * torch.randn(300, 8) for _ in range(2)]
    gram = torch.stack([x.T @ x / len(x) for x in xs])
    site = Site("w", "conv", Dense(weight), weight, groups=2, statistics=Statistics(300, gram=gram))
    form = SparseGpt(sparsity=0.5).fit(site, generator)
    for index, rows in enumerate((weight[:3], weight[3:])):
        alone = Site("w", "conv", Dense(rows), rows, statistics=Statistics(300, gram=gram[index]))
        part = SparseGpt(sparsity=0.5).fit(alone, generator)
        assert torch.equal(form.dense()[3 * index : 3 * index + 3], part.dense())


def test_refusals_and_type(make_site, generator, layer):
    weight, x = layer
    form = RoundToNearest().fit(make_site(weight), generator)
    with pytest.raises(RecipeError, match="sparsegpt cannot follow quantized"):
        SparseGpt().fit(make_site(weight, x=x, form=form), generator)
    half = SparseGpt().fit(make_site(weight.to(torch.bfloat16), x=x), generator)
    assert isinstance(half, Sparse)
    assert half.dtype == half.values.dtype == torch.bfloat16
    assert SparseGpt().needs == {"gram"}
    assert SparseGpt().propagate == "compensated"


def test_the_site_is_not_changed(make_site, generator, layer):
    weight, x = layer
    site = make_site(weight.clone(), x=x)
    gram = site.statistics.gram.clone()
    SparseGpt().fit(site, generator)
    assert torch.equal(site.form.dense(), weight)
    assert torch.equal(site.statistics.gram, gram)


def test_joint_by_hand():
    # As by hand above, and 2.5 on levels of 2/1.5 = 4/3 (two bits) is rounded to 4/3.
    weight = torch.tensor([[1.0, 2.0]])
    gram = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    site = Site("w", "linear", Dense(weight), weight, statistics=Statistics(1, gram=gram))
    step = SparseGpt(sparsity=0.5, damping=0.0, bits=2, scale_dtype="float32")
    form = step.fit(site, torch.Generator())
    torch.testing.assert_close(form.dense().detach(), torch.tensor([[0.0, 4 / 3]]))
    assert form.codes().tolist() == [[2, 3]]


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": "2:4"}])
def test_joint_is_rounding_what_stays_where_inputs_are_uncorrelated(make_site, generator, options):
    weight = torch.randn(16, 40)
    site = make_site(weight, x=torch.eye(40))
    pruned = SparseGpt(**options).fit(site, generator)
    joint = SparseGpt(**options, bits=4, group_size=8).fit(site, generator)
    plain = RoundToNearest(bits=4, group_size=8).fit(make_site(weight), generator)
    assert torch.equal(joint.dense(), plain.dense() * pruned.mask)


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": "2:4"}, {"pattern": "1:4"}])
@pytest.mark.parametrize("size", ["auto", "channel", 16])
def test_joint_sketch_zeros_and_groups(make_site, generator, layer, options, size):
    weight, x = layer
    step = SparseGpt(**options, bits=4, group_size=size)
    form = step.fit(make_site(weight, x=x), generator)
    sketch = step.sketch(Dense(torch.empty(48, 64, device="meta")), site="w")
    assert (sketch.signature, sketch.nbytes) == (form.signature, form.nbytes)
    zeros = (form.dense() == 0).reshape(-1, 4)
    if "pattern" in options:
        assert form.signature == "sparse(quantized)"
        assert torch.equal((~form.mask).reshape(-1, 4).sum(1) , torch.full(
            (768,), 4 - int(options["pattern"][0])))  # fmt: skip
    else:
        assert form.signature == "quantized"
        assert int(zeros.sum()) >= 48 * 64 // 2


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": "2:4"}])
def test_joint_makes_up_for_both_errors(make_site, generator, layer, options):
    """One sweep is better than rounding afterwards, and not far from exact values."""
    weight, x = layer
    site = make_site(weight, x=x)
    pruned = SparseGpt(**options).fit(site, generator)
    joint = SparseGpt(**options, bits=3, group_size=16).fit(site, generator)
    later = RoundToNearest(bits=3, group_size=8).fit(make_site(weight, form=pruned), generator)
    error = {f: output_error(f, weight, x) for f in (pruned, joint, later)}
    assert error[joint] < 0.95 * error[later]
    assert error[pruned] < error[joint] < 2.5 * error[pruned]


def test_joint_keeps_earlier_zeros_and_has_levels_of_bits(make_site, generator, layer):
    weight, x = layer
    before = Magnitude(sparsity=0.3).fit(make_site(weight), generator)
    form = SparseGpt(sparsity=0.6, bits=4).fit(make_site(weight, x=x, form=before), generator)
    assert not bool(form.dense()[~before.mask].any())
    assert [step.bits for step in SparseGpt(bits=4).levels()] == [2, 3, 4, 5, 6, 8]
    with pytest.raises(ConfigError, match="group_size=32 is of no use without bits"):
        SparseGpt(group_size=32)
    with pytest.raises(ConfigError, match="group_size=6 must be a multiple of 4"):
        SparseGpt(pattern="2:4", bits=4, group_size=6)


def test_joint_parts_of_a_stack_write_their_own_codes(generator):
    weight = torch.randn(8, 16)
    grams = torch.stack([torch.eye(16), torch.eye(16)])
    site = Site(
        "w", "experts", Dense(weight), weight, "stacked", groups=2,
        statistics=Statistics(9, gram=grams),
    )  # fmt: skip
    form = SparseGpt(pattern="2:4", bits=8).fit(site, generator)
    kept = weight * form.mask
    assert float((form.dense().detach() - kept).abs().max()) < 0.02
