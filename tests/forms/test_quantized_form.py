"""Quantized: values worked by hand, a slow reference, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from form_table import quantized

from laconic.errors import ConfigError
from laconic.forms import Quantized

CODES = torch.tensor([[0, 1, 2, 3], [3, 3, 0, 1]], dtype=torch.uint8)
SCALE = torch.tensor([[1.0, 2.0], [0.5, 1.0]])


def made(**changed: Any) -> Quantized:
    given: dict[str, Any] = {
        "codes": CODES, "scale": SCALE, "zero": None, "bits": 2, "group_size": 2,
        "shape": (2, 4), "dtype": torch.float32, "symmetric": True,
    }  # fmt: skip
    given |= changed
    return Quantized(given.pop("codes"), given.pop("scale"), given.pop("zero"), **given)


def test_symmetric_groups_by_hand() -> None:
    # The zero point of 2 bits is 2: (0-2)*1, (1-2)*1, (2-2)*2, (3-2)*2 in the first row.
    assert made().dense().tolist() == [[-2.0, -1.0, 0.0, 2.0], [0.5, 0.5, -2.0, -1.0]]


def test_zero_points_by_group_by_hand() -> None:
    zero = torch.tensor([[0, 3], [1, 2]], dtype=torch.uint8)
    form = made(zero=zero, symmetric=False)
    assert form.dense().tolist() == [[0.0, 1.0, -2.0, 0.0], [1.0, 1.0, -2.0, -1.0]]
    assert torch.equal(form.zero(), zero)


def test_one_scale_a_row_by_hand() -> None:
    form = made(scale=torch.tensor([[0.5], [2.0]]), group_size=4)
    assert form.dense().tolist() == [[-1.0, -0.5, 0.0, 0.5], [2.0, 2.0, -4.0, -2.0]]


def test_one_bit_by_hand() -> None:
    codes = torch.tensor([[0, 1]], dtype=torch.uint8)
    form = made(codes=codes, scale=torch.ones(1, 1), bits=1, shape=(1, 2))
    assert form.dense().tolist() == [[-1.0, 0.0]]


def test_bytes_by_hand() -> None:
    # 8 codes of 2 bits are 2 bytes, 4 scales of 4 bytes; 4 zero points of 2 bits are 1 byte more.
    assert made().nbytes == 2 + 16
    zero = torch.zeros(2, 2, dtype=torch.uint8)
    assert made(zero=zero, symmetric=False).nbytes == 2 + 16 + 1
    assert made(scale=SCALE.half()).nbytes == 2 + 8


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_against_a_loop(bits: int, symmetric: bool) -> None:
    form = quantized((4, 2, 3, 3), torch.float32, bits=bits, group=6, symmetric=symmetric)
    codes, scale, zero = form.codes(), form.scale, form.zero()
    matrix = form.dense().reshape(4, 18)
    for row in range(4):
        for col in range(18):
            group = col // 6
            offset = 2 ** (bits - 1) if zero is None else int(zero[row, group])
            expected = scale[row, group].item() * (int(codes[row, col]) - offset)
            assert matrix[row, col].item() == pytest.approx(expected, rel=1e-6)


def test_half_scales_are_multiplied_in_float32() -> None:
    # 0.1 in float16 times 127 is not a float16 number; it must be rounded once, at the end.
    scale = torch.full((1, 1), 0.1, dtype=torch.float16)
    codes = torch.full((1, 3), 255, dtype=torch.uint8)
    form = made(codes=codes, scale=scale, bits=8, group_size=3, shape=(1, 3))
    assert form.dense()[0, 0].item() == torch.tensor(scale.item()).mul(127).item()


def test_gradient_of_a_scale_is_the_sum_of_steps() -> None:
    form = made()
    (form.dense() * torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])).sum().backward()
    assert form.scale.grad is not None
    assert form.scale.grad.tolist() == [[-2.0 - 2.0, 0.0 + 4.0], [5.0 + 6.0, -14.0 - 8.0]]


def test_codes_do_not_train() -> None:
    assert [name for name, _ in made().named_parameters()] == ["scale"]


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_sketch_weighs_as_much(symmetric: bool) -> None:
    form = quantized((5, 3, 2), torch.float16, bits=3, group=2, symmetric=symmetric)
    sketch = Quantized.empty(
        (5, 3, 2), torch.float16, bits=3, group_size=2, scale_dtype=torch.float16,
        symmetric=symmetric,
    )  # fmt: skip
    assert (sketch.nbytes, sketch.signature) == (form.nbytes, "quantized")
    assert sketch.settings() == form.settings()


@pytest.mark.parametrize(
    ("changed", "quoted"),
    [
        ({"bits": 0}, "bits=0"),
        ({"bits": 9}, "bits=9"),
        ({"bits": 1}, r"codes holds 0..3; symbols are 0..1"),
        ({"group_size": 3}, "group_size=3 does not divide cols=4"),
        ({"group_size": 0}, "group_size=0"),
        ({"group_size": 4}, r"scale must have shape \(2, 1\)"),
        ({"shape": (2, 5)}, "cols=5"),
        ({"shape": (4, 2)}, r"codes must have shape \(4, 2\)"),
        ({"scale": SCALE.long()}, "scale must have .* int64"),
        ({"codes": CODES.int()}, "codes must have .* int32"),
        ({"symmetric": False}, "zero points are missing"),
        ({"zero": torch.zeros(2, 2, dtype=torch.uint8)}, "zero points are given"),
        ({"zero": torch.full((2, 2), 4, dtype=torch.uint8), "symmetric": False}, "zero holds 4..4"),
    ],
)
def test_what_does_not_belong_together_is_refused(changed: dict[str, Any], quoted: str) -> None:
    with pytest.raises(ConfigError, match=quoted):
        made(**changed)


def test_real_zero_points_by_hand() -> None:
    zero = torch.tensor([[0.5, 3.25], [1.0, -2.0]])
    form = made(zero=zero, symmetric=False)
    assert form.dense().tolist() == [[-0.5, 0.5, -2.5, -0.5], [1.0, 1.0, 2.0, 3.0]]
    assert torch.equal(form.zero(), zero)
    assert form.parts()["zero"].alphabet is None  # kept as it is, not rounded to a symbol
    assert form.nbytes == 2 + 16 + 16
    with pytest.raises(ConfigError, match=r"zero must have shape \(2, 2\) and type float32 or"):
        made(zero=torch.zeros(2, 1), symmetric=False)


def test_real_zero_points_learn() -> None:
    form = made(zero=torch.tensor([[0.5, 3.25], [1.0, -2.0]]), symmetric=False)
    form.dense().sum().backward()
    assert form.float_zero.grad.tolist() == [[-2.0, -4.0], [-1.0, -2.0]]  # -scale, twice each


def test_sketch_with_real_zero_points_has_the_bytes_of_the_form() -> None:
    sketch = Quantized.empty(
        (2, 4), torch.float32, bits=2, group_size=2, scale_dtype=torch.float32,
        symmetric=False, zero_dtype=torch.float32,
    )  # fmt: skip
    form = made(zero=torch.zeros(2, 2), symmetric=False)
    assert sketch.nbytes == form.nbytes
    assert sketch.zero().dtype == torch.float32
