"""The function that DDP calls for every bucket.

DDP compares annotations with the types themselves, so this module does without
``from __future__ import annotations``.
"""

from typing import Protocol

import torch
import torch.distributed as dist

from laconic.gradients.exchange import Exchange


class HasExchange(Protocol):
    """A state that runs buckets: every ``CommState``, and what wraps one."""

    @property
    def exchange(self) -> Exchange:
        """Return what runs the buckets."""


def hook(
    state: HasExchange,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """Exchange one bucket: ``ddp.register_comm_hook(state, laconic.gradients.hook)``.

    Returns:
        A future of the bucket's mean over all ranks, (elements of the bucket,); it is set when
        the last bucket of the step is through.

    Raises:
        CommunicationError: From backward, when another rank has died or is too late.
    """
    return state.exchange.take(bucket)
