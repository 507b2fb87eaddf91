from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.forms.dense import Dense
from laconic.forms.quantized import Quantized
from laconic.forms.rotated import (
    Rotated,
    hadamard,
    paley,
    require_order,
    rotate,
    rotate_back,
    rotate_weight,
    signs_for,
)

ORDERS = [1, 2, 4, 12, 20, 24, 40, 64, 96, 160, 512, 768]


def _rotated(
    *, rows: int = 12, cols: int = 8, side: Any = "in", dtype: torch.dtype = torch.float64
) -> Rotated:
    inner = torch.randn(rows, cols, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return Rotated(
        Dense(inner.requires_grad_()),
        shape=(rows, cols), dtype=dtype, side=side, rotation={"kind": "hadamard", "seed": 3},
    )  # fmt: skip


def test_order_four_by_hand() -> None:
    # Rows of the identity come out as rows of Sylvester's matrix.
    expected = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    assert hadamard(torch.eye(4)).int().tolist() == expected


@pytest.mark.parametrize("order", [12, 20])
def test_paley_matrices_are_hadamard(order: int) -> None:
    matrix = paley(order)
    assert set(np.unique(matrix)) == {-1.0, 1.0}
    assert np.array_equal(matrix @ matrix.T, order * np.eye(order))
    assert not np.array_equal(matrix, matrix.T)  # so H and its transpose must be told apart


@pytest.mark.parametrize("size", ORDERS)
def test_transform_is_orthogonal_to_1e_12(size: int) -> None:
    matrix = hadamard(torch.eye(size, dtype=torch.float64))
    assert set(matrix.unique().tolist()) <= {-1.0, 1.0}
    identity = torch.eye(size, dtype=torch.float64)
    q = rotate(identity, signs_for(5, "in", size))
    assert float((q @ q.T - identity).abs().max()) < 1e-12
    back = rotate_back(q, signs_for(5, "in", size))
    assert float((back - identity).abs().max()) < 1e-12


@pytest.mark.parametrize("size", [8, 24, 40])
def test_transform_is_the_matrix_product(size: int) -> None:
    odd = {8: 1, 24: 12, 40: 20}[size]
    small = torch.from_numpy(paley(odd)).double() if odd > 1 else torch.ones(1, 1).double()
    sylvester = torch.ones(1, 1, dtype=torch.float64)
    while len(sylvester) * odd < size:
        sylvester = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), sylvester)
    whole = torch.kron(small, sylvester)
    x = torch.randn(3, 2, size, dtype=torch.float64)
    assert torch.allclose(hadamard(x), x @ whole, atol=1e-12)
    assert torch.allclose(hadamard(x, transposed=True), x @ whole.T, atol=1e-12)


def test_signs_are_the_same_on_every_machine() -> None:
    # Golden signs: a file written elsewhere must rotate back here.
    assert signs_for(0, "in", 8).astype(int).tolist() == [1, -1, 1, -1, -1, -1, 1, 1]
    assert signs_for(1, "out", 8).astype(int).tolist() == [-1, 1, -1, 1, -1, -1, -1, 1]
    assert abs(float(signs_for(7, "in", 4096).mean())) < 0.06
    assert not np.array_equal(signs_for(0, "in", 64), signs_for(0, "out", 64))
    assert not np.array_equal(signs_for(0, "in", 64), signs_for(1, "in", 64))


@pytest.mark.parametrize("side", ["in", "out", "both"])
@pytest.mark.parametrize(("rows", "cols"), [(12, 8), (8, 20), (16, 1), (1, 16)])
def test_paths_agree_and_rotate_weight_is_the_inverse(side: Any, rows: int, cols: int) -> None:
    weight = torch.randn(rows, cols, dtype=torch.float64)
    inner = rotate_weight(weight, side=side, seed=9)
    assert inner.is_contiguous()
    form = Rotated(
        Dense(inner),
        shape=(rows, cols), dtype=torch.float64, side=side,
        rotation={"kind": "hadamard", "seed": 9},
    ).requires_grad_(False)  # fmt: skip
    assert float((form.dense() - weight).abs().max()) < 1e-12
    if rows * cols > 16:
        assert not torch.allclose(inner, weight, atol=0.1)
    x = torch.randn(2, 3, cols, dtype=torch.float64)
    assert float((form.matmul(x) - x @ weight.T).abs().max()) < 1e-12
    ids = torch.tensor([[rows - 1, 0]])
    assert torch.allclose(form.embed(ids), weight[ids], atol=1e-12)
    assert form.matmul(x[:0]).shape == (0, 3, rows)


def test_definition_by_the_matrix() -> None:
    form = _rotated(side="both")
    q_in = rotate(torch.eye(8, dtype=torch.float64), signs_for(3, "in", 8))
    q_out = rotate(torch.eye(12, dtype=torch.float64), signs_for(3, "out", 12))
    inner = form.form.dense()
    assert torch.allclose(form.dense(), q_out @ inner @ q_in.T, atol=1e-12)


def test_a_convolution_keeps_its_shape() -> None:
    weight = torch.randn(8, 4, 3, 1, dtype=torch.float64)
    inner = rotate_weight(weight, side="both", seed=1)
    for held in (inner, inner.reshape(weight.shape)):
        form = Rotated(
            Dense(held),
            shape=(8, 4, 3, 1), dtype=torch.float64, side="both",
            rotation={"kind": "hadamard", "seed": 1},
        )  # fmt: skip
        assert torch.allclose(form.dense(), weight, atol=1e-12)
        assert form.embed(torch.tensor([2])).shape == (1, 4, 3, 1)


