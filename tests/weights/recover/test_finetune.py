"""Recovery: what moves, what may not, and that it wins quality back."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laconic.errors import ConfigError, RecipeError
from laconic.forms.base import Form
from laconic.forms.codebook import Codebook
from laconic.forms.dense import Dense
from laconic.forms.layers import install_, installed
from laconic.forms.lowrank import LowRank
from laconic.forms.quantized import Quantized
from laconic.forms.sparse import Sparse
from laconic.registry import get
from laconic.task import Batch, Task, TensorSplit
from laconic.training import fit
from laconic.training.plan import Length
from laconic.weights.recover.base import RecoverJob
from laconic.weights.recover.finetune import Recover

CENTRES = 2.0 * torch.eye(5, 8)


def blobs(count: int, seed: int) -> TensorSplit:
    source = torch.Generator().manual_seed(seed)
    y = torch.randint(5, (count,), generator=source)
    return TensorSplit({"x": CENTRES[y] + torch.randn(count, 8, generator=source), "y": y})


TASK = Task(kind="classification", train=blobs(512, 0), test=blobs(256, 1), batch_size=64)
DATA_FREE = Task(kind="classification", test=blobs(256, 1), batch_size=64)


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))
    fit(model, TASK, steps=120, lr=1e-2)
    return model.eval()


def sparse(weight: Tensor) -> Sparse:
    mask = weight.abs() > weight.abs().flatten().quantile(0.85)
    return Sparse(
        mask,
        Dense(weight[mask].reshape(1, -1)),
        shape=tuple(weight.shape),
        dtype=weight.dtype,
        pattern="unstructured",
    )


def quantized(weight: Tensor) -> Quantized:
    scale = weight.abs().amax(1, keepdim=True)  # 2 bits: codes 0..3 stand for -2..1
    codes = ((weight / scale).round().clamp(-2, 1) + 2).to(torch.uint8)
    return Quantized(
        codes,
        scale,
        None,
        bits=2,
        group_size=weight.shape[1],
        shape=tuple(weight.shape),
        dtype=weight.dtype,
        symmetric=True,
    )


def codebook(weight: Tensor, table: Tensor | None = None) -> Codebook:
    entries = (
        torch.linspace(float(weight.min()), float(weight.max()), 3) if table is None else table
    )
    codes = (weight[..., None] - entries).abs().argmin(-1).to(torch.uint8)
    return Codebook(codes, entries[:, None], shape=tuple(weight.shape), dtype=weight.dtype)


def low_rank(weight: Tensor) -> LowRank:
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    left, right = Dense((u[:, :3] * s[:3]).contiguous()), Dense(v[:3].contiguous())
    return LowRank(left, right, shape=tuple(weight.shape), dtype=weight.dtype)


FORMS = {"sparse": sparse, "quantized": quantized, "codebook": codebook, "low-rank": low_rank}


def compressed(original: nn.Module, make: Any) -> nn.Module:
    model = deepcopy(original)
    for name in ("0.weight", "3.weight"):
        install_(model, name, make(original.get_parameter(name).detach().clone()))
    return model


def weight_of(model: nn.Module, name: str) -> Tensor:
    return installed(model)[name].form.dense().detach().clone()


def fixed_parts(model: nn.Module) -> dict[str, Tensor]:
    """Every buffer of every form: codes, masks, indices."""
    forms = {name: entry.form for name, entry in installed(model).items()}
    return {f"{n}/{b}": t.clone() for n, form in forms.items() for b, t in form.named_buffers()}


def divergence(model: nn.Module, original: nn.Module) -> float:
    model.eval()
    x = TASK.test.tensors["x"]  # type: ignore[attr-defined]
    with torch.no_grad():
        p, q = original(x).log_softmax(-1), model(x).log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("train", ["forms", "all"])
def test_structure_stays_and_quality_comes_back(original: nn.Module, kind: str, train: Any) -> None:
    model = compressed(original, FORMS[kind])
    before, codes = divergence(model, original), fixed_parts(model)
    others = {n: model.get_parameter(n).detach().clone() for n in ("0.bias", "1.weight", "3.bias")}
    weights = {name: weight_of(model, name) for name in installed(model)}
    summary = Recover(steps=150, train=train, lr=1e-2).run_(
        RecoverJob(model=model, original=original, task=TASK)
    )
    few = kind == "quantized" and train == "forms"  # 21 numbers: one scale a row
    assert divergence(model, original) < (0.9 if few else 0.6) * before
    assert (summary["data"], summary["distilled"], summary["steps"]) == ("train", True, 150)
    after = fixed_parts(model)
    assert codes.keys() == after.keys()
    assert all(torch.equal(codes[name], after[name]) for name in codes)
    for name, weight in weights.items():
        now = weight_of(model, name)
        assert not torch.equal(now, weight)
        if kind == "sparse":
            assert torch.equal(now == 0, weight == 0)
        if kind == "codebook":
            assert len(now.unique()) <= 3
        if kind == "low-rank":
            assert torch.linalg.matrix_rank(now) == 3
        if kind == "quantized":  # each row is its scale times unchanged steps
            steps = weight / weight_scale(weight)
            assert torch.allclose(now / weight_scale(now), steps, atol=1e-5)
    for name, value in others.items():
        assert torch.equal(model.get_parameter(name), value) is (train == "forms")


def weight_scale(weight: Tensor) -> Tensor:
    return weight.abs().amax(1, keepdim=True)


def test_worked_centroid_gradient_is_the_sum_over_the_cluster() -> None:
    # W = [[a, b], [b, a]] and loss = sum(G * W) with G = [[3, 2], [7, -1]]:
    # dL/da = 3 - 1 = 2 and dL/db = 2 + 7 = 9 (Han et al. 2016, section 3.3).
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    weight = torch.tensor([[0.5, -1.0], [-1.0, 0.5]])
    install_(model, "0.weight", codebook(weight, torch.tensor([0.5, -1.0])))
    form = installed(model)["0.weight"].form
    form.requires_grad_(True)
    gains = torch.tensor([[3.0, 2.0], [7.0, -1.0]])
    (gains * form.dense()).sum().backward()
    (table,) = form.parameters()
    assert table.grad is not None
    assert table.grad.flatten().tolist() == [2.0, 9.0]
    # One step of AdamW moves each centroid against its sum by the tables' rate: by the first
    # member alone a would go the same way, by the last alone the other.
    x = torch.eye(2)

    def loss(outputs: Tensor, batch: Batch) -> Tensor:  # outputs = W.T
        return (gains.T * outputs).sum()

    split = TensorSplit({"x": x})
    task = Task(kind="custom", loss=loss, train=split, test=split, batch_size=2)
    Recover(steps=1, table_lr=0.01, weight_decay=0.5).run_(RecoverJob(model=model, task=task))
    assert torch.allclose(table.flatten(), torch.tensor([0.5 - 0.01, -1.0 - 0.01]), atol=1e-6)


@pytest.mark.parametrize("kind", ["sparse", "codebook"])
def test_without_data_the_original_is_the_teacher(original: nn.Module, kind: str) -> None:
    for task, example in ((DATA_FREE, None), (None, {"x": torch.zeros(2, 8)})):
        model, kept = compressed(original, FORMS[kind]), deepcopy(original)
        before, norm = divergence(model, original), model[1].running_mean.clone()  # type: ignore
        summary = Recover(steps=150, lr=1e-2).run_(
            RecoverJob(model=model, original=original, task=task, example=example)
        )
        assert summary["data"] == "drawn"
        assert divergence(model, original) < 0.7 * before
        assert torch.equal(model[1].running_mean, norm)  # type: ignore[index,union-attr]
        for name, value in original.state_dict().items():
            assert torch.equal(value, kept.state_dict()[name])


def test_distillation_can_be_turned_off(original: nn.Module) -> None:
    model = compressed(original, sparse)
    summary = Recover(steps=3, distill=False).run_(
        RecoverJob(model=model, original=original, task=TASK)
    )
    assert summary["distilled"] is False


@pytest.mark.parametrize(
    ("step", "given"),
    [(Recover(steps=1), False), (Recover(steps=1, distill=False), True)],
)
def test_nothing_to_learn_from_is_an_error_before_work(
    original: nn.Module, step: Recover, given: bool
) -> None:
    model = compressed(original, sparse)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    job = RecoverJob(model=model, original=original if given else None, task=DATA_FREE)
    with pytest.raises(ConfigError, match="neither a train split nor an original"):
        step.run_(job)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with pytest.raises(ConfigError, match="Give an example batch"):
        Recover(steps=1).run_(RecoverJob(model=model, original=original))


def test_a_dense_model_is_refused(original: nn.Module) -> None:
    with pytest.raises(RecipeError, match="nothing to recover"):
        Recover(steps=1).run_(RecoverJob(model=deepcopy(original), original=original, task=TASK))
    dense: list[Form] = [Dense(torch.empty(4, 4, device="meta"))]
    with pytest.raises(RecipeError, match="nothing to recover"):
        Recover().check_forms(dense)
    Recover().check_forms([*dense, sparse(torch.randn(4, 4))])


def test_scope_limits_what_is_trained(original: nn.Module) -> None:
    from laconic.weights.base import Where

    model = compressed(original, sparse)
    before = weight_of(model, "0.weight"), weight_of(model, "3.weight")
    bias = model.get_parameter("3.bias").detach().clone()
    Recover(steps=3, where=Where(include=("3.*",), exclude=("*.bias",))).run_(
        RecoverJob(model=model, original=original, task=TASK)
    )
    assert torch.equal(weight_of(model, "0.weight"), before[0])
    assert not torch.equal(weight_of(model, "3.weight"), before[1])
    assert torch.equal(model.get_parameter("3.bias"), bias)
    with pytest.raises(ConfigError, match="no parameter to train"):
        Recover(steps=1, where=Where(include=("9.*",))).run_(RecoverJob(model=model, task=TASK))


def test_taken_up_from_its_checkpoint(original: nn.Module, tmp_path: Path) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    class Stopper:
        def __init__(self) -> None:
            self.left = 6

        def start(self, label: str, total: int | None) -> int:
            return 0

        def advance(self, id: int, n: int = 1, note: str = "") -> None:
            self.left -= 1
            if self.left == 0:
                raise Stop

        def finish(self, id: int) -> None:
            return None

    models = [compressed(original, codebook) for _ in range(3)]
    step, path = Recover(time="1 epochs"), tmp_path / "train.pt"
    more: dict[str, Any] = {"original": original, "task": TASK}
    step.run_(RecoverJob(model=models[0], **more))
    with pytest.raises(Stop):
        step.run_(RecoverJob(model=models[1], checkpoint=path, progress=Stopper(), **more))
    step.run_(RecoverJob(model=models[2], checkpoint=path, **more))
    for name in installed(models[0]):
        assert torch.equal(weight_of(models[0], name), weight_of(models[2], name))


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({}, Length(seconds=60.0)),
        ({"time": "90s"}, Length(seconds=90.0)),
        ({"time": "2m"}, Length(seconds=120.0)),
        ({"time": "3 epochs"}, Length(epochs=3.0)),
        ({"time": "0.5 epochs"}, Length(epochs=0.5)),
        ({"time": "500 steps"}, Length(steps=500)),
        ({"epochs": 2.5}, Length(epochs=2.5)),
        ({"steps": 7}, Length(steps=7)),
    ],
)
def test_length(settings: dict[str, Any], length: Length) -> None:
    assert Recover(**settings).length() == length


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time": "60"}, r"time='60' must be"),
        ({"time": "2.5 steps"}, "whole steps"),
        ({"time": "0s"}, "above 0"),
        ({"time": "soon"}, "time='soon'"),
        ({"time": 60}, "time=60"),
        ({"time": "60s", "epochs": 1}, "only one length"),
        ({"steps": 0}, "steps=0"),
        ({"lr": 0.0}, "lr=0"),
        ({"alpha": 1.1}, "alpha=1.1"),
        ({"temperature": 0}, "temperature=0"),
        ({"train": "form"}, "Did you mean 'forms'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recover(**settings)


def test_types_and_overrides_do_not_apply() -> None:
    from laconic.weights.base import Override, Where

    for more in ({"where": Where(types=("linear",))}, {"overrides": (Override(("*",), {}),)}):
        with pytest.raises(ConfigError, match="do not apply to training"):
            Recover(**more)  # type: ignore[arg-type]


def test_registered_with_a_shorthand() -> None:
    entry = get("recover")
    assert (entry.family, entry.cls, entry.cls.shorthand) == ("recover", Recover, "time")
