from __future__ import annotations

import pytest
import torch

from laconic.errors import ConfigError, LayerError, RecipeError
from laconic.forms.codebook import Codebook
from laconic.forms.dense import Dense
from laconic.forms.quantized import Quantized
from laconic.weights.prune.magnitude import Magnitude
from laconic.weights.quantize.nf4 import NormalFloat, normal_levels, quantize_scales
from laconic.weights.quantize.round_to_nearest import RoundToNearest

# The 16 levels as published, to the digits that are printed there.
PUBLISHED = [
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
]  # fmt: skip


def test_levels_are_the_published_ones():
    torch.testing.assert_close(normal_levels(4), torch.tensor(PUBLISHED), rtol=0, atol=3e-7)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_levels_of_other_widths(bits):
    levels = normal_levels(bits)
    assert len(levels) == 2**bits == len(levels.unique())
    assert levels.tolist() == sorted(levels.tolist())
    assert (float(levels[0]), float(levels[-1])) == (-1.0, 1.0)
    assert float(levels[2 ** (bits - 1) - 1]) == 0.0
    # Away from the ends the normal distribution puts as much between two levels as between others.
    reach = float(torch.special.ndtri(torch.tensor(1 - (1 / 2 ** (bits + 1)
                  + 1 / (2 ** (bits + 1) - 2)) / 2, dtype=torch.float64)))  # fmt: skip
    mass = torch.special.ndtr(levels.double() * reach).diff()
    torch.testing.assert_close(
        mass[: 2 ** (bits - 1) - 1].amax(), mass[: 2 ** (bits - 1) - 1].amin()
    )
    torch.testing.assert_close(
        mass[2 ** (bits - 1) - 1 :].amax(), mass[2 ** (bits - 1) - 1 :].amin()
    )


def test_by_hand(make_site, generator):
    # The block's largest weight is 2: 0.8 / 2 = 0.4 lies nearest to 0.4407, -0.1 / 2 to -0.0911.
    weight = torch.tensor([[2.0, 0.8, -0.1, 0.0]])
    form = NormalFloat(double=False).fit(make_site(weight), generator)
    assert form.codes().tolist() == [[15, 12, 6, 7]]
    assert form.scale.tolist() == [[2.0]]
    assert form.dense().tolist()[0] == pytest.approx([2.0, 0.8814197, -0.1821, 0.0])


def slow(weight, size, table):
    """Oracle: block by block, weight by weight."""
    out = torch.zeros_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], size):
            block = weight[row, start : start + size]
            top = float(block.abs().max())
            for j, w in enumerate(block.tolist()):
                level = min(table, key=lambda t: abs(t - w / top))
                out[row, start + j] = level * top
    return out


def test_is_the_slow_reference(make_site, generator):
    weight = torch.randn(7, 96)
    form = NormalFloat(double=False, group_size=32).fit(make_site(weight), generator)
    expected = slow(weight, 32, normal_levels(4).tolist())
    torch.testing.assert_close(form.dense().detach(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("double", [True, False])
def test_rounding_what_is_rounded_changes_nothing(make_site, generator, double):
    step = NormalFloat(double=double)
    once = step.fit(make_site(torch.randn(9, 128)), generator)
    twice = step.fit(make_site(once.dense().detach()), generator)
    close = (
        twice.dense() - once.dense()
    ).detach().abs().amax() / once.dense().detach().abs().amax()
    assert float(close) < (2e-2 if double else 1e-6)  # 8-bit scales may move by half a step


def test_doubly_quantized_scales_are_stored_small(make_site, generator):
    weight = torch.randn(256, 256)
    plain = NormalFloat(double=False).fit(make_site(weight), generator)
    double = NormalFloat().fit(make_site(weight), generator)
    assert double.signature == "codebook(quantized)"
    scales = 256 * 256 // 64
    assert plain.nbytes == 256 * 256 // 2 + 64 + 4 * scales
    assert double.nbytes == 256 * 256 // 2 + 64 + scales + (scales // 256) * 8
    bits = 8 * (double.nbytes - 64) / weight.numel()
    assert bits == pytest.approx(4.129, abs=1e-3)  # the paper's 4.127 and a zero point a block
    gap = (double.scales() - plain.scales()).detach().abs()
    spread = plain.scales().detach().amax() - plain.scales().detach().amin()
    assert float(gap.amax()) <= float(spread) / 255 / 2 * 1.001
    error = {f: float((f.dense().detach() - weight).norm()) for f in (plain, double)}
    assert error[double] <= 1.005 * error[plain]


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 1000])
def test_scales_of_any_number(count):
    scale = torch.rand(count) + 0.01
    form = quantize_scales(scale)
    held = form.dense().detach().reshape(-1)
    assert count <= held.numel() < count + form.cols
    assert float((held[:count] - scale).abs().amax()) <= 0.5 / 255 + 1e-6
    alike = quantize_scales(torch.full((count,), 0.37)).dense().detach()
    torch.testing.assert_close(alike, torch.full_like(alike, 0.37))
    assert not bool(quantize_scales(torch.zeros(count)).dense().any())


