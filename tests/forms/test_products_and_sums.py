"""LowRank and Sum: values by hand, orders of work, and what is refused."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from form_table import dense, low_rank, quantized, three_factors

from laconic.errors import ConfigError
from laconic.forms import Dense, LowRank, Sum

F32 = torch.float32


def test_a_product_by_hand() -> None:
    left, right = Dense(torch.tensor([[1.0], [2.0]])), Dense(torch.tensor([[3.0, -1.0, 0.5]]))
    form = LowRank(left, right, shape=(2, 3), dtype=F32)
    assert form.dense().tolist() == [[3.0, -1.0, 0.5], [6.0, -2.0, 1.0]]
    assert form.matmul(torch.tensor([1.0, 1.0, 2.0])).tolist() == [3.0, 6.0]
    assert form.embed(torch.tensor([1])).tolist() == [[6.0, -2.0, 1.0]]
    assert (form.rank, form.nbytes) == (1, 20)


def test_a_sum_by_hand() -> None:
    terms = Dense(torch.tensor([[1.0, 2.0]])), Dense(torch.tensor([[10.0, -2.0]]))
    form = Sum(*terms, shape=(1, 2), dtype=F32)
    assert form.dense().tolist() == [[11.0, 0.0]]
    assert form.matmul(torch.tensor([2.0, 5.0])).tolist() == [22.0]
    assert form.embed(torch.tensor([0, 0])).tolist() == [[11.0, 0.0]] * 2


def test_half_terms_are_added_in_float32() -> None:
    # In float16 2048 + 1 is 2048 again, and so four times over; the sum of five terms is 2052.
    big, one = torch.full((1, 1), 2048.0), torch.ones(1, 1)
    terms = [Dense(t.half()) for t in (big, one, one, one, one)]
    form = Sum(*terms, shape=(1, 1), dtype=torch.float16)
    assert form.dense().item() == 2052.0
    assert form.embed(torch.tensor([0])).item() == 2052.0


def test_products_are_never_built() -> None:
    form = Sum(low_rank((5, 7), F32), three_factors(F32), shape=(5, 7), dtype=F32)
    x, ids = torch.randn(2, 7), torch.tensor([4, 4, 0])
    expected = x @ form.dense().T, form.dense()[ids]
    with (
        patch.object(LowRank, "dense", side_effect=RuntimeError("built")),
        patch.object(Sum, "dense", side_effect=RuntimeError("built")),
    ):
        assert torch.allclose(form.matmul(x), expected[0], atol=1e-5)
        assert torch.allclose(form.embed(ids), expected[1], atol=1e-5)


def test_sketch_of_a_product() -> None:
    sketch = LowRank.empty((5, 3, 3), F32, rank=2, factor_dtype=torch.float16)
    assert (sketch.nbytes, sketch.rank) == (2 * (5 * 2 + 2 * 9), 2)
    assert sketch.signature == "low-rank(dense, dense)"


def test_signature_shows_the_nesting() -> None:
    form = Sum(quantized((5, 7), F32), three_factors(F32), shape=(5, 7), dtype=F32)
    assert form.signature == "sum(quantized, low-rank(quantized, dense, codebook))"
    assert [path for path, _ in form.walk("w")] == [
        "w", "w.term0", "w.term1", "w.term1.factor0", "w.term1.factor1", "w.term1.factor2",
    ]  # fmt: skip


def test_factors_that_do_not_chain_are_refused() -> None:
    one = dense((2, 3), F32)
    for factors in (
        (),
        (one,),
        (one, dense((2, 4), F32)),
        (dense((2, 3), F32), dense((3, 5), F32)),
    ):
        with pytest.raises(ConfigError, match=r"do not multiply to \(2, 4\)"):
            LowRank(*factors, shape=(2, 4), dtype=F32)
    square = dense((3, 3), F32)
    with pytest.raises(ConfigError, match="all different"):
        LowRank(square, square, shape=(3, 3), dtype=F32)


def test_terms_of_another_shape_are_refused() -> None:
    one = dense((2, 3), F32)
    for terms in ((), (one, dense((3, 2), F32)), (one, one)):
        with pytest.raises(ConfigError, match=r"do not add up to \(2, 3\)"):
            Sum(*terms, shape=(2, 3), dtype=F32)


def test_dense_holds_a_parameter_as_it_is() -> None:
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    assert Dense(frozen).value is frozen
    assert Dense(torch.ones(2)).value.requires_grad
    whole = Dense(torch.arange(3))
    assert not list(whole.parameters())
    assert whole.nbytes == 24
