"""What a search must beat: random children, uniform width, dropping greedily, no teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from laconic.errors import ConfigError
from laconic.seeds import generator_for
from laconic.weights.students.lab import Child, Lab
from laconic.weights.students.reward import INVALID
from laconic.weights.students.spaces import FIELDS, RemovalSpace, ShrinkSpace, Space
from laconic.weights.students.train import ChildTraining, Trained, train_child

_TRIES = 50  # samples for each wanted child, where most are repeats or invalid


def random_actions(space: Space, count: int, seed: int) -> list[list[int]]:
    """Return sequences of actions, each drawn evenly among what is allowed."""
    generator = generator_for(seed, "random students")
    weights = space.decisions.allowed.float()
    drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
    actions: list[list[int]] = drawn.t().tolist()
    return actions


def random_search(lab: Lab, space: Space, children: int, *, seed: int = 0) -> list[Child]:
    """Train different random children: as many as a search has trained.

    Fewer come back where the space has not that many.

    Raises:
        ConfigError: ``children`` is below 1.
    """
    if children < 1:
        raise ConfigError(f"students: children={children} must be at least 1.")
    found: dict[str, Child] = {}
    drawn = random_actions(space, _TRIES * children, seed)
    for actions in dict.fromkeys(map(tuple, drawn)):
        if len(found) == children:
            break
        child = lab.judge(space, [actions])[0]
        if child.key and child.accuracy is not None:
            found.setdefault(child.key, child)
    return list(found.values())


def uniform_width(lab: Lab, space: ShrinkSpace) -> list[Child]:
    """Train one child for each ratio, with all filters shrunk by it and nothing else."""
    filters = FIELDS.index("filters")
    free = space.decisions.free.tolist()
    rows = []
    for option, ratio in enumerate(space.ratios):
        if ratio < 1:
            rows.append(
                [
                    option if step % len(FIELDS) == filters and free[step] else stays
                    for step, stays in enumerate(space.still())
                ]
            )
    return lab.judge(space, rows)


def greedy_drop(lab: Lab, space: RemovalSpace) -> list[Child]:
    """Drop the unit whose loss hurts accuracy least, then also the next, and so on.

    The order comes from children that lack one unit each; it is not looked at again.
    """
    free = [i for i, fixed in enumerate(space.decisions.free.tolist()) if fixed]
    single = [[int(i != gone) for i in range(space.decisions.steps)] for gone in free]
    judged = lab.judge(space, single)
    order = sorted(
        zip(free, judged, strict=True),
        key=lambda pair: (-(pair[1].accuracy if pair[1].accuracy is not None else -1), pair[0]),
    )
    rows = []
    gone: set[int] = set()
    for index, _ in order:
        gone.add(index)
        rows.append([int(i not in gone) for i in range(space.decisions.steps)])
    return lab.judge(space, rows)


def best_reward(lab: Lab, children: Sequence[Child]) -> Child:
    """Return the child of the highest reward without limits.

    Raises:
        ConfigError: None is valid.
    """
    valid = [child for child in children if lab.plain(child) > INVALID]
    if not valid:
        raise ConfigError("students: no child of the baseline is valid and smaller.")
    return min(valid, key=lambda child: (-lab.plain(child), child.key))


def without_teacher(lab: Lab, child: Child, training: ChildTraining) -> Trained:
    """Train a child's architecture from labels alone, otherwise alike.

    Raises:
        ConfigError: The child is invalid.
    """
    if child.spec is None:
        raise ConfigError("students: an invalid child cannot be trained.")
    alone = replace(training, loss="labels")
    return train_child(child.spec, lab.lesson, alone, seed=lab.seed, device=lab.device)
