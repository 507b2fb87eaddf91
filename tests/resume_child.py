"""The job that is killed: a small model, its task, and a compression that takes its time.

Run as a program it reads a job a line and forks a process for each, which compresses slowly, so
that a kill can be aimed: every save and every mark of a finished step waits a little, and training
writes its checkpoint after every step. Nothing of that changes a byte.
"""

from __future__ import annotations

import functools
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laconic.pipeline import compress
from laconic.recipe import Recipe
from laconic.result import Result
from laconic.task import Task, TensorSplit

LONG = """
steps:
  - magnitude: {sparsity: 0.5, where: {include: ["0.*", "2.*"]}}
  - recover: {steps: 12, lr: 0.01}
  - kmeans: {bits: 3}
  - recover: {steps: 8, lr: 0.01}
"""
# Training moves the few distinct values of the even model, so that the first share is too large.
TIGHT = """
steps:
  - magnitude
  - recover: {steps: 12, lr: 0.3, train: forms}
"""
JOBS: dict[str, dict[str, Any]] = {
    "long": {"recipe": LONG, "budget": None},
    "tight": {"recipe": TIGHT, "budget": "9kB"},
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model() -> nn.Sequential:
    """Weights of few distinct values."""
    net = nn.Sequential(nn.Linear(12, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(),
                        nn.Linear(48, 4))  # fmt: skip
    with torch.no_grad():
        for seed, parameter in enumerate(net.parameters()):
            parameter.copy_((draw(*parameter.shape, seed=seed) * 3).round() / 16)
    return net


def task() -> Task:
    x = draw(160, 12, seed=99)
    y = x[:, :4].argmax(1)
    return Task(
        kind="classification",
        test=TensorSplit({"x": x[:32], "y": y[:32]}),
        train=TensorSplit({"x": x[32:], "y": y[32:]}),
        batch_size=16,
    )


def run(job: str, out: Path, **more: Any) -> Result:
    """Run a job as it stands in the table, or with other arguments."""
    given: dict[str, Any] = {**JOBS[job], "model": model(), "task": task(), "threads": 1, **more}
    recipe = Recipe.from_yaml(given.pop("recipe"))
    return compress(given.pop("model"), recipe, given.pop("task"), out=out, **given)


def slowed(work: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """Return a function that waits before and after it works."""

    @functools.wraps(work)
    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        value = work(*args, **kwargs)
        time.sleep(seconds)
        return value

    return slow


def slow_down() -> None:
    """Make moments long enough to be met."""
    from laconic import checkpoints, result, runner, survey
    from laconic.weights.recover import finetune

    finetune.fit = functools.partial(finetune.fit, checkpoint_seconds=0)
    checkpoints.WorkFolder.finish = slowed(checkpoints.WorkFolder.finish, 0.02)  # type: ignore[method-assign]
    result.write = slowed(result.write, 0.05)
    for module in (runner, survey):
        module.save_state = slowed(module.save_state, 0.01)


def tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def serve() -> None:
    """Read ``JOB<tab>OUT<tab>RESUME`` a line; print the process id, then how it ended."""
    import accelerate  # noqa: F401 - imported once, before the first fork

    slow_down()
    for line in sys.stdin:
        job, out, resume = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            try:
                run(job, Path(out), resume=resume == "resume")
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        tell(child)
        tell(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    serve()
