"""From an assignment to the artefact on disk, whose size is what counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from laconic import artifact
from laconic.budget import Assignment, meet
from laconic.errors import ConfigError
from laconic.forms.layers import install_
from laconic.search.adjust import adjusted
from laconic.search.problem import Problem
from laconic.search.units import PartUnit, SiteUnit, Unit, detached, sharing_copy


@dataclass
class Builder:
    """Makes models and artefacts of assignments.

    Attributes:
        model: The dense model; it is never changed.
        folder: Where artefacts are written.
        architecture: How its modules are told.
        recipe: What the manifest says of the search.
        provenance: Versions and seeds.
        extra_files: Files of the tokenizer.
        effort: Entropy coding.
    """

    model: nn.Module
    folder: Path
    architecture: artifact.Architecture
    recipe: Mapping[str, Any]
    provenance: Mapping[str, Any]
    extra_files: tuple[Path, ...] = ()
    effort: artifact.Effort = "fast"
    sizes: dict[tuple[int, ...], int] = field(default_factory=dict)

    def build(self, units: Sequence[Unit], choice: Sequence[int]) -> nn.Module:
        """Return the model that an assignment stands for; unchanged tensors are shared."""
        made = sharing_copy(self.model)
        for unit, level in zip(detached(units), choice, strict=True):
            if isinstance(unit, PartUnit):
                unit.put_(made, level)
            elif isinstance(unit, SiteUnit):
                form = unit.database.form(unit.name, level)
                if form is not None:
                    own = deepcopy(form).to(unit.site.original.device)
                    install_(made, unit.name, own, layout=unit.site.layout)
            else:
                raise ConfigError(f"search: {unit.name} is no unit that an artefact can hold.")
        return made

    def save(self, problem: Problem, choice: Sequence[int], name: str) -> int:
        """Write the artefact of an assignment; return its bytes on disk."""
        made = self.build(problem.units, choice)
        saved = artifact.save(
            made,
            self.folder / name,
            architecture=self.architecture.without_removed(made),
            recipe=self.recipe,
            provenance=self.provenance,
            effort=self.effort,
            force=True,
            extra_files=self.extra_files,
        )
        return int(saved.deployed_bytes)

    def measure(self, problem: Problem) -> Callable[[Sequence[int]], int]:
        """Return what measures the bytes on disk of an assignment, each once."""

        def size(choice: Sequence[int]) -> int:
            key = tuple(choice)
            if key not in self.sizes:
                self.sizes[key] = self.save(problem, key, "trial")
            return self.sizes[key]

        return size

    def settle(self, problem: Problem, winner: Assignment) -> tuple[Assignment, str | None]:
        """Return the winner, or the nearest assignment whose artefact keeps the budget in bytes.

        Entropy coding and the manifest move the real size away from what the table says. Where it
        is above the budget, levels go down by the table; where more than 1 % is left, they go up.

        Returns:
            The assignment, and why more than 1 % of the budget is left where it is.

        Raises:
            BudgetError: Even the smallest levels measure more.
        """
        if problem.bytes_limit is None:
            return winner, None
        table, size = problem.table, self.measure(problem)
        if not table.has_errors:
            return self._lowered(problem, winner), None
        met = meet(
            problem.bytes_limit,
            lambda tried: size(tried.choice),
            table,
            solve=lambda held, limit: adjusted(held, winner.choice, limit),
        )
        return met.assignment, met.reason

    def _lowered(self, problem: Problem, winner: Assignment) -> Assignment:
        """Return the winner with as much taken away as its real size is too large."""
        size, tried = self.measure(problem), winner
        limit = int(problem.bytes_limit or 0)
        predicted = winner.cost
        while (excess := size(tried.choice) - limit) > 0:
            predicted -= excess
            tried = adjusted(problem.table, winner.choice, predicted)
        return tried
