"""Run a model from a block on: what earlier blocks gave is handed over instead of computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from laconic.task import Batch, Task
from laconic.weights.sites import blocks_of


class Streams:
    """A model whose forward pass can be entered at any of its residual blocks.

    The model's own code runs, embeddings, masks and head included; a block that is skipped
    returns what it returned before. So the result is that of a whole pass, bit for bit.

    Args:
        model: Any model; without a list of residual blocks every pass is a whole one.
        task: Runs the model on a batch.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        self.model, self.task = model, task
        self.paths = list(blocks_of(model))
        self._blocks = [model.get_submodule(path) for path in self.paths]
        self._start = 0
        self._outputs: list[Any] = []
        self._calls: list[int] = []

    def __len__(self) -> int:
        return len(self.paths)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Let blocks be skipped inside the ``with`` block; the model is as it was afterwards."""
        for index, block in enumerate(self._blocks):
            block.__dict__["forward"] = partial(self._forward, index, block.forward)
        try:
            yield
        finally:
            for block in self._blocks:
                del block.__dict__["forward"]

    def run(self, batch: Batch, outputs: list[Any], start: int = 0) -> Tensor:
        """Return the model's outputs on a batch.

        Args:
            batch: Inputs.
            outputs: What the blocks below ``start`` gave; those of the others are added, in
                place.
            start: First block that is computed.
        """
        del outputs[start:]
        self._start, self._outputs, self._calls = start, outputs, []
        found = self.task.forward(self.model, batch)
        if self._calls != list(range(len(self._blocks))):
            self.forget()  # not a chain: blocks are left alone from now on
            return found if start == 0 else self.task.forward(self.model, batch)
        return found

    def forget(self) -> None:
        """Give the blocks up: every pass is a whole one from now on."""
        for block in self._blocks:
            block.__dict__.pop("forward", None)
        self._blocks, self.paths = [], []

    def _forward(self, index: int, inner: Any, *args: Any, **kwargs: Any) -> Any:
        self._calls.append(index)
        if index < self._start:
            held = self._outputs[index]
            # Only the first computed block reads it; cloned, for it may add to it in place.
            return copied(held) if index == self._start - 1 else held
        out = inner(*args, **kwargs)
        if index == len(self._outputs):
            self._outputs.append(copied(out))
        return out


def copied(output: Any) -> Any:
    """Return the output of a block with tensors of its own."""
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, tuple | list):
        return type(output)(copied(item) for item in output)
    if isinstance(output, dict):
        return type(output)((key, copied(item)) for key, item in output.items())
    return output


def bytes_of(output: Any) -> int:
    """Return the bytes of all tensors in the output of a block."""
    if isinstance(output, Tensor):
        return output.numel() * output.element_size()
    if isinstance(output, dict):
        return sum(bytes_of(item) for item in output.values())
    return sum(bytes_of(item) for item in output) if isinstance(output, tuple | list) else 0
