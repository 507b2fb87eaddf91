"""The loop: what it restores, what it refuses, and that its mathematics is that of torch."""

from __future__ import annotations

from collections.abc import Iterator
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


def blobs(count: int = 256, seed: int = 0) -> TensorSplit:
    source = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0]])
    y = torch.randint(3, (count,), generator=source)
    return TensorSplit({"x": centres[y] + torch.randn(count, 4, generator=source), "y": y})


def task_of(split: TensorSplit | None = None, batch_size: int = 32) -> Task:
    train = split or blobs()
    return Task(kind="classification", test=blobs(64, 1), train=train, batch_size=batch_size)


def net(seed: int = 0, dropout: float = 0.2) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)
    )


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_agrees_with_a_loop_written_by_hand() -> None:
    data, steps, peak = blobs(), 12, 3e-3
    ours, theirs = net(dropout=0.0), net(dropout=0.0)
    fit(ours, task_of(data), steps=steps, lr=peak, weight_decay=0.1, warmup=0.25, clip=0.5, seed=7)
    decayed = [p for p in theirs.parameters() if p.dim() > 1]
    plain = [p for p in theirs.parameters() if p.dim() == 1]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        foreach=False,
    )
    batches: list[Batch] = []
    for epoch in range(2):  # 256 / 32 = 8 batches an epoch
        batches += data.batches(32, generator=generator_for(7, "epoch", epoch))
    theirs.train()
    for step in range(steps):
        factor = (step + 1) / 3 if step < 3 else 0.5 * (1 + cos(pi * (step - 3) / 9))
        for group in adamw.param_groups:
            group["lr"] = peak * factor
        adamw.zero_grad()
        F.cross_entropy(theirs(batches[step]["x"]), batches[step]["y"]).backward()
        nn.utils.clip_grad_norm_([*decayed, *plain], 0.5)
        adamw.step()
    for (name, mine), other in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        assert torch.allclose(mine, other, atol=1e-6), name


def test_learns_and_says_what_it_did() -> None:
    model, task = net(), task_of()
    summary = fit(model, task, epochs=10, lr=1e-2)
    assert (summary.steps, summary.epochs, summary.resumed_at) == (80, 10.0, None)
    assert summary.last_loss < 0.6 * summary.first_loss
    assert summary.trained_values == sum(p.numel() for p in model.parameters())
    test = next(task.test.batches(64))
    model.eval()
    assert (model(test["x"]).argmax(-1) == test["y"]).float().mean() > 0.75


def test_same_seed_same_bits_other_seed_other_bits() -> None:
    models = [net(), net(), net()]
    for model, seed in zip(models, (3, 3, 4), strict=True):
        torch.rand(seed)  # what was drawn before must not matter
        fit(model, task_of(), steps=9, seed=seed)
    assert same(state(models[0]), state(models[1]))
    assert not same(state(models[0]), state(models[2]))


@pytest.mark.parametrize("fails", [False, True])
def test_leaves_modes_flags_gradients_and_random_state(fails: bool) -> None:
    model, teacher, task = net(), net(1), task_of()
    model.train()
    model[1].eval()
    teacher.train()
    model[0].bias.requires_grad_(False)
    model[0].weight.grad = kept = torch.ones_like(model[0].weight)
    frozen, teaching = model[0].bias.clone(), state(teacher)
    modes = [m.training for m in model.modules()]
    drawn = torch.get_rng_state()
    if fails:
        task.train.tensors["x"][5] = float("nan")  # type: ignore[union-attr]
        with pytest.raises(ConfigError, match=r"step \d of 8.*finite"):
            fit(model, task, steps=8, teacher=teacher)
    else:
        fit(model, task, steps=8, teacher=teacher)
    assert [m.training for m in model.modules()] == modes
    assert all(m.training for m in teacher.modules())
    assert same(teaching, state(teacher))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model[0].weight.grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    assert torch.equal(model[0].bias, frozen)
    assert not model[0].bias.requires_grad
    assert model[0].weight.requires_grad
    assert model[4].weight.grad is None


def test_only_named_parameters_move() -> None:
    model = net()
    before = state(model)
    fit(model, task_of(), steps=3, parameters=["4.bias", "0.weight"], fixed_norms=True)
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {"4.bias", "0.weight"}
    with pytest.raises(ConfigError, match=r"'4\.bais'.*'4\.bias'"):
        fit(model, task_of(), steps=1, parameters=["4.bais"])


