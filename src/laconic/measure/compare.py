"""How far a compressed model is from its original, without regard to the targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.measure.intervals import Metric, quotient
from laconic.measure.running import (
    SplitName,
    judged,
    require_finite,
    run,
    tensors_in,
    walk,
)
from laconic.progress import Progress
from laconic.task import Task, scored_tokens


def logit_kl(
    original: nn.Module,
    compressed: nn.Module,
    task: Task,
    *,
    split: SplitName = "test",
    device: str | torch.device = "cpu",
    limit: int | None = None,
    progress: Progress | None = None,
) -> Metric:
    """Return the mean KL divergence of the compressed model's predictions, in nats.

    It is KL(original || compressed) of each prediction: each example of a classifier, each
    token of a language model that is scored by :func:`laconic.measure.evaluate`.

    Args:
        original: The model before compression.
        compressed: The model after it.
        task: Classification, causal-lm, or custom with logits along the last axis.
        split: Which examples.
        device: Where to run.
        limit: At most this many examples, the first of them.
        progress: Takes reports.

    Returns:
        ``{"value", "low", "high", "n"}``; n counts predictions.

    Raises:
        ConfigError: A regression task, outputs of different shapes, or nothing to predict.
        BackendError: An output is NaN or infinite.
    """
    if task.kind == "regression":
        raise ConfigError(f"logit_kl: task {task.name!r} is a regression, which has no logits.")
    sums, counts = [], []
    steps = walk(task, split, device=device, limit=limit, progress=progress, label="logit KL")
    with judged(original, device), judged(compressed, device), closing(steps):
        for place, batch in steps:
            left, right = (run(model, task, batch, place) for model in (original, compressed))
            if left.shape != right.shape:
                raise ConfigError(
                    f"logit_kl: outputs have shapes {tuple(left.shape)} and {tuple(right.shape)};"
                    " both models must have the same classes."
                )
            kl = divergence(left, right)
            counted = torch.ones_like(kl, dtype=torch.bool)
            if task.kind == "causal-lm":
                kl, counted = kl[:, :-1], scored_tokens(batch)[1]
            kl = torch.where(counted, kl, 0.0).reshape(len(kl), -1)
            sums.append(require_finite(kl.sum(1), "the KL divergence", place).cpu())
            counts.append(counted.reshape(len(kl), -1).sum(1).cpu())
    total = torch.cat(counts)
    if not total.any():
        raise ConfigError(f"logit_kl: task {task.name!r}: no token counts; give longer windows.")
    return quotient(torch.cat(sums), total, n=int(total.sum()))


def divergence(left: Tensor, right: Tensor) -> Tensor:
    """Return KL(softmax(left) || softmax(right)) along the last axis, float64, never below 0."""
    p, q = left.double().log_softmax(-1), right.double().log_softmax(-1)
    gap = torch.where(p.isneginf(), 0.0, p - q)  # 0 ln 0 is 0: a class that is masked out
    return (p.exp() * gap).sum(-1).clamp_min(0.0)


def output_errors(
    original: nn.Module,
    compressed: nn.Module,
    task: Task,
    *,
    split: SplitName = "test",
    device: str | torch.device = "cpu",
    limit: int | None = 256,
) -> dict[str, float]:
    """Return the relative error of each compressed layer's output on held-out inputs.

    Each layer of the compressed model is given what its layer in the original was given, so
    that errors of earlier layers do not add up: ``|y - y'| / |y|`` (Frobenius, over all
    examples). A weight that is used without its module being called, as in
    ``nn.MultiheadAttention``, is judged at the nearest module around it that is called.

    Args:
        original: The model before compression.
        compressed: The model after it, with forms installed; where it has none, every weight
            of two axes or more is judged.
        task: Inputs.
        split: Which examples.
        device: Where to run.
        limit: At most this many examples.

    Returns:
        Errors by the parameter path of the site; a layer whose output is all zero in both has
        error 0, and one that the task never runs has no entry.

    Raises:
        ConfigError: The original lacks a module of the compressed model, or the outputs of a
            layer differ in shape.
        BackendError: An error is NaN or infinite; says at which site.
    """
    names = _site_names(compressed)
    left, right = dict(original.named_modules()), dict(compressed.named_modules())
    _require_modules(names, left)
    with judged(original, device), judged(compressed, device):
        batches = [b for _, b in walk(task, split, device=device, limit=limit)]
        owners = _called_owners(original, task, batches[0], names)
        sums = {owner: [0.0, 0.0] for owner in sorted(set(owners.values()))}
        busy: set[str] = set()
        handles = [
            _compare_at(left[owner], right[owner], owner, total, busy)
            for owner, total in sums.items()
        ]
        try:
            for batch in batches:
                task.forward(original, batch)
        finally:
            for handle in handles:
                handle.remove()
    errors = {name: _relative(*sums[owner]) for name, owner in owners.items()}
    for name, error in errors.items():
        require_finite(torch.tensor(error), "the error of its output", f"output_errors: {name}")
    return errors


def _require_modules(names: Iterable[str], held: Mapping[str, nn.Module]) -> None:
    missing = sorted({_owner(name) for name in names} - set(held))
    if missing:
        raise ConfigError(
            f"output_errors: the original has no module {missing[0]!r}; the two models must have"
            " the same layers."
        )


def _site_names(compressed: nn.Module) -> list[str]:
    from laconic.forms.layers import installed

    held = list(installed(compressed))
    if held:
        return held
    return [name for name, p in compressed.named_parameters() if p.ndim > 1]


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _called_owners(
    model: nn.Module, task: Task, batch: Mapping[str, Tensor], names: list[str]
) -> dict[str, str]:
    """Return for each site the nearest module around it that a forward pass calls, if any."""
    called: set[str] = set()

    def note(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return module.register_forward_hook(lambda *_: called.add(name))

    handles = [note(name, module) for name, module in model.named_modules()]
    try:
        task.forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    owners = {}
    for name in names:
        owner = _owner(name)
        while owner and owner not in called:
            owner = _owner(owner)
        if owner in called:
            owners[name] = owner
    return owners


def _compare_at(
    left: nn.Module, right: nn.Module, name: str, sums: list[float], busy: set[str]
) -> torch.utils.hooks.RemovableHandle:
    """Run ``right`` on whatever ``left`` is called with, and add up squared errors.

    ``busy`` has a name while a right module runs: one that the two models share is not to be
    watched then.
    """

    def look(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if busy:
            return
        busy.add(name)
        try:
            y, other = _tensor(output, name), _tensor(right(*args, **kwargs), name)
        finally:
            busy.clear()
        if y.shape != other.shape:
            raise ConfigError(
                f"output_errors: {name}: outputs have shapes {tuple(y.shape)} and"
                f" {tuple(other.shape)}; channels were removed, compare whole models instead."
            )
        sums[0] += float((y.double() - other.double()).square().sum())
        sums[1] += float(y.double().square().sum())

    return left.register_forward_hook(look, with_kwargs=True)


def _tensor(output: Any, name: str) -> Tensor:
    """Return the first tensor of a module's output, however it is nested."""
    logits = getattr(output, "logits", None)
    for tensor in tensors_in(output if logits is None else logits):
        return tensor
    raise ConfigError(
        f"output_errors: {name}: the module returned {type(output).__name__} without a tensor;"
        " its weights cannot be judged by its output."
    )


def _relative(error: float, norm: float) -> float:
    if error == 0.0:
        return 0.0
    return sqrt(error / norm) if norm > 0 else float("inf")
