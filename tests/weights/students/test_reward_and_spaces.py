from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from students_support import Residual, vgg

from laconic.errors import ConfigError
from laconic.weights.students import PAPER_RATIOS, RATIOS, Reward
from laconic.weights.students.build import draft
from laconic.weights.students.reward import Sized, formula
from laconic.weights.students.spaces import FIELDS, RemovalSpace, ShrinkSpace
from laconic.weights.students.units import FEATURES, KINDS, Network, describe

X = torch.zeros(2, 1, 8, 8)
TEACHER = Sized(1000, 1000, 1000.0)
shares = st.floats(0.001, 1.0)


def size(params):
    return Sized(params, params, float(params))


def test_reward_by_hand():
    """Half of the size at all of the accuracy: C = 1/2, R = 1/2 * 3/2 = 0.75."""
    assert formula(0.5, 0.9, 0.9) == 0.75
    assert formula(0.1, 0.45, 0.9) == pytest.approx(0.99 / 2)
    assert formula(1.0, 0.9, 0.9) == 0
    assert formula(0.0, 0.9, 0.9) == 1


@settings(deadline=None, max_examples=50)
@given(shares, shares, st.floats(0, 1), st.floats(0, 1))
def test_reward_rises_with_compression_and_with_accuracy(a, b, p, q):
    low, high = sorted((a, b))
    worse, better = sorted((p, q))
    assert formula(low, p, 0.9) >= formula(high, p, 0.9)
    assert formula(a, better, 0.9) >= formula(a, worse, 0.9)


def test_children_that_are_not_smaller_are_worth_minus_one():
    reward = Reward()
    assert reward.value(size(1000), 1.0, TEACHER, 0.9, 0) == -1
    assert reward.value(size(2000), 1.0, TEACHER, 0.9, 0) == -1
    assert reward.value(size(999), 1.0, TEACHER, 1.0, 0) > 0
    by_macs = Sized(params=1001, macs=10, cost=10.0)
    assert Reward(cost="macs").value(by_macs, 1.0, TEACHER, 0.9, 0) == -1


def test_a_broken_limit_is_soft_at_first_and_then_minus_one():
    reward = Reward(max_params=100)
    plain = reward.plain(size(500), 0.9, TEACHER, 0.9)
    values = [reward.value(size(500), 0.9, TEACHER, 0.9, i) for i in range(40)]
    assert values[0] == plain == 0.75
    softness = (1 - 3 / 15) ** 4
    assert values[3] == pytest.approx(softness - 1 + softness * 0.75)
    assert values[15:] == [-1.0] * 25
    assert all(a > b for a, b in pairwise(values[:16]))
    assert reward.value(size(100), 0.9, TEACHER, 0.9, 30) == pytest.approx(0.99)


def test_limits_of_accuracy_and_cost():
    reward = Reward(min_accuracy=0.8, max_cost=600)
    assert reward.keeps_limits(size(600), 0.8)
    assert not reward.keeps_limits(size(600), 0.79)
    assert not reward.keeps_limits(size(601), 0.8)
    with pytest.raises(ConfigError, match="min_accuracy=80 must be between 0 and 1"):
        Reward(min_accuracy=80)
    with pytest.raises(ConfigError, match="cost='bytes' must be params, macs or a function"):
        Reward(cost="bytes")
    with pytest.raises(ConfigError, match="must be above 0"):
        formula(0.5, 0.5, 0.0)


def test_descriptions_are_scaled():
    unit = RemovalSpace(Network.of(vgg(), X)).network.units[1]
    row = describe(unit)
    assert row.shape == (FEATURES,)
    assert row[KINDS.index("conv")] == 1
    assert float(row.abs().max()) <= 1.5
    assert row[: len(KINDS)].sum() == 1


def test_removal_space_masks_fixed_units():
    space = RemovalSpace(Network.of(vgg(), X, keep=("max-pool",)))
    assert space.decisions.free.tolist() == [False, True, False, True, True, False, True, False]
    assert space.plan(space.still()).removed == frozenset()
    assert space.plan(space.least()).removed == frozenset({1, 3, 4, 6})
    assert space.tell(space.least()) == {"dropped": ["3", "7", "10", "15"]}


def shrink(model=None, **changes):
    return ShrinkSpace(
        Network.of((model or vgg((16, 16, "pool", 24))).eval(), X, keep=()), **changes
    )


def action(space, unit, field, ratio):
    row = space.still()
    row[unit * len(FIELDS) + FIELDS.index(field)] = space.ratios.index(ratio)
    return row


def test_shrinking_by_hand():
    space = shrink()
    sizes = space.plan(action(space, 1, "filters", 0.7)).sizes
    assert sizes[1].filters == 11  # floor(11.2)
    assert space.plan(action(space, 1, "filters", 0.25)).sizes[1].filters == 10  # never fewer
    kernel = space.plan(action(space, 0, "kernel", 0.25)).sizes[0]
    assert (kernel.kernel, kernel.padding) == ((1, 1), (0, 0))
    assert space.plan(action(space, 0, "kernel", 0.9)).sizes == {}  # 2.7 is nearest to 3
    assert space.plan(space.still()).sizes == {}
    pool = space.plan(action(space, 2, "stride", 0.5)).sizes[2]
    assert pool.stride == (1,)


def test_the_papers_own_shrinking():
    space = shrink(ratios=PAPER_RATIOS, padding="free")
    assert space.plan(action(space, 0, "kernel", 0.9)).sizes[0].kernel == (2, 2)
    assert space.plan(action(space, 0, "padding", 0.5)).sizes[0].padding == (0, 0)
    assert space.decisions.options == 11


def test_what_cannot_shrink_is_fixed():
    space = shrink(Residual())
    free = space.decisions.free.reshape(-1, len(FIELDS))
    named = {u.name: free[u.index].tolist() for u in space.network.units}
    assert named["blocks.2.c2"] == [False] * 4  # a stride
    assert named["blocks.1.c3"] == [False] * 4  # width of the shortcut, kernel of 1
    assert named["blocks.0.c3"] == [False, False, True, False]  # the shortcut follows it
    assert named["fc"] == [False] * 4  # gives the output
    assert named["stem"] == [True, False, True, False]
    kept = shrink(vgg(), keep=("linear", "max-pool"))
    rows = kept.decisions.free.reshape(-1, len(FIELDS)).any(1)
    assert [u.kind for u, r in zip(kept.network.units, rows.tolist(), strict=True) if r] == [
        "conv"
    ] * 4


def test_all_ratios_one_rebuild_the_network():
    model = vgg((16, 16, "pool", 24))
    space = shrink(model)
    made = draft(space.network, space.plan(space.still()))
    child = made.spec().build(weights=model.state_dict())
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(child(x), model(x))


def test_the_description_moves_with_what_was_decided():
    space = shrink()
    decisions = space.decisions
    option = space.ratios.index(0.5)
    row = space.still()
    row[2] = option  # filters of the first unit
    before = torch.tensor([row[:3], space.still()[:3]])
    told = decisions.feedback(3, before)
    column = len(KINDS) + FIELDS.index("filters")
    assert torch.equal(told[1], decisions.features[3])
    assert told[0, column] < told[1, column]
    same = torch.ones(told.shape[1], dtype=torch.bool)
    same[column] = False
    assert torch.equal(told[0, same], told[1, same])


def test_mistakes_are_told():
    with pytest.raises(ConfigError, match="and 1 be among them"):
        shrink(ratios=(0.5, 0.9))
    with pytest.raises(ConfigError, match="padding='same' 'follow' or 'free'"):
        shrink(padding="same")
    assert RATIOS[-1] == 1
