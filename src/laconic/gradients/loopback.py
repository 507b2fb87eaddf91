"""Virtual ranks in one process: the same hook code, fake buckets, collectives through memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from laconic.errors import CommunicationError
from laconic.gradients.transport import Pending, Ready, Traffic

if TYPE_CHECKING:
    from laconic.gradients.base import CommState

_Result = TypeVar("_Result")


class FakeBucket:
    """What DDP hands to a hook, made by hand.

    Args:
        index: Position among the buckets of a step.
        parameters: Parameters in the order of the bucket.
        gradients: Their gradients; they are copied into one flat buffer.
        last: Whether it is the last bucket of the step.
    """

    def __init__(
        self,
        index: int,
        parameters: Sequence[nn.Parameter],
        gradients: Sequence[Tensor],
        *,
        last: bool,
    ) -> None:
        self._index, self._parameters, self._last = index, list(parameters), last
        self._buffer = torch.cat([gradient.detach().reshape(-1) for gradient in gradients])

    def index(self) -> int:
        """Return the position."""
        return self._index

    def buffer(self) -> Tensor:
        """Return the flat buffer, 1-D."""
        return self._buffer

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters."""
        return self._parameters

    def gradients(self) -> list[Tensor]:
        """Return views of the buffer, one a parameter."""
        pieces = torch.split(self._buffer, [parameter.numel() for parameter in self._parameters])
        return [p.view(q.shape) for p, q in zip(pieces, self._parameters, strict=True)]

    def is_last(self) -> bool:
        """Return whether the step ends with this bucket."""
        return self._last


def fake_buckets(
    named: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor], *, bucket_bytes: int
) -> list[FakeBucket]:
    """Cut gradients into buckets as DDP does: last parameters first, one dtype a bucket.

    Args:
        named: Parameters by name.
        gradients: Gradients by name; a missing one is zero.
        bucket_bytes: A bucket is closed when it holds at least so much.
    """
    groups: dict[tuple[torch.dtype, torch.device], list[list[str]]] = {}
    filled: dict[tuple[torch.dtype, torch.device], int] = {}
    for name, parameter in reversed(list(named.items())):
        key = (parameter.dtype, parameter.device)
        lots = groups.setdefault(key, [])
        if not lots or filled[key] >= bucket_bytes:
            lots.append([])
            filled[key] = 0
        lots[-1].append(name)
        filled[key] += parameter.numel() * parameter.element_size()
    lots = [lot for same in groups.values() for lot in same]
    return [
        FakeBucket(
            at,
            [named[name] for name in lot],
            [gradients.get(name, torch.zeros_like(named[name])) for name in lot],
            last=at == len(lots) - 1,
        )
        for at, lot in enumerate(lots)
    ]


class LoopbackGroup:
    """N virtual ranks in one process.

    Each rank runs in a thread of its own while :meth:`run` or :meth:`exchange` lasts, so that a
    rank may wait for the others inside the hook as it does in real life. Sums are taken in rank
    order; results do not depend on which thread is faster.

    Args:
        size: Number of virtual ranks.
        timeout_s: Seconds until a rank that waits for the others gives up.

    >>> group = LoopbackGroup(2)
    >>> def work(rank: int) -> list[int]:
    ...     message = torch.tensor([rank], dtype=torch.uint8)
    ...     return group.transport(rank).all_gather(message, where="here").wait().view(-1).tolist()
    >>> group.run(work)
    [[0, 1], [0, 1]]
    """

    def __init__(self, size: int, *, timeout_s: float = 60.0) -> None:
        self.size, self.timeout_s = size, timeout_s
        self.changed = threading.Condition()
        self.slots: dict[int, dict[int, Tensor]] = {}
        self.fetched: dict[int, int] = {}
        self.failed: str | None = None
        self._transports = [LoopbackTransport(self, rank) for rank in range(size)]

    def transport(self, rank: int) -> LoopbackTransport:
        """Return the transport of one virtual rank, for ``CommState(..., transport=...)``."""
        return self._transports[rank]

    def run(self, work: Callable[[int], _Result]) -> list[_Result]:
        """Run ``work(rank)`` on every virtual rank at once; returns the results in rank order.

        Raises:
            Exception: What the first rank raised; the others are woken and stopped.
        """
        results: dict[int, _Result] = {}
        errors: list[BaseException] = []
        self._reset()

        def one(rank: int) -> None:
            try:
                results[rank] = work(rank)
            except BaseException as error:
                with self.changed:
                    errors.append(error)
                    self.failed = self.failed or f"rank {rank} raised {type(error).__name__}"
                    self.changed.notify_all()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [results[rank] for rank in range(self.size)]

    def exchange(
        self,
        states: Sequence[CommState],
        gradients: Sequence[Mapping[str, Tensor]],
        *,
        bucket_bytes: int = 1 << 20,
    ) -> list[dict[str, Tensor]]:
        """Run one backward's worth of hook calls on every virtual rank.

        Args:
            states: One a rank, built with ``transport=group.transport(rank)``.
            gradients: One mapping a rank, name -> local mean gradient; a missing one is zero.
            bucket_bytes: Size at which a bucket is closed.

        Returns:
            What DDP would write to ``.grad`` on each rank, by name.
        """

        def one(rank: int) -> dict[str, Tensor]:
            state = states[rank]
            buckets = fake_buckets(state.named, gradients[rank], bucket_bytes=bucket_bytes)
            futures = [state.exchange.take(bucket) for bucket in buckets]
            out: dict[str, Tensor] = {}
            for bucket, future in zip(buckets, futures, strict=True):
                bucket.buffer().copy_(future.value())
                names = map(state.name_of, bucket.parameters())
                out |= dict(zip(names, bucket.gradients(), strict=True))
            return {name: out[name] for name in state.named}

        return self.run(one)

    def _reset(self) -> None:
        self.slots, self.fetched, self.failed = {}, {}, None
        for transport in self._transports:
            transport.sequence = 0


