"""How good a model is at its task, with an interval around every figure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from math import exp
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.measure.intervals import Metric, quotient, share
from laconic.measure.running import SplitName, judged, require_finite, run, walk
from laconic.progress import Progress
from laconic.task import Batch, Task, scored_tokens

Rows = dict[str, Tensor]  # what each batch leaves behind: values for its examples


def evaluate(
    model: nn.Module,
    task: Task,
    *,
    split: SplitName = "test",
    device: str | torch.device = "cpu",
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a model on held-out examples.

    The figures do not depend on the batch size, beyond what the model itself does. The model's
    modes and device are restored.

    Args:
        model: Any model that ``task.forward`` can run.
        task: Data, kind, further metrics.
        split: ``"test"``, ``"train"`` or ``"calibration"``.
        device: Where to run.
        limit: At most this many examples, the first of them.
        progress: Takes reports.

    Returns:
        Metrics by name, each ``{"value", "low", "high", "n"}`` with a 95 % interval.
        Classification: ``top1`` (Wilson), ``loss``, ``per_class`` (metrics by class name) and
        ``worst_class``, which also has the class as ``name``. Causal language model:
        ``perplexity`` and ``loss`` in nats a token, n in tokens, bootstrap over windows.
        Regression: ``mse``, ``r2``, ``loss``. Any kind: the task's own metrics, averaged.

    Raises:
        BackendError: An output or a loss is NaN or infinite; says at which examples.
        ConfigError: No examples, or targets that do not fit the task.

    Example:
        >>> from laconic import datasets, measure, zoo
        >>> task = datasets.load("digits")
        >>> figures = measure.evaluate(zoo.digits_vit(), task, limit=100)
        >>> figures["top1"]["n"]
        100
    """
    look = _LOOKS[task.kind]
    rows: list[Rows] = []
    steps = walk(task, split, device=device, limit=limit, progress=progress)
    with judged(model, device), closing(steps):
        for place, batch in steps:
            outputs = run(model, task, batch, place)
            found = {**look(outputs, batch, task), **_own(outputs, batch, task, place)}
            rows.append({k: require_finite(v, k, place).cpu() for k, v in found.items()})
    joined = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
    figures = _SUMMARIES[task.kind](joined, task)
    for name in task.metrics:
        figures[name] = quotient(joined[f"metric {name}"])
    return figures


def _own(outputs: Tensor, batch: Batch, task: Task, place: str) -> Rows:
    """Return the task's own metrics, one value an example."""
    size = len(next(iter(batch.values())))
    values = {}
    for name, metric in task.metrics.items():
        found = metric(outputs, batch)
        if found.shape != (size,):
            raise ConfigError(
                f"{place}: metric {name!r} gave shape {tuple(found.shape)}; it must give one"
                f" value an example, ({size},)."
            )
        values[f"metric {name}"] = found.double()
    return values


def _losses(outputs: Tensor, batch: Batch, task: Task) -> Tensor:
    """Return the loss of each example; a given loss is a mean, so a batch shares its value."""
    if task.loss is None and task.kind == "classification":
        return F.cross_entropy(outputs.float(), batch["y"], reduction="none").double()
    if task.loss is None and task.kind == "regression":
        errors = (outputs.double() - batch["y"].double()).square()
        return errors.flatten(1).mean(1) if errors.ndim > 1 else errors
    size = len(next(iter(batch.values())))
    return task.compute_loss(outputs, batch).double().expand(size)


def _look_classification(outputs: Tensor, batch: Batch, task: Task) -> Rows:
    if outputs.ndim != 2:
        raise ConfigError(
            f"task {task.name!r}: a classifier must return (examples, classes), got"
            f" {tuple(outputs.shape)}. Give Task(forward=...) or another kind."
        )
    _require_range(batch["y"], outputs.shape[1], "label", "classes", task)
    hits = outputs.argmax(1) == batch["y"]
    return {"loss": _losses(outputs, batch, task), "hit": hits.long(), "y": batch["y"]}


