from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.errors import ConfigError, LayerError, RecipeError
from laconic.forms.dense import Dense
from laconic.forms.lowrank import LowRank
from laconic.forms.rotated import Rotated
from laconic.forms.sparse import Sparse
from laconic.forms.sum import Sum
from laconic.forms.tensortrain import TensorTrain
from laconic.weights.base import Site
from laconic.weights.quantize._uniform import divisors, resolve_group_size
from laconic.weights.quantize.kmeans import KMeans
from laconic.weights.quantize.round_to_nearest import RoundToNearest


def fit(weight: torch.Tensor, **options):
    site = Site("w", "linear", Dense(weight), weight)
    return RoundToNearest(**options).fit(site, torch.Generator())


def test_symmetric_by_hand():
    # absmax 7.5 at 4 bits: the scale is 7.5 / 7.5 = 1; the positive end is clipped to 7.
    form = fit(torch.tensor([[7.5, -7.5, 2.5, -0.4]]), group_size="channel")
    assert form.scale.tolist() == [[1.0]]
    assert form.codes().tolist() == [[15, 0, 10, 8]]
    assert form.dense().tolist() == [[7.0, -8.0, 2.0, 0.0]]


def test_asymmetric_by_hand():
    # Range [-1, 2] at 4 bits: scale 0.2, zero point round(1 / 0.2) = 5.
    form = fit(
        torch.tensor([[-1.0, 2.0, 0.5, 0.0]]),
        group_size="channel",
        symmetric=False,
        scale_dtype="float32",
    )
    assert form.zero().tolist() == [[5]]
    assert form.codes().tolist() == [[0, 15, 7, 5]]
    torch.testing.assert_close(form.dense(), torch.tensor([[-1.0, 2.0, 0.4, 0.0]]))


def test_asymmetric_range_is_widened_to_zero():
    form = fit(torch.tensor([[3.0, 4.5]]), group_size="channel", symmetric=False, bits=2)
    assert form.zero().tolist() == [[0]]
    assert form.dense().tolist() == [[3.0, 4.5]]  # levels 0, 1.5, 3, 4.5


def test_scale_is_rounded_before_codes():
    weight = torch.tensor([[100.0, 78.86]])
    form = fit(weight, group_size="channel", bits=8, scale_dtype="bfloat16")
    scale = torch.tensor(100 / 127.5).bfloat16().float()
    assert form.scale.float().item() == scale.item()
    expected = (weight / scale).round().clamp(-128, 127) + 128
    assert form.codes().tolist() == expected.tolist()
    assert form.codes().tolist() != ((weight / (100 / 127.5)).round() + 128).clamp(0, 255).tolist()


@settings(deadline=None, max_examples=50)
@given(
    bits=st.integers(2, 8),
    groups=st.integers(1, 4),
    size=st.integers(1, 9),
    symmetric=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_error_is_half_a_step_inside_the_range_and_codes_are_idempotent(
    bits, groups, size, symmetric, seed
):
    source = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, groups * size, generator=source)
    options = {
        "bits": bits, "group_size": size, "symmetric": symmetric, "scale_dtype": "float32"
    }  # fmt: skip
    form = fit(weight, **options)
    dense = form.dense().detach()
    scale = form.scale.detach().repeat_interleave(size, 1)
    zero = 2 ** (bits - 1) if symmetric else form.zero().repeat_interleave(size, 1).float()
    inside = (weight >= scale * (0 - zero)) & (weight <= scale * (2**bits - 1 - zero))
    error = (dense - weight).abs()
    assert bool((error <= scale * 0.5001)[inside].all())
    grid = form.codes().float() - zero
    assert torch.equal((dense / scale).round(), grid)  # rounding the result changes nothing


def test_all_zero_group_has_scale_one_and_stays_zero():
    for symmetric in (True, False):
        form = fit(torch.zeros(2, 8), group_size=4, symmetric=symmetric)
        assert form.scale.tolist() == [[1.0, 1.0], [1.0, 1.0]]
        assert not form.dense().any()


def test_mse_range_beats_absmax_and_is_the_best_of_the_grid():
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    weight[:, 0] = 6.0
    plain = fit(weight, bits=3, group_size="channel", scale_dtype="float32")
    best = fit(weight, bits=3, group_size="channel", scale_dtype="float32", range="mse")

    def error(dense):
        return (dense.detach() - weight).abs().pow(2.4).sum(1)

    assert float(error(best.dense()).sum()) < 0.9 * float(error(plain.dense()).sum())
    for row in range(4):  # oracle: try every shrunk range by itself
        errors = []
        for step in range(80):
            scale = 6.0 * (1 - step / 100) / 3.5
            value = ((weight[row] / scale).round().clamp(-4, 3)) * scale
            errors.append(float((value - weight[row]).abs().pow(2.4).sum()))
        assert float(error(best.dense())[row]) == pytest.approx(min(errors), rel=1e-4)


def test_group_sizes():
    assert resolve_group_size("auto", 704, site="w") == 88
    assert resolve_group_size("auto", 4096, site="w") == 128
    assert resolve_group_size("auto", 9, site="w") == 9
    assert resolve_group_size("auto", 2 * 131, site="w") == 131
    assert resolve_group_size("auto", 8209, site="w") == 8209
    assert resolve_group_size("channel", 704, site="w") == 704
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    with pytest.raises(LayerError, match=r"w: group_size=128 does not divide the 704 .*88.*176"):
        resolve_group_size(128, 704, site="w")


