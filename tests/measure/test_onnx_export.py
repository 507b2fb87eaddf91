"""The fp32 baseline: a model as ONNX, and its time under ONNX Runtime."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from laconic.errors import BackendError, MissingExtraError
from laconic.measure import export_onnx, latency

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")


class Text(nn.Module):
    """Takes two inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.table(input_ids) * attention_mask.unsqueeze(-1))


class Picture(nn.Module):
    """Takes one input, which it does not call x; drops half of it in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.head = nn.Conv2d(1, 3, 3), nn.Dropout(0.5), nn.Linear(12, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.drop(self.conv(image).relu()).flatten(1))


def outputs(path: Path, **inputs: Tensor) -> Tensor:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {n: t.numpy() for n, t in inputs.items()})[0])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> tuple[Text, Path]:
    model = Text()
    ids = torch.tensor([[1, 2, 3]])
    place = tmp_path_factory.mktemp("text") / "net.onnx"
    assert export_onnx(model, {"attention_mask": ids > 1, "input_ids": ids}, place) == place
    return model, place


def test_one_input_goes_by_position_and_modes_are_restored(tmp_path: Path) -> None:
    model = Picture().train()
    model.conv.eval()
    modes = [module.training for module in model.modules()]
    path = export_onnx(model, torch.randn(1, 1, 4, 4), tmp_path / "net.onnx")
    assert [module.training for module in model.modules()] == modes
    model.eval()
    for size in (1, 5):
        images = torch.randn(size, 1, 4, 4)
        with torch.no_grad():
            torch.testing.assert_close(outputs(path, x=images), model(images))
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert str(Path(__file__).parent).encode() not in path.read_bytes()


def test_several_inputs_go_by_name(text: tuple[Text, Path]) -> None:
    model, path = text
    for size in (1, 4):
        ids = torch.randint(9, (size, 3))
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=ids > 4)
        torch.testing.assert_close(outputs(path, attention_mask=ids > 4, input_ids=ids), expected)


def test_onnx_runtime_is_timed(text: tuple[Text, Path]) -> None:
    ids = torch.tensor([[1, 2, 3]])
    example = {"attention_mask": ids > 1, "input_ids": ids}
    found = latency({"onnx": text[1]}, example, batch_sizes=(1, 3), repeats=2, warmup=1)
    assert list(found["onnx"]) == [1, 3]
    for timing in found["onnx"].values():
        assert 0 < timing["min"] <= timing["median"]
        assert timing["repeats"] >= 2


def test_a_file_that_is_no_onnx_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(BackendError, match=r"variant 'broken': InvalidProtobuf"):
        latency({"broken": tmp_path / "net.onnx"}, torch.ones(1, 2))


def test_a_model_that_onnx_cannot_hold_is_refused(tmp_path: Path) -> None:
    class Choosy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if float(x.sum()) > 0 else x - 1  # known when it runs, not before

    model = Choosy().train()
    with pytest.raises(BackendError, match="ONNX export of Choosy failed"):
        export_onnx(model, torch.ones(1, 2), tmp_path / "net.onnx")
    assert model.training
    assert not (tmp_path / "net.onnx").exists()


def test_without_the_exporter_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'laconic\[onnx\]'"):
        export_onnx(Picture(), torch.ones(1, 1, 4, 4), tmp_path / "net.onnx")
