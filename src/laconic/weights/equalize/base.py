"""Steps that give a model other weights and leave what it computes as it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from torch import nn

from laconic.progress import NullProgress, Progress
from laconic.task import Task


@dataclass(kw_only=True)
class RewriteJob:
    """The models that a step rewrites, both in the same way.

    Attributes:
        model: The model at work; changed in place.
        reference: A dense model that computes what the original does; changed in place. What
            comes later compares with it: statistics, errors and corrections.
        task: Data; may be None.
        progress: Where progress is shown.
    """

    model: nn.Module
    reference: nn.Module
    task: Task | None = None
    progress: Progress = field(default_factory=NullProgress)


class Rewrites(ABC):
    """What a step has that rewrites the model before anything else of it is done.

    The outputs of the model stay what they are, up to rounding in its own type. From then on the
    rewritten original is what "original" means to the steps: a weight's error is its distance
    from the rewritten weight.
    """

    @abstractmethod
    def rewrite_(self, job: RewriteJob) -> dict[str, Any]:
        """Change both models in place; return what was done, as JSON and not empty."""

    def informed(self, told: Mapping[str, Any]) -> Self:
        """Return the step as what ``rewrite_`` returned asks for; itself by default."""
        return self

    @abstractmethod
    def check_model(self, model: nn.Module, task: Task | None) -> None:
        """Check before any work that there is something to rewrite.

        Raises:
            RecipeError: There is nothing.
        """
