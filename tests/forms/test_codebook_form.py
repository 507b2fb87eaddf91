"""Codebook: values worked by hand, gradients of entries, tables of every size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from form_table import codebook

from laconic.errors import ConfigError
from laconic.forms import Codebook, Quantized

CODES = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
TABLE = torch.tensor([[-1.0], [0.5], [4.0]])


def made(**changed: Any) -> Codebook:
    given: dict[str, Any] = {
        "codes": CODES, "table": TABLE, "shape": (2, 4), "dtype": torch.float32,
    }  # fmt: skip
    given |= changed
    return Codebook(given.pop("codes"), given.pop("table"), **given)


def test_values_by_hand() -> None:
    assert made().dense().tolist() == [[-1.0, 0.5, 4.0, -1.0], [4.0, 4.0, 0.5, -1.0]]


def test_vectors_by_hand() -> None:
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    form = made(codes=torch.tensor([[1, 0], [0, 0]]), table=table)
    assert form.dense().tolist() == [[3.0, 4.0, 1.0, 2.0], [1.0, 2.0, 1.0, 2.0]]


def test_scales_by_hand() -> None:
    scale = torch.tensor([[2.0, 10.0], [1.0, 0.5]])
    form = made(scale=scale, group_size=2)
    assert form.dense().tolist() == [[-2.0, 1.0, 40.0, -10.0], [4.0, 4.0, 0.25, -0.5]]


def test_bytes_by_hand() -> None:
    # 3 entries take 2 bits an index: 8 indexes are 2 bytes, and 3 values of 4 bytes.
    assert made().nbytes == 2 + 12


def test_gradient_of_an_entry_is_the_sum_over_its_members() -> None:
    form = made()
    (form.dense() * torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])).sum().backward()
    assert form.table.grad is not None
    assert form.table.grad.flatten().tolist() == [1 + 4 + 8, 2 + 7, 3 + 5 + 6]


@pytest.mark.parametrize(
    ("entries", "bits"), [(1, 1), (2, 1), (3, 2), (16, 4), (17, 5), (256, 8), (257, 32)]
)
def test_bits_of_an_index(entries: int, bits: int) -> None:
    form = codebook((4, 6), torch.float32, entries=entries)
    assert form.bits == bits
    assert form.packed.numel() * form.packed.element_size() == 24 * bits // 8
    assert form.codes().dtype == (torch.uint8 if entries <= 256 else torch.int32)
    assert torch.equal(form.dense().flatten(), form.table.flatten()[form.codes().long().flatten()])


@pytest.mark.parametrize("group", [None, 3])
@pytest.mark.parametrize("entries", [5, 300])
def test_a_sketch_weighs_as_much(entries: int, group: int | None) -> None:
    form = codebook((4, 6), torch.float16, entries=entries, vector=2, group=group)
    sketch = Codebook.empty((4, 6), torch.float16, entries=entries, vector=2, group_size=group)
    assert sketch.nbytes == form.nbytes
    assert all(t.is_meta for t in (*sketch.parameters(), *sketch.buffers()))


@pytest.mark.parametrize(
    ("changed", "quoted"),
    [
        ({"codes": CODES + 1}, r"codes holds 1..3; symbols are 0..2"),
        ({"codes": CODES - 1}, r"codes holds -1..1"),
        ({"codes": CODES.float()}, "float32"),
        ({"codes": CODES[:1]}, r"\(2, 4\)"),
        ({"table": TABLE.flatten()}, r"table of shape \(3,\)"),
        ({"table": TABLE[:0]}, r"table of shape \(0, 1\)"),
        ({"table": TABLE.long()}, "int64"),
        ({"table": torch.zeros(3, 3)}, "cols=4"),
        ({"table": torch.zeros(2**16 + 1, 1)}, "1 to 65536 entries"),
        ({"scale": torch.ones(2, 2)}, "a scale"),
        ({"group_size": 2}, "group_size=2 and no scale"),
        ({"group_size": 3, "scale": torch.ones(2, 1)}, "group_size=3 does not divide cols=4"),
        ({"group_size": 2, "scale": torch.ones(2, 1)}, r"scale must have shape \(2, 2\)"),
    ],
)
def test_what_does_not_belong_together_is_refused(changed: dict[str, Any], quoted: str) -> None:
    with pytest.raises(ConfigError, match=quoted):
        made(**changed)


def test_a_sketch_of_sizes_that_do_not_fit_is_refused() -> None:
    for entries, vector in ((0, 1), (4, 0), (4, 5), (-1, 1)):
        with pytest.raises(ConfigError, match="codebook: a table"):
            Codebook.empty((4, 6), torch.float32, entries=entries, vector=vector)


def coded_scales(rows: int, cols: int) -> Quantized:
    """Scales 1, 2, 3, ... as 8-bit codes with one step a row."""
    count = torch.arange(1, rows * cols + 1, dtype=torch.uint8).view(rows, cols)
    return Quantized(
        count, torch.ones(rows, 1), torch.zeros(rows, 1), bits=8, group_size=cols,
        shape=(rows, cols), dtype=torch.float32, symmetric=False,
    )  # fmt: skip


def test_scales_that_are_a_form_by_hand() -> None:
    form = made(scale=coded_scales(2, 2), group_size=2)
    assert form.scales().tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert form.dense().tolist() == [[-1.0, 0.5, 8.0, -2.0], [12.0, 12.0, 2.0, -4.0]]
    assert form.signature == "codebook(quantized)"
    assert list(form.parts()) == ["codes", "table"]
    padded = made(scale=coded_scales(1, 4), group_size=2)
    assert torch.equal(padded.dense(), form.dense())
    ids = torch.tensor([1])
    assert torch.equal(form.embed(ids)[0], form.dense()[1])


@pytest.mark.parametrize("size", [(1, 3), (2, 4), (3, 2)])
def test_a_form_of_too_few_or_too_many_scales_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"was given for 4 scales"):
        made(scale=coded_scales(*size), group_size=2)
