"""The tensors of a bucket whose messages are gathered: one all-gather of a fixed size."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from laconic.errors import CommunicationError
from laconic.gradients.tensors import Tensors
from laconic.gradients.transport import Pending
from laconic.gradients.wire import FINITE, USED, Layout

if TYPE_CHECKING:
    from laconic.gradients.base import GatherState


class Gathered:
    """Encode, gather, and decode in rank order."""

    def __init__(self, state: GatherState, tensors: Tensors) -> None:
        self._state, self._tensors = state, tensors
        self._layout: Layout = state.exchange.layout(tuple(tensors.coded))
        self._pending: Pending

    def launch(self) -> None:
        """Encode all tensors into one message and launch its gathering."""
        state, tensors, layout = self._state, self._tensors, self._layout
        message = layout.empty(state.step, tensors.buffer.device)
        flags = layout.flags(message)
        for at, name in enumerate(tensors.coded):
            grad, used, finite = tensors.local(name)
            flags[at] = used * USED + finite * FINITE
            state.encode(name, grad, layout.section(message, at))
        where = tensors.where("all-gather")
        self._pending = state.transport.all_gather(message, where=where)

    def decode(self) -> None:
        """Wait, then write every tensor's mean."""
        tensors, layout = self._tensors, self._layout
        messages = self._pending.wait()
        start = layout.body
        head = messages[:, :start].cpu()  # one look at what decides, before any decoding
        self._verify(layout.heads(head))
        flags = layout.flags(head)
        used = ((flags & USED) != 0).any(0).tolist()
        finite = ((flags & FINITE) != 0).all(0).tolist()
        for at, name in enumerate(tensors.coded):
            write = partial(self._write, name, layout.section(messages, at))
            tensors.settle(name, write, used=used[at], finite=finite[at])

    def _write(self, name: str, payloads: Tensor, out: Tensor) -> None:
        self._state.decode(name, payloads, out)
        out.mul_(1.0 / len(payloads))

    def _verify(self, heads: Tensor) -> None:
        mine = torch.tensor([self._layout.digest, self._state.step])
        wrong = (heads != mine).any(1).nonzero().view(-1).tolist()
        if wrong:
            theirs = heads[wrong[0], 1].item()
            raise CommunicationError(
                f"{self._tensors.where('all-gather')}: rank {wrong[0]} sent a message of another "
                f"kind (its step is {theirs}). Model, method and settings must be the same on all "
                "ranks, and all must load checkpoints of the same step."
            )
