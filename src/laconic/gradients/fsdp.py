"""FSDP2 inside a machine, compressed gradients between machines.

``fully_shard`` has no communication hook, but lets a function run on what its reduce-scatter
left: one flat shard a module. Sharding stays on the fast links; this is the traffic on the slow
ones, between ranks that hold the same shard of different replicas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from laconic.errors import ConfigError, LaconicError, UnsupportedModelError
from laconic.gradients.loopback import FakeBucket
from laconic.gradients.state import CommState
from laconic.gradients.transport import ProcessGroupTransport

_SHARD = "shard"


@dataclass(frozen=True)
class Replicas:
    """The states of a model's sharded modules.

    Attributes:
        states: One state a sharded module, by the module's path; its only tensor is ``shard``.
    """

    states: Mapping[str, CommState]

    def state_dict(self) -> dict[str, Any]:
        """Return every module's state by its path; each rank has its own."""
        return {name: state.state_dict() for name, state in self.states.items()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over what this rank saved.

        Raises:
            ConfigError: Other modules, or as ``CommState.load_state_dict``.
        """
        if saved.keys() != self.states.keys():
            raise ConfigError(
                f"gradients.fsdp: the saved state has modules {sorted(saved)}, the model "
                f"{sorted(self.states)}. Shard the model as it was when it was saved."
            )
        for name, state in self.states.items():
            state.load_state_dict(saved[name])

    def report(self) -> dict[str, Any]:
        """Return every module's report by its path."""
        return {name: state.report() for name, state in self.states.items()}


def compress_replicas(
    model: nn.Module,
    method: Callable[..., CommState],
    *,
    group: dist.ProcessGroup,
    timeout_s: float | None = None,
    **settings: Any,
) -> Replicas:
    """Average gradients between replicas of a model that ``fully_shard`` has sharded.

    Every rank calls it, after the last ``fully_shard`` and before the first step. Replicas must
    begin with equal parameters. The exchange runs inside backward and waits there.

    Args:
        model: Sharded over a one-dimensional mesh, the ranks of one replica.
        method: ``TopK``, ``QSGD``, ``SignSGD`` or ``Half``. A shard is one flat vector, so that
            ``PowerSGD`` and ``DGC``, which go by the shapes of parameters, are refused.
        group: The ranks that hold the same shard as this one, one a replica.
        timeout_s: Seconds until a collective that a rank does not join is given up.
        **settings: Of the method.

    Returns:
        States to save, load and report. Unlike with DDP each module is a step of its own: a NaN
        in one module leaves the memory of that module alone as it was.

    Raises:
        ConfigError: Nothing is sharded, or a setting is out of bounds.
        UnsupportedModelError: A mesh of more dimensions, shards along another axis than the
            first, or a method that needs the parameters' shapes.
    """
    modules = {n: m for n, m in model.named_modules() if isinstance(m, FSDPModule)}
    if not modules:
        raise ConfigError(
            "gradients.fsdp: no module is sharded by fully_shard. Call it after the last "
            "fully_shard(...); a model in DDP takes a communication hook instead."
        )
    if getattr(method, "method_name", "") in ("powersgd", "dgc", "l-greco"):
        raise UnsupportedModelError(
            "gradients.fsdp: a shard is a flat piece of several parameters, and this method goes "
            "by their shapes. Use TopK, QSGD, SignSGD or Half, or train in DDP."
        )
    transport = ProcessGroupTransport(group, timeout_s=timeout_s)
    states = {}
    for name, module in modules.items():
        shard = nn.ParameterDict({_SHARD: _flat_shard(name, cast(nn.Module, module))})
        state = method(shard, transport=transport, dense=lambda name, p: False, **settings)
        module.set_all_reduce_hook(partial(_exchange, state, name))
        states[name] = state
    return Replicas(states)


def _flat_shard(name: str, module: nn.Module) -> nn.Parameter:
    """Return a parameter like the flat shard that a module's reduce-scatter leaves."""
    inner = [m for m in module.modules() if isinstance(m, FSDPModule) and m is not module]
    others = {id(p) for other in inner for p in other.parameters()}
    own = [p for p in module.parameters() if id(p) not in others and p.requires_grad]
    size, device = 0, torch.device("cpu")
    for parameter in own:
        value = parameter.data
        if not isinstance(value, DTensor):
            raise ConfigError(f"gradients.fsdp: {name or 'the model'} has a plain parameter.")
        mesh, places = value.device_mesh, value.placements
        if mesh.ndim != 1 or not places[0].is_shard(0):
            raise UnsupportedModelError(
                f"gradients.fsdp: {name or 'the model'} is sharded as {places} over a mesh of "
                f"{mesh.ndim} dimensions; one dimension and the first axis are allowed. Shard "
                "over the ranks of one replica, and give the ranks between replicas as group."
            )
        size += math.ceil(value.shape[0] / mesh.size()) * math.prod(value.shape[1:])
        device = value.device
    return nn.Parameter(torch.zeros(size, device=device))


def _exchange(state: CommState, name: str, output: Tensor) -> None:
    """Replace a flat shard (n,) by its mean over replicas, in place."""
    parameter = state.named[_SHARD]
    if output.numel() != parameter.numel():
        raise LaconicError(
            f"gradients.fsdp: {name or 'the model'}: the shard has {output.numel()} values where "
            f"{parameter.numel()} were expected. Parameters were added or frozen after "
            "compress_replicas(...); call it last."
        )
    bucket = FakeBucket(0, [parameter], [output], last=True)
    output.copy_(state.exchange.take(bucket).value())
