"""Deep Gradient Compression: momentum SGD that sends one entry in a thousand.

Lin, Han, Mao, Wang and Dally 2018. Momentum and accumulation happen on each rank, before the
exchange; the largest accumulated entries are sent, the others wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from laconic.errors import ConfigError
from laconic.gradients.base import Keep
from laconic.gradients.hierarchy import NodeTransport
from laconic.gradients.optimizer import check_optimizer
from laconic.gradients.select import select_top
from laconic.gradients.staging import Staging
from laconic.gradients.topk import TopK
from laconic.gradients.warmup import Warmup
from laconic.registry import method
from laconic.settings import setting


@method("dgc", family="sparsify", source="Lin, Han, Mao, Wang and Dally 2018", wing="gradients")
@dataclass(kw_only=True, eq=False, repr=False)
class DGC(TopK):
    """Send the largest entries of locally accumulated momentum.

    One step for one tensor of n entries, on each of N ranks (g: local mean gradient; u, v: what
    this rank remembers; m: momentum; K = ceil(density * n)):

    ```
    g = g * min(1, clip_norm * N**-0.5 / (norm(g) + 1e-6))
    u = m * u + g        v = v + u            Nesterov: u = m * (u + g)    v = v + u + g
    S = the K entries of v of largest magnitude;  send S and v[S]
    v[S] = 0 (what rounding the values lost stays)    u[S] = 0 (momentum factor masking)
    gradient for the optimiser = sum of what all ranks sent / N
    ```

    The optimiser applies no momentum of its own: use :class:`laconic.gradients.DGCSGD`, or
    ``torch.optim.SGD(momentum=0)``. Tensors with fewer than two axes or ``min_numel`` entries
    are all-reduced dense, and get their momentum after that.

    Args:
        model: The DDP module, or the module inside.
        optimizer: What steps along the result; looked at, never changed.
        density: Share of entries sent, above 0 and up to 1 (0.001, as in the paper).
        momentum: m (0.9, as in the paper); 0 is top-k with error feedback.
        nesterov: Nesterov momentum.
        masking: Forget the momentum of what was sent.
        warmup: Densities of the first epochs; none unless given.
        clip_norm: Threshold for gradients summed over all ranks; each rank clips at
            ``clip_norm * N**-0.5`` before it accumulates. None does not clip.
        clip_scope: Whether the norm is that of a tensor, a bucket, or the whole model; "model"
            holds all buckets back until the last gradient is there.
        clip_dense: Clip the dense tensors too.
        min_numel: Tensors below it stay dense; None is 2 / density.
        values, indices, sample_ratio: As in ``TopK``; what half precision rounds away stays in v.
        intra_group: Ranks of this machine: their gradients are averaged dense, and only one
            leader a machine takes part in the sparse exchange. Every machine has equally many.

    Attributes:
        epoch: The epoch that :meth:`step_epoch` or ``warmup.steps_per_epoch`` says it is.

    Raises:
        ConfigError: A setting out of bounds; an optimiser with momentum of its own, or an
            adaptive one; a DDP module that has a hook already.
        UnsupportedModelError: As in ``CommState``.

    Source: Lin et al. 2018, sections 3.1 to 3.3 and Algorithm 4.
    Differs: Exactly K entries are sent, the largest ones; ties go to the lower index. Where all
        ranks' gradients of a tensor are zero, nothing is sent and nothing forgotten.
    """

    optimizer: InitVar[Optimizer] = field(kw_only=False)
    density: float = setting(0.001, help="Share of a tensor's entries sent.", low=0, high=1)
    momentum: float = setting(0.9, help="Momentum kept on each rank.", low=0, high=0.9999)
    nesterov: bool = setting(False, help="Nesterov momentum.")
    masking: bool = setting(True, help="Forget the momentum of entries that were sent.")
    warmup: Warmup = field(default_factory=Warmup)
    clip_norm: float | None = setting(None, help="Local clipping, before N**-0.5.", low=1e-12)
    clip_scope: Literal["tensor", "bucket", "model"] = setting("tensor", help="Norm of what.")
    clip_dense: bool = setting(False, help="Clip dense tensors too.")
    min_numel: int | None = setting(None, help="Smaller tensors stay dense.", low=0)
    intra_group: dist.ProcessGroup | None = None

    slots: ClassVar[Mapping[str, Keep]] = {
        "momentum": "sum",  # u
        "residual": "sum",  # v
        "dense_momentum": "same",
    }

    def __post_init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        if self.intra_group is not None and not isinstance(self.transport, NodeTransport):
            self.check()
            self.transport = NodeTransport.of(
                self.group, self.intra_group, timeout_s=self.timeout_s
            )
        self.epoch = 0
        super().__post_init__(model)
        if getattr(model, "_comm_hooks", None):
            raise ConfigError(
                "DGC: the DDP module has a communication hook already, and takes only one. "
                "Wrap the model in DDP anew, or leave the other hook out."
            )
        check_optimizer(optimizer, momentum=self.momentum, nesterov=self.nesterov, owner="DGC")
        self.exchange = self.staging = Staging(self)

    def default_dense(self, name: str, parameter: Tensor) -> bool:
        """Return whether a tensor has fewer than two axes or fewer than ``min_numel`` entries."""
        least = 2 / self.density if self.min_numel is None else self.min_numel
        return parameter.dim() < 2 or parameter.numel() < least

    def fits(self, name: str) -> bool:
        """Return whether the message after warm-up is no larger than the gradient."""
        return self.payload_bytes_at(name, self.density) <= self.dense_bytes(name)

    # epochs

    @property
    def warming(self) -> bool:
        """Whether everything is dense in this step, as ``start_step`` or the schedule has it."""
        return super().warming or self.warmup.is_dense(self.epoch)

    def step_epoch(self, epoch: int) -> None:
        """Say which epoch the next step belongs to, counted from 0; on every rank.

        Raises:
            ConfigError: It is negative.
        """
        if epoch < 0:
            raise ConfigError(f"DGC: epoch={epoch} must be 0 or more.")
        self.epoch = epoch
        self.version += 1

    def begin_step(self) -> None:
        """Go on to the next epoch where the schedule counts steps."""
        epoch = self.warmup.epoch_of(self.step)
        if epoch is not None and epoch != self.epoch:
            self.step_epoch(epoch)
        super().begin_step()

    def end_step(self, *, committed: bool) -> None:
        """Apply the momentum of dense tensors."""
        self.staging.finish_dense(committed=committed)
        super().end_step(committed=committed)

    def extra_state(self) -> dict[str, Any]:
        """Return the epoch."""
        return {"epoch": self.epoch}

    def load_extra_state(self, extra: Mapping[str, Any]) -> None:
        """Take over the epoch."""
        self.step_epoch(int(extra["epoch"]))

    def density_of(self, name: str) -> float:
        """Return the share of a tensor's entries that is sent in this epoch."""
        return self.warmup.density(self.epoch, self.parameter(name))

    def payload_bytes(self, name: str) -> int:
        """Return the bytes in this epoch."""
        return self.payload_bytes_at(name, self.density_of(name))

    # one tensor

    def accumulated(self, name: str, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return u and v as new tensors after this gradient, before anything is sent."""
        momentum, before = self.memory(name, "momentum"), self.memory(name, "residual")
        factor = self.staging.clip_factor(name, grad)
        grad = grad if factor == 1 else grad * factor
        if momentum is None:
            buffer = grad * self.momentum if self.nesterov else grad.clone()
        elif self.nesterov:
            buffer = (momentum + grad).mul_(self.momentum)
        else:
            buffer = torch.add(grad, momentum, alpha=self.momentum)
        total = buffer.clone() if before is None else before + buffer
        return buffer, total.add_(grad) if self.nesterov else total

    def corrected(self, name: str, grad: Tensor) -> Tensor:
        """Return v after this gradient: what the selection sees."""
        return self.accumulated(name, grad)[1]

    def encode(self, name: str, grad: Tensor, out: Tensor) -> None:
        """Write the K largest entries of v, then where they are."""
        buffer, total = self.accumulated(name, grad)
        entries = self.entries(name, self.density_of(name))
        chosen = select_top(total.view(-1), entries.count, sample_ratio=self.sample_ratio)
        entries.write_(total.view(-1), chosen, out)
        self.draft(name, residual=total)
        if self.masking:
            buffer.view(-1)[chosen] = 0
        if self.momentum:
            self.draft(name, momentum=buffer)

    def accumulate(self, name: str, payload: Tensor, out: Tensor) -> None:
        """Add one rank's entries at their places."""
        self.entries(name, self.density_of(name)).add_(payload, out.view(-1))

    def report(self) -> dict[str, Any]:
        """Return the figures of every state, and ``epoch`` and ``density``, that of this epoch."""
        coded = [name for name in self.named if name not in self.dense_names]
        numel = sum(self.named[name].numel() for name in coded)
        kept = sum(self.kept(name, self.density_of(name)) for name in coded)
        density = 1.0 if self.warming or not numel else kept / numel
        return super().report() | {"epoch": self.epoch, "density": density}
