"""A run killed at any step ends with the same bits as one that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laconic.task import Task, TensorSplit
from laconic.training import FitSummary, fit


def task_of(dtype: torch.dtype = torch.float32) -> Task:
    source = torch.Generator().manual_seed(0)
    y = torch.randint(3, (256,), generator=source)
    x = 2 * torch.eye(3, 4)[y] + torch.randn(256, 4, generator=source)
    split = TensorSplit({"x": x.to(dtype), "y": y})
    return Task(kind="classification", test=split, train=split, batch_size=32)


def net(seed: int = 0, dropout: float = 0.2) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)
    )


def distil(dtype: torch.dtype, path: Path, **more: Any) -> nn.Module:
    model, teacher = net().to(dtype), net(9, 0.0).to(dtype)
    fit(
        model,
        task_of(dtype),
        steps=40,
        seed=5,
        lr=1e-2,
        teacher=teacher,
        checkpoint=path,
        checkpoint_seconds=0,
        **more,
    )
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


SCRIPT = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_resume import distil

class Slow:
    def start(self, label, total):
        return 0
    def advance(self, id, n=1, note=""):
        sys.stdout.write("step\\n"); sys.stdout.flush(); time.sleep(0.01)
    def finish(self, id):
        raise SystemExit("was not killed")

distil(getattr(torch, sys.argv[3]), Path(sys.argv[2]), progress=Slow())
"""


def launch(path: Path, dtype: str) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parents[1] / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(here), str(path), dtype],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sigkill_then_resume_gives_the_same_bits(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "run.pt"
    for steps in (3, 14):  # killed twice, in different epochs
        process = launch(path, dtype)
        assert process.stdout is not None
        for _ in range(steps):
            assert process.stdout.readline() == "step\n"
        time.sleep(0.005 * steps % 0.013)
        process.send_signal(signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL
        process.stdout.close()
    assert 10 < torch.load(path, weights_only=True)["position"]["step"] < 40
    resumed = distil(getattr(torch, dtype), path)
    alone = distil(getattr(torch, dtype), tmp_path / "alone.pt")
    assert same(state(resumed), state(alone))
    assert not same(state(resumed), state(net().to(getattr(torch, dtype))))


class Killed(Exception):  # noqa: N818
    pass


class Killer:
    """Stops a run after some steps, as a user's interrupt would."""

    def __init__(self, after: int) -> None:
        self.left = after + 1

    def start(self, label: str, total: int | None) -> int:
        return 0

    def advance(self, id: int, n: int = 1, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed

    def finish(self, id: int) -> None:
        return None


@pytest.mark.parametrize("every", [0.0, 30.0])
@pytest.mark.parametrize("after", [0, 1, 7, 8, 9, 19])
def test_any_step(tmp_path: Path, after: int, every: float) -> None:
    path, alone = tmp_path / "run.pt", net()
    fit(alone, task_of(), steps=20)
    stopped = net()
    with pytest.raises(Killed):
        fit(
            stopped,
            task_of(),
            steps=20,
            checkpoint=path,
            checkpoint_seconds=every,
            progress=Killer(after),  # type: ignore[arg-type]
        )
    resumed = net()
    summary = fit(resumed, task_of(), steps=20, checkpoint=path, checkpoint_seconds=every)
    # step n+1 is saved only after its report: with every=0 what was saved last is step "after - 1"
    assert summary.resumed_at == (max(after - 1, 0) if every == 0 else 0)
    assert same(state(alone), state(resumed))
    finished = net()
    assert fit(finished, task_of(), steps=20, checkpoint=path).resumed_at == 20
    assert same(state(alone), state(finished))


def test_time_box_is_planned_once(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"

    def run(progress: Killer | None = None) -> FitSummary:
        model = net()
        return fit(model, task_of(), seconds=0.5, checkpoint=path, progress=progress)  # type: ignore[arg-type]

    with pytest.raises(Killed):
        run(Killer(4))
    planned = torch.load(path, weights_only=True)["plan"]
    summary = run()
    assert planned["seconds"] == summary.asked_seconds == 0.5
    assert summary.steps == planned["total"]
    assert summary.step_seconds == planned["step_seconds"]
