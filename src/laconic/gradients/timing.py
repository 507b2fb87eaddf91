"""Where the time of a training step goes: computing, making messages, waiting for the wire."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from laconic.errors import ConfigError, nearest
from laconic.gradients.lgreco import LGreCo
from laconic.gradients.transport import Pending, Transport

Loss = Callable[[nn.Module, int], Tensor]
_WHOLE_MODEL_MB = 1 << 20  # one bucket for all gradients
_PERIOD, _PROBE = 20, 5  # steps between the choices of L-GreCo, and steps that it looks at
PEERS = ("ddp", "torch-fp16", "torch-powersgd", "no-exchange")


@dataclass(frozen=True)
class Variant:
    """One way to exchange gradients.

    Attributes:
        label: What tables call it.
        method: Name of a registered method, or one of ``PEERS``: plain DDP, PyTorch's own fp16 and
            PowerSGD hooks, and DDP that exchanges nothing.
        settings: Settings of the method.
        adaptive: L-GreCo chooses the method's setting for each tensor, every 20 steps.
    """

    label: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    adaptive: bool = False


class Stopwatch:
    """A transport that adds up the time for which a rank waits on collectives."""

    def __init__(self, inner: Transport) -> None:
        self._inner, self.seconds = inner, 0.0
        self.rank, self.size, self.traffic = inner.rank, inner.size, inner.traffic

    def all_gather(self, message: Tensor, *, where: str) -> Pending:
        """Launch on the transport inside."""
        return _Watched(self._inner.all_gather(message, where=where), self)

    def all_reduce(self, values: Tensor, *, where: str) -> Pending:
        """Launch on the transport inside."""
        return _Watched(self._inner.all_reduce(values, where=where), self)

    def broadcast(self, values: Tensor, *, source: int = 0, where: str) -> Tensor:
        """Broadcast on the transport inside."""
        begun = time.perf_counter()
        result = self._inner.broadcast(values, source=source, where=where)
        self.seconds += time.perf_counter() - begun
        return result


class _Watched:
    def __init__(self, inner: Pending, watch: Stopwatch) -> None:
        self._inner, self._watch = inner, watch

    def done(self) -> bool:
        return self._inner.done()

    def wait(self) -> Tensor:
        begun = time.perf_counter()
        result = self._inner.wait()
        self._watch.seconds += time.perf_counter() - begun
        return result


class Runner:
    """One variant on this rank: its own copy of the model, its optimiser and its hook."""

    def __init__(self, variant: Variant, model: nn.Module, lr: float) -> None:
        self.variant = variant
        whole = variant.method == "torch-powersgd"  # with several buckets it fails on gloo
        bucket_mb = _WHOLE_MODEL_MB if whole else None
        self.model = DistributedDataParallel(copy.deepcopy(model), bucket_cap_mb=bucket_mb)
        self.optimizer = _optimizer(variant, self.model, lr)
        self.state: Any = None
        self.watch: Stopwatch | None = None
        self.hook_seconds = 0.0
        self.steps: list[dict[str, float]] = []
        self._register()

    def _register(self) -> None:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

        method, settings = self.variant.method, dict(self.variant.settings)
        if method in ("ddp", "no-exchange"):
            return
        if method == "torch-fp16":
            self.model.register_comm_hook(None, default_hooks.fp16_compress_hook)
        elif method == "torch-powersgd":
            state = powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=2, **settings)
            self.model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        else:
            self.state = build_state(method, self.model, self.optimizer, settings)
            self.watch = self.state.transport = Stopwatch(self.state.transport)
            if self.variant.adaptive:
                LGreCo(self.state, start_step=2, period=_PERIOD, probe_steps=_PROBE)
            self.model.register_comm_hook(self, _timed_hook)

    @property
    def exchange(self) -> Any:
        """Return what runs the buckets of the state."""
        return self.state.exchange

    def step(self, loss: Loss, index: int) -> None:
        """Take one step and note where its time went."""
        self.hook_seconds = 0.0
        if self.watch:
            self.watch.seconds = 0.0
        begun = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        if self.variant.method == "no-exchange":
            with self.model.no_sync():
                _backward(loss(self.model, index))
        else:
            _backward(loss(self.model, index))
        self.optimizer.step()
        waited = self.watch.seconds if self.watch else 0.0
        self.steps.append(
            {
                "seconds": time.perf_counter() - begun,
                "compress": self.hook_seconds - waited,
                "transfer": waited,
            }
        )

    def bytes_a_step(self) -> dict[str, int] | None:
        """Return what the state has counted, a step; None for what PyTorch sends itself."""
        if self.state is None or not self.state.step:
            return None
        traffic = self.state.transport.traffic
        return {
            "sent": traffic.sent // self.state.step,
            "received": traffic.received // self.state.step,
        }


def _backward(loss: Tensor) -> None:
    torch.autograd.backward(loss)


def build_state(method: str, model: nn.Module, optimizer: Optimizer, settings: Any) -> Any:
    """Build the hook state of a registered method for a DDP module.

    Raises:
        ConfigError: No method of this name; has the nearest one.
    """
    from laconic import registry

    if method not in PEERS:
        cls = registry.get(method, wing="gradients").cls
        takes_optimizer = "optimizer" in cls.__dataclass_fields__
        return cls(model, optimizer, **settings) if takes_optimizer else cls(model, **settings)
    raise ConfigError(f"{method!r} is a peer without a state.{nearest(method, PEERS)}")


def _timed_hook(runner, bucket):  # type: ignore[no-untyped-def] # DDP compares annotations
    begun = time.perf_counter()
    future = runner.exchange.take(bucket)
    runner.hook_seconds += time.perf_counter() - begun
    return future


def _optimizer(variant: Variant, model: nn.Module, lr: float) -> Optimizer:
    from laconic.gradients.optimizer import DGCSGD

    if variant.method == "dgc":
        return DGCSGD(model.parameters(), lr=lr, momentum=0.9)
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def time_rank(
    variants: Sequence[Variant],
    model: nn.Module,
    loss: Loss,
    *,
    lr: float,
    warmup: int,
    steps: int,
    block: int = 10,
) -> dict[str, Any]:
    """Time all variants on this rank, in turns of ``block`` steps, so that drift meets all alike.

    Args:
        variants: What to time.
        model: Copied for each variant.
        loss: ``loss(model, step)`` of this rank's batch of a step.
        lr: Step length.
        warmup: Steps of each variant before any is counted.
        steps: Steps of each variant that are counted.
        block: Steps of a variant before it is the next one's turn.

    Returns:
        ``{label: {"steps": [{"seconds", "compress", "transfer"}, ...], "bytes": ...}}``
    """
    runners = [Runner(variant, model, lr) for variant in variants]
    for runner in runners:
        for index in range(warmup):
            runner.step(loss, index)
        runner.steps.clear()
    for begun in range(0, steps, block):
        for runner in runners:
            dist.barrier()
            for index in range(begun, min(begun + block, steps)):
                runner.step(loss, index)
    return {r.variant.label: {"steps": r.steps, "bytes": r.bytes_a_step()} for r in runners}


def summarize(ranks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each variant: the median step of the slowest rank, in milliseconds.

    ``compress`` and ``transfer`` are medians of the slowest rank too, where the hook is ours;
    the rest of the step is ``compute``, so the three add up to the step.
    """
    rows = []
    for label in ranks[0]:
        told = [rank[label] for rank in ranks]
        by_step = zip(*(rank["steps"] for rank in told), strict=True)
        picked = [max(step, key=lambda s: float(s["seconds"])) for step in by_step]
        total, compress, transfer = (
            median(step[key] for step in picked) * 1e3
            for key in ("seconds", "compress", "transfer")
        )
        row = {"variant": label, "step_ms": total}
        if told[0]["bytes"] is not None:
            row |= {"compute_ms": max(0.0, total - compress - transfer),
                    "compress_ms": compress, "transfer_ms": transfer}  # fmt: skip
            row |= {f"{key}_bytes": count for key, count in told[0]["bytes"].items()}
        rows.append({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    return rows
