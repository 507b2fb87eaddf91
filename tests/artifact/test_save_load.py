from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from artifact_support import (
    FormsNet,
    every_form,
    forms_net,
    inputs,
    quantized,
    read_body,
    same_tensors,
)
from torch import nn

from laconic import artifact
from laconic.errors import ArtifactError, ConfigError, LaconicWarning, UnsupportedModelError
from laconic.forms import Dense, LowRank, Quantized, install_, installed
from laconic.forms.base import Form


def _load(path: Path, model: nn.Module | None = None) -> nn.Module:
    return artifact.load(path, model=model, kernels="exact")


def test_every_form_comes_back_bit_for_bit(tmp_path: Path) -> None:
    net = forms_net()
    artifact.save(net, tmp_path / "a")
    loaded = _load(tmp_path / "a")
    assert not loaded.training
    assert same_tensors(net, loaded)
    kinds = {name: held.form.signature for name, held in installed(net).items()}
    assert {name: held.form.signature for name, held in installed(loaded).items()} == kinds
    assert set(Form._kinds) == {f.kind for held in installed(net).values()
                                for _, f in held.form.walk()}  # fmt: skip
    with torch.no_grad():
        assert torch.equal(loaded(*inputs()), net(*inputs()))


@pytest.mark.parametrize("effort", ["fast", "smallest", "none"])
def test_effort_changes_bytes_not_tensors(tmp_path: Path, effort: artifact.Effort) -> None:
    net = forms_net()
    artifact.save(net, tmp_path / "a", effort=effort)
    assert same_tensors(net, _load(tmp_path / "a"))


def test_smallest_is_never_larger_than_fast(tmp_path: Path) -> None:
    sizes = [
        artifact.save(forms_net(), tmp_path / effort, effort=effort).files["model.safetensors"]
        for effort in ("smallest", "fast", "none")
    ]
    assert sizes == sorted(sizes)


def test_bytes_are_those_of_the_files(tmp_path: Path) -> None:
    report = artifact.save(forms_net(), tmp_path / "a")
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(tmp_path / "a")}
    assert dict(report.files) == sizes
    assert report.deployed_bytes == sizes["model.safetensors"] + sizes["laconic.json"]
    assert set(report.tensors) >= {f"layers.{name}.weight" for name in every_form()}


def test_two_saves_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        artifact.save(forms_net(), tmp_path / name)
    artifact.save(_load(tmp_path / "a"), tmp_path / "c", architecture=artifact.Architecture.of(
        forms_net()))  # fmt: skip
    for file in ("model.safetensors", "laconic.json"):
        first = (tmp_path / "a" / file).read_bytes()
        assert first == (tmp_path / "b" / file).read_bytes()
        assert first == (tmp_path / "c" / file).read_bytes()


class _AllTypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.short = nn.Parameter(torch.randn(3000).half())
        self.brain = nn.Parameter(torch.randn(7, 500).bfloat16())
        self.long_ = nn.Parameter(torch.randn(4, dtype=torch.float64))
        self.scalar = nn.Parameter(torch.tensor(2.5))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.odd = nn.Parameter(torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]))
        self.register_buffer("whole", torch.arange(-3000, 3000))
        self.register_buffer("truth", torch.arange(5000) % 3 == 0)
        self.register_buffer("octets", torch.arange(256, dtype=torch.uint8))
        self.register_buffer("zeros", torch.zeros(100_000))
        self.register_buffer("view", torch.arange(12.0).view(3, 4).t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scalar


def test_every_type_is_kept_without_loss(tmp_path: Path) -> None:
    model = _AllTypes()
    report = artifact.save(model, tmp_path / "a")
    assert same_tensors(model, _load(tmp_path / "a"))
    fresh = _AllTypes()
    assert _load(tmp_path / "a", fresh) is fresh
    assert same_tensors(model, fresh)
    assert report.files["model.safetensors"] < 60_000  # a million bytes of zeros and counts


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 8)
        self.first = nn.Linear(8, 8)
        self.again = self.first
        self.out = nn.Linear(8, 12, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.again(self.first(self.table(ids))))


@pytest.mark.parametrize("forms", [False, True])
def test_tied_weights_stay_tied(tmp_path: Path, forms: bool) -> None:
    model = _Tied().eval()
    if forms:
        install_(model, "table.weight", quantized(model.table.weight))
        install_(model, "first.weight", quantized(model.first.weight))
    artifact.save(model, tmp_path / "a")
    body = read_body(tmp_path / "a")
    assert body["aliases"] == {
        "again.bias": "first.bias",
        "again.weight": "first.weight",
        "out.weight": "table.weight",
    }
    for loaded in (_load(tmp_path / "a"), _load(tmp_path / "a", _Tied())):
        ids = torch.tensor([1, 2, 11])
        assert torch.equal(loaded(ids), model(ids))
        if forms:
            assert loaded.table.weight_form is loaded.out.weight_form
        else:
            assert loaded.table.weight is loaded.out.weight


def test_layouts_are_kept(tmp_path: Path) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 4, 8))  # (experts, in, out)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("ti,eio->teo", x, self.up)

    model = Experts().eval()
    weight = model.up.detach().transpose(1, 2).reshape(24, 4)
    install_(model, "up", quantized(weight), layout="stacked-transposed")
    artifact.save(model, tmp_path / "a")
    x = torch.randn(5, 4)
    for loaded in (_load(tmp_path / "a"), _load(tmp_path / "a", Experts())):
        assert torch.equal(loaded(x), model(x))
        assert installed(loaded)["up"].parameter_shape == (3, 4, 8)