class LoopbackTransport:
    """One virtual rank of a :class:`LoopbackGroup`."""

    def __init__(self, group: LoopbackGroup, rank: int) -> None:
        self.loopback, self.rank, self.size = group, rank, group.size
        self.traffic = Traffic()
        self.sequence = 0

    def all_gather(self, message: Tensor, *, where: str) -> Pending:
        """Launch: all messages in rank order, (N, bytes)."""
        self.traffic.gather(message.numel(), self.size)
        if self.size == 1:
            return Ready(message.unsqueeze(0))
        return self._deposit(message.clone(), where, torch.stack)

    def all_reduce(self, values: Tensor, *, where: str) -> Pending:
        """Launch: the sum, taken in rank order."""
        self.traffic.reduce(values.numel() * values.element_size(), self.size)
        if self.size == 1:
            return Ready(values)
        return self._deposit(values.clone(), where, _sum)

    def broadcast(self, values: Tensor, *, source: int = 0, where: str) -> Tensor:
        """Return rank ``source``'s values."""
        size = values.numel() * values.element_size()
        self.traffic.broadcast(size, self.size, source=self.rank == source)
        if self.size == 1:
            return values
        pending = self._deposit(values.clone(), where, lambda lot: lot[source].clone())
        return values.copy_(pending.wait())

    def _deposit(
        self, values: Tensor, where: str, combine: Callable[[list[Tensor]], Tensor]
    ) -> _Meeting:
        group, at = self.loopback, self.sequence
        self.sequence += 1
        with group.changed:
            group.slots.setdefault(at, {})[self.rank] = values
            group.changed.notify_all()
        return _Meeting(group, at, where, combine)


class _Meeting:
    def __init__(
        self,
        group: LoopbackGroup,
        at: int,
        where: str,
        combine: Callable[[list[Tensor]], Tensor],
    ) -> None:
        self._group, self._at, self._where, self._combine = group, at, where, combine

    def done(self) -> bool:
        with self._group.changed:
            return len(self._group.slots[self._at]) == self._group.size

    def wait(self) -> Tensor:
        group, at = self._group, self._at
        with group.changed:
            group.changed.wait_for(
                lambda: group.failed or len(group.slots[at]) == group.size, group.timeout_s
            )
            here = group.slots[at]
            if len(here) < group.size:
                missing = sorted(set(range(group.size)) - set(here))
                reason = group.failed or f"ranks {missing} did not come in {group.timeout_s} s"
                raise CommunicationError(f"{self._where}: {reason}.")
            lot = [here[rank] for rank in range(group.size)]
            group.fetched[at] = group.fetched.get(at, 0) + 1
            if group.fetched[at] == group.size:
                del group.slots[at], group.fetched[at]
        if len({(values.shape, values.dtype) for values in lot}) > 1:
            sizes = [values.numel() for values in lot]
            raise CommunicationError(f"{self._where}: ranks sent different sizes, {sizes}.")
        return self._combine(lot)


def _sum(lot: list[Tensor]) -> Tensor:
    total = lot[0].clone()
    for values in lot[1:]:
        total += values
    return total
