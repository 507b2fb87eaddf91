"""Sparse: values worked by hand, patterns, and zeros that stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from form_table import by_columns, by_rows, dense, quantized, sparse_2_4, two_of_four

from laconic.errors import ConfigError
from laconic.forms import Dense, Form, Quantized, Sparse

MASK = torch.tensor([[True, False, False, True], [False, True, True, False]])


def made(mask: torch.Tensor = MASK, values: Form | None = None, **changed: Any) -> Sparse:
    values = values or Dense(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    given: dict[str, Any] = {"shape": (2, 4), "dtype": torch.float32}
    return Sparse(mask, values, **(given | changed))


def test_values_by_hand() -> None:
    assert made().dense().tolist() == [[1.0, 0.0, 0.0, 2.0], [0.0, 3.0, 4.0, 0.0]]


def test_flat_values_by_hand() -> None:
    form = made(values=Dense(torch.tensor([[1.0, 2.0, 3.0, 4.0]])))
    assert torch.equal(form.dense(), made().dense())


def test_rows_that_keep_different_counts_by_hand() -> None:
    mask = torch.tensor([[True, True, True, False], [False, False, False, True]])
    form = made(mask, Dense(torch.tensor([[1.0, 2.0, 3.0, 4.0]])))
    assert form.dense().tolist() == [[1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 0.0, 4.0]]


def test_rows_by_hand() -> None:
    mask = torch.tensor([False, True])
    form = made(mask, Dense(torch.tensor([[1.0, 2.0, 3.0, 4.0]])), pattern="row")
    assert form.dense().tolist() == [[0.0] * 4, [1.0, 2.0, 3.0, 4.0]]
    assert form.mask.tolist() == [[False] * 4, [True] * 4]
    assert form.matmul(torch.ones(4)).tolist() == [0.0, 10.0]
    assert form.embed(torch.tensor([1, 0, 1])).sum(-1).tolist() == [10.0, 0.0, 10.0]


def test_columns_by_hand() -> None:
    mask = torch.tensor([True, False, False, True])
    form = made(mask, pattern="column")
    assert form.dense().tolist() == [[1.0, 0.0, 0.0, 2.0], [3.0, 0.0, 0.0, 4.0]]
    assert form.matmul(torch.tensor([1.0, 5.0, 7.0, 2.0])).tolist() == [5.0, 11.0]
    assert torch.equal(form.mask, mask.expand(2, 4))


def test_a_full_mask_of_whole_lines_is_the_same_as_a_vector() -> None:
    mask = torch.tensor([True, False, False, True])
    one, other = made(mask, pattern="column"), made(mask.expand(2, 4), pattern="column")
    assert torch.equal(one.dense(), other.dense())
    assert one.parts()["mask"].tensor.tolist() == [1, 0, 0, 1]


def test_groups_of_two_of_four_lie_within_rows() -> None:
    # 16 columns at 2:4 keep 8 a row: two groups of 4 a row with a scale each.
    inner = quantized((4, 8), torch.float32, bits=4, group=4)
    form = sparse_2_4(torch.float32, inner)
    kept = form.dense()[form.mask].reshape(4, 8)
    assert torch.equal(kept, inner.dense())
    # 64 bits of mask, 32 codes of 4 bits, 8 scales of 4 bytes.
    assert form.nbytes == 8 + 16 + 32
    assert form.signature == "sparse(quantized)"


def test_nothing_kept_and_all_kept() -> None:
    none = made(torch.zeros(2, 4, dtype=torch.bool), Dense(torch.zeros(2, 0)))
    assert not none.dense().any()
    whole = made(torch.ones(2, 4, dtype=torch.bool), dense((2, 4), torch.float32))
    assert torch.equal(whole.dense(), whole.values.dense())
    for pattern, values in (("row", torch.zeros(0, 4)), ("column", torch.zeros(2, 0))):
        lines = torch.zeros(2 if pattern == "row" else 4, dtype=torch.bool)
        form = made(lines, Dense(values), pattern=pattern)
        assert not form.dense().any()
        assert form.matmul(torch.ones(3, 4)).tolist() == [[0.0, 0.0]] * 3
        assert form.embed(torch.tensor([1])).tolist() == [[0.0] * 4]


def test_no_zero_comes_back_in_training() -> None:
    form = made()
    optimizer = torch.optim.SGD(form.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (form.dense() - 1).square().sum().backward()
        optimizer.step()
    assert torch.equal(form.dense() != 0, MASK)
    assert not torch.equal(form.dense()[MASK], torch.tensor([1.0, 2.0, 3.0, 4.0]))


@pytest.mark.parametrize("make", [by_rows, by_columns])
def test_whole_lines_multiply_without_the_dense_tensor(
    make: Callable[[torch.dtype], Sparse],
) -> None:
    form = make(torch.float32)
    expected = torch.randn(3, form.cols)
    with patch.object(Sparse, "dense", side_effect=RuntimeError("built")):
        form.matmul(expected)
        form.embed(torch.tensor([0, 2]))


def test_rows_with_equal_counts_are_looked_up_without_the_dense_tensor() -> None:
    form = sparse_2_4(torch.float32, quantized((4, 8), torch.float32))
    table = form.dense()
    with (
        patch.object(Sparse, "dense", side_effect=RuntimeError("built")),
        patch.object(Quantized, "dense", side_effect=RuntimeError("built")),
    ):
        assert torch.equal(form.embed(torch.tensor([2, 0])), table[[2, 0]])


def test_sketches_weigh_as_much() -> None:
    half = torch.float16
    for form in (
        sparse_2_4(half, quantized((4, 8), half, group=4)),
        by_rows(half),
        by_columns(half),
        made(values=dense((1, 4), half), dtype=half),
    ):
        values = form.values
        inner: Form = Dense.empty(values.shape, half)
        if isinstance(values, Quantized):
            inner = Quantized.empty(
                values.shape, half, bits=values.bits, group_size=values.group_size,
                scale_dtype=half, symmetric=True,
            )  # fmt: skip
        kept = int(form.mask.sum())
        sketch = Sparse.sketch(form.shape, half, kept, inner, form.pattern)
        assert (sketch.nbytes, sketch.signature) == (form.nbytes, form.signature)


@pytest.mark.parametrize(
    ("make", "quoted"),
    [
        (lambda: made(MASK.float()), "float32"),
        (lambda: made(MASK[:, :3]), r"mask must have shape \(2, 4\)"),
        (lambda: made(shape=(4, 2)), r"mask must have shape \(4, 2\)"),
        (lambda: made(pattern="block"), "pattern='block' must be one of"),
        (lambda: made(pattern="rows"), "Did you mean 'row'"),
        (lambda: made(pattern="row"), "keeps whole rows; the mask splits one"),
        (lambda: made(pattern="column"), "keeps whole columns; the mask splits one"),
        (lambda: made(values=dense((1, 3), torch.float32)), r"\(2, 2\) or \(1, 4\), got \(1, 3\)"),
        (lambda: made(values=dense((4, 1), torch.float32)), r"got \(4, 1\)"),
        (lambda: made(values=dense((1, 4), torch.float32), pattern="2:4"), r"got \(1, 4\)"),
        (
            lambda: made(torch.tensor([True, False]), pattern="row"),
            r"needs values of shape \(1, 4\), got \(2, 2\)",
        ),
        (lambda: made(torch.zeros(0, 4, dtype=torch.bool), shape=(0, 4)), "no weights"),
        (
            lambda: Sparse.sketch((2, 4), torch.float32, 5, Dense.empty((2, 2), torch.float32)),
            "kept=5",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(make: Callable[[], Sparse], quoted: str) -> None:
    with pytest.raises(ConfigError, match=quoted):
        make()


def test_two_of_four_keeps_two_of_four() -> None:
    assert two_of_four(3, 8).view(3, 2, 4).sum(-1).unique().tolist() == [2]