def test_running_statistics_move_unless_fixed() -> None:
    for fixed in (False, True):
        model = net()
        before = model[1].running_mean.clone()
        fit(model, task_of(), steps=2, fixed_norms=fixed)
        assert torch.equal(model[1].running_mean, before) is fixed


def test_short_last_batch_is_left_out() -> None:
    seen: list[int] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        seen.append(len(batch["x"]))
        return F.cross_entropy(model(batch["x"]), batch["y"])

    data = blobs(65)  # two batches of 32 and one example, on which batch norm would fail
    summary = fit(net(), loss, data=data, epochs=2, batch_size=32)
    assert seen == [32, 32, 32, 32]
    assert summary.steps == 4
    seen.clear()
    fit(net(), loss, data=data, epochs=1, batch_size=100)
    assert seen == [65]


def test_half_precision_moves_where_plain_adam_would_stand_still() -> None:
    model = net().bfloat16()
    with torch.no_grad():
        model[4].weight.fill_(1.0)
    train = blobs()
    x = train.tensors["x"].bfloat16()
    task = task_of(TensorSplit({"x": x, "y": train.tensors["y"]}))
    # A step of 1e-4 is far below half the spacing of bfloat16 at 1 (2**-8): only a float32
    # master can add forty of them up.
    fit(model, task, steps=80, lr=2e-4, weight_decay=0.0)
    assert model[4].weight.dtype == torch.bfloat16
    assert (model[4].weight != 1.0).any()


def test_time_box_says_both_and_is_kept() -> None:
    model = net()
    summary = fit(model, task_of(), seconds=1.0)
    assert summary.asked_seconds == 1.0
    assert summary.step_seconds is not None
    assert summary.steps > 3
    assert summary.steps * summary.step_seconds < 1.0
    assert summary.seconds < 10.0
    # measuring left no trace: the same number of steps asked for directly gives the same bits
    again = net()
    fit(again, task_of(), steps=summary.steps)
    assert same(state(model), state(again))


class Tracked:
    def __init__(self) -> None:
        self.done, self.finished = 0, False

    def start(self, label: str, total: int | None) -> int:
        self.total = total
        return 1

    def advance(self, id: int, n: int = 1, note: str = "") -> None:
        self.done += n

    def finish(self, id: int) -> None:
        self.finished = True


def test_progress_is_told_each_step() -> None:
    progress = Tracked()
    fit(net(), task_of(), steps=5, progress=progress)  # type: ignore[arg-type]
    assert (progress.total, progress.done, progress.finished) == (5, 5, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one"),
        ({"steps": 1, "epochs": 1}, "exactly one"),
        ({"steps": 0}, "steps=0"),
        ({"seconds": -1.0}, "seconds=-1"),
        ({"steps": 1, "lr": 0.0}, "lr=0"),
        ({"steps": 1, "warmup": 2.0}, "warmup=2"),
        ({"steps": 1, "alpha": 1.5, "teacher": net()}, "alpha=1.5"),
        ({"steps": 1, "batch_size": 0}, "batch_size=0"),
        ({"steps": 1, "hidden": ["0"]}, "needs a teacher"),
        ({"steps": 1, "hidden": ["9"], "teacher": net()}, "no module '9'"),
        ({"steps": 1, "data": TensorSplit({"x": torch.empty(0, 4)})}, "no training examples"),
        ({"steps": 1, "parameters": []}, "nothing to train"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(net(), task_of(), **settings)  # type: ignore[arg-type]


def test_a_loss_function_takes_no_teacher() -> None:
    with pytest.raises(ConfigError, match="needs a Task"):
        fit(net(), lambda m, b: m(b["x"]).sum(), data=blobs(), steps=1, teacher=net())


def test_a_split_without_batches_is_refused() -> None:
    class Empty:
        def __len__(self) -> int:
            return 5

        def batches(
            self, size: int, *, generator: torch.Generator | None = None
        ) -> Iterator[Batch]:
            return iter(())

    with pytest.raises(ConfigError, match="no batch"):
        fit(net(), task_of(), data=Empty(), steps=1)


def test_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    fit(net(), task_of(), steps=2, checkpoint=path, table_lr=1e-4)
    with pytest.raises(ConfigError, match=r"another run \(lr 0.001 -> 0.5\)"):
        fit(net(), task_of(), steps=2, checkpoint=path, lr=0.5, table_lr=1e-4)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ConfigError, match="cannot be read"):
        fit(net(), task_of(), steps=2, checkpoint=path)
