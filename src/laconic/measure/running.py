"""Run a model over a split without changing it, and stop at the first value that is no number."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from laconic.errors import BackendError, ConfigError
from laconic.progress import NullProgress, Progress
from laconic.task import Batch, Split, Task

SplitName = Literal["test", "train", "calibration"]


@contextmanager
def judged(model: nn.Module, device: str | torch.device) -> Iterator[None]:
    """Put a model in evaluation mode on a device, without gradients; all is restored after."""
    modes = [(module, module.training) for module in model.modules()]
    homes = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    away = homes and homes != {torch.device(device)}
    if away and len(homes) > 1:
        raise ConfigError(
            f"the model lies on {sorted(map(str, homes))}; move it to one device first."
        )
    try:
        model.eval()
        if away:
            model.to(device)
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        if away:
            model.to(next(iter(homes)))


def choose(task: Task, split: SplitName) -> Split:
    """Return a split of a task by its name.

    Raises:
        ConfigError: Unknown name, or the task has no such split.
    """
    if split not in ("test", "train", "calibration"):
        raise ConfigError(f"split={split!r} must be 'test', 'train' or 'calibration'.")
    found = task.calibration_split() if split == "calibration" else getattr(task, split)
    if found is None:
        raise ConfigError(f"task {task.name!r} has no {split} examples; give Task({split}=...).")
    chosen: Split = found
    return chosen


def walk(
    task: Task,
    split: SplitName,
    *,
    device: str | torch.device = "cpu",
    limit: int | None = None,
    progress: Progress | None = None,
    label: str = "evaluate",
) -> Generator[tuple[str, Batch], None, None]:
    """Yield ``(place, batch)`` over a split, in order; the place names the examples.

    Close it where the walk may end early, so that its progress is closed too.

    Raises:
        ConfigError: No examples, or ``limit`` below 1.
    """
    examples = choose(task, split)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} must be at least 1, or None for all.")
    total = len(examples) if limit is None else min(limit, len(examples))
    if total == 0:
        raise ConfigError(f"task {task.name!r}: its {split} split has no examples.")
    shown = progress or NullProgress()
    bar = shown.start(label, total)
    first = 0
    try:
        for batch in examples.batches(task.batch_size):
            size = min(len(next(iter(batch.values()))), total - first)
            moved = {name: tensor[:size].to(device) for name, tensor in batch.items()}
            yield f"task {task.name!r}, {split} examples {first} to {first + size - 1}", moved
            first += size
            shown.advance(bar, size)
            if first >= total:
                break
    finally:
        shown.finish(bar)


def run(model: nn.Module, task: Task, batch: Batch, place: str) -> Tensor:
    """Run a model on a batch and return its outputs, which are numbers.

    Raises:
        BackendError: An output is NaN or plus infinity; the message has the examples and the
            first module that gave such a value.
    """
    outputs = task.forward(model, batch)
    if _is_bad(outputs):
        raise BackendError(
            f"{place}: the model returned NaN or infinity, first in "
            f"{_first_bad(model, task, batch)}."
            " Check its weights, or use a wider float type."
        )
    return outputs


def require_finite(values: Tensor, what: str, place: str) -> Tensor:
    """Return ``values``, all of which are finite.

    Raises:
        BackendError: One is NaN or infinite; the message has what it is and the examples.
    """
    if not torch.isfinite(values).all():
        raise BackendError(
            f"{place}: {what} is NaN or infinite. Check the targets and the model's outputs."
        )
    return values


def _is_bad(values: Tensor) -> bool:
    # Minus infinity is no fault: it is how logits are masked.
    return bool(torch.isnan(values).any() or torch.isposinf(values).any())


def tensors_in(output: object) -> Iterator[Tensor]:
    """Yield the tensors of a module's output, however they are nested, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors_in(value)


def _first_bad(model: nn.Module, task: Task, batch: Batch) -> str:
    """Name the first module, in order of running, that gave NaN or plus infinity."""
    found: list[str] = []

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def look(_module: nn.Module, _args: object, output: object) -> None:
            if any(_is_bad(tensor) for tensor in tensors_in(output)):
                found.append(name or type(module).__name__)

        return module.register_forward_hook(look)

    handles = [watch(name, module) for name, module in model.named_modules()]
    try:
        task.forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return f"module {found[0]!r}" if found else "the step after its modules"
