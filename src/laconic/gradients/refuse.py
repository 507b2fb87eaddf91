"""Models and optimisers that a gradient hook cannot serve, refused by name."""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from laconic.errors import ConfigError, UnsupportedModelError


def bare(model: nn.Module, *, owner: str) -> nn.Module:
    """Return the module inside DDP, or the model itself.

    Raises:
        UnsupportedModelError: FSDP, sparse gradients or DDP's Python reducer.
    """
    if isinstance(model, DistributedDataParallel):
        if getattr(model, "_use_python_reducer", False):
            raise UnsupportedModelError(
                f"{owner}: DDP's Python reducer does not call hooks bucket by bucket. "
                "Turn off torch._dynamo.config.optimize_ddp='python_reducer'."
            )
        model = model.module
    for name, module in model.named_modules():
        where = f"{owner}: {name or 'the model'}"
        if isinstance(module, _sharded()):
            raise UnsupportedModelError(
                f"{where} is sharded by FSDP, whose gradients are flat pieces without the "
                "parameters' shapes. Wrap the model in DistributedDataParallel instead; with "
                "FSDP2 in hybrid sharding, laconic.gradients.fsdp compresses between replicas."
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise UnsupportedModelError(
                f"{where} has sparse=True: DDP hands its gradient over as a COO tensor, which "
                "no hook can read. Use sparse=False."
            )
    return model


def trainable(model: nn.Module, *, owner: str) -> dict[str, nn.Parameter]:
    """Return the parameters that get gradients, by name; a tied one has its first name.

    Raises:
        ConfigError: There are none.
    """
    ignored = set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    named = {n: p for n, p in model.named_parameters() if p.requires_grad and n not in ignored}
    if not named:
        raise ConfigError(
            f"{owner}: the model has no parameter that requires a gradient. Build the state after "
            "the parameters to train are chosen."
        )
    return named


def momentum_of(optimizer: torch.optim.Optimizer) -> float | None:
    """Return the momentum of an SGD-like optimiser, None where it keeps second moments."""
    values = [group.get("momentum") for group in optimizer.param_groups]
    if any("betas" in group or "alpha" in group for group in optimizer.param_groups):
        return None
    return max((float(value) for value in values if value is not None), default=0.0)


def _sharded() -> tuple[type, ...]:
    """Return the classes of FSDP where it is loaded; importing it takes half a second."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return () if fsdp is None else (fsdp.FullyShardedDataParallel, fsdp.FSDPModule)
