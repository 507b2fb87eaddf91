"""Gradients as products of two thin matrices, found by one step of power iteration a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.gradients.base import Keep, ReduceState, Value
from laconic.gradients.tables import rank_errors
from laconic.registry import method
from laconic.seeds import generator_for
from laconic.settings import setting

_LOW, _HIGH = 0.5, 2.0  # candidates: this share of the rank, up to so many times the rank


@method("powersgd", family="factor", source="Vogels, Karimireddy and Jaggi 2019", wing="gradients")
@dataclass(kw_only=True, eq=False, repr=False)
class PowerSGD(ReduceState):
    """Send a gradient matrix as P Q^T of rank r, with error feedback and a warm start.

    A tensor is a matrix of its first axis times the rest. On each rank, with error memory e and
    Q (m, r) from the step before:

    ```
    M = g + e                  (n, m)
    P = M orth(Q)              (n, r), summed over ranks;  P = orth(P)
    Q = M^T P                  (m, r), averaged over ranks
    gradient for the optimiser = P Q^T;   e = M - P Q^T
    ```

    Both sums are all-reduces, so that bytes do not grow with the number of ranks.

    Args:
        rank: r, at most the shorter side of each matrix.
        min_compression_rate: Matrices that become less than so many times smaller stay dense;
            decided once, at ``rank``.
        error_feedback: Remember what the low rank lost.
        warm_start: Begin with the last step's Q instead of random columns.
        epsilon: 0: orthogonalise by Householder reflections, which also complete the basis
            where P has fewer than r independent columns. Above: Gram-Schmidt that divides by
            norm + epsilon, as DDP's own hook does.
        seed: Of random columns; the same on all ranks.

    Shapes:
        gradient (n, ...) -> P (n, r), then Q (m, r).

    Source: Vogels et al. 2019, Algorithms 1 and 2.
    Differs: When a tensor's rank changes, columns are dropped (the shortest) or added (random
        ones); those that stay keep their warm start.
    """

    rank: int = setting(4, help="Columns of P and Q.", low=1)
    min_compression_rate: float = setting(2.0, help="Least gain of a compressed tensor.", low=1)
    error_feedback: bool = setting(True, help="Remember what the low rank lost.")
    warm_start: bool = setting(True, help="Begin with the last step's Q.")
    epsilon: float = setting(0.0, help="Above 0: Gram-Schmidt, norms enlarged by it.", low=0)
    seed: int = setting(0, help="Of random columns.")

    rounds: ClassVar[int] = 2
    tuned: ClassVar[str | None] = "rank"
    slots: ClassVar[Mapping[str, Keep]] = {"residual": "sum", "q": "same"}

    def __post_init__(self, model: nn.Module) -> None:
        super().__post_init__(model)
        self._work: dict[str, tuple[Tensor, Tensor]] = {}

    def sides(self, name: str) -> tuple[int, int]:
        """Return rows n and columns m of a tensor's matrix."""
        shape = self.shape(name)
        return shape[0], math.prod(shape[1:])

    def rank_of(self, name: str, value: Value | None = None) -> int:
        """Return r of one tensor: its own rank or ``value``, at most its shorter side."""
        return min(int(self.parameter(name) if value is None else value), *self.sides(name))

    def fits(self, name: str) -> bool:
        """Return whether factors are ``min_compression_rate`` times smaller than the matrix."""
        rows, cols = self.sides(name)
        return (rows + cols) * self.rank_of(name) * self.min_compression_rate < rows * cols

    def check_parameter(self, name: str, value: Value) -> None:
        """Refuse a rank that is no whole number of 1 or more."""
        if value < 1 or value != int(value):
            raise ConfigError(f"PowerSGD: {name}: rank={value} must be a whole number from 1 on.")

    def payload_bytes_at(self, name: str, value: Value) -> int:
        """Return the bytes of P and Q."""
        return sum(self.sides(name)) * self.rank_of(name, value) * self.work_dtype(name).itemsize

    def candidates(self, name: str) -> tuple[int, ...]:
        """Return ranks from half to twice the rank, as far as the matrix has them."""
        low, high = max(1, math.floor(_LOW * self.rank)), math.ceil(_HIGH * self.rank)
        return tuple(range(min(low, *self.sides(name)), min(high, *self.sides(name)) + 1))

    def error_at(self, name: str, grad: Tensor, value: Value) -> float:
        """Return what is lost after five steps of subspace iteration."""
        matrix = grad.reshape(self.sides(name))
        return rank_errors(matrix, [self.rank_of(name, value)], seed=self.seed)[0]

    # rounds

    def reduce_size(self, name: str, stage: int) -> int:
        """Return the size of P, then of Q."""
        return self.sides(name)[stage] * self.rank_of(name)

    def encode(self, name: str, grad: Tensor, out: Tensor) -> None:
        """Write this rank's share of P."""
        total = self.corrected(name, grad) if self.error_feedback else grad.clone()
        matrix = total.view(self.sides(name))
        right = orthogonal(self._start(name), self.epsilon)
        torch.mm(matrix, right, out=out.view(-1, right.shape[1]))
        self._work[name] = (matrix, right)

    def next_round(self, name: str, stage: int, reduced: Tensor, out: Tensor) -> None:
        """Write this rank's share of Q."""
        matrix, _ = self._work[name]
        left = orthogonal(reduced.view(self.sides(name)[0], -1).clone(), self.epsilon)
        torch.mm(matrix.T, left, out=out.view(-1, left.shape[1]))
        self._work[name] = (matrix, left)

    def finish(self, name: str, reduced: Tensor, out: Tensor) -> None:
        """Write P Q^T and remember what it lacks."""
        matrix, left = self._work[name]
        right = reduced.view(-1, left.shape[1]) / self.transport.size
        mean = out.view(self.sides(name))
        torch.mm(left, right.T, out=mean)
        if self.warm_start:
            self.draft(name, q=right)
        if self.error_feedback:
            self.draft(name, residual=matrix.sub_(mean).view(out.shape))

    def end_step(self, *, committed: bool) -> None:
        """Let go of the matrices of the step."""
        self._work.clear()
        super().end_step(committed=committed)

    # Q

    def _start(self, name: str) -> Tensor:
        """Return Q (m, r) to begin with, bit-equal on all ranks."""
        _, cols = self.sides(name)
        rank, held = self.rank_of(name), self.memory(name, "q")
        parameter = self.named[name]
        if held is None or not self.warm_start:
            label = self.step if not self.warm_start else "start"
            return self._random(name, cols, rank, label).to(parameter.device)
        if held.shape[1] > rank:
            longest = torch.linalg.vector_norm(held, dim=0).topk(rank).indices.sort().values
            return held[:, longest]
        if held.shape[1] < rank:
            fresh = self._random(name, cols, rank - held.shape[1], self.step).to(held)
            # As long as the longest column there is, so that none outweighs the others.
            fresh *= torch.linalg.vector_norm(held, dim=0).amax() / cols**0.5
            return torch.cat([held, fresh], dim=1)
        return held.clone()

    def _random(self, name: str, rows: int, rank: int, label: object) -> Tensor:
        source = generator_for(self.seed, label, self.index[name])
        return torch.randn(rows, rank, generator=source, dtype=self.work_dtype(name))


def orthogonal(matrix: Tensor, epsilon: float = 0.0) -> Tensor:
    """Return a basis (rows, rank) of the columns of a matrix, rank <= rows.

    >>> orthogonal(torch.tensor([[3.0], [4.0]]), 1e-8)
    tensor([[0.6000],
            [0.8000]])

    Args:
        matrix: (rows, rank); overwritten where ``epsilon`` is above 0.
        epsilon: 0: Householder reflections; the result is orthonormal whatever the matrix is.
            Above 0: Gram-Schmidt, each column divided by its norm + epsilon; columns of zeros,
            and those of which only rounding error is left, become zeros.
    """
    if epsilon == 0:
        basis: Tensor = torch.linalg.qr(matrix).Q
        return basis
    tolerance = 100 * torch.finfo(matrix.dtype).eps
    for at in range(matrix.shape[1]):
        before, column = matrix[:, :at], matrix[:, at : at + 1]
        least = torch.linalg.vector_norm(column) * tolerance
        column -= before @ (before.T @ column)
        length = torch.linalg.vector_norm(column)
        column *= (length > least) / (length + epsilon)
    return matrix
