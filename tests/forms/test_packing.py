"""Packing: the layout bit by bit, and an exact inverse at every width and length."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms.packing import pack, packed_bytes, unpack, unpack_rows


def bit_string(symbols: list[int], bits: int) -> list[int]:
    """Pack with Python's whole numbers: element i at bits i*bits and up."""
    number = sum(symbol << (at * bits) for at, symbol in enumerate(symbols))
    return list(number.to_bytes(-(-len(symbols) * bits // 8), "little"))


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], int]:
    bits = draw(st.integers(1, 8))
    count = draw(st.integers(0, 70))
    symbols = draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
    return symbols, bits


@given(cases())
@settings(deadline=None, max_examples=50)
def test_bytes_are_those_of_the_bit_string(case: tuple[list[int], int]) -> None:
    symbols, bits = case
    packed = pack(torch.tensor(symbols, dtype=torch.uint8), bits)
    assert packed.tolist() == bit_string(symbols, bits)
    assert packed.numel() == packed_bytes(len(symbols), bits)


@given(cases())
@settings(deadline=None, max_examples=50)
def test_unpack_inverts_pack(case: tuple[list[int], int]) -> None:
    symbols, bits = case
    flat = torch.tensor(symbols, dtype=torch.uint8)
    found = unpack(pack(flat, bits), bits, len(symbols))
    assert (found.dtype, found.tolist()) == (torch.uint8, symbols)


@given(cases())
@settings(deadline=None, max_examples=50)
def test_pack_inverts_unpack_up_to_the_last_byte(case: tuple[list[int], int]) -> None:
    raw, bits = case
    packed = torch.tensor(bit_string(raw, bits), dtype=torch.uint8)
    assert torch.equal(pack(unpack(packed, bits, len(raw)), bits), packed)


@pytest.mark.parametrize("bits", range(1, 9))
def test_long_strings_across_chunks(bits: int) -> None:
    symbols = torch.randint(0, 2**bits, (2**18 + 2**17 + 5,)).to(torch.uint8)
    packed = pack(symbols, bits)
    assert torch.equal(unpack(packed, bits, len(symbols)), symbols)
    tail = 2**18 + 2**16  # whole bytes at every width
    assert torch.equal(packed[tail * bits // 8 :], pack(symbols[tail:], bits))


def test_three_bits_are_laid_out_low_bit_first() -> None:
    packed = pack(torch.tensor([1, 2, 7], dtype=torch.uint8), 3)
    assert packed.tolist() == [0b11_010_001, 0b1]


@pytest.mark.parametrize("bits", range(1, 9))
def test_any_memory_layout(bits: int) -> None:
    whole = torch.randint(0, 2**bits, (101,)).to(torch.uint8)
    for view in (whole[3:90], whole[::2], whole[5:5]):
        assert torch.equal(pack(view, bits), pack(view.clone(), bits))
        spaced = torch.zeros(300, dtype=torch.uint8)
        packed = pack(view, bits)
        spaced[1 : 1 + len(packed)] = packed
        assert torch.equal(unpack(spaced[1 : 1 + len(packed)], bits, len(view)), view)


@pytest.mark.parametrize("bits", range(1, 9))
def test_arguments_are_left_alone(bits: int) -> None:
    symbols = torch.randint(0, 2**bits, (64,)).to(torch.uint8)
    kept = symbols.clone()
    packed = pack(symbols, bits)
    held = packed.clone()
    unpack(packed, bits, 64).zero_()
    pack(symbols, bits).zero_()
    assert torch.equal(symbols, kept)
    assert torch.equal(packed, held)


@pytest.mark.parametrize(("bits", "cols"), [(4, 6), (3, 8), (3, 7), (1, 3), (8, 5), (2, 0)])
def test_rows_are_unpacked_alone(bits: int, cols: int) -> None:
    matrix = torch.randint(0, 2**bits, (5, cols)).to(torch.uint8)
    packed = pack(matrix.reshape(-1), bits)
    rows = torch.tensor([4, 0, 4])
    assert torch.equal(unpack_rows(packed, bits, (5, cols), rows), matrix[rows])
    with pytest.raises(IndexError):
        unpack_rows(packed, bits, (5, cols), torch.tensor([5]))


def test_meta_tensors_have_shapes_only() -> None:
    symbols = torch.empty(13, dtype=torch.uint8, device="meta")
    packed = pack(symbols, 3)
    assert (packed.is_meta, packed.shape) == (True, (5,))
    assert unpack(packed, 3, 13).shape == (13,)


@pytest.mark.parametrize("bits", [0, 9, -1, 2.0, True])
def test_bits_outside_are_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match=f"bits={bits}"):
        pack(torch.zeros(3, dtype=torch.uint8), bits)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(3).long()]
)
def test_other_tensors_are_refused(wrong: Tensor) -> None:
    with pytest.raises(ConfigError, match="flat uint8"):
        pack(wrong, 3)
    with pytest.raises(ConfigError, match="flat uint8"):
        unpack(wrong, 3, 8)


@pytest.mark.parametrize("count", [-1, 5, 9])
def test_bytes_of_another_count_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match="3 bytes cannot be"):
        unpack(torch.zeros(3, dtype=torch.uint8), 3, count)
