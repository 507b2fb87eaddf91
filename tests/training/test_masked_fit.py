"""Training with places that stay zero, by SGD, and what is told at the end of every epoch."""

from __future__ import annotations

from math import cos, pi
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.seeds import generator_for
from laconic.task import Batch, Task, TensorSplit
from laconic.training import fit


def blobs(count: int = 96) -> TensorSplit:
    source = torch.Generator().manual_seed(0)
    centres = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0]])
    y = torch.randint(3, (count,), generator=source)
    return TensorSplit({"x": centres[y] + torch.randn(count, 4, generator=source), "y": y})


def task_of(batch_size: int = 32) -> Task:
    return Task(kind="classification", test=blobs(), train=blobs(), batch_size=batch_size)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def masks() -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(1)
    return {
        "0.weight": torch.rand(16, 4, generator=source) > 0.6,
        "3.weight": torch.rand(3, 16, generator=source) > 0.6,
    }


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_sgd_with_masks_agrees_with_a_loop_written_by_hand() -> None:
    data, steps, held = blobs(), 7, masks()
    ours, theirs = net(), net()
    for model in (ours, theirs):
        model[2].p = 0.0
    fit(
        ours, task_of(), steps=steps, lr=0.1, weight_decay=0.01, warmup=0, clip=0.3, seed=7,
        optimizer="sgd", masks=held,
    )  # fmt: skip
    decayed = [p for p in theirs.parameters() if p.dim() > 1]
    plain = [p for p in theirs.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    sgd = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    batches: list[Batch] = []
    for epoch in range(3):
        batches += data.batches(32, generator=generator_for(7, "epoch", epoch))
    with torch.no_grad():
        for name, mask in held.items():
            theirs.get_parameter(name).mul_(mask)
    theirs.train()
    for step in range(steps):
        for group in sgd.param_groups:
            group["lr"] = 0.1 * 0.5 * (1 + cos(pi * step / steps))
        sgd.zero_grad()
        F.cross_entropy(theirs(batches[step]["x"]), batches[step]["y"]).backward()
        norm = nn.utils.clip_grad_norm_([*decayed, *plain], 0.3)
        assert norm > 0.3, "the whole gradient is clipped, before any of it is masked"
        for name, mask in held.items():
            gradient = theirs.get_parameter(name).grad
            assert gradient is not None
            gradient.mul_(mask)
        sgd.step()
    for (name, mine), other in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        assert torch.allclose(mine, other, atol=1e-6), name


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pruned_places_are_zero_after_every_step(optimizer: str, dtype: torch.dtype) -> None:
    model, held, seen = net().to(dtype), masks(), []

    def look(epoch: int) -> None:
        zeros = [model.get_parameter(name)[~mask] for name, mask in held.items()]
        assert all(torch.equal(part, torch.zeros_like(part)) for part in zeros)
        assert all((model.get_parameter(n)[m] != 0).all() for n, m in held.items())
        seen.append(epoch)

    data = blobs().tensors
    split = TensorSplit({"x": data["x"].to(dtype), "y": data["y"]})
    task = Task(kind="classification", test=split, train=split, batch_size=len(split))
    fit(model, task, epochs=6, lr=0.05, optimizer=optimizer, masks=held, each_epoch=look)
    assert seen == [1, 2, 3, 4, 5, 6]  # one batch an epoch, so that each step was looked at


def test_looking_at_epochs_changes_nothing() -> None:
    plain, watched, epochs = net(), net(), []

    def look(epoch: int) -> None:
        epochs.append(epoch)
        torch.rand(5)
        watched.eval()

    fit(plain, task_of(), steps=7, optimizer="sgd")
    fit(watched, task_of(), steps=7, optimizer="sgd", each_epoch=look)
    assert same(state(plain), state(watched))
    assert epochs == [1, 2, 3]  # the end of a run tells the epoch that it broke off


class StopError(Exception):
    pass


def test_resumes_masked_training_to_the_same_bits(tmp_path: Path) -> None:
    whole, half, file = net(), net(), tmp_path / "run.pt"
    settings = {"epochs": 4, "optimizer": "sgd", "masks": masks(), "checkpoint_seconds": 0}
    fit(whole, task_of(), **settings)

    def stop(epoch: int) -> None:
        if epoch == 2:
            raise StopError

    with pytest.raises(StopError):
        fit(half, task_of(), **settings, checkpoint=file, each_epoch=stop)
    seen: list[int] = []
    summary = fit(net(), task_of(), **settings, checkpoint=file, each_epoch=seen.append)
    again = net()
    fit(again, task_of(), **settings, checkpoint=file)
    assert summary.resumed_at == 5
    assert seen == [2, 3, 4], "the epoch at whose end it was killed is told again"
    assert same(state(whole), state(again))


def test_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"0\.weight has a mask .*\(16, 4\)"):
        fit(net(), task_of(), steps=1, masks={"0.weight": torch.ones(4, 4, dtype=torch.bool)})
    with pytest.raises(ConfigError, match=r"optimizer=adam must be one of \['adamw', 'sgd'\]"):
        fit(net(), task_of(), steps=1, optimizer="adam")
    file = tmp_path / "run.pt"
    fit(net(), task_of(), steps=2, masks=masks(), checkpoint=file)
    with pytest.raises(ConfigError, match=r"belongs to another run.*masks"):
        fit(net(), task_of(), steps=2, checkpoint=file)
