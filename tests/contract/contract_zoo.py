"""The networks that every method must work on, each with a small task, and what is compared."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laconic import zoo
from laconic.task import Task, TensorSplit

CLASSES = 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _classify(shape: tuple[int, ...], dtype: torch.dtype) -> Task:
    x = draw(160, *shape)
    y = x.flatten(1)[:, :CLASSES].argmax(1)
    return Task(
        kind="classification",
        test=TensorSplit({"x": x[:32].to(dtype), "y": y[:32]}),
        train=TensorSplit({"x": x[32:].to(dtype), "y": y[32:]}),
        batch_size=32,
        name="drawn",
    )


def _language(dtype: torch.dtype) -> Task:
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 64, (40, 16), generator=source)
    return Task(
        kind="causal-lm",
        test=TensorSplit({"input_ids": ids[:8]}),
        train=TensorSplit({"input_ids": ids[8:]}),
        batch_size=8,
        name="drawn",
    )


def _normed(model: nn.Module) -> nn.Module:
    """Give batch norms statistics of their own, and a shift that keeps every channel alive."""
    for seed, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(0.1 * draw(module.num_features, seed=seed))
            module.running_var.copy_(1 + 0.3 * draw(module.num_features, seed=seed).abs())
            nn.init.constant_(module.bias, 0.5)
    return model


@dataclass(frozen=True)
class Network:
    """How to build a network and its task."""

    build: Callable[[], nn.Module]
    task: Callable[[torch.dtype], Task]

    def model(self, dtype: torch.dtype) -> nn.Module:
        """Return the network, in a state that a method could disturb."""
        model = _normed(self.build()).to(dtype).train()
        leaves = [module for module in model.modules() if not list(module.children())]
        leaves[-1].eval()
        parameters = list(model.parameters())
        parameters[0].requires_grad_(False)
        parameters[-1].grad = torch.ones_like(parameters[-1])
        return model


NETWORKS = {
    "mlp": Network(lambda: zoo.mlp((16, 32, 24, CLASSES)), lambda dtype: _classify((16,), dtype)),
    "residual": Network(
        lambda: zoo.conv_bn_residual(width=4, classes=CLASSES),
        lambda dtype: _classify((1, 8, 8), dtype),
    ),
    "depthwise": Network(
        lambda: zoo.depthwise_conv(width=4, blocks=2, classes=CLASSES),
        lambda dtype: _classify((1, 8, 8), dtype),
    ),
    "gru": Network(
        lambda: zoo.gru_classifier(features=8, hidden=12, classes=CLASSES),
        lambda dtype: _classify((6, 8), dtype),
    ),
    "llama": Network(  # grouped-query attention, embedding and head tied
        lambda: zoo.tiny_llama(
            vocabulary=64, width=32, blocks=2, heads=4, kv_heads=2, hidden=48, context=32
        ),
        _language,
    ),
}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, those in forms and those that are not saved included."""
    found = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
    return found | dict(model.named_buffers(remove_duplicate=False))


def bits_of(model: nn.Module) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """The same as types, shapes and bytes."""
    return {name: (t.dtype, tuple(t.shape), raw_bytes(t)) for name, t in tensors_of(model).items()}


def raw_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def state_of(model: nn.Module) -> dict[str, Any]:
    """All of a model and of the process that a run must leave alone."""
    return {
        "tensors": bits_of(model),
        "kinds": [type(module) for module in model.modules()],
        "modes": [module.training for module in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else raw_bytes(p.grad) for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "torch": raw_bytes(torch.get_rng_state()),
        "numpy": np.random.get_state()[1].tobytes(),  # type: ignore[union-attr]  # noqa: NPY002
        "random": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
    }
