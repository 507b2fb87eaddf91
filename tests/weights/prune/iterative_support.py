"""A small task, a small network with buffers, and trainings made by hand, for the loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laconic.task import Task, TensorSplit
from laconic.weights.prune.iterative import IterativePruning, Masks, PruningRun, Trainer, Turn
from laconic.weights.sites import find_sites

CLASSES = 3


def task(count: int = 240) -> Task:
    """Blobs in eight dimensions of which three tell the class."""
    source = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES, (count,), generator=source)
    x = torch.randn(count, 8, generator=source)
    x[torch.arange(count), y] += 2.5
    half = count // 2
    return Task(
        kind="classification",
        test=TensorSplit({"x": x[:half], "y": y[:half]}),
        train=TensorSplit({"x": x[half:], "y": y[half:]}),
        batch_size=30,
        name="blobs",
    )


def net(seed: int = 0, wide: int = 16) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(8, wide), nn.BatchNorm1d(wide), nn.ReLU(), nn.Linear(wide, CLASSES)
        )


def masks_of(model: nn.Module) -> Masks:
    return Masks.of_sites(find_sites(model))


def trainer(**settings) -> Trainer:
    return Trainer(**{"task": task(), "epochs": 2, **settings})


def drift(model: nn.Module, masks: Masks, turn: Turn) -> None:
    """Stand in for a training: every weight grows a little, by a pattern of its own."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            steps = torch.arange(parameter.numel()).reshape(parameter.shape)
            parameter.add_(0.1 * torch.sin(1.7 * steps + index + turn.iteration))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.add_(1.0)
    masks.apply_(model)


def flat(model: nn.Module) -> float:
    """A score that says nothing."""
    return 0.5


def run(settings: IterativePruning, train=drift, evaluate=flat, **more) -> PruningRun:
    return settings.run(net, train, evaluate, **{"masks": masks_of(net()), **more})


def bits(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {
        n: t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for n, t in tensors.items()
    }
