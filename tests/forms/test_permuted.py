"""Permuted: columns by hand, products, and what is refused."""

from __future__ import annotations

import pytest
import torch
from form_table import quantized

from laconic import artifact
from laconic.errors import ConfigError
from laconic.forms._int8 import int8_run
from laconic.forms.dense import Dense
from laconic.forms.layers import install_
from laconic.forms.permuted import Permuted


def made(matrix, order):
    return Permuted(Dense(matrix), torch.tensor(order), shape=matrix.shape, dtype=matrix.dtype)


def test_by_hand() -> None:
    # The form's columns are columns 2, 0, 1 of what it stands for.
    form = made(torch.tensor([[30.0, 10.0, 20.0], [33.0, 11.0, 22.0]]), [2, 0, 1])
    assert form.dense().tolist() == [[10.0, 20.0, 30.0], [11.0, 22.0, 33.0]]
    x = torch.tensor([[1.0, 0.0, 2.0]])
    assert form.matmul(x).tolist() == [[70.0, 77.0]]
    assert form.embed(torch.tensor([1])).tolist() == [[11.0, 22.0, 33.0]]
    assert form.order.tolist() == [2, 0, 1]


@pytest.mark.parametrize("cols", [2, 256, 257])
def test_the_order_is_held_small(cols: int) -> None:
    form = made(torch.randn(3, cols), torch.randperm(cols).tolist())
    held = {2: 1, 256: 256, 257: 4 * 257}[cols]
    assert form.nbytes == 3 * cols * 4 + held


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [0, 1, 3], [0, 1, -1], [0.0, 1.0, 2.0]])
def test_what_is_no_order_is_refused(order: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"must hold every number from 0 to 2 once"):
        made(torch.randn(2, 3), order)


def test_refuses_another_shape() -> None:
    with pytest.raises(ConfigError, match=r"an inner form of \(2, 3\) does not fit \(2, 4\)"):
        Permuted(Dense(torch.randn(2, 3)), torch.arange(4), shape=(2, 4), dtype=torch.float32)


def test_in_a_model_on_disk_and_in_the_integer_kernel(tmp_path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(32, 16))
    inner = quantized((16, 32), torch.float32, bits=8)
    order = torch.randperm(32)
    install_(net, "0.weight", Permuted(inner, order, shape=(16, 32), dtype=torch.float32))
    x = torch.randn(20, 32)
    with torch.no_grad():
        before = net(x)
        artifact.save(net, tmp_path / "out")
        loaded = artifact.load(
            tmp_path / "out", model=torch.nn.Sequential(torch.nn.Linear(32, 16)), kernels="exact"
        )
        assert torch.equal(loaded(x), before)
    run = int8_run(net[0].weight_form, "int8-intmm")
    assert not isinstance(run, str)
    with torch.no_grad():
        plain = before - net[0].bias
        assert float((run(x) - plain).norm() / plain.norm()) < 0.03
