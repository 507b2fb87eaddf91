from __future__ import annotations

import pytest
import torch

from laconic.errors import LaconicWarning, LayerError, RecipeError
from laconic.forms.dense import Dense
from laconic.forms.sparse import Sparse
from laconic.weights.base import Site, Statistics
from laconic.weights.quantize.gptq import Gptq
from laconic.weights.quantize.round_to_nearest import RoundToNearest
from laconic.weights.second_order import inverse_factor, sweep


def output_error(form, weight, x):
    return float(((form.dense().detach() - weight) @ x.T).norm() / (weight @ x.T).norm())


def test_by_hand_two_columns():
    # One row, two inputs with Gram [[1, .5], [.5, 1]] and no damping. Rounding 0.6 to 1 is an
    # error of -0.4; the best second weight is then 0.6 - 0.4 * G01 / G11 = 0.4, which rounds to 0.
    weight = torch.tensor([[0.6, 0.6, 2.0, -2.0]])
    gram = torch.eye(4)
    gram[0, 1] = gram[1, 0] = 0.5
    factor = inverse_factor(gram, damping=0.0, site="w")

    class Whole:
        def begin(self, start, stop, weight):
            assert (start, stop) == (0, 4)

        def __call__(self, index, weight):
            return weight[:, 0].round()

    before = weight.clone()
    assert sweep(weight, factor.upper, Whole(), block=4).tolist() == [[1.0, 0.0, 2.0, -2.0]]
    assert torch.equal(weight, before)


def test_is_rounding_where_inputs_are_uncorrelated(make_site, generator):
    weight = torch.randn(16, 32)
    site = make_site(weight, x=torch.eye(32) * torch.linspace(1, 3, 32))
    for options in ({"group_size": 8}, {"group_size": 8, "order": "none"}, {"symmetric": False}):
        found = Gptq(bits=3, **options).fit(site, generator)
        options.pop("order", None)
        plain = RoundToNearest(bits=3, **options).fit(site, generator)
        assert torch.equal(found.codes(), plain.codes())
        assert torch.equal(found.scale, plain.scale)


@pytest.mark.parametrize("order", ["static", "none"])
@pytest.mark.parametrize("size", ["channel", 16])
def test_blocks_do_not_change_the_result(make_site, generator, layer, order, size):
    weight, x = layer
    site = make_site(weight, x=x)
    whole = Gptq(bits=4, order=order, group_size=size, block=64).fit(site, generator)
    small = Gptq(bits=4, order=order, group_size=size, block=16).fit(site, generator)
    agree = (whole.codes() == small.codes()).float().mean()
    assert float(agree) > 0.995  # float32 sums in another order may tip a tie


def test_sweep_in_blocks_is_the_sweep_without(layer):
    weight, x = layer
    factor = inverse_factor(x.T @ x / len(x), damping=0.01, site="w")

    class Half:
        def begin(self, start, stop, weight):
            self.start = start

        def __call__(self, index, weight):
            return weight[:, 0] * 0.5

    results = [sweep(weight, factor.upper, Half(), block=block) for block in (1, 7, 16, 64)]
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-4, atol=1e-4)


def test_sweep_gives_the_best_update_of_later_columns(layer):
    """Oracle: after one column is fixed, the others solve a least-squares problem."""
    weight, x = layer
    gram = (x.T @ x / len(x)).double()
    factor = inverse_factor(gram, damping=0.0, site="w")

    class First:
        def begin(self, start, stop, weight):
            self.start = start

        def __call__(self, index, weight):
            return torch.zeros(len(weight)) if index == 0 else weight[:, 0]

    found = sweep(weight, factor.upper, First(), block=64)
    removed = weight[:, :1].double()
    best = weight[:, 1:].double() + removed @ torch.linalg.solve(gram[1:, 1:], gram[1:, :1]).T
    torch.testing.assert_close(found[:, 1:].double(), best, rtol=1e-3, atol=1e-3)


def test_beats_rounding_on_calibration_data_and_on_other_data(make_site, generator, layer):
    weight, x = layer
    seen, unseen = x[:700], x[700:]
    site = make_site(weight, x=seen)
    for bits in (2, 3, 4):
        options = {"bits": bits, "group_size": 32}
        plain = RoundToNearest(**options).fit(site, generator)
        found = Gptq(**options).fit(site, generator)
        unordered = Gptq(order="none", **options).fit(site, generator)
        assert found.nbytes == plain.nbytes
        for data in (seen, unseen):
            assert output_error(found, weight, data) < 0.6 * output_error(plain, weight, data)
            assert output_error(unordered, weight, data) < 0.7 * output_error(plain, weight, data)