def test_a_taken_path_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    artifact.save(nn.Linear(2, 2), tmp_path / "a")
    with pytest.raises(ConfigError, match="exists"):
        artifact.save(nn.Linear(2, 2), tmp_path / "a")
    artifact.save(nn.Linear(3, 3), tmp_path / "a", force=True)
    assert _load(tmp_path / "a").state_dict()["weight"].shape == (3, 3)

    class Broken(Form):
        kind = "quantized"

        def dense(self) -> torch.Tensor:
            return torch.zeros(3, 3)

        parts = settings = from_parts = lambda *_: {}["no"]  # type: ignore[assignment]

    Form._kinds["quantized"] = Quantized
    model = nn.Linear(3, 3)
    install_(model, "weight", Broken((3, 3), torch.float32))
    with pytest.raises(KeyError):
        artifact.save(model, tmp_path / "a", force=True)
    assert _load(tmp_path / "a").state_dict()["weight"].shape == (3, 3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_recipe_and_provenance_are_kept(tmp_path: Path) -> None:
    recipe = {"name": "w4", "steps": [{"round-to-nearest": {"bits": 4}}]}
    artifact.save(nn.Linear(2, 2), tmp_path / "a", recipe=recipe, provenance={"seed": 3})
    manifest = artifact.read_manifest(tmp_path / "a")
    assert manifest.recipe == recipe
    assert manifest.provenance == {"seed": 3}


def test_extra_files_are_copied_and_guarded(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    report = artifact.save(
        nn.Linear(2, 2), tmp_path / "a", extra_files=[tmp_path / "tokenizer.json"]
    )
    assert report.files["tokenizer.json"] == 2
    assert "tokenizer.json" not in artifact.DEPLOYED
    (tmp_path / "a" / "tokenizer.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"tokenizer.json: damaged"):
        _load(tmp_path / "a")
    (tmp_path / "laconic.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"'laconic.json'"):
        artifact.save(nn.Linear(2, 2), tmp_path / "b", extra_files=[tmp_path / "laconic.json"])


def test_a_given_model_must_be_the_right_one(tmp_path: Path) -> None:
    artifact.save(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), tmp_path / "a")
    with pytest.raises(ArtifactError, match=r"1\.bias: is \[2\], the model has \[3\]"):
        _load(tmp_path / "a", nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)))
    with pytest.raises(ArtifactError, match=r"1\.bias: the artefact has it, the model not"):
        _load(tmp_path / "a", nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2, bias=False)))
    with pytest.raises(ArtifactError, match=r"2\.weight: the model has it, the artefact not"):
        _load(tmp_path / "a", nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 2)))


def test_a_given_model_takes_forms_again(tmp_path: Path) -> None:
    net = forms_net()
    artifact.save(net, tmp_path / "a")
    target = forms_net()
    install_(target, "stem.weight", Dense(torch.zeros(4, 1, 3, 3)))
    assert same_tensors(_load(tmp_path / "a", target), net)
    plain = FormsNet().requires_grad_(False)
    _load(tmp_path / "a", plain)
    assert not plain.norm.weight.requires_grad  # the caller's choice is kept


def test_tensors_that_cannot_be_stored_are_named(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("phase", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(UnsupportedModelError, match=r"phase: torch\.complex128 cannot be stored"):
        artifact.save(model, tmp_path / "a")
    with torch.device("meta"):
        empty = nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError, match="without dense values"):
        artifact.save(empty, tmp_path / "a")


def test_predicted_bytes_are_those_of_the_parts(tmp_path: Path) -> None:
    form = quantized(torch.randn(64, 512), bits=3, group=64)
    model = nn.Linear(512, 64, bias=False)
    install_(model, "weight", form)
    for effort in ("fast", "smallest"):
        report = artifact.save(model, tmp_path / effort, effort=effort)
        predicted = artifact.predict_bytes(form, effort=effort)
        assert predicted >= report.tensors["weight"]
        assert predicted == pytest.approx(report.tensors["weight"], rel=0.05)


def test_kernels_are_chosen_on_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "cache"))
    net = forms_net()
    artifact.save(net, tmp_path / "a")
    with torch.no_grad():
        for mode in ("auto", "dense", "exact"):
            loaded = artifact.load(tmp_path / "a", kernels=mode)  # type: ignore[arg-type]
            torch.testing.assert_close(loaded(*inputs()), net(*inputs()))


def test_a_form_that_stands_for_far_more_than_is_stored_is_never_made_dense(
    tmp_path: Path,
) -> None:
    size = 2**15
    form = LowRank(
        Dense(torch.ones(size, 1)), Dense(torch.ones(1, size)),
        shape=(size, size), dtype=torch.float32,
    )  # fmt: skip
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(size, size, bias=False))
    install_(model, "0.weight", form)
    artifact.save(model, tmp_path / "a", architecture=artifact.Architecture.factory("a:b"))
    with torch.device("meta"):
        target = nn.Sequential(nn.Linear(size, size, bias=False))
    with pytest.warns(LaconicWarning, match="are not built; forms run by themselves"):
        loaded = artifact.load(tmp_path / "a", model=target)
    assert loaded(torch.ones(1, size))[0, 0] == size
