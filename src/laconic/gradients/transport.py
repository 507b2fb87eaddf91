"""What moves bytes between ranks, and the one place where they are counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from laconic.errors import CommunicationError, ConfigError

_Result = TypeVar("_Result")

# torch 2.13 gave the collective a new name and made the old one warn.
_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Pending(Protocol):
    """A collective that was launched."""

    def done(self) -> bool:
        """Return whether :meth:`wait` would return at once."""

    def wait(self) -> Tensor:
        """Return the result.

        Raises:
            CommunicationError: A rank died, did not answer in time, or sent another size.
        """


@dataclass
class Traffic:
    """Bytes of one rank since it was set up.

    Attributes:
        handed: What this rank handed to collectives: its messages and its dense tensors.
        sent: An all-gather sends the message once; an all-reduce of B bytes sends
            2(N-1)/N * B, as a ring does.
        received: An all-gather of messages of p bytes brings (N-1) * p; an all-reduce as above.
        collectives: How many were launched.
    """

    handed: int = 0
    sent: int = 0
    received: int = 0
    collectives: int = 0

    def gather(self, size: int, ranks: int) -> None:
        """Count an all-gather of ``size`` bytes a rank."""
        if ranks > 1:
            self.handed += size
            self.sent += size
            self.received += (ranks - 1) * size
            self.collectives += 1

    def reduce(self, size: int, ranks: int) -> None:
        """Count an all-reduce of ``size`` bytes."""
        if ranks > 1:
            ring = 2 * (ranks - 1) * size // ranks
            self.handed += size
            self.sent += ring
            self.received += ring
            self.collectives += 1

    def broadcast(self, size: int, ranks: int, *, source: bool) -> None:
        """Count a broadcast of ``size`` bytes."""
        if ranks > 1:
            self.handed += size if source else 0
            self.sent += size if source else 0
            self.received += 0 if source else size
            self.collectives += 1

    def as_dict(self) -> dict[str, int]:
        """Return the counters by name."""
        return asdict(self)


class Transport(Protocol):
    """The collectives that compressed training needs; ``where`` goes into error messages."""

    rank: int
    size: int
    traffic: Traffic

    def all_gather(self, message: Tensor, *, where: str) -> Pending:
        """Launch: every rank gets all messages (bytes,) uint8 as (N, bytes) in rank order."""

    def all_reduce(self, values: Tensor, *, where: str) -> Pending:
        """Launch: every rank gets the bit-equal sum (n,); ``values`` may be overwritten."""

    def broadcast(self, values: Tensor, *, source: int = 0, where: str) -> Tensor:
        """Return rank ``source``'s values on every rank; waits."""


class Ready:
    """A result that is there already."""

    def __init__(self, result: Tensor) -> None:
        self._result = result

    def done(self) -> bool:
        """Return true."""
        return True

    def wait(self) -> Tensor:
        """Return the result."""
        return self._result


class _Launched:
    def __init__(self, work: dist.Work, result: Tensor, where: str) -> None:
        self._work, self._result, self._where = work, result, where

    def done(self) -> bool:
        return self._work.is_completed()

    def wait(self) -> Tensor:
        guarded(self._work.wait, self._where)
        return self._result


def guarded(call: Callable[[], _Result], where: str) -> _Result:
    """Return ``call()``; what the process group raises becomes a CommunicationError."""
    try:
        return call()
    except (RuntimeError, ValueError) as error:
        if isinstance(error, CommunicationError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CommunicationError(
            f"{where}: {reason}. Another rank has died, is too late, or is set up differently; "
            "look at the other ranks' logs, then restart all ranks from the last checkpoint."
        ) from error


class ProcessGroupTransport:
    """Collectives of ``torch.distributed``, on a process group of their own.

    Making it is a collective: every rank of ``group`` does so, in the same order.

    Args:
        group: Ranks that take part; None is all.
        timeout_s: Seconds until a collective that another rank does not join is given up; None
            is the process group's default (30 minutes for gloo, 10 for NCCL).

    Raises:
        ConfigError: ``torch.distributed`` is not initialised.
    """

    def __init__(
        self, group: dist.ProcessGroup | None = None, *, timeout_s: float | None = None
    ) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ConfigError(
                "gradients: torch.distributed is not initialised. Call "
                "torch.distributed.init_process_group(...) first (torchrun sets what it needs), "
                "or pass transport=LoopbackGroup(1).transport(0) to try things in one process."
            )
        limit = None if timeout_s is None else timedelta(seconds=timeout_s)
        if group is None:
            self.group = dist.new_group(timeout=limit)
        else:
            even_out(group)
            ranks = dist.get_process_group_ranks(group)
            self.group = dist.new_group(ranks, timeout=limit, use_local_synchronization=True)
        self.rank = dist.get_rank(self.group)
        self.size = dist.get_world_size(self.group)
        self.traffic = Traffic()

    def all_gather(self, message: Tensor, *, where: str) -> Pending:
        """Launch an all-gather of equal sizes."""
        if self.size == 1:
            return Ready(message.unsqueeze(0))
        self.traffic.gather(message.numel(), self.size)
        out = message.new_empty(self.size * message.numel())
        work = guarded(
            lambda: _gather_single(out, message, group=self.group, async_op=True),
            where,
        )
        return _Launched(work, out.view(self.size, -1), where)

    def all_reduce(self, values: Tensor, *, where: str) -> Pending:
        """Launch an all-reduce in place."""
        if self.size == 1:
            return Ready(values)
        self.traffic.reduce(values.numel() * values.element_size(), self.size)
        work = guarded(lambda: dist.all_reduce(values, group=self.group, async_op=True), where)
        return _Launched(work, values, where)

    def broadcast(self, values: Tensor, *, source: int = 0, where: str) -> Tensor:
        """Broadcast in place and wait."""
        if self.size > 1:
            size = values.numel() * values.element_size()
            self.traffic.broadcast(size, self.size, source=self.rank == source)
            root = dist.get_global_rank(self.group, source)
            guarded(lambda: dist.broadcast(values, root, group=self.group), where)
        return values


def even_out(group: dist.ProcessGroup | None) -> None:
    """Let every rank of a group be in equally many groups; a collective over it.

    Torch names a group that only its members make by its ranks and by the number of groups that
    the maker is in. Where members were in unequal numbers of groups before, their names would
    differ and each would wait for the others for ever. Ranks that lag get groups of their own.
    """
    count = len(dist.distributed_c10d._world.pg_names)
    counts = [0] * dist.get_world_size(group)
    dist.all_gather_object(counts, count, group=group)
    for _ in range(max(counts) - count):
        dist.new_group([dist.get_rank()], use_local_synchronization=True)


def device_future(device: torch.device) -> torch.futures.Future[Tensor]:
    """Return an unset future that carries streams where the device has them."""
    if device.type == "cpu":
        return torch.futures.Future()
    return torch.futures.Future(devices=[device])
