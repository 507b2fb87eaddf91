"""Something that looks on while gradients are exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from laconic.gradients.base import CommState


class Observer:
    """Something that looks on at every step: all methods do nothing until they are overridden.

    They run on the thread of backward, at the same moments on every rank, so that
    ``step_begins`` and ``step_ends`` may use ``state.transport.broadcast``.
    """

    def step_begins(self, state: CommState) -> None:
        """See that the first bucket of a step has come; nothing was launched yet."""

    def gradient_ready(self, state: CommState, name: str, grad: Tensor) -> None:
        """See one local gradient, unscaled, before it is encoded; must not keep or change it."""

    def step_ends(self, state: CommState, *, committed: bool) -> None:
        """See that all buckets are decoded; ``committed`` is false after a NaN or infinity."""