def test_never_worse_than_rounding_on_calibration_data(make_site, generator):
    errors = []
    for seed in range(100):
        source = torch.Generator().manual_seed(seed)
        weight = torch.randn(8, 16, generator=source)
        x = torch.randn(64, 4, generator=source) @ torch.randn(4, 16, generator=source)
        x = x + 0.2 * torch.randn(64, 16, generator=source)
        site = make_site(weight, x=x)
        pair = (RoundToNearest(bits=3), Gptq(bits=3))
        errors.append([output_error(step.fit(site, generator), weight, x) for step in pair])
    plain, found = torch.tensor(errors).T
    assert float((found < plain).float().mean()) > 0.97
    assert float(found.mean()) < 0.7 * float(plain.mean())


def test_important_columns_first_helps(make_site, generator, layer):
    weight, x = layer
    x = x * torch.logspace(-1, 0.5, 64)
    site = make_site(weight, x=x)
    found = Gptq(bits=3, group_size=32).fit(site, generator)
    unordered = Gptq(bits=3, group_size=32, order="none").fit(site, generator)
    assert output_error(found, weight, x) < output_error(unordered, weight, x)


def test_groups_stay_where_they_are(make_site, generator, layer):
    """Static order: scales are those of plain rounding, so no index of groups is needed."""
    weight, x = layer
    site = make_site(weight, x=x * torch.linspace(3, 0.1, 64))
    found = Gptq(bits=4, group_size=16).fit(site, generator)
    assert torch.equal(
        found.scale, RoundToNearest(bits=4, group_size=16).fit(site, generator).scale
    )


def test_dead_inputs_keep_their_rounded_weights_and_disturb_nothing(make_site, generator, layer):
    weight, x = layer
    x = x.clone()
    x[:, 5] = 0
    site = make_site(weight, x=x)
    found = Gptq(bits=4).fit(site, generator)
    plain = RoundToNearest(bits=4).fit(site, generator)
    assert torch.equal(found.codes()[:, 5], plain.codes()[:, 5])
    assert output_error(found, weight, x) < 0.6 * output_error(plain, weight, x)


def test_duplicate_inputs_are_damped(make_site, generator, layer):
    weight, x = layer
    x = x.clone()
    x[:, 1] = x[:, 0]
    form = Gptq(bits=4).fit(make_site(weight, x=x), generator)
    assert output_error(form, weight, x) < 0.1


def test_damping_rises_until_it_can_be_factored(make_site, generator, layer):
    weight, x = layer
    x = x.clone()
    x[:, 1] = x[:, 0]
    gram = x.T @ x / len(x)
    gram[0, 0] -= 0.05 * float(gram.diagonal().mean())  # now indefinite by more than 1 %
    site = make_site(weight, x=x)
    site.statistics.gram = gram
    with pytest.warns(LaconicWarning, match=r"layer.weight: damping was raised from 0.01 to 0.1"):
        form = Gptq(bits=4).fit(site, generator)
    assert torch.isfinite(form.dense()).all()
    site.statistics.gram = -torch.ones(64, 64) + 0.1 * torch.eye(64)
    site.statistics.gram.diagonal().fill_(0.5)
    with pytest.raises(LayerError, match=r"layer.weight: the Gram matrix is not positive"):
        Gptq(bits=4).fit(site, generator)


def test_zeros_of_a_sparse_form_stay_and_values_are_compensated(make_site, generator, layer):
    weight, x = layer
    mask = torch.rand(48, 64, generator=torch.Generator().manual_seed(0)) > 0.4
    kept = weight * mask
    for held in (
        Sparse(mask, Dense(kept[mask].reshape(1, -1)), shape=(48, 64), dtype=torch.float32),
        _two_of_four(weight),
    ):
        kept = held.dense().detach()
        site = make_site(weight, x=x, form=held)
        plain = RoundToNearest(bits=3).fit(site, generator)
        found = Gptq(bits=3).fit(site, generator)
        assert found.signature == "sparse(quantized)"
        assert found.nbytes == plain.nbytes
        assert not found.dense()[~held.mask].any()
        assert torch.equal(found.values.scale, plain.values.scale)
        assert output_error(found, kept, x) < 0.75 * output_error(plain, kept, x)


def _two_of_four(weight):
    order = weight.abs().reshape(-1, 4).argsort(1)
    mask = torch.zeros(order.shape, dtype=torch.bool).scatter_(1, order[:, 2:], True)
    mask = mask.reshape(weight.shape)
    values = Dense(weight[mask].reshape(len(weight), -1))
    return Sparse(mask, values, shape=weight.shape, dtype=weight.dtype, pattern="2:4")


def test_grouped_convolution_uses_each_groups_inputs(generator):
    weight = torch.randn(6, 8, 1, 1)
    xs = [torch.randn(300, 3) @ torch.randn(3, 8) + 0.1 * torch.randn(300, 8) for _ in range(2)]
    gram = torch.stack([x.T @ x / len(x) for x in xs])
    site = Site("w", "conv", Dense(weight), weight, groups=2, statistics=Statistics(300, gram=gram))
    whole = Gptq(bits=3).fit(site, generator)
    for index in range(2):
        rows = weight[3 * index : 3 * index + 3]
        alone = Site("w", "conv", Dense(rows), rows, statistics=Statistics(300, gram=gram[index]))
        part = Gptq(bits=3).fit(alone, generator)
        assert torch.equal(whole.codes()[3 * index : 3 * index + 3], part.codes())


