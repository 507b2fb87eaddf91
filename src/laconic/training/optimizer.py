"""The optimizer over chosen parameters: groups, and float32 masters of half-precision ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError, nearest
from laconic.forms.base import Form

Named = dict[str, nn.Parameter]
OptimizerName = Literal["adamw", "sgd"]
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)
_MOMENTUM = 0.9
# Parameters of forms that many weights share: a step of one moves them all.
_SHARED = {"codebook": ("table", "scale"), "hashed": ("table",), "quantized": ("scale",)}


def chosen_parameters(model: nn.Module, names: Iterable[str] | None) -> Named:
    """Return the parameters to train by name, in the model's order.

    Args:
        model: Model whose parameters they are.
        names: Their names; None takes all floating ones that require a gradient.

    Raises:
        ConfigError: An unknown name, a parameter that is not floating, or none at all.
    """
    held = dict(model.named_parameters())
    if names is None:
        found = {n: p for n, p in held.items() if p.requires_grad and p.is_floating_point()}
    else:
        wanted = list(names)
        for name in wanted:
            if name not in held:
                raise ConfigError(f"parameters: no parameter {name!r}.{nearest(name, held)}")
            if not held[name].is_floating_point():
                raise ConfigError(f"parameters: {name!r} is {held[name].dtype}, not floating.")
        found = {n: p for n, p in held.items() if n in set(wanted)}
    if not found:
        raise ConfigError("parameters: there is nothing to train; name at least one parameter.")
    return found


def shared_names(model: nn.Module) -> set[str]:
    """Return the names of tables and scales: parameters of forms that many weights share."""
    found = set()
    for path, module in model.named_modules():
        if isinstance(module, Form):
            inner = _SHARED.get(module.kind, ())
            own = dict(module.named_parameters(recurse=False))
            found |= {f"{path}.{name}" if path else name for name in own if name in inner}
    return found


class Masters:
    """Float32 copies of half-precision parameters; wider ones are their own master.

    Small updates would vanish, and squared gradients underflow, in 16 bits.
    """

    def __init__(self, named: Named) -> None:
        self._pairs = {
            name: (p, p if p.dtype in (torch.float32, torch.float64) else _master(p))
            for name, p in named.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        return self._pairs[name][1]

    def tensors(self) -> list[Tensor]:
        """Return the tensors that the optimizer moves."""
        return [master for _, master in self._pairs.values()]

    def take_gradients(self) -> None:
        """Hand the parameters' gradients to the masters."""
        for parameter, master in self._pairs.values():
            if master is not parameter:
                grad = parameter.grad
                master.grad = None if grad is None else grad.float()

    def give_values(self) -> None:
        """Write the masters' values into the parameters."""
        with torch.no_grad():
            for parameter, master in self._pairs.values():
                if master is not parameter:
                    parameter.copy_(master)

    def clear(self) -> None:
        """Drop all gradients."""
        for parameter, master in self._pairs.values():
            parameter.grad = master.grad = None

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the masters' values by parameter name."""
        return {name: m.detach().clone() for name, (_, m) in self._pairs.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Set masters and parameters to earlier values."""
        with torch.no_grad():
            for name, (_, master) in self._pairs.items():
                master.copy_(state[name])
        self.give_values()


def _master(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().float().clone().requires_grad_(True)


def make_optimizer(
    model: nn.Module,
    named: Named,
    masters: Masters,
    *,
    kind: OptimizerName,
    lr: float,
    table_lr: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Return the optimizer in up to three groups, each with its peak rate under the key ``peak``.

    Matrices decay; parameters of one axis (biases, norms) do not; tables and scales that many
    weights share have their own learning rate and do not decay. SGD has Nesterov's momentum of
    0.9.
    """
    shared = shared_names(model)
    groups: dict[str, dict[str, Any]] = {
        "matrices": {"params": [], "peak": lr, "weight_decay": weight_decay},
        "vectors": {"params": [], "peak": lr, "weight_decay": 0.0},
        "shared": {"params": [], "peak": table_lr, "weight_decay": 0.0},
    }
    for name, parameter in named.items():
        plain = "matrices" if parameter.dim() > 1 else "vectors"
        groups["shared" if name in shared else plain]["params"].append(masters[name])
    filled = [group for group in groups.values() if group["params"]]
    if kind == "sgd":
        return torch.optim.SGD(filled, lr=lr, momentum=_MOMENTUM, nesterov=True, foreach=False)
    return torch.optim.AdamW(filled, lr=lr, foreach=False)


class Pruned:
    """The places of parameters that stay zero while the others are trained.

    Args:
        masks: By parameter name, (shape of the parameter) bool, True where a value is trained.
        named: The parameters that are trained; masks of others are not used.

    Raises:
        ConfigError: A mask that is not bool or not of its parameter's shape.
    """

    def __init__(self, masks: Mapping[str, Tensor], named: Named) -> None:
        self._places: dict[str, Tensor] = {}
        for name, mask in masks.items():
            if name not in named:
                continue
            shape = tuple(named[name].shape)
            if mask.dtype != torch.bool or tuple(mask.shape) != shape:
                raise ConfigError(
                    f"masks: {name} has a mask {mask.dtype} {tuple(mask.shape)}; it must be bool "
                    f"of the parameter's shape {shape}."
                )
            self._places[name] = ~mask.to(named[name].device)

    def clear_gradients(self, masters: Masters) -> None:
        """Set the gradients at these places to zero."""
        for name, places in self._places.items():
            grad = masters[name].grad
            if grad is not None:
                grad.masked_fill_(places, 0.0)

    def clear_values(self, masters: Masters) -> None:
        """Set the values at these places to zero."""
        with torch.no_grad():
            for name, places in self._places.items():
                masters[name].masked_fill_(places, 0.0)

    def digest(self) -> str:
        """Return what tells these places from others, 16 hex digits; empty where there are none."""
        if not self._places:
            return ""
        found = sha256()
        for name, places in self._places.items():
            found.update(name.encode())
            found.update(places.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to a share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
