"""Buckets of one step, from DDP's hand to the wire and back.

Everything happens on the thread of backward. A hook call launches the collectives of its bucket
and moves earlier ones on; the last call of a step waits for all of them and decodes in the order
of buckets. So ranks launch the same collectives in the same order, nothing is launched from a
callback, an error leaves ``backward()`` with its own type, and a step is kept or dropped as a
whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn

from laconic.errors import CommunicationError
from laconic.gradients.gathered import Gathered
from laconic.gradients.reduced import Reduced
from laconic.gradients.tensors import Tensors
from laconic.gradients.transport import device_future
from laconic.gradients.wire import Layout

if TYPE_CHECKING:
    from laconic.gradients.base import CommState, GatherState, ReduceState


class Bucket(Protocol):
    """The part of ``torch.distributed.GradBucket`` that is used."""

    def index(self) -> int:
        """Return the position among the buckets of this step."""

    def buffer(self) -> Tensor:
        """Return the flat buffer."""

    def gradients(self) -> list[Tensor]:
        """Return views of the buffer, one a parameter."""

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters."""

    def is_last(self) -> bool:
        """Return whether the step ends with this bucket."""


class Exchange:
    """Runs the buckets of a state, step after step."""

    def __init__(self, state: CommState) -> None:
        self._state = state
        self._jobs: list[_Job] = []
        self._scale = 1.0
        self._layouts: dict[tuple[str, ...], tuple[int, Layout]] = {}

    @torch.no_grad()
    def take(self, bucket: Bucket) -> torch.futures.Future[Tensor]:
        """Launch one bucket; the last one of a step finishes them all."""
        self._admit(bucket)
        job = _Job(self._state, bucket, self._scale)
        job.launch()
        for earlier in self._jobs:
            earlier.next_round()
        self._jobs.append(job)
        if bucket.is_last():
            self._close()
        return job.future

    def layout(self, names: tuple[str, ...]) -> Layout:
        """Return the layout of a message that holds these tensors."""
        state = self._state
        version, layout = self._layouts.get(names, (-1, None))
        if layout is None or version != state.version:
            sizes = [state.payload_bytes(name) for name in names]
            values = [state.parameter(name) for name in names]
            layout = Layout.of(names, sizes, f"{state.method_name} {values}")
            self._layouts[names] = (state.version, layout)
        return layout

    def _admit(self, bucket: Bucket) -> None:
        state = self._state
        if bucket.index() == 0:
            # An exception may have ended the step before this one half way.
            self._jobs.clear()
            state.rollback()
            self._scale = 1.0 if state.scaler is None else float(state.scaler.get_scale())
            state.begin_step()
        elif bucket.index() != len(self._jobs):
            raise CommunicationError(
                f"step {state.step}: bucket {bucket.index()} came when bucket "
                f"{len(self._jobs)} was due. One state serves one DDP module; build one each."
            )

    def _close(self) -> None:
        state, jobs = self._state, self._jobs
        while any([job.next_round() for job in jobs]):  # noqa: C419 - every job moves on
            continue
        for job in jobs:
            job.decode()
        clean = all(job.tensors.finite for job in jobs)
        if clean:
            for job in jobs:
                for name, used in job.tensors.used.items():
                    if used:
                        state.commit(name)
        state.rollback()
        self._jobs = []
        state.end_step(committed=clean)
        for job in jobs:
            job.future.set_result(job.tensors.buffer)


class _Job:
    """One bucket on its way: a part that is gathered, a part that is all-reduced."""

    def __init__(self, state: CommState, bucket: Bucket, scale: float) -> None:
        self.tensors = tensors = Tensors(state, bucket, scale)
        self.future = device_future(tensors.buffer.device)
        gathers, reduces = state.route == "gather", state.route == "reduce"
        self._gathered = (
            Gathered(cast("GatherState", state), tensors) if gathers and tensors.coded else None
        )
        reducer = cast("ReduceState", state) if reduces else None
        self._reduced = Reduced(state, tensors, reducer) if reduces or tensors.dense else None

    def launch(self) -> None:
        if self._gathered:
            self._gathered.launch()
        if self._reduced:
            self._reduced.launch()

    def next_round(self) -> bool:
        return self._reduced is not None and self._reduced.next_round()

    def decode(self) -> None:
        if self._reduced:
            self._reduced.decode()
        if self._gathered:
            self._gathered.decode()
