"""Run a model for calibration without leaving a trace, whole or block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from laconic.task import Batch, Task

Keep = Tensor | None  # (examples, tokens) bool: tokens that are not padding


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluate without gradients; modes, caches and random states are put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.get_device() for p in model.parameters() if p.is_cuda})
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=devices))
        configs = {
            id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None
        }
        for config in configs.values():
            for name, value in (("use_cache", False), ("_experts_implementation", "eager")):
                if getattr(config, name, None) not in (None, value):
                    stack.enter_context(_set(config, name, value))
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


@contextmanager
def _set(owner: Any, name: str, value: object) -> Iterator[None]:
    held = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, held)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first tensor."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


class Data:
    """Calibration batches of a task, walked in the same order each time.

    Args:
        task: The task whose calibration split is used.
        device: Where batches are moved.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task, self.device = task, device

    def batches(self, size: int | None = None) -> Iterator[Batch]:
        """Yield batches on the device."""
        split = self.task.calibration_split()
        if split is not None:
            for batch in split.batches(size or self.task.batch_size):
                yield {name: t.to(self.device) for name, t in batch.items()}

    def keep(self, batch: Batch) -> Keep:
        """Return the tokens of a batch that are not padding; None where all count."""
        mask = batch.get("attention_mask")
        if mask is None or mask.dim() != 2 or bool((mask != 0).all()):
            return None
        return mask != 0


class _BlocksDoneError(Exception):
    """Ends a forward pass whose rest is not needed."""


@dataclass
class Call:
    """One call of a block on one batch; flowing arguments come from the block before it.

    Attributes:
        args: Positional arguments; None where they flow.
        kwargs: Named arguments; None where they flow.
        flows: For each argument that flows, its place and its index in the output before.
    """

    args: list[Any]
    kwargs: dict[str, Any]
    flows: dict[int | str, int] = field(default_factory=dict)

    def bound(self, outputs: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments with those that flow filled from the outputs before."""
        args, kwargs = list(self.args), dict(self.kwargs)
        for place, index in self.flows.items():
            # Cloned: a block may add to its input in place.
            value = outputs[index].clone()
            if isinstance(place, int):
                args[place] = value
            else:
                kwargs[place] = value
        return args, kwargs


@dataclass
class Stream:
    """What one batch needs to be run block by block.

    Attributes:
        calls: One call a block.
        state: Outputs that flow into the next block.
        keep: Tokens that are not padding.
    """

    calls: list[Call]
    state: list[Any]
    keep: Keep


def record_streams(
    model: nn.Module, task: Task, data: Data, blocks: list[nn.Module]
) -> list[Stream] | None:
    """Run the model up to its last block and return what a replay of the blocks needs.

    Only the inputs of the first block are kept, with what the other blocks are called with
    beside the hidden states (masks, positions), which batches hold by reference.

    Returns:
        One stream a batch; None where blocks are not called once each, in order, each on what
        the one before it returned.
    """
    streams: list[Stream] = []
    with quiet(model):
        for batch in data.batches():
            stream = _Recorder(blocks).run(partial(task.forward, model, batch))
            if stream is None:
                return None
            stream.keep = data.keep(batch)
            streams.append(stream)
    return streams


class _Recorder:
    """Writes down the calls of blocks during one forward pass."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        self.blocks = blocks
        self.calls: list[Call] = []
        self.first: list[Any] = []
        self.last: list[Any] = []
        self.linear = True

    def run(self, forward: Callable[[], Any]) -> Stream | None:
        """Run a forward pass up to the last block and return its stream."""
        handles = []
        for index, block in enumerate(self.blocks):
            handles += [
                block.register_forward_pre_hook(self._before(index), with_kwargs=True),
                block.register_forward_hook(self._after(index)),
            ]
        try:
            forward()
        except _BlocksDoneError:
            complete = True
        else:
            complete = False
        finally:
            for handle in handles:
                handle.remove()
        if not (complete and self.linear and len(self.calls) == len(self.blocks)):
            return None
        return Stream(self.calls, self.first, None)

    def _before(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            """Keep the call, without the tensors that come out of the block before."""
            self.linear &= index == len(self.calls)
            places: dict[int | str, Any] = dict(enumerate(args))
            places.update(kwargs)
            if index == 0:
                place = next((p for p, v in places.items() if isinstance(v, Tensor)), None)
                flows = {} if place is None else {place: 0}
                # Cloned: a block may add to its input in place.
                self.first = [] if place is None else [places[place].clone()]
            else:
                flows = {
                    place: found
                    for place, value in places.items()
                    if (found := _position(value, self.last)) is not None
                }
            self.linear &= bool(flows)
            call = Call(
                [None if i in flows else v for i, v in enumerate(args)],
                {k: None if k in flows else v for k, v in kwargs.items()},
                flows,
            )
            self.calls.append(call)

        return hook

    def _after(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.last = flat_output(output)
            if index == len(self.blocks) - 1:
                raise _BlocksDoneError

        return hook


def _position(value: Any, outputs: list[Any]) -> int | None:
    if not isinstance(value, Tensor):
        return None
    return next((i for i, held in enumerate(outputs) if held is value), None)


def flat_output(output: Any) -> list[Any]:
    """Return the tensors that a block gave, in order."""
    if isinstance(output, tuple | list):
        return list(output)
    if isinstance(output, Mapping):
        return list(output.values())
    return [output]
