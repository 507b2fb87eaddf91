"""Part A of the EvoPress study: which parts to drop, where every answer can be judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import comb
from typing import Any

import numpy as np

from laconic.budget import LevelTable, SearchResult, depth_table, evolve, greedy_search
from laconic.budget.table import Assignment
from laconic.search.units import PartUnit
from laconic.studies._evopress_bench import Bench, Effort
from laconic.studies.base import Section
from laconic.weights.depth.scores import SCORES, choose_blocks
from laconic.weights.depth.subblocks import SubBlock, sub_blocks_of


@dataclass(frozen=True)
class DepthFindings:
    """What the searches found of what there is.

    Attributes:
        ratios: KL of each seed's answer over the optimum, rising.
        share: Largest share of brute force that a search took, in assignments or in tokens.
        best_score: KL of the optimum over that of the best one-shot score.
        section: Table and facts.
    """

    ratios: list[float]
    share: float
    best_score: float
    section: Section

    @property
    def missed(self) -> int:
        """Seeds that did not find the optimum."""
        return sum(ratio > 1 for ratio in self.ratios)


def study_depth(
    bench: Bench, *, drop: int, tokens: int, effort: Effort, seeds: int
) -> DepthFindings:
    """Drop as many attentions as feed-forward parts, by search and by brute force.

    Args:
        bench: The model and its texts.
        drop: Parts of each kind.
        tokens: Search text; the last stage judges on all of it.
        effort: Length of a search; its last stage is of ``tokens``.
        seeds: Searches.
    """
    parts = sub_blocks_of(bench.model)
    table = depth_table({part.name: part.kind for part in parts})
    kept = {kind: len(table.members(kind)) - drop for kind in set(table.groups or ())}
    judge = bench.judge([PartUnit(part) for part in parts])
    sampler, everything = bench.first(tokens)
    states = every_state(table, drop)
    judged = zip(states, judge(states, everything), strict=True)
    values = {state.choice: value for state, value in judged}
    optimum = min(values.values())
    effort = replace(effort, stages=(*effort.stages[:-1], (1, sampler.tokens)))
    found: list[SearchResult] = [
        evolve(
            table, judge, sampler, budget=kept, generations=effort.generations,
            offspring=effort.offspring, stages=effort.stages, initial=effort.initial, seed=seed,
            progress=bench.conditions.progress,
        )
        for seed in range(bench.conditions.seed, bench.conditions.seed + seeds)
    ]  # fmt: skip
    scored: dict[str, Assignment] = {
        score: _by_score(bench, parts, table, drop, score) for score in SCORES
    }
    greedy = greedy_search(table, judge, sampler, budget=kept, progress=bench.conditions.progress)
    brute = len(states), len(states) * everything.tokens
    share = max(max(f.evaluations / brute[0], f.tokens / brute[1]) for f in found)
    answers = {f"EvoPress, seed {seed}": f.assignment for seed, f in enumerate(found)}
    others = {"greedy": greedy.assignment, **scored}
    best = next(s for s in states if values[s.choice] == optimum)
    rows = _rows(bench, judge, {"brute force": best, **answers, **others}, values, optimum)
    ratios = sorted(values[f.assignment.choice] / optimum for f in found)
    facts = {
        "assignments": brute[0],
        "tokens of brute force": brute[1],
        "assignments judged by a search, most": max(f.evaluations for f in found),
        "tokens judged by a search, most": max(f.tokens for f in found),
        "assignments judged by greedy": greedy.evaluations,
        "generation in which the optimum was first the parent, by seed": ", ".join(
            str(_first(f, best.choice)) for f in found
        ),
        **_monotony(judge, parts, table, everything, drop, values),
    }
    best_score = optimum / min(values[a.choice] for a in scored.values())
    section = _section(len(parts) // 2, drop, everything.tokens, rows, facts)
    return DepthFindings(ratios, share, best_score, section)


def _section(
    blocks: int, drop: int, tokens: int, rows: list[dict[str, Any]], facts: dict[str, Any]
) -> Section:
    return Section(
        title=f"A. Depth: {drop} of {blocks} attentions and of feed-forward parts dropped",
        about=(
            f"All {comb(blocks, drop)} x {comb(blocks, drop)} assignments are judged on {tokens} "
            "tokens of search text; 'over the optimum' is there. EvoPress drops parts of a block "
            "independently; greedy too, one at a time, judged again each time; scores drop whole "
            "blocks in one shot."
        ),
        rows=tuple(rows),
        facts=facts,
    )


def every_state(table: LevelTable, drop: int) -> list[Assignment]:
    """Return all assignments that drop so many units of each group."""
    groups = [table.members(group) for group in sorted(set(table.groups or ()))]
    found = []
    for gone in product(*(combinations(sites, drop) for sites in groups)):
        flat = {site for sites in gone for site in sites}
        found.append(table.assignment([int(i not in flat) for i in range(len(table.sites))]))
    return found


def _by_score(
    bench: Bench, parts: Sequence[SubBlock], table: LevelTable, drop: int, score: Any
) -> Assignment:
    gone = set(choose_blocks(bench.model, bench.task, count=drop, score=score))
    return table.assignment([int(part.block not in gone) for part in parts])


def _first(found: SearchResult, choice: tuple[int, ...]) -> int | None:
    return next((g.number for g in found.history if g.choice == choice), None)


def _rows(
    bench: Bench,
    judge: Any,
    answers: dict[str, Assignment],
    values: dict[tuple[int, ...], float],
    optimum: float,
) -> list[dict[str, Any]]:
    test = judge(list(answers.values()), bench.test)
    ranks = {choice: rank for rank, choice in enumerate(sorted(values, key=values.__getitem__), 1)}
    return [
        {
            "chosen by": name, "KL, search": values[given.choice],
            "over the optimum": values[given.choice] / optimum, "rank": ranks[given.choice],
            "KL, test": kl,
        }
        for (name, given), kl in zip(answers.items(), test, strict=True)
    ]  # fmt: skip


def _monotony(
    judge: Any,
    parts: Sequence[SubBlock],
    table: LevelTable,
    everything: Any,
    drop: int,
    values: dict[tuple[int, ...], float],
) -> dict[str, Any]:
    """Count pairs in which two parts more of the model make the divergence larger."""
    if drop < 2:
        return {}
    less = every_state(table, drop - 1)
    judged = zip(less, judge(less, everything), strict=True)
    richer = {state.choice: value for state, value in judged}
    worse = pairs = 0
    for choice, value in values.items():
        gone = np.flatnonzero(np.array(choice) == 0)
        kinds = [parts[int(unit)].kind for unit in gone]
        for a, b in combinations(range(len(gone)), 2):
            if kinds[a] == kinds[b]:
                continue
            more = list(choice)
            more[int(gone[a])] = more[int(gone[b])] = 1
            pairs += 1
            worse += richer[tuple(more)] > value
    return {"pairs where keeping two parts more is worse": f"{worse} of {pairs}"}
