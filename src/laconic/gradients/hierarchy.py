"""Two kinds of links: dense inside a machine, compressed between one leader of each."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from laconic.errors import ConfigError
from laconic.gradients.transport import Pending, ProcessGroupTransport, Traffic, Transport, even_out


class NodeTransport:
    """Collectives between machines; the ranks of one machine act as one.

    Leaders do the collective, then hand its result on inside their machine. Only what crosses
    between machines is counted in ``traffic``; ``inside.traffic`` has the rest.

    Args:
        inside: The ranks of this machine.
        leaders: Rank 0 of every machine; None on the others.
        rank: Number of this machine.
        size: Number of machines.
    """

    def __init__(
        self, inside: Transport, leaders: Transport | None, *, rank: int, size: int
    ) -> None:
        self.inside, self.leaders, self.rank, self.size = inside, leaders, rank, size
        self.traffic = Traffic() if leaders is None else leaders.traffic

    @classmethod
    def of(
        cls,
        group: dist.ProcessGroup | None,
        intra_group: dist.ProcessGroup,
        *,
        timeout_s: float | None = None,
    ) -> NodeTransport:
        """Set up process groups; a collective over ``group``.

        Args:
            group: All ranks that train together; None is all there are.
            intra_group: Those of this machine.
            timeout_s: Seconds until a collective is given up.

        Raises:
            ConfigError: The machines overlap, leave ranks out, or differ in size.
        """
        inside = ProcessGroupTransport(intra_group, timeout_s=timeout_s)
        mine = dist.get_process_group_ranks(intra_group)
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        lots: list[list[int]] = [[] for _ in ranks]
        dist.all_gather_object(lots, sorted(mine), group=group)
        nodes = sorted({tuple(lot) for lot in lots})
        members = sorted(rank for node in nodes for rank in node)
        if members != sorted(ranks) or len({len(node) for node in nodes}) > 1:
            raise ConfigError(
                f"intra_group: the machines hold ranks {[list(node) for node in nodes]}; each of "
                f"the {len(ranks)} ranks must be in one, and all must be equally large. Start as "
                "many ranks on each machine, or leave intra_group out."
            )
        heads = [node[0] for node in nodes]
        leads = dist.get_rank() in heads
        even_out(group)
        between = dist.new_group(
            heads if leads else [dist.get_rank()], use_local_synchronization=True
        )
        transport = ProcessGroupTransport(between, timeout_s=timeout_s)
        leaders = transport if leads else None
        rank = next(at for at, node in enumerate(nodes) if dist.get_rank() in node)
        return cls(inside, leaders, rank=rank, size=len(nodes))

    def average_inside(self, values: Tensor, *, where: str) -> None:
        """Replace the values by their mean over this machine, in place; waits."""
        if self.inside.size > 1:
            values.mul_(1.0 / self.inside.size)
            values.copy_(self.inside.all_reduce(values, where=f"{where}, mean inside").wait())

    def all_gather(self, message: Tensor, *, where: str) -> Pending:
        """Launch an all-gather between leaders."""
        pending = self.leaders.all_gather(message, where=where) if self.leaders else None
        return _HandedOn(self, pending, message.new_empty(self.size, message.numel()), where)

    def all_reduce(self, values: Tensor, *, where: str) -> Pending:
        """Launch an all-reduce between leaders."""
        pending = self.leaders.all_reduce(values, where=where) if self.leaders else None
        return _HandedOn(self, pending, values, where)

    def broadcast(self, values: Tensor, *, source: int = 0, where: str) -> Tensor:
        """Return the values of machine ``source``'s leader on every rank."""
        if self.leaders:
            values = self.leaders.broadcast(values, source=source, where=where)
        return self.inside.broadcast(values, source=0, where=f"{where}, handed on inside")


class _HandedOn:
    """A collective between leaders; all of a machine must wait for it in the same order."""

    def __init__(
        self, node: NodeTransport, pending: Pending | None, out: Tensor, where: str
    ) -> None:
        self._node, self._pending, self._out, self._where = node, pending, out, where

    def done(self) -> bool:
        """Return false: the result is still to be handed on."""
        return False

    def wait(self) -> Tensor:
        """Return the result, after the leader has handed it on."""
        out = self._out if self._pending is None else self._pending.wait().contiguous()
        return self._node.inside.broadcast(out, source=0, where=f"{self._where}, handed on inside")