def test_parts_that_met_no_input_are_rounded_with_a_warning(generator):
    weight = torch.randn(6, 8)
    gram = torch.stack([torch.eye(8) + 0.5, torch.zeros(8, 8)])
    site = Site(
        "e", "experts", Dense(weight), weight, groups=2, statistics=Statistics(9, gram=gram)
    )
    with pytest.warns(LaconicWarning, match="e: 1 of 2 parts met no calibration input"):
        form = Gptq(bits=4).fit(site, generator)
    plain = RoundToNearest(bits=4).fit(site, generator)
    assert torch.equal(form.codes()[3:], plain.codes()[3:])
    assert not torch.equal(form.codes()[:3], plain.codes()[:3])


def test_refusals(make_site, generator, layer):
    weight, x = layer
    site = make_site(weight, x=x)
    form = RoundToNearest().fit(site, generator)
    with pytest.raises(RecipeError, match="gptq cannot follow quantized"):
        Gptq().fit(make_site(weight, x=x, form=form), generator)
    site.statistics.gram[0, 0] = float("nan")
    with pytest.raises(LayerError, match=r"layer.weight: 1 of 4096 values of the Gram matrix"):
        Gptq().fit(site, generator)
    assert Gptq().needs == {"gram"}
    assert Gptq().propagate == "compensated"


def test_the_site_is_not_changed(make_site, generator, layer):
    weight, x = layer
    site = make_site(weight.clone(), x=x)
    gram = site.statistics.gram.clone()
    Gptq(bits=3, order="none").fit(site, generator)
    assert torch.equal(site.form.dense(), weight)
    assert torch.equal(site.original, weight)
    assert torch.equal(site.statistics.gram, gram)


def test_dynamic_order_is_left_to_right_on_sorted_columns(make_site, generator, layer):
    """Oracle: sort the problem by hand, solve it in order, put the columns back."""
    weight, x = layer
    x = x * torch.logspace(1, -1, 64)[torch.randperm(64)]
    found = Gptq(bits=3, group_size=16, order="dynamic").fit(make_site(weight, x=x), generator)
    assert found.signature == "permuted(quantized)"
    order = x.square().mean(0).argsort(descending=True)
    assert torch.equal(found.order, order)
    plain = Gptq(bits=3, group_size=16, order="none")
    sorted_form = plain.fit(make_site(weight[:, order], x=x[:, order]), generator)
    expected = torch.empty_like(weight)
    expected[:, order] = sorted_form.dense().detach()
    # The Gram matrix of sorted columns is summed in another order, which may tip a tie.
    assert float((found.dense().detach() - expected).abs().gt(1e-5).float().mean()) < 0.005
    torch.testing.assert_close(found.matmul(x), x @ found.dense().T, rtol=1e-4, atol=1e-4)


def test_orders_of_columns_by_their_error(make_site, generator, layer):
    """Large inputs first is better than as they come, with groups that move or stay."""
    weight, x = layer
    x = x * torch.logspace(-1, 1, 64)
    site = make_site(weight, x=x)
    error = {
        order: output_error(
            Gptq(bits=3, group_size=16, order=order).fit(site, generator), weight, x
        )
        for order in ("none", "static", "dynamic")
    }
    assert error["static"] <= error["none"]
    assert error["dynamic"] <= error["none"]


def test_dynamic_order_is_stored_only_where_there_are_groups(make_site, generator, layer):
    weight, x = layer
    site = make_site(weight, x=x)
    whole = Gptq(bits=3, group_size="channel", order="dynamic")
    static = Gptq(bits=3, group_size="channel")
    assert torch.equal(whole.fit(site, generator).codes(), static.fit(site, generator).codes())
    for step in (whole, Gptq(bits=3, group_size=16, order="dynamic")):
        form, sketch = step.fit(site, generator), step.sketch(Dense(weight.to("meta")), site="w")
        assert (form.signature, form.nbytes) == (sketch.signature, sketch.nbytes)
    pruned = torch.rand(48, 64) < 0.5
    sparse = Sparse(pruned, Dense(weight[pruned].unsqueeze(0)), shape=(48, 64), dtype=torch.float32)
    with pytest.raises(RecipeError, match="order='dynamic' moves columns"):
        Gptq(order="dynamic").sketch(sparse, site="w")


def test_parts_of_a_convolution_share_one_dynamic_order(generator):
    weight = torch.randn(8, 4, 3, 3)
    grams = torch.stack([torch.diag(torch.rand(36) + 0.1) for _ in range(2)])
    site = Site("w", "conv", Dense(weight), weight, groups=2, statistics=Statistics(9, gram=grams))
    form = Gptq(bits=4, group_size=6, order="dynamic").fit(site, generator)
    both = grams.sum(0).diagonal().argsort(descending=True)
    assert torch.equal(form.order, both)
    assert float((form.dense().detach() - weight).norm() / weight.norm()) < 0.15
