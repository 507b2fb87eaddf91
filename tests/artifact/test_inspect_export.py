from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from artifact_support import FormsNet, forms_net, quantized
from safetensors.torch import load_file
from torch import nn

from laconic import artifact
from laconic.errors import ArtifactError, ConfigError
from laconic.forms import LowRank, Quantized, Sum, install_, installed
from laconic.forms.dense import Dense


def test_what_inspect_says_of_a_layer_by_hand(tmp_path: Path) -> None:
    # 4 x 4 codes, half of them 8, a quarter 9, a quarter 7: 1.5 bits by Shannon.
    codes = torch.tensor([8] * 8 + [9] * 4 + [7] * 4, dtype=torch.uint8).view(4, 4)
    form = Quantized(
        codes, torch.ones(4, 1).half(), None, bits=4, group_size=4, shape=(4, 4),
        dtype=torch.float32, symmetric=True,
    )  # fmt: skip
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    install_(model, "0.weight", form)
    report = artifact.save(model, tmp_path / "a", recipe={"name": "by hand"})
    found = artifact.inspect(tmp_path / "a")
    (site,) = found["sites"]
    assert site["name"] == "0.weight"
    assert (site["kind"], site["form"], site["shape"]) == ("quantized", "quantized", [4, 4])
    assert (site["weights"], site["bytes_original"]) == (16, 64)
    assert site["entropy_bits"] == 1.5
    assert site["bytes_stored"] == report.tensors["0.weight"]
    assert site["bits"] == 8 * site["bytes_stored"] / 16
    part = site["tree"]["parts"]["codes"]
    assert (part["coder"], part["alphabet"], part["entropy_bits"]) == ("packed", 16, 1.5)
    assert part["bytes_stored"] == 8
    assert site["tree"]["settings"] == {"bits": 4, "group_size": 4, "symmetric": True}
    assert found["files"] == dict(report.files)
    assert found["deployed_bytes"] == report.deployed_bytes
    assert found["weights"] == 16
    assert found["bits"] == report.deployed_bytes * 8 / 16
    assert found["recipe"] == {"name": "by hand"}
    assert found["architecture"] == {"kind": "graph", "modules": 1, "nodes": 3}
    json.dumps(found)


def test_inspect_shows_nested_forms_and_everything_else(tmp_path: Path) -> None:
    net = forms_net()
    artifact.save(net, tmp_path / "a")
    found = artifact.inspect(tmp_path / "a")
    sites = {site["name"]: site for site in found["sites"]}
    for name, held in installed(net).items():
        assert sites[name]["form"] == held.form.signature
        assert sites[name]["weights"] == np.prod(held.form.shape)
    tree = sites["layers.sum.weight"]["tree"]
    assert list(tree["children"]) == ["term0", "term1"]
    assert tree["children"]["term1"]["kind"] == "low-rank"
    values = {row["name"]: row for row in found["values"]}
    assert values["norm.running_mean"]["dtype"] == "F32"
    assert values["steps"]["dtype"] == "I64"
    stored = sum(row["bytes_stored"] for row in (*found["sites"], *found["values"]))
    assert 0 < stored < found["files"]["model.safetensors"]


def test_entropy_is_that_of_all_symbols_of_a_site(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = quantized(torch.randn(16, 32), bits=3)
    low = LowRank(quantized(torch.randn(16, 4), bits=2), Dense(torch.randn(4, 32)),
                  shape=(16, 32), dtype=torch.float32)  # fmt: skip
    model = nn.Sequential(nn.Linear(32, 16, bias=False))
    install_(model, "0.weight", Sum(first, low, shape=(16, 32), dtype=torch.float32))
    artifact.save(model, tmp_path / "a")

    def bits(form: Quantized) -> float:
        counts = torch.bincount(form.codes().flatten().long()).double()
        p = counts[counts > 0] / counts.sum()
        return float(-(p * p.log2()).sum() * counts.sum())

    (site,) = artifact.inspect(tmp_path / "a")["sites"]
    expected = (bits(first) + bits(low.factors[0])) / (16 * 32)  # type: ignore[arg-type]
    assert site["entropy_bits"] == pytest.approx(expected)


def test_verify_lists_what_it_checked(tmp_path: Path) -> None:
    artifact.save(forms_net(), tmp_path / "a")
    checks = artifact.verify(tmp_path / "a")
    assert [check.name for check in checks] == [
        "laconic.json", "model.safetensors", "tensors", "architecture"
    ]  # fmt: skip
    assert all(check.passed for check in checks)
    (tmp_path / "a" / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"model\.safetensors: missing"):
        artifact.verify(tmp_path / "a")
    checks = artifact.verify(tmp_path / "a", strict=False)
    assert [check.passed for check in checks] == [True, False, False]
    assert [c.passed for c in artifact.verify(tmp_path / "no", strict=False)] == [False]


def test_export_gives_the_state_dict_of_the_original(tmp_path: Path) -> None:
    net = forms_net()
    artifact.save(net, tmp_path / "a")
    out = artifact.export_dense(tmp_path / "a", tmp_path / "dense")
    state = load_file(out / "model.safetensors")
    plain = FormsNet().eval()
    assert state.keys() == plain.state_dict().keys()
    plain.load_state_dict(state)
    for name, held in installed(net).items():
        assert torch.equal(plain.get_parameter(name), held.form.dense().detach())
    assert json.loads((out / "graph.json").read_text())["kind"] == "graph"
    with pytest.raises(ConfigError, match="exists"):
        artifact.export_dense(tmp_path / "a", tmp_path / "dense")


def test_export_needs_no_code_of_the_model(tmp_path: Path) -> None:
    model = nn.Linear(8, 4)
    install_(model, "weight", quantized(model.weight))
    artifact.save(model, tmp_path / "a", architecture=artifact.Architecture.factory("gone.pkg:f"))
    out = artifact.export_dense(tmp_path / "a", tmp_path / "dense")
    state = load_file(out / "model.safetensors")
    assert torch.equal(state["weight"], model.weight.detach())
    assert not (out / "graph.json").exists()


def test_tied_weights_are_exported_under_both_names(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight
    artifact.save(model, tmp_path / "a")
    out = artifact.export_dense(tmp_path / "a", tmp_path / "dense")
    state = load_file(out / "model.safetensors")
    assert torch.equal(state["0.weight"], state["1.weight"])


def test_an_uncompressed_model_is_stored_as_any_tool_reads_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    artifact.save(model, tmp_path / "a", effort="none")
    state = load_file(tmp_path / "a" / "model.safetensors")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