def _require_range(targets: Tensor, count: int, what: str, of: str, task: Task) -> None:
    if len(wrong := targets[(targets < 0) | (targets >= count)]):
        raise ConfigError(
            f"task {task.name!r}: {what} {int(wrong[0])} does not fit the model, which has"
            f" {count} {of}; give 0..{count - 1}, or the model that belongs to the task."
        )


def _sum_classification(rows: Rows, task: Task) -> dict[str, Any]:
    hits, labels = rows["hit"], rows["y"]
    per_class: dict[str, Metric] = {}
    for label in sorted(set(labels.tolist())):
        mine = hits[labels == label]
        name = task.classes[label] if label < len(task.classes) else str(label)
        per_class[name] = share(int(mine.sum()), len(mine))
    worst = min(per_class, key=lambda name: per_class[name]["value"])
    return {
        "top1": share(int(hits.sum()), len(hits)),
        "loss": quotient(rows["loss"]),
        "worst_class": {**per_class[worst], "name": worst},
        "per_class": per_class,
    }


def _look_language(outputs: Tensor, batch: Batch, task: Task) -> Rows:
    targets, counted = scored_tokens(batch)
    if outputs.ndim != 3 or outputs.shape[:2] != batch["input_ids"].shape:
        raise ConfigError(
            f"task {task.name!r}: a language model must return (examples, tokens, vocabulary),"
            f" got {tuple(outputs.shape)}. Give Task(forward=...) or another kind."
        )
    _require_range(targets[counted], outputs.shape[2], "token", "tokens", task)
    logits = outputs[:, :-1].float()
    nats = F.cross_entropy(
        logits.flatten(0, 1), targets.masked_fill(~counted, 0).flatten(), reduction="none"
    )
    nats = torch.where(counted, nats.view_as(targets), 0.0).double()
    return {"nats": nats.sum(1), "tokens": counted.sum(1)}


def _sum_language(rows: Rows, task: Task) -> dict[str, Any]:
    count = int(rows["tokens"].sum())
    if count == 0:
        raise ConfigError(f"task {task.name!r}: no token counts; windows need two tokens or more.")
    loss = quotient(rows["nats"], rows["tokens"], n=count)
    perplexity = quotient(rows["nats"], rows["tokens"], n=count, through=_perplexity)
    return {"perplexity": perplexity, "loss": loss}


def _perplexity(nats: float) -> float:
    return exp(min(nats, 700.0))  # e**709 is the largest float


def _look_regression(outputs: Tensor, batch: Batch, task: Task) -> Rows:
    target = batch["y"].double()
    if outputs.shape != target.shape:
        raise ConfigError(
            f"task {task.name!r}: the model returned {tuple(outputs.shape)} for targets"
            f" {tuple(target.shape)}. Give Task(forward=...) that returns the targets' shape."
        )
    error = (outputs.double() - target).square().flatten(1 if target.ndim > 1 else 0)
    flat = target.reshape(len(target), -1)
    return {
        "loss": _losses(outputs, batch, task),
        "error": error.reshape(len(target), -1).mean(1),
        "target": flat,
    }


def _sum_regression(rows: Rows, task: Task) -> dict[str, Any]:
    target = rows["target"]
    spread = (target - target.mean(0)).square().mean(1)
    figures: dict[str, Any] = {"mse": quotient(rows["error"]), "loss": quotient(rows["loss"])}
    if float(spread.sum()) > 0:  # R^2 has no value where all targets are equal
        figures["r2"] = quotient(rows["error"], spread, through=lambda share: 1.0 - share)
    return figures


def _look_custom(outputs: Tensor, batch: Batch, task: Task) -> Rows:
    return {"loss": _losses(outputs, batch, task)}


def _sum_custom(rows: Rows, task: Task) -> dict[str, Any]:
    return {"loss": quotient(rows["loss"])}


_LOOKS: dict[str, Callable[[Tensor, Batch, Task], Rows]] = {
    "classification": _look_classification,
    "causal-lm": _look_language,
    "regression": _look_regression,
    "custom": _look_custom,
}
_SUMMARIES: dict[str, Callable[[Rows, Task], dict[str, Any]]] = {
    "classification": _sum_classification,
    "causal-lm": _sum_language,
    "regression": _sum_regression,
    "custom": _sum_custom,
}
