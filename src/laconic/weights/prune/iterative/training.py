"""Masked training through the library's one loop, and the score by which an epoch is chosen."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from laconic.errors import ConfigError
from laconic.measure.running import judged, run, walk
from laconic.seeds import generator_for
from laconic.task import Task, TensorSplit
from laconic.training import fit
from laconic.weights.prune.iterative.masks import Masks

if TYPE_CHECKING:
    from laconic.weights.prune.iterative.loop import Turn

Score = Callable[[nn.Module], float]


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Trains a masked model by :func:`laconic.training.fit`, with a fresh optimizer each time.

    Gradients are clipped, then masked; weights are masked after every step.

    Args:
        task: Gives the loss and, in ``train``, what is trained on; see :func:`held_out`.
        epochs: Passes over the training examples; 200 in the paper.
        lr: Peak learning rate, which falls to zero by a cosine; 0.1 in the paper.
        weight_decay: Decay of matrices; 5e-4 in the paper.
        batch_size: Examples of a step; the task's where None.
        optimizer: ``sgd`` with Nesterov's momentum of 0.9 as in the paper, or ``adamw``.
        clip: Largest norm of the gradient; 1 as in the published code.
        parameters: Names of what is trained; all that require a gradient where None.
        device: Where to train.
    """

    task: Task
    epochs: int = 200
    lr: float = 0.1
    weight_decay: float = 5e-4
    batch_size: int | None = None
    optimizer: Literal["sgd", "adamw"] = "sgd"
    clip: float = 1.0
    parameters: tuple[str, ...] | None = None
    device: str | torch.device = "cpu"

    def __call__(self, model: nn.Module, masks: Masks, turn: Turn) -> None:
        """Train a model in place; tells the turn of every epoch."""
        fit(
            model,
            self.task,
            epochs=self.epochs,
            lr=self.lr,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            warmup=0.0,
            clip=self.clip,
            parameters=self.parameters,
            masks=masks.kept,
            each_epoch=turn.epoch_done,
            checkpoint=turn.checkpoint,
            progress=turn.progress,
            seed=turn.seed,
            device=self.device,
            label=f"training {turn.iteration}",
        )


def held_out(task: Task, share: float = 0.1, *, seed: int = 0) -> tuple[Task, Task]:
    """Split off validation examples, by which epochs and masks are chosen, from the training ones.

    Args:
        task: Its test examples go to both results untouched, and are used by neither choice.
        share: Share of the training examples, above 0 and below 1.
        seed: Draws them.

    Returns:
        The task with the rest as ``train``, and the task with the validation examples as
        ``test``.

    Raises:
        ConfigError: No training examples, some that cannot be split, or too few.
    """
    split = task.train
    if not isinstance(split, TensorSplit):
        kind = "no train split" if split is None else f"a train split of {type(split).__name__}"
        raise ConfigError(
            f"task {task.name!r} has {kind}; a TensorSplit is needed, of which some examples are "
            "held out to choose epochs and masks. Give Task(train=TensorSplit(...))."
        )
    count = round(share * len(split))
    if not 0 < count < len(split):
        raise ConfigError(
            f"task {task.name!r}: a share of {share} of {len(split)} training examples leaves "
            f"{count} to validate with and {len(split) - count} to train on; both need some."
        )
    order = torch.randperm(len(split), generator=generator_for(seed, "validation"))
    held, rest = order[:count], order[count:]
    parts = [TensorSplit({k: t[rows] for k, t in split.tensors.items()}) for rows in (rest, held)]
    return replace(task, train=parts[0]), replace(task, test=parts[1], train=None)


def scorer(task: Task, *, device: str | torch.device = "cpu") -> Score:
    """Return a function that scores a model on a task's test examples; the higher the better.

    The share of right answers for a classification, minus the mean loss for anything else.
    """

    def score(model: nn.Module) -> float:
        total, count = 0.0, 0
        steps = walk(task, "test", device=device, label="score")
        with judged(model, device), closing(steps):
            for place, batch in steps:
                outputs = run(model, task, batch, place)
                size = len(next(iter(batch.values())))
                if task.kind == "classification":
                    total += int((outputs.argmax(1) == batch["y"]).sum())
                else:
                    total -= float(task.compute_loss(outputs, batch)) * size
                count += size
        return total / count

    return score
