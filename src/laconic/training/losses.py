"""What training minimises: the task's loss, a teacher's answers, or a mixture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from laconic.errors import ConfigError, nearest
from laconic.task import Batch, Task

Distance = Literal["kl", "mse"]
LossFunction = Callable[[nn.Module, Batch], Tensor]


def distillation_loss(
    student: Tensor, teacher: Tensor, *, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Return ``T**2 * KL(teacher || student)`` of softened predictions, a mean per prediction.

    Args:
        student: Logits (..., classes).
        teacher: Logits (..., classes).
        temperature: T, above 0; both logits are divided by it.
        mask: Predictions that count, (...), 1 or 0; all where None.

    Source: Hinton, Vinyals & Dean 2015, section 2; the factor keeps gradients of the same size
    whatever the temperature.
    """
    log_p = F.log_softmax(student.float() / temperature, dim=-1)
    log_q = F.log_softmax(teacher.float() / temperature, dim=-1)
    each = F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)
    return temperature**2 * _mean(each, mask)


def matching_loss(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return the squared error of outputs, relative to the teacher's mean square.

    Args:
        student: Outputs (..., features).
        teacher: Outputs (..., features).
        mask: Predictions that count, (...), 1 or 0; all where None.
    """
    wanted = teacher.float()
    each = (student.float() - wanted).square()
    size = wanted.square().mean().clamp_min(1e-12)
    flat = each.mean(-1) if each.dim() > 1 else each
    return _mean(flat, mask) / size


def _mean(each: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None or mask.shape != each.shape:
        return each.mean()
    weight = mask.to(each.dtype)
    return (each * weight).sum() / weight.sum().clamp_min(1.0)


@dataclass(frozen=True)
class Objective:
    """Computes the loss of a model on a batch.

    Args:
        task: Gives the outputs and the task's own loss; or a function of model and batch.
        teacher: Gives the outputs to be matched; None trains on the task alone.
        temperature: Softening of both predictions.
        alpha: Share of distillation, 0..1; at 1 the labels are not used at all.
        distance: ``kl`` compares predictions as distributions, ``mse`` as numbers.
        hidden: Names of modules whose outputs are matched too.
        hidden_weight: Weight of their mean relative squared error.
    """

    task: Task | LossFunction
    teacher: nn.Module | None = None
    temperature: float = 2.0
    alpha: float = 0.5
    distance: Distance = "kl"
    hidden: tuple[str, ...] = ()
    hidden_weight: float = 1.0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the scalar loss."""
        if not isinstance(self.task, Task):
            return self.task(model, batch)
        if self.teacher is None:
            return self.task.compute_loss(self.task.forward(model, batch), batch)
        with listening(self.teacher, self.hidden) as wanted, torch.no_grad():
            aim = self.task.forward(self.teacher, batch)
        with listening(model, self.hidden) as seen:
            outputs = self.task.forward(model, batch)
        loss = self.alpha * self._distance(outputs, aim, batch)
        if self.alpha < 1:
            loss = loss + (1 - self.alpha) * self.task.compute_loss(outputs, batch)
        if self.hidden:
            each = [matching_loss(seen[name], wanted[name]) for name in self.hidden]
            loss = loss + self.hidden_weight * torch.stack(each).mean()
        return loss

    def _distance(self, outputs: Tensor, aim: Tensor, batch: Batch) -> Tensor:
        mask = batch.get("attention_mask")
        if self.distance == "mse":
            return matching_loss(outputs, aim, mask=mask)
        return distillation_loss(outputs, aim, temperature=self.temperature, mask=mask)


def default_distance(task: Task | LossFunction) -> Distance:
    """Return how outputs of a task are compared: numbers for regression, else distributions."""
    return "mse" if isinstance(task, Task) and task.kind == "regression" else "kl"


@contextmanager
def listening(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Fill a dictionary with the outputs of named modules while the block runs.

    Raises:
        ConfigError: The model has no module of a name; has the nearest one.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    modules = dict(inner.named_modules())
    seen: dict[str, Tensor] = {}
    handles = []
    try:
        for name in names:
            if name not in modules:
                raise ConfigError(f"hidden: no module {name!r}.{nearest(name, modules)}")
            handles.append(modules[name].register_forward_hook(_keeper(seen, name)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _keeper(seen: dict[str, Tensor], name: str) -> Callable[..., None]:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen[name] = output[0] if isinstance(output, tuple | list) else output

    return keep
