"""Task: the one noun for data, loss and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.errors import ConfigError

Batch = Mapping[str, Tensor]
Kind = Literal["classification", "causal-lm", "regression", "custom"]


@runtime_checkable
class Split(Protocol):
    """Examples that can be walked in batches, in order or shuffled."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def batches(self, size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield batches of at most ``size`` examples; shuffled where a generator is given."""
        ...


@dataclass(frozen=True)
class TensorSplit:
    """Examples held in memory: every tensor has the examples along its first axis.

    Args:
        tensors: For classification and regression ``x`` and ``y``; for a language model
            ``input_ids`` (examples, tokens) int64, and where texts are padded
            ``attention_mask`` of the same shape, 0 at padding.
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        sizes = {name: len(t) for name, t in self.tensors.items()}
        if not sizes or len(set(sizes.values())) != 1:
            raise ConfigError(f"TensorSplit: tensors must share their first axis, got {sizes}.")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def batches(self, size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield dictionaries of tensors with at most ``size`` examples each."""
        order = (
            torch.arange(len(self))
            if generator is None
            else torch.randperm(len(self), generator=generator)
        )
        for chunk in torch.split(order, size):
            yield {name: t[chunk] for name, t in self.tensors.items()}

    def take(self, count: int) -> TensorSplit:
        """Return the first ``count`` examples."""
        return TensorSplit({name: t[:count] for name, t in self.tensors.items()})


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """Return the entries of a batch that go into the model: all but ``y`` and ``labels``."""
    return {name: t for name, t in batch.items() if name not in ("y", "labels")}


def model_outputs(model: nn.Module, batch: Batch) -> Tensor:
    """Run a model on a batch and return its logits or predictions as one tensor.

    A single entry is passed by position, several by name; ``.logits`` of a Hugging Face output
    is taken where there is one.
    """
    inputs = model_inputs(batch)
    if set(inputs) == {"input_ids"} or len(inputs) > 1:
        out = model(**inputs)
    else:
        out = model(next(iter(inputs.values())))
    logits = getattr(out, "logits", out)
    if not isinstance(logits, Tensor):
        raise ConfigError(f"the model returned {type(out).__name__}; give Task(forward=...).")
    return logits


def _classification_loss(logits: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(logits.float(), batch["y"])


def _regression_loss(outputs: Tensor, batch: Batch) -> Tensor:
    return F.mse_loss(outputs.float(), batch["y"].float())


def scored_tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the next tokens (examples, T - 1) and which of them count.

    ``labels``, where given, replace the tokens as targets, and -100 in them does not count;
    neither does padding, where ``attention_mask`` is 0, nor what is predicted from padding.
    """
    targets = batch.get("labels", batch["input_ids"])[:, 1:]
    counted = targets != -100
    if "attention_mask" in batch:
        real = batch["attention_mask"].bool()
        counted = counted & real[:, 1:] & real[:, :-1]
    return targets, counted


def _causal_lm_loss(logits: Tensor, batch: Batch) -> Tensor:
    targets, counted = scored_tokens(batch)
    targets = targets.masked_fill(~counted, -100)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten())


_LOSSES: dict[str, Callable[[Tensor, Batch], Tensor]] = {
    "classification": _classification_loss,
    "regression": _regression_loss,
    "causal-lm": _causal_lm_loss,
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model is for: its data, its loss and its metrics.

    Args:
        kind: ``classification``, ``causal-lm``, ``regression`` or ``custom``.
        test: Examples for the reported quality; never used for calibration or training.
        train: Examples for recovery; None makes recovery data-free.
        calibration: Examples for statistics; the first 512 of ``train`` where None.
        loss: ``(outputs, batch) -> scalar``; given by ``kind`` unless ``custom``.
        forward: ``(model, batch) -> outputs``; runs the model on the batch by default.
        metrics: Further metrics by name, ``(outputs, batch) -> (examples,)`` values, averaged.
        classes: Names of the classes, for the per-class table.
        batch_size: Examples in a batch everywhere.
        name: For reports, for example ``"digits"``.

    Raises:
        ConfigError: Unknown kind, or a custom task without a loss.
    """

    kind: Kind
    test: Split
    train: Split | None = None
    calibration: Split | None = None
    loss: Callable[[Tensor, Batch], Tensor] | None = None
    forward: Callable[[nn.Module, Batch], Tensor] = model_outputs
    metrics: Mapping[str, Callable[[Tensor, Batch], Tensor]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    batch_size: int = 64
    name: str = "task"

    def __post_init__(self) -> None:
        if self.kind not in (*_LOSSES, "custom"):
            raise ConfigError(f"Task: kind={self.kind!r} is not one of {[*_LOSSES, 'custom']}.")
        if self.kind == "custom" and self.loss is None:
            raise ConfigError("Task: kind='custom' needs loss=(outputs, batch) -> scalar.")
        if self.batch_size < 1:
            raise ConfigError(f"Task: batch_size={self.batch_size} must be at least 1.")

    def compute_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the scalar loss of outputs on a batch."""
        return (self.loss or _LOSSES[self.kind])(outputs, batch)

    def calibration_split(self, limit: int = 512) -> Split | None:
        """Return the calibration examples: those given, else the first of the training set."""
        if self.calibration is not None:
            return self.calibration
        take = getattr(self.train, "take", None)
        return take(limit) if take else self.train