@settings(deadline=None, max_examples=30)
@given(size=st.sampled_from(ORDERS), seed=st.integers(0, 2**63 - 1), batch=st.integers(0, 4))
def test_rotation_keeps_norms_and_comes_back(size: int, seed: int, batch: int) -> None:
    x = torch.randn(batch, size)
    turned = rotate(x, signs_for(seed, "in", size))
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)
    assert torch.allclose(rotate_back(turned, signs_for(seed, "in", size)), x, atol=1e-5)


def _rounded(weight: torch.Tensor) -> Quantized:
    scale = weight.abs().amax(1, keepdim=True) / 7
    codes = ((weight / scale).round() + 8).to(torch.uint8)
    return Quantized(
        codes, scale, None, bits=4, group_size=weight.shape[1],
        shape=tuple(weight.shape), dtype=torch.float32, symmetric=True,
    )  # fmt: skip


def test_outliers_cost_less_after_rotation() -> None:
    weight = torch.randn(32, 256)
    weight[:, 7] *= 40  # one outlier channel
    plain = _rounded(weight)
    turned = Rotated(
        _rounded(rotate_weight(weight, side="in", seed=0)),
        shape=(32, 256), dtype=torch.float32, side="in", rotation={"kind": "hadamard", "seed": 0},
    )  # fmt: skip
    keep = torch.arange(256) != 7
    errors = [
        float((form.dense() - weight)[:, keep].detach().norm() / weight[:, keep].norm())
        for form in (plain, turned)
    ]
    assert errors[0] > 0.8  # most small values are rounded away
    assert errors[1] < 0.5
    assert turned.nbytes == plain.nbytes
    assert turned.signature == "rotated(quantized)"


@pytest.mark.parametrize("side", ["in", "out", "both"])
def test_gradients(side: Any) -> None:
    form = _rotated(side=side)
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    (inner,) = form.parameters()
    assert inner.requires_grad
    torch.autograd.gradcheck(lambda x, _: form.matmul(x), (x, inner))
    torch.autograd.gradcheck(lambda _: form.dense(), (inner,))


def test_half_types_are_rotated_in_float32() -> None:
    form = _rotated(rows=64, cols=512, dtype=torch.bfloat16)
    exact = form.form.dense().detach().double()
    expected = rotate_back(exact, signs_for(3, "in", 512))
    assert form.dense().dtype == torch.bfloat16
    assert float((form.dense().detach().double() - expected).norm() / expected.norm()) < 3e-3
    assert form.matmul(torch.randn(2, 512, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_parts_and_back_and_a_sketch() -> None:
    form = _rotated(side="both")
    again = Rotated.from_parts(form.shape, form.dtype, form.settings(), {}, form.children_forms())
    assert torch.equal(again.dense(), form.dense())
    assert form.parts() == {}
    assert set(form.state_dict()) == {"form.value"}  # nothing is kept but the seed
    sketch = Rotated(
        Dense(torch.empty(12, 8, dtype=torch.float64, device="meta")),
        shape=(12, 8), dtype=torch.float64, side="both", rotation=form.settings()["rotation"],
    )  # fmt: skip
    assert sketch.nbytes == form.nbytes == 12 * 8 * 8
    assert sketch.dense().shape == (12, 8)


@pytest.mark.parametrize(
    ("size", "below", "above"), [(3, 2, 4), (11, 8, 12), (28, 24, 32), (768 * 3, 2048, 2560)]
)
def test_other_sizes_are_refused_with_the_nearest(size: int, below: int, above: int) -> None:
    assert require_order(below, "columns") == below
    assert require_order(above, "columns") == above
    with pytest.raises(ConfigError, match=rf"{size} columns came.*nearest are {below} and {above}"):
        rotate_weight(torch.zeros(4, size), side="in", seed=0)
    with pytest.raises(ConfigError, match=rf"{size} rows came.*Leave this site out"):
        Rotated(
            Dense(torch.zeros(size, 4)), shape=(size, 4), dtype=torch.float32, side="out",
            rotation={"kind": "hadamard", "seed": 0},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "quoted"),
    [
        ({"side": "input"}, "'input'"),
        ({"side": None}, "None"),
        ({"side": ["in"]}, "in"),
        ({"rotation": None}, "None"),
        ({"rotation": {"kind": "dct", "seed": 0}}, "dct"),
        ({"rotation": {"kind": "hadamard"}}, "hadamard"),
        ({"rotation": {"kind": "hadamard", "seed": 0, "more": 1}}, "more"),
        ({"rotation": {"kind": "hadamard", "seed": -1}}, "-1"),
        ({"rotation": {"kind": "hadamard", "seed": True}}, "True"),
        ({"rotation": {"kind": "hadamard", "seed": 2**63}}, "9223372036854775808"),
    ],
)
def test_hostile_settings_are_refused(changed: dict[str, object], quoted: str) -> None:
    form = _rotated()
    with pytest.raises(ConfigError, match=quoted):
        Rotated.from_parts(
            form.shape, form.dtype, form.settings() | changed, {}, form.children_forms()
        )


def test_hostile_children_are_refused() -> None:
    form = _rotated()
    inner = form.form
    wrong: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"inner": inner}, {}),
        ({"form": inner, "more": inner}, {}),
        ({"form": inner}, {"signs": torch.ones(8)}),
        ({"form": Dense(torch.zeros(8, 12))}, {}),
    ]
    for children, parts in wrong:
        with pytest.raises(ConfigError, match="rotated"):
            Rotated.from_parts(form.shape, form.dtype, form.settings(), parts, children)