def test_convolution_and_transposed_memory():
    weight = torch.randn(4, 3, 2, 2)
    form = fit(weight, bits=8, group_size="channel")
    assert form.shape == (4, 3, 2, 2)
    torch.testing.assert_close(form.dense(), weight, atol=0.03, rtol=0)
    turned = torch.randn(8, 6).t()
    assert torch.equal(fit(turned).dense(), fit(turned.contiguous()).dense())


def test_works_on_what_is_dense_inside():
    mask = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1]], dtype=torch.bool)
    values = torch.tensor([[7.5, -7.5], [15.0, -3.0]])
    sparse = Sparse(mask, Dense(values), shape=(2, 4), dtype=torch.float32)
    site = Site("w", "linear", sparse, sparse.dense())
    form = RoundToNearest().fit(site, torch.Generator())
    assert form.signature == "sparse(quantized)"
    assert form.dense().tolist() == [[7, 0, -8, 0], [0, 14, 0, -4]]
    assert sparse.signature == "sparse(dense)"  # the given form is as it was

    B, A = torch.randn(6, 2), torch.randn(2, 8)
    low = LowRank(Dense(B), Dense(A), shape=(6, 8), dtype=torch.float32)
    both = Sum(form_of_ones := fit(torch.ones(6, 8)), low, shape=(6, 8), dtype=torch.float32)
    done = RoundToNearest(bits=8).fit(Site("w", "linear", both, both.dense()), torch.Generator())
    assert done.signature == "sum(quantized, low-rank(quantized, quantized))"
    assert torch.equal(done.terms[0].codes(), form_of_ones.codes())


@pytest.mark.parametrize("step", [RoundToNearest(bits=8), KMeans(bits=6)])
def test_goes_into_rotations_and_tensor_trains(step):
    rotated = Rotated(
        Dense(torch.randn(16, 32)),
        shape=(16, 32),
        dtype=torch.float32,
        side="in",
        rotation={"kind": "hadamard", "seed": 1},
    )
    cores = (Dense(torch.randn(1, 4, 4, 3)), Dense(torch.randn(3, 4, 8, 1)))
    train = TensorTrain(
        *cores, shape=(16, 32), dtype=torch.float32, row_modes=(4, 4), col_modes=(4, 8)
    )
    for form, inner in ((rotated, 1), (train, 2)):
        before = form.dense().detach()
        done = step.fit(Site("w", "linear", form, before), torch.Generator())
        error = (done.dense().detach() - before).norm() / before.norm()
        assert float(error) < 0.03
        assert done.signature.count("quantized") + done.signature.count("codebook") == inner
        sketch = step.sketch(deepcopy(form).to("meta"), site="w")
        assert (sketch.signature, sketch.nbytes) == (done.signature, done.nbytes)
        assert torch.equal(form.dense().detach(), before)


def test_refuses_twice_and_names_what_is_wrong():
    form = fit(torch.randn(2, 16))
    site = Site("w", "linear", form, form.dense())
    with pytest.raises(RecipeError, match="round-to-nearest cannot follow quantized"):
        RoundToNearest().fit(site, torch.Generator())
    with pytest.raises(RecipeError, match="quantize a weight once"):
        RoundToNearest().sketch(form, site="w")
    with pytest.raises(LayerError, match="w: 1 of 2 values of the weight are NaN"):
        fit(torch.tensor([[float("nan"), 1.0]]))
    with pytest.raises(LayerError, match="too small for scales"):
        fit(torch.full((2, 16), 1e-7))
    with pytest.raises(LayerError, match="give scales beyond"):
        fit(torch.full((2, 16), 1e7))
    with pytest.raises(ConfigError, match="round-to-nearest: bits=9 must be between 2 and 8"):
        RoundToNearest(bits=9)
    tiny = fit(torch.full((2, 16), 1e-7), scale_dtype="float32")
    torch.testing.assert_close(tiny.dense(), torch.full((2, 16), 1e-7), rtol=0.07, atol=0)


def test_a_row_that_is_next_to_nothing_does_not_spoil_the_layer():
    weight = torch.stack([torch.randn(16), torch.full((16,), 1e-20)])
    form = fit(weight, group_size="channel")
    assert torch.isfinite(form.dense()).all()
    assert not form.dense()[1].any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(6, 32), (4, 3, 3, 3)])
def test_sketch_has_the_form_and_bytes(symmetric, shape):
    step = RoundToNearest(bits=3, symmetric=symmetric)
    weight = torch.randn(shape).to(torch.bfloat16)
    site = Site("w", "conv", Dense(weight), weight)
    form = step.fit(site, torch.Generator())
    sketch = step.sketch(Dense(torch.empty(shape, dtype=torch.bfloat16, device="meta")), site="w")
    assert (sketch.signature, sketch.nbytes) == (form.signature, form.nbytes)
    assert (form.shape, form.dtype) == (tuple(shape), torch.bfloat16)


def test_levels_go_from_small_to_large_and_lower_error():
    weight = torch.randn(8, 64)
    errors, sizes = [], []
    for level in RoundToNearest().levels():
        form = level.fit(Site("w", "linear", Dense(weight), weight), torch.Generator())
        errors.append(float((form.dense().detach() - weight).norm()))
        sizes.append(form.nbytes)
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
