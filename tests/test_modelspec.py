from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from laconic.errors import ArtifactError, ConfigError, UnsupportedModelError
from laconic.modelspec import hub_folder, load_model, load_task

CODE = """
import torch
from torch import nn
from laconic.task import Task, TensorSplit

def build():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

def with_tokenizer():
    return build().train(), str.split

def number():
    return 3

def task(count=5):
    x = torch.zeros(count, 4)
    return Task(kind="classification", test=TensorSplit({"x": x, "y": torch.zeros(count).long()}))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "spec_net.py").write_text(CODE)
    (tmp_path / "spec_broken.py").write_text("import no_such_package_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield tmp_path
    for name in ("spec_net", "spec_broken"):
        sys.modules.pop(name, None)


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).state_dict()


@pytest.mark.parametrize("kind", ["safetensors", "pt", "nested"])
def test_factory_of_the_current_folder_with_weights(place: Path, kind: str) -> None:
    file = place / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(state(), file)
    else:
        torch.save({"state_dict": state(), "epoch": 3} if kind == "nested" else state(), file)
    model, tokenizer = load_model("spec_net:build", file)
    assert tokenizer is None
    assert not model.training
    assert all(torch.equal(t, state()[name]) for name, t in model.state_dict().items())


def test_factory_may_bring_its_tokenizer(place: Path) -> None:
    model, tokenizer = load_model("spec_net:with_tokenizer")
    assert tokenizer("a b") == ["a", "b"]  # type: ignore[misc]
    assert not model.training


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("spec_net:biuld", r"has no 'biuld'\. Did you mean 'build'\?"),
        ("spec_nat:build", r"no module 'spec_nat' on the path or in the current folder"),
        ("spec_broken:build", r"spec_broken needs 'no_such_package_anywhere'"),
        ("spec_net:number", r"gave int; it must give a torch\.nn\.Module"),
        ("./nothing/here/at/all", r"neither a folder nor a name"),
        ("someone/no-such-model", r"Hugging Face cache does not hold it.*hf download someone"),
        (".", r"a folder without config\.json"),
    ],
)
def test_a_wrong_model_says_what_is_wrong(place: Path, spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(spec)


def test_weights_that_do_not_fit_name_the_tensor(place: Path) -> None:
    renamed = {name.replace("0.weight", "0.wieght"): t for name, t in state().items()}
    save_file(renamed, place / "w.safetensors")
    with pytest.raises(
        ConfigError, match=r"missing 0\.weight; unknown 0\.wieght\. Did you mean '0\.weight'"
    ):
        load_model("spec_net:build", place / "w.safetensors")
    save_file(state() | {"2.bias": torch.zeros(7)}, place / "w.safetensors")
    with pytest.raises(ConfigError, match=r"2\.bias has shape \(7,\), the model wants \(2,\)"):
        load_model("spec_net:build", place / "w.safetensors")


def test_weights_that_are_more_than_tensors_are_refused(place: Path) -> None:
    torch.save(nn.Linear(2, 2), place / "whole.pt")
    with pytest.raises(ArtifactError, match=r"whole\.pt: not a file of tensors alone"):
        load_model("spec_net:build", place / "whole.pt")
    (place / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(ArtifactError, match=r"cut\.safetensors"):
        load_model("spec_net:build", place / "cut.safetensors")
    torch.save([torch.zeros(2)], place / "list.pt")
    with pytest.raises(ArtifactError, match="not a mapping of names to tensors"):
        load_model("spec_net:build", place / "list.pt")
    with pytest.raises(ArtifactError, match="no such file"):
        load_model("spec_net:build", place / "gone.pt")


def test_weights_belong_to_a_factory(place: Path) -> None:
    with pytest.raises(ConfigError, match="Leave --weights out"):
        load_model("some/model", place / "w.pt")


def test_task_from_a_factory_and_by_name(place: Path) -> None:
    assert len(load_task("spec_net:task", options={"count": 7}).test) == 7
    with pytest.raises(ConfigError, match=r"gave int, not a laconic Task"):
        load_task("spec_net:number")
    with pytest.raises(ConfigError, match=r"Did you mean 'digits'"):
        load_task("digit")


@pytest.mark.extra
def test_hugging_face_folder_and_its_class(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(config)
    made.save_pretrained(tmp_path / "llama")
    model, tokenizer = load_model(str(tmp_path / "llama"))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert tokenizer is None
    assert hub_folder(str(tmp_path / "llama")) == tmp_path / "llama"
    assert hub_folder(str(tmp_path)) is None
    text = (tmp_path / "llama" / "config.json").read_text()
    (tmp_path / "llama" / "config.json").write_text(text.replace("LlamaForCausalLM", "MyOwnLM"))
    with pytest.raises(UnsupportedModelError, match="MyOwnLM is not in transformers"):
        load_model(str(tmp_path / "llama"))
