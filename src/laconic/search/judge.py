"""Fitness of a candidate on a batch: the distance from the dense model, or the task's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from laconic.errors import ConfigError, nearest
from laconic.task import Batch, Task, scored_tokens

FITNESSES = ("kl", "topk_kl", "perplexity", "loss")
_TOP = 512
_ROWS = 4096  # predictions whose vocabulary is worked on at once


@dataclass(frozen=True)
class Judge:
    """Says how good outputs are: a sum over predictions and how many there were.

    Attributes:
        name: As it was asked for.
        dense: The dense model's outputs are needed.
        target: ``(outputs of the dense model, batch)`` -> what is kept of them for a minibatch.
        score: ``(target, outputs, batch)`` -> sum and count.
        final: What the mean becomes in the end.
    """

    name: str
    dense: bool
    target: Callable[[Tensor, Batch], Any]
    score: Callable[[Any, Tensor, Batch], tuple[float, int]]
    final: Callable[[float], float] = float


def make_judge(fitness: str, task: Task, *, top_k: int = _TOP) -> Judge:
    """Return the judge of a fitness; lower is better for each.

    Args:
        fitness: ``"kl"``: mean KL divergence of the candidate's predictions from the dense
            model's, the last position of a text aside; ``"topk_kl"``: of the ``top_k`` classes
            that the dense model finds likeliest, both renormalised on them; ``"perplexity"``;
            ``"loss"``: the task's; ``"min:NAME"`` or ``"max:NAME"``: a metric of the task, or
            ``top1`` of a classifier.
        task: The task.
        top_k: Classes of ``"topk_kl"``; the paper advises at least 512.

    Raises:
        ConfigError: Unknown fitness, or one that the task does not have.
    """
    if fitness in ("kl", "topk_kl") and task.kind == "regression":
        raise ConfigError(f"search: fitness={fitness!r} needs logits; a regression has 'loss'.")
    if fitness == "kl":
        return Judge("kl", True, _log_softmax, _divergence(task))
    if fitness == "topk_kl":
        if top_k < 2:
            raise ConfigError(f"search: top_k={top_k} must be at least 2.")
        return Judge("topk_kl", True, _top(top_k), _top_divergence(task))
    if fitness == "perplexity":
        if task.kind != "causal-lm":
            raise ConfigError(f"search: a {task.kind} task has no perplexity; use 'kl' or 'loss'.")
        return Judge("perplexity", False, _nothing, _nats, lambda mean: exp(min(mean, 700.0)))
    if fitness == "loss":
        return Judge("loss", False, _nothing, _loss(task))
    sign, _, name = fitness.partition(":")
    if sign in ("min", "max") and name:
        return Judge(fitness, False, _nothing, _metric(task, name, 1.0 if sign == "min" else -1.0))
    raise ConfigError(
        f"search: fitness={fitness!r} must be one of {list(FITNESSES)}, or min:NAME or max:NAME of "
        f"a metric.{nearest(fitness, FITNESSES)}"
    )


def _nothing(outputs: Tensor, batch: Batch) -> None:
    return None


def _counted(task: Task, batch: Batch, shape: torch.Size) -> Tensor | None:
    """Return which predictions count, (examples, tokens); None where all do."""
    if task.kind != "causal-lm":
        return None
    _, counted = scored_tokens(batch)
    last = torch.zeros(len(counted), 1, dtype=torch.bool, device=counted.device)
    return torch.cat([counted, last], 1)


def _log_softmax(outputs: Tensor, batch: Batch) -> Tensor:
    return outputs.float().log_softmax(-1)


def _rows(task: Task, batch: Batch, *tensors: Tensor) -> list[Tensor]:
    """Return the predictions that count, as rows (predictions, classes)."""
    counted = _counted(task, batch, tensors[0].shape)
    if counted is None:
        return [t.reshape(-1, t.shape[-1]) for t in tensors]
    return [t[counted] for t in tensors]


def _divergence(task: Task) -> Callable[[Any, Tensor, Batch], tuple[float, int]]:
    def score(target: Tensor, outputs: Tensor, batch: Batch) -> tuple[float, int]:
        p, q = _rows(task, batch, target, outputs)
        return sum(_kl(p[i : i + _ROWS], q[i : i + _ROWS]) for i in range(0, len(p), _ROWS)), len(p)

    return score


def _kl(p: Tensor, logits: Tensor) -> float:
    """Return the summed KL divergence of rows from log-probabilities ``p``."""
    gap = p - logits.float().log_softmax(-1)
    gap = torch.where(p.isneginf(), 0.0, gap)  # 0 ln 0 is 0: a class that is masked out
    return float((p.exp() * gap).sum(-1).double().clamp_min(0.0).sum())


def _top(k: int) -> Callable[[Tensor, Batch], tuple[Tensor, Tensor]]:
    def target(outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        values, index = outputs.float().topk(min(k, outputs.shape[-1]), dim=-1)
        return values.log_softmax(-1), index

    return target


def _top_divergence(task: Task) -> Callable[[Any, Tensor, Batch], tuple[float, int]]:
    def score(target: Any, outputs: Tensor, batch: Batch) -> tuple[float, int]:
        p, q = _rows(task, batch, target[0], outputs.gather(-1, target[1]))
        return _kl(p, q), len(p)

    return score


def _nats(target: Any, outputs: Tensor, batch: Batch) -> tuple[float, int]:
    targets, counted = scored_tokens(batch)
    rows, wanted = outputs[:, :-1][counted].float(), targets[counted]
    return float(F.cross_entropy(rows, wanted, reduction="none").double().sum()), len(wanted)


def _loss(task: Task) -> Callable[[Any, Tensor, Batch], tuple[float, int]]:
    def score(target: Any, outputs: Tensor, batch: Batch) -> tuple[float, int]:
        count = len(outputs)
        if task.kind == "causal-lm":
            count = int(scored_tokens(batch)[1].sum())
        return count * float(task.compute_loss(outputs, batch)), count

    return score


def _metric(
    task: Task, name: str, sign: float
) -> Callable[[Any, Tensor, Batch], tuple[float, int]]:
    metric = task.metrics.get(name)
    if metric is None and name == "top1" and task.kind == "classification":

        def metric(outputs: Tensor, batch: Batch) -> Tensor:
            return (outputs.argmax(-1) == batch["y"]).double()

    if metric is None:
        known = [*task.metrics, *(["top1"] if task.kind == "classification" else [])]
        raise ConfigError(
            f"search: task {task.name!r} has no metric {name!r}.{nearest(name, known)} It has "
            f"{known}."
        )
    found = metric

    def score(target: Any, outputs: Tensor, batch: Batch) -> tuple[float, int]:
        values = found(outputs, batch).double()
        return sign * float(values.sum()), len(values)

    return score
