"""Forms that stand: hand-worked values, exact packing, parts that give the form back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.forms.base import Form
from laconic.forms.codebook import Codebook
from laconic.forms.dense import Dense
from laconic.forms.lowrank import LowRank
from laconic.forms.packing import pack, unpack
from laconic.forms.quantized import Quantized
from laconic.forms.sparse import Sparse
from laconic.forms.sum import Sum


def quantized() -> Quantized:
    codes = torch.tensor([[0, 1, 2, 3], [3, 3, 0, 1]], dtype=torch.uint8)
    scale = torch.tensor([[1.0, 2.0], [0.5, 1.0]])
    return Quantized(
        codes, scale, None, bits=2, group_size=2, shape=(2, 4), dtype=torch.float32, symmetric=True
    )


def sparse() -> Sparse:
    mask = torch.tensor([[True, False, False, True], [False, True, True, False]])
    values = Dense(torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True))
    return Sparse(mask, values, shape=(2, 4), dtype=torch.float32)


def codebook() -> Codebook:
    codes = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]], dtype=torch.uint8)
    table = torch.tensor([[-1.0], [0.5], [4.0]], requires_grad=True)
    return Codebook(codes, table, shape=(2, 4), dtype=torch.float32)


def low_rank() -> LowRank:
    left, right = Dense(torch.randn(2, 1)), Dense(torch.randn(1, 4))
    return LowRank(left, right, shape=(2, 4), dtype=torch.float32)


def total() -> Sum:
    return Sum(quantized(), low_rank(), sparse(), shape=(2, 4), dtype=torch.float32)


MAKERS = [quantized, sparse, codebook, low_rank, total]


def rebuilt(form: Form) -> Form:
    children = {name: rebuilt(child) for name, child in form.children_forms().items()}
    parts = {name: part.tensor for name, part in form.parts().items()}
    return type(form).from_parts(form.shape, form.dtype, form.settings(), parts, children)


@given(st.integers(1, 8), st.integers(0, 70), st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_unpack_inverts_pack(bits: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randint(0, 2**bits, (count,), generator=generator).to(torch.uint8)
    packed = pack(symbols, bits)
    assert packed.numel() == -(-count * bits // 8)
    assert torch.equal(unpack(packed, bits, count), symbols)


def test_three_bits_are_laid_out_low_bit_first() -> None:
    packed = pack(torch.tensor([1, 2, 7], dtype=torch.uint8), 3)
    assert packed.tolist() == [0b11010001, 0b1]


def test_quantized_values_by_hand() -> None:
    assert quantized().dense().tolist() == [[-2.0, -1.0, 0.0, 2.0], [0.5, 0.5, -2.0, -1.0]]


def test_sparse_values_by_hand() -> None:
    assert sparse().dense().tolist() == [[1.0, 0.0, 0.0, 2.0], [0.0, 3.0, 4.0, 0.0]]


def test_gradients_of_a_centroid_add_up_over_its_cluster() -> None:
    form = codebook()
    form.dense().sum().backward()
    assert form.table.grad is not None
    assert form.table.grad.flatten().tolist() == [3.0, 2.0, 3.0]


@pytest.mark.parametrize("make", MAKERS)
def test_parts_give_the_form_back_bit_for_bit(make: object) -> None:
    form = make()  # type: ignore[operator]
    again = rebuilt(form)
    assert torch.equal(again.dense(), form.dense())
    assert again.nbytes == form.nbytes
    assert again.signature == form.signature


@pytest.mark.parametrize("make", MAKERS)
def test_matmul_and_embed_agree_with_dense(make: object) -> None:
    form = make()  # type: ignore[operator]
    x, ids = torch.randn(3, 4), torch.tensor([[1, 0], [0, 1]])
    torch.testing.assert_close(form.matmul(x), x @ form.dense().T)
    torch.testing.assert_close(form.embed(ids), form.dense()[ids])


def test_a_symbol_outside_its_bits_is_refused() -> None:
    codes = torch.full((1, 2), 4, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="codes holds 4 in 2 bits"):
        Quantized(
            codes,
            torch.ones(1, 1),
            None,
            bits=2,
            group_size=2,
            shape=(1, 2),
            dtype=torch.float32,
            symmetric=True,
        )
