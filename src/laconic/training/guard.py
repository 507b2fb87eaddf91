"""Leave things as they were: modes, gradient flags, gradients, devices, random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from laconic.training.optimizer import Named


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Give every module its training flag back when the block ends."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def gradients_kept(model: nn.Module, named: Named) -> Iterator[None]:
    """Let only the named parameters require gradients; restore flags and gradients at the end."""
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    chosen = {id(p) for p in named.values()}
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(id(parameter) in chosen)
            parameter.grad = None
        yield
    finally:
        for parameter, flag, grad in before:
            parameter.requires_grad_(flag)
            parameter.grad = grad


@contextmanager
def random_state_kept(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global random state for the block and restore it afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def teacher_ready(teacher: nn.Module | None, device: torch.device) -> Iterator[None]:
    """Put a teacher in evaluation mode on a device, and back afterwards."""
    with ExitStack() as stack:
        if teacher is not None:
            stack.enter_context(modes_kept(teacher))
            teacher.eval()
            home = next((p.device for p in teacher.parameters()), device)
            if home != device:
                stack.callback(teacher.to, home)
                teacher.to(device)
        yield


def train_mode(model: nn.Module, *, fixed_norms: bool) -> None:
    """Put a model in training mode, in place; fixed norms keep their running statistics."""
    model.train()
    if fixed_norms:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
