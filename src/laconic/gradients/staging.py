"""What DGC does with buckets around their exchange.

Before: the mean inside a machine, and the norms that local clipping needs. After: the momentum
of tensors that were all-reduced dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from laconic.gradients.exchange import Bucket, Exchange
from laconic.gradients.hierarchy import NodeTransport
from laconic.gradients.transport import device_future

if TYPE_CHECKING:
    from laconic.gradients.dgc import DGC

_EPSILON = 1e-6  # in the clip factor, as torch.nn.utils.clip_grad_norm_ has it


class _Held:
    """What a bucket was when DDP handed it over."""

    def __init__(self, bucket: Bucket) -> None:
        self._index, self._last, self._buffer = bucket.index(), bucket.is_last(), bucket.buffer()
        self._parameters, self._gradients = bucket.parameters(), bucket.gradients()

    def index(self) -> int:
        return self._index

    def buffer(self) -> Tensor:
        return self._buffer

    def gradients(self) -> list[Tensor]:
        return self._gradients

    def parameters(self) -> list[nn.Parameter]:
        return self._parameters

    def is_last(self) -> bool:
        return self._last


class Staging(Exchange):
    """The exchange of a DGC state."""

    def __init__(self, state: DGC) -> None:
        super().__init__(state)
        self._dgc = state
        self._buckets: list[_Held] = []
        self._futures: list[torch.futures.Future[Tensor]] = []
        self._factors: dict[str, float] = {}

    @torch.no_grad()
    def take(self, bucket: Bucket) -> torch.futures.Future[Tensor]:
        """Prepare one bucket and launch it, or hold it until the model's norm is known."""
        state = self._dgc
        if bucket.index() == 0:
            self._buckets, self._futures, self._factors = [], [], {}
        held = _Held(bucket)
        self._buckets.append(held)
        if isinstance(state.transport, NodeTransport):
            state.transport.average_inside(bucket.buffer(), where=f"step {state.step}")
        if state.clip_norm is None or state.clip_scope != "model":
            self._measure([held])
            return super().take(held)
        self._futures.append(future := device_future(held.buffer().device))
        if held.is_last():
            waiting = list(self._buckets)
            self._measure(waiting)
            launched = [super(Staging, self).take(bucket) for bucket in waiting]
            for outer, inner in zip(self._futures, launched, strict=True):
                outer.set_result(inner.value())
        return future

    def clip_factor(self, name: str, grad: Tensor) -> float:
        """Return what a local gradient is multiplied by before it is accumulated.

        Args:
            name: Which tensor.
            grad: The gradient without the loss scale.

        Source: Lin et al. 2018, section 3.2: the threshold is that of the sum, times N**-0.5.
        """
        if self._dgc.clip_norm is None:
            return 1.0
        if self._dgc.clip_scope == "tensor":
            return self._factor(float(torch.linalg.vector_norm(grad)))
        return self._factors.get(name, 1.0)

    def finish_dense(self, *, committed: bool) -> None:
        """Apply momentum to the mean gradients of dense tensors, in place.

        Not where the mean is zero all over: DDP throws away what no rank used.
        """
        state, buckets = self._dgc, self._buckets
        self._buckets = []  # DDP's memory is not ours beyond the step
        if not committed or not state.momentum:
            return
        scale = self._loss_scale()
        for bucket in buckets:
            for name, view in self._views(bucket).items():
                if self._is_dense(name) and view.is_floating_point() and bool(view.any()):
                    self._apply_momentum(name, view, scale)

    def _apply_momentum(self, name: str, view: Tensor, scale: float) -> None:
        state = self._dgc
        slot = "dense_momentum" if name in state.dense_names else "momentum"
        mean = view.to(state.work_dtype(name)) / scale
        before = state.memory(name, slot)
        if state.nesterov:
            buffer = (mean if before is None else mean + before) * state.momentum
            view.copy_((mean + buffer).mul_(scale))
        else:
            buffer = mean if before is None else torch.add(mean, before, alpha=state.momentum)
            view.copy_(buffer * scale)
        state.draft(name, **{slot: buffer.contiguous()})
        state.commit(name)

    def _measure(self, buckets: list[_Held]) -> None:
        """Keep the factors of tensors that are clipped together, and clip dense ones in place."""
        state = self._dgc
        alone = state.clip_scope == "tensor"
        if state.clip_norm is None or (alone and not state.clip_dense):
            return
        scale = self._loss_scale()
        views = {name: view for bucket in buckets for name, view in self._views(bucket).items()}
        norms = {
            n: float(torch.linalg.vector_norm(v, dtype=torch.float64)) for n, v in views.items()
        }
        whole = sum(norm**2 for norm in norms.values()) ** 0.5 / scale
        for name, view in views.items():
            self._factors[name] = self._factor(norms[name] / scale if alone else whole)
            if state.clip_dense and self._is_dense(name):
                view.mul_(self._factors[name])

    def _factor(self, norm: float) -> float:
        limit = (self._dgc.clip_norm or 0.0) * self._dgc.transport.size**-0.5
        # Not finite: the step will be dropped everywhere, and must arrive as it is to be seen.
        return min(1.0, limit / (norm + _EPSILON)) if norm < float("inf") else 1.0

    def _is_dense(self, name: str) -> bool:
        return self._dgc.warming or name in self._dgc.dense_names

    def _loss_scale(self) -> float:
        scaler = self._dgc.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _views(self, bucket: _Held) -> Mapping[str, Tensor]:
        names = map(self._dgc.name_of, bucket.parameters())
        return dict(zip(names, bucket.gradients(), strict=True))
