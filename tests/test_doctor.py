from __future__ import annotations

import pytest
import torch
from torch import nn

from laconic import doctor
from laconic.doctor import diagnose, predicted_bytes
from laconic.forms.dense import Dense
from laconic.forms.quantized import Quantized


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 48)
        self.odd = nn.Linear(48, 149)
        self.back = nn.Linear(149, 48)
        self.head = nn.Linear(48, 64, bias=False)
        self.head.weight = self.table.weight
        self.rnn = nn.GRU(48, 8)


def test_what_stands_in_a_model() -> None:
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = diagnose(net)
    assert found.tied == {"table.weight": ("head.weight",)}
    assert found.odd_widths == {"back.weight": 149}
    assert any(name.startswith("rnn.") for name in found.unsupported)
    total = sum(parameter.numel() for parameter in net.parameters()) * 4
    assert found.original_bytes == total  # the tied table once
    assert {row.family for row in found.expectations} == {"quantize", "cluster", "prune", "factor"}
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_expectations_order_as_they_must() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 128))
    rows = {row.setting: row for row in diagnose(net).expectations}
    assert rows["8 bits"].error < rows["4 bits"].error < rows["3 bits"].error
    assert rows["8 bits"].ratio < rows["4 bits"].ratio < rows["3 bits"].ratio
    assert 3.5 < rows["8 bits"].ratio < 5
    assert rows["50 % zeros"].error < rows["2 of 4 zeros"].error < rows["80 % zeros"].error
    assert 1.7 < rows["half the parameters"].ratio < 2.1


def test_a_low_rank_model_is_seen_as_one() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(128, 128)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(128, 4) @ torch.randn(4, 128))
    net = nn.Sequential(layer, nn.Linear(128, 128))
    row = next(r for r in diagnose(net).expectations if r.setting == "half the parameters")
    errors = dict(row.worst)
    assert errors["0.weight"] < 1e-4 < 0.3 < errors["1.weight"]
    assert row.worst[0][0] == "1.weight"


def test_how_sparse_each_weight_is() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -4.0]]))
        net[1].weight.fill_(0.5)
    (one, first), (two, second) = diagnose(net).sparsity
    assert (one, two) == ("0.weight", "1.weight")
    assert (first.pqi, first.p, first.q) == (pytest.approx(0.055586, abs=1e-6), 0.5, 1.0)
    assert (first.survivors, first.gini) == (4, pytest.approx(0.25))
    assert (second.pqi, second.gini) == (pytest.approx(0), pytest.approx(0))


def test_predicted_bytes_by_hand() -> None:
    assert predicted_bytes(Dense(torch.zeros(3, 5))) == 60
    # 8 codes, half 0 and half 15: one bit each, 1 byte; a scale a row in float16, 2 rows.
    codes = torch.tensor([[0, 15, 0, 15], [15, 0, 15, 0]], dtype=torch.uint8)
    form = Quantized(
        codes, torch.ones(2, 1, dtype=torch.float16), None, bits=4, group_size=4, shape=(2, 4),
        dtype=torch.float32, symmetric=True,
    )  # fmt: skip
    assert predicted_bytes(form) == 1 + 4


def test_a_large_model_is_judged_on_part_of_it() -> None:
    net = nn.Sequential(*(nn.Linear(32, 32) for _ in range(8)))
    row = diagnose(net, most_weights=2 * 32 * 32).expectations[0]
    assert (row.judged, row.of) == (2, 8)
    whole = diagnose(net).expectations[0]
    assert abs(row.predicted_bytes / whole.predicted_bytes - 1) < 0.05


def test_sites_are_spread() -> None:
    sites = doctor.find_sites(nn.Sequential(*(nn.Linear(4, 4) for _ in range(9))))
    assert [site.name for site in doctor._spread(sites, 48)] == ["0.weight", "3.weight", "6.weight"]
    assert len(doctor._spread(sites, 1)) == 1


def test_only_what_stands_out_is_said_to_hurt() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    for layer in net:
        nn.init.normal_(layer.weight)  # type: ignore[arg-type]
    assert diagnose(net).hurt == ()
    with torch.no_grad():
        net[2].weight.sign_()  # no weight is small: none can go  # type: ignore[operator]
    found = diagnose(net)
    assert found.hurt[0][0] == "2.weight"
    assert found.hurt[0][1] >= 2
