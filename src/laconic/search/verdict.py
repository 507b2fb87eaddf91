"""Is the winner worth it: compared on held-out data with what needs no search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from torch import nn

from laconic.budget import Fitness, never_worse
from laconic.budget.table import Assignment
from laconic.search.problem import Problem
from laconic.search.split import SearchData
from laconic.weights.depth.scores import SCORES, choose_blocks
from laconic.weights.sites import blocks_of


@dataclass(frozen=True)
class Judged:
    """What was decided on held-out data.

    Attributes:
        assignment: The winner, or the baseline that beat it.
        reason: What was decided, and why.
        is_uniform: A baseline took the winner's place.
        fitness: Held-out fitness of the winner and of the baselines, by name.
    """

    assignment: Assignment
    reason: str
    is_uniform: bool = False
    fitness: dict[str, float] = field(default_factory=dict)


def judged(
    problem: Problem,
    winner: Assignment,
    fitness: Fitness | None,
    model: nn.Module,
    data: SearchData | None,
) -> Judged:
    """Return the winner, or the baseline at the same budget that is better on held-out data.

    The baseline is one level for all sites; for depth, whole blocks removed by each of four
    scores.

    Args:
        problem: Table and budget.
        winner: What the search found.
        fitness: Judges assignments; None where there is no data to judge on.
        model: The dense model.
        data: Held-out documents.
    """
    if fitness is None or data is None:
        return Judged(winner, "not compared with uniform levels: there is no held-out data.")
    held_out = data.documents.take(data.held_out)
    if problem.kind == "depth":
        return _against_scores(problem, winner, fitness, model, data)
    found = never_worse(problem.table, winner, fitness, held_out, budget=problem.budget)
    values = {"winner": found.winner_fitness}
    if found.uniform_fitness < inf:
        values["uniform"] = found.uniform_fitness
    return Judged(found.assignment, found.reason, found.is_uniform, values)


def _against_scores(
    problem: Problem, winner: Assignment, fitness: Fitness, model: nn.Module, data: SearchData
) -> Judged:
    held_out = data.documents.take(data.held_out)
    rivals = one_shot(problem, model, data)
    values = fitness([winner, *rivals.values()], held_out)
    told = {"winner": values[0], **dict(zip(rivals, values[1:], strict=True))}
    if not rivals:
        return Judged(winner, "no score removes whole blocks within this budget.", fitness=told)
    best = min(rivals, key=lambda name: told[name])
    words = f"held-out fitness {told['winner']:.4g} against {told[best]:.4g} of blocks by {best!r}"
    if told[best] < told["winner"]:
        return Judged(rivals[best], f"the blocks of a score are returned: {words}.", True, told)
    return Judged(winner, f"the winner is kept: {words}.", False, told)


def one_shot(problem: Problem, model: nn.Module, data: SearchData) -> dict[str, Assignment]:
    """Return what each score removes: as few whole blocks as keep the budget."""
    blocks = len(blocks_of(model))
    found: dict[str, Assignment] = {}
    for score in SCORES:
        for count in range(_least(problem), blocks):
            gone = set(choose_blocks(model, data.task, count=count, score=score))
            choice = [0 if part.block in gone else 1 for part in problem.parts]
            if _keeps(problem, choice):
                found[score] = problem.table.assignment(choice)
                break
    return found


def _least(problem: Problem) -> int:
    """Return the fewest blocks that any score must remove."""
    if isinstance(problem.budget, Mapping):
        sizes = {group: len(problem.table.members(group)) for group in problem.budget}
        return max(1, *(sizes[group] - most for group, most in problem.budget.items()))
    per_block: dict[int, int] = {}
    for part, cost in zip(problem.parts, problem.dense_costs, strict=True):
        per_block[part.block] = per_block.get(part.block, 0) + cost
    excess = problem.table.attainable()[1] - problem.budget
    return max(1, -(-excess // max(per_block.values())))


def _keeps(problem: Problem, choice: list[int]) -> bool:
    if not isinstance(problem.budget, Mapping):
        return problem.table.assignment(choice).cost <= problem.budget
    return all(
        sum(choice[row] for row in problem.table.members(group)) <= most
        for group, most in problem.budget.items()
    )
