"""Stochastic gradient descent for gradients that already carry their momentum."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from laconic.errors import ConfigError, LaconicWarning


class DGCSGD(Optimizer):
    """Step along gradients that have momentum in them; weight decay gets its own momentum.

    With :class:`laconic.gradients.DGC` the momentum is applied on each worker, before the
    exchange. Weight decay is added here, after it, through a buffer of its own:

        ``b = momentum * b + weight_decay * w;  w = w - lr * (grad + b)``, or with Nesterov
        momentum ``w = w - lr * (grad + weight_decay * w + momentum * b)``.

    Momentum is linear, so with every entry sent this is ``torch.optim.SGD`` with the same
    settings. Plain ``SGD(momentum=0, weight_decay=...)`` is not: there a decay of 1e-4 acts like
    one of 1e-5 at momentum 0.9.

    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = DGCSGD([weight], lr=0.5, momentum=0.5, weight_decay=0.1)
    >>> for _ in range(2):
    ...     weight.grad = torch.zeros(1)
    ...     optimizer.step()
    >>> round(weight.item(), 4)  # 1 - 0.5 * 0.1, then 0.95 - 0.5 * (0.5 * 0.1 + 0.1 * 0.95)
    0.8775

    Args:
        params: Parameters or groups of them.
        lr: Step length, 0 or more.
        momentum: 0 up to 1, exclusive; the same as the compressor's.
        weight_decay: 0 or more.
        nesterov: The same as the compressor's.

    Raises:
        ConfigError: A setting out of its bounds.

    Source: Lin, Han, Mao, Wang and Dally 2018, section 3.2, and the optimiser of its code.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ConfigError(f"DGCSGD: {name}={value} must be 0 or more.")
        if not 0 <= momentum < 1:
            raise ConfigError(f"DGCSGD: momentum={momentum} must be at least 0 and below 1.")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step in place; ``closure`` recomputes the loss, as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    along = self._direction(parameter, parameter.grad, group)
                    parameter.add_(along, alpha=-group["lr"])
        return loss

    def _direction(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        decay, momentum = group["weight_decay"], group["momentum"]
        if decay == 0:
            return grad
        state = self.state[parameter]
        if momentum == 0:
            return grad.add(parameter, alpha=decay)
        if "decay_buffer" not in state:
            state["decay_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["decay_buffer"]
        buffer.mul_(momentum).add_(parameter, alpha=decay)
        if group["nesterov"]:
            return grad.add(parameter, alpha=decay).add_(buffer, alpha=momentum)
        return grad + buffer


def check_optimizer(optimizer: Optimizer, *, momentum: float, nesterov: bool, owner: str) -> None:
    """Refuse an optimiser that would change what momentum on the ranks means.

    Args:
        optimizer: What will step; wrappers that keep theirs in ``.optimizer`` or ``.optim`` are
            looked into.
        momentum: The compressor's momentum.
        nesterov: Whether that is Nesterov momentum.
        owner: The compressor, for messages.

    Raises:
        ConfigError: Momentum of its own, an adaptive rule, or a ``DGCSGD`` set otherwise.

    Warns:
        LaconicWarning: Plain SGD with weight decay, which then has no momentum.
    """
    inner = getattr(optimizer, "optimizer", None) or getattr(optimizer, "optim", None)
    if isinstance(inner, Optimizer):
        optimizer = inner
    kind = type(optimizer).__name__
    if isinstance(optimizer, DGCSGD):
        for group in optimizer.param_groups:
            if (group["momentum"], group["nesterov"]) != (momentum, nesterov):
                raise ConfigError(
                    f"{owner}: momentum={momentum}, nesterov={nesterov}, but {kind} has "
                    f"momentum={group['momentum']}, nesterov={group['nesterov']}. "
                    "Give both the same."
                )
        return
    if not isinstance(optimizer, torch.optim.SGD):
        raise ConfigError(
            f"{owner}: {kind} is not momentum SGD, for which alone the method is defined. Use "
            "laconic.gradients.DGCSGD; with Adam, use TopK, QSGD or PowerSGD instead."
        )
    own = max(float(group["momentum"]) for group in optimizer.param_groups)
    if own:
        raise ConfigError(
            f"{owner}: {kind} has momentum={own}, which would be applied twice. Use "
            f"laconic.gradients.DGCSGD(params, lr, momentum={own}, ...), or {kind}(momentum=0)."
        )
    if momentum and any(group["weight_decay"] for group in optimizer.param_groups):
        warnings.warn(
            f"{owner}: {kind} adds weight decay behind the momentum, where it is "
            f"{1 / (1 - momentum):.3g} times weaker than in momentum SGD. Use "
            "laconic.gradients.DGCSGD.",
            LaconicWarning,
            stacklevel=2,
        )
