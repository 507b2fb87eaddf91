"""Bytes as the file system counts them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from laconic import artifact
from laconic.errors import ConfigError
from laconic.measure import dense_bytes, model_bytes


def test_the_bytes_of_a_folder_are_those_of_the_files_needed_to_run_it(tmp_path: Path) -> None:
    counted = {
        "model-00001-of-00002.safetensors": 301,
        "model-00002-of-00002.safetensors": 17,
        "model.safetensors.index.json": 40,
        "laconic.json": 55,
        "config.json": 21,
    }
    others = {
        "report.json": 999,
        "report.html": 5,
        "tokenizer.json": 70,
        "generation_config.json": 3,
    }
    for name, size in {**counted, **others}.items():
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "old.safetensors").mkdir()
    assert model_bytes(tmp_path) == counted
    assert model_bytes(str(tmp_path)) == counted


def test_the_bytes_of_an_artifact_are_what_stat_says(tmp_path: Path) -> None:
    artifact.save(nn.Sequential(nn.Linear(6, 5)), tmp_path / "net")
    found = model_bytes(tmp_path / "net")
    assert set(found) == {"model.safetensors", "laconic.json"}
    assert found == {name: os.stat(tmp_path / "net" / name).st_size for name in found}


def test_one_file_and_the_weights_beside_it(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"x" * 12)
    assert model_bytes(tmp_path / "net.onnx") == {"net.onnx": 12}
    (tmp_path / "net.onnx.data").write_bytes(b"x" * 345)
    assert model_bytes(tmp_path / "net.onnx") == {"net.onnx": 12, "net.onnx.data": 345}
    assert model_bytes(tmp_path) == {"net.onnx": 12, "net.onnx.data": 345}


def test_a_place_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such file or folder"):
        model_bytes(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds no weights"):
        model_bytes(tmp_path)


def test_dense_bytes_are_those_of_a_plain_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Linear(4, 5).half())
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    assert dense_bytes(model) == os.stat(tmp_path / "m.safetensors").st_size
    assert dense_bytes(model) > 4 * (12 + 3 + 3 * 4) + 8 + 2 * 25  # the values alone


def test_tied_weights_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self, tie: bool) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
            if tie:
                self.head.weight = self.table.weight

    saved = dense_bytes(Tied(tie=False)) - dense_bytes(Tied(tie=True))
    assert 50 * 8 * 4 <= saved < 50 * 8 * 4 + 200  # the values, and a line of the header


def test_weights_that_are_parts_of_one_tensor_count_as_in_a_file_of_their_own() -> None:
    class Parts(nn.Module):
        def __init__(self, whole: torch.Tensor) -> None:
            super().__init__()
            self.whole = nn.Parameter(whole)
            self.register_buffer("part", whole[2:4])
            self.register_buffer("turned", whole.T)

    tensors = torch.arange(36.0).reshape(6, 6)
    model = Parts(tensors)
    apart = Parts(tensors.clone())
    apart.part, apart.turned = apart.part.clone(), apart.turned.contiguous()
    assert dense_bytes(model) == dense_bytes(apart)


def test_counting_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dense_bytes(nn.Linear(2, 2))
    assert not list(tmp_path.iterdir())