def test_blocks_of_zeros_stay_zero(make_site, generator):
    weight = torch.randn(4, 128)
    weight[1, :64] = 0
    for double in (True, False):
        found = NormalFloat(double=double).fit(make_site(weight), generator).dense()
        assert not bool(found[1, :64].any())


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("shape", [(5, 64), (3, 100), (2, 7), (300, 128)])
def test_sketch_is_the_form(make_site, generator, shape, double):
    step = NormalFloat(double=double, scale_dtype="float16")
    form = step.fit(make_site(torch.randn(shape)), generator)
    sketch = step.sketch(Dense(torch.empty(shape, device="meta")), site="w")
    assert (sketch.signature, sketch.nbytes) == (form.signature, form.nbytes)


def test_learned_levels_are_better_and_weighted_ones_better_for_the_output(make_site, generator):
    torch.manual_seed(5)
    weight = torch.distributions.Laplace(0.0, 1.0).sample((64, 128))
    x = torch.randn(400, 128) * torch.logspace(-1.5, 1.5, 128)
    site = make_site(weight, x=x)
    steps = {
        "normal": NormalFloat(bits=3),
        "learned": NormalFloat(bits=3, table="learned"),
        "weighted": NormalFloat(bits=3, table="learned", weighting="gram"),
    }
    forms = {name: step.fit(site, generator).dense().detach() for name, step in steps.items()}
    plain = {name: float((form - weight).norm()) for name, form in forms.items()}
    output = {name: float(((form - weight) @ x.T).norm()) for name, form in forms.items()}
    assert plain["learned"] < 0.97 * plain["normal"]
    assert output["weighted"] < 0.97 * output["learned"]


def test_learned_levels_hold_zero(make_site, generator):
    step = NormalFloat(bits=3, table="learned")
    form = step.fit(make_site(torch.randn(32, 64) + 0.05), generator)
    table = form.table.detach().flatten()
    assert int((table == 0).sum()) == 1
    assert table.tolist() == sorted(table.tolist())


def test_beats_even_levels_on_normal_weights(make_site, generator):
    weight = torch.randn(64, 256)
    site = make_site(weight)
    normal = NormalFloat().fit(site, generator)
    even = RoundToNearest(bits=4, group_size=64).fit(site, generator)
    assert normal.nbytes < even.nbytes
    error = {f: float((f.dense().detach() - weight).norm()) for f in (normal, even)}
    assert error[normal] < 0.9 * error[even]


def test_works_on_the_values_that_pruning_left(make_site, generator, layer):
    weight, x = layer
    pruned = Magnitude(pattern="2:4").fit(make_site(weight), generator)
    site = make_site(weight, x=x, form=pruned)
    form = NormalFloat(table="learned", weighting="gram").fit(site, generator)
    assert form.signature == "sparse(codebook(quantized))"
    assert torch.equal(form.mask, pruned.mask)


def test_refusals(make_site, generator):
    coded = NormalFloat().fit(make_site(torch.randn(4, 64)), generator)
    assert isinstance(coded, Codebook)
    assert isinstance(coded.scale, Quantized)
    with pytest.raises(RecipeError, match="no dense part left"):
        NormalFloat().sketch(coded, site="w")
    with pytest.raises(LayerError, match="group_size=48 does not divide the 64 weights"):
        NormalFloat(group_size=48).fit(make_site(torch.randn(4, 64)), generator)
    with pytest.raises(ConfigError, match="weighting='gram' needs levels that are learned"):
        NormalFloat(weighting="gram")
