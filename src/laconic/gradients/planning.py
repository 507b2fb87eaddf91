"""From probe gradients to a setting for each tensor: error tables and their solution."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from laconic.budget import LevelTable, cheapest
from laconic.errors import ConfigError
from laconic.gradients.accordion import Accordion
from laconic.gradients.base import CommState, Value
from laconic.gradients.powersgd import PowerSGD
from laconic.gradients.tables import rank_errors, tail_errors, topk_errors
from laconic.gradients.topk import TopK
from laconic.gradients.wire import aligned

ErrorMethod = Literal["power", "svd"]


@dataclass(frozen=True)
class Problem:
    """What may be chosen, the same on every rank.

    Attributes:
        names: Tensors that the method compresses.
        values: Candidates of each, cheapest first.
        costs: Bytes of each candidate.
        default: Index of the uniform setting among the candidates.
    """

    names: tuple[str, ...]
    values: Mapping[str, tuple[Value, ...]]
    costs: Mapping[str, tuple[int, ...]]
    default: Mapping[str, int]

    @classmethod
    def of(
        cls,
        state: CommState,
        *,
        gamma: float,
        beta: float,
        candidates: Sequence[Value] | None = None,
    ) -> Problem:
        """List the candidates of a state's tensors.

        Raises:
            ConfigError: The state has no setting to choose, compresses nothing, or
                ``candidates`` lack the uniform setting.
        """
        owner = type(state).__name__
        if state.tuned is None:
            raise ConfigError(
                f"LGreCo: {owner} has no setting that could differ from tensor to tensor. "
                "Use PowerSGD (rank), TopK or DGC (density), or QSGD (bits)."
            )
        names = tuple(name for name in state.named if name not in state.dense_names)
        if not names:
            raise ConfigError(
                f"LGreCo: {owner} compresses no tensor of this model; all are dense. Lower its "
                "threshold, or leave LGreCo out."
            )
        values, costs, default = {}, {}, {}
        for name in names:
            uniform = state.parameter(name)
            found = _candidates(state, name, gamma, beta) if candidates is None else candidates
            ordered = sorted(set(found))
            if uniform not in ordered:
                raise ConfigError(
                    f"LGreCo: {name}: {owner}'s {state.tuned}={uniform} is not among the "
                    f"candidates {ordered}. Add it; its error is the limit."
                )
            for value in ordered:
                state.check_parameter(name, value)
            values[name], default[name] = tuple(ordered), ordered.index(uniform)
            costs[name] = tuple(_bytes(state, name, value) for value in ordered)
        return cls(names, values, costs, default)

    def table(self, errors: Mapping[str, Sequence[float]]) -> LevelTable:
        """Return sites by levels; a tensor with fewer candidates lacks the last levels."""
        width = max(map(len, self.values.values()))
        blank = math.inf
        rows = [[*errors[n], *[blank] * (width - len(errors[n]))] for n in self.names]
        costs = [[*self.costs[n], *[0] * (width - len(self.costs[n]))] for n in self.names]
        return LevelTable(self.names, [str(level) for level in range(width)], costs, rows)

    def uniform(self) -> list[int]:
        """Return the choice of the uniform setting."""
        return [self.default[name] for name in self.names]


@dataclass(frozen=True)
class Plan:
    """What was chosen in one period.

    Attributes:
        choice: Index of the candidate, a tensor each.
        bytes: What one rank hands over for the compressed tensors.
        uniform_bytes: The same at the uniform setting.
        error: Summed norms of what is lost of the probe gradients.
        uniform_error: The same at the uniform setting.
        limit: What the error may be.
        table_ms: Milliseconds for the errors of all candidates.
        solver_ms: Milliseconds for the choice.
    """

    choice: tuple[int, ...]
    bytes: int
    uniform_bytes: int
    error: float
    uniform_error: float
    limit: float
    table_ms: float
    solver_ms: float


def error_table(
    state: CommState, problem: Problem, probes: Mapping[str, Tensor], *, method: ErrorMethod
) -> dict[str, list[float]]:
    """Return the errors of all candidates, by tensor."""
    return {
        name: _errors(state, name, probes[name], problem.values[name], method)
        for name in problem.names
    }


def make_plan(
    state: CommState,
    problem: Problem,
    probes: Mapping[str, Tensor],
    *,
    alpha: float,
    method: ErrorMethod,
    units: int | None = None,
    accordion: Accordion | None = None,
    norms_before: Mapping[str, float] | None = None,
) -> tuple[Plan, dict[str, float]]:
    """Choose settings of least bytes whose error is no larger than ``alpha`` x the uniform one.

    Args:
        state: The compressor.
        problem: Its tensors and candidates.
        probes: Mean gradients with error memory, by name; finite.
        alpha: Share of the uniform setting's error that is allowed.
        method: How the error of a rank is found.
        units: See :func:`laconic.budget.cheapest`.
        accordion: Its choice takes the place of the uniform one.
        norms_before: Norms of the last period's probes.

    Returns:
        The plan, and the norms of these probes.

    Raises:
        BudgetError: ``alpha`` is so small that no candidates reach it.

    Source: Alimohammadi, Markov, Frantar and Alistarh 2024 (L-GreCo), Algorithm 1.
    """
    started = time.perf_counter()
    table = problem.table(error_table(state, problem, probes, method=method))
    norms = {name: float(torch.linalg.vector_norm(probe)) for name, probe in probes.items()}
    tabled = time.perf_counter()
    uniform = table.assignment(problem.uniform())
    reference = uniform
    if accordion is not None:
        defaults = {name: problem.values[name][at] for name, at in problem.default.items()}
        chosen = accordion.choose(norms, norms_before or {}, problem.values, defaults)
        reference = table.assignment([chosen[name] for name in problem.names])
    limit = alpha * reference.error
    found = reference
    if accordion is None or not accordion.alone:
        found = cheapest(table, limit, units=units, fallback=reference.choice)
    times = ((tabled - started) * 1e3, (time.perf_counter() - tabled) * 1e3)
    errors = (found.error, uniform.error, limit)
    return Plan(found.choice, found.cost, uniform.cost, *errors, *times), norms


def _candidates(state: CommState, name: str, gamma: float, beta: float) -> Sequence[Value]:
    """Return ranks from gamma to beta times the rank; other methods list their own."""
    if not isinstance(state, PowerSGD):
        return state.candidates(name)
    rank, full = state.rank_of(name), min(state.sides(name))
    low, high = max(1, math.floor(gamma * rank)), min(full, math.ceil(beta * rank))
    # A rank beyond the shorter side is the shorter side: the uniform setting keeps its own name.
    return sorted({*range(low, high + 1)} - {rank} | {state.parameter(name)})


def _bytes(state: CommState, name: str, value: Value) -> int:
    size = state.payload_bytes_at(name, value)
    return aligned(size) if state.route == "gather" else size


def _errors(
    state: CommState, name: str, probe: Tensor, values: Sequence[Value], method: ErrorMethod
) -> list[float]:
    if isinstance(state, PowerSGD):
        matrix = probe.reshape(state.sides(name))
        ranks = [state.rank_of(name, value) for value in values]
        if method == "svd":
            return tail_errors(matrix, ranks)
        return rank_errors(matrix, ranks, seed=state.seed)
    if isinstance(state, TopK):
        return topk_errors(probe, [state.kept(name, value) for value in values])
    return [state.error_at(name, probe, value) for value in values]
