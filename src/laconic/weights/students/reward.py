"""What a child is worth: compression times kept accuracy, and limits that it must keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from laconic.errors import ConfigError

Cost = Literal["params", "macs"] | Callable[[nn.Module, Tensor], float]
INVALID = -1.0


@dataclass(frozen=True)
class Sized:
    """What a network costs.

    Attributes:
        params: Number of parameters.
        macs: Multiply-additions for one example.
        cost: What the reward counts: either of them, or what a function measured.
    """

    params: int
    macs: int
    cost: float


@dataclass(frozen=True, kw_only=True)
class Reward:
    """How children are rewarded.

    Without limits R = C (2 - C) A / A_teacher, with C = 1 - cost / cost of the teacher and A the
    accuracy on the validation split. A child that is invalid or not smaller gets -1. One that
    breaks a limit gets (e - 1) + e R with e = (1 - iteration / soft)^4, and -1 from iteration
    ``soft`` on: softly at first, for a limit that nothing keeps would teach nothing.

    Args:
        max_params: Most parameters; None: no limit.
        max_cost: Highest cost, in whatever ``cost`` counts; None: no limit.
        min_accuracy: Lowest validation accuracy, 0..1; None: no limit.
        cost: ``params``, ``macs``, or a function of an untrained child in eval mode and one
            example that measures it, for example its latency in seconds.
        ratio_to: ``teacher`` counts compression from the original teacher in every stage;
            ``base`` from the network that a stage starts from.
        soft: Iterations until a broken limit is worth -1.

    Raises:
        ConfigError: A limit out of its range.

    Source: Ashok et al. 2018 (N2N Learning), sections 3.3 and 4.2, equations 2 and 3.

    Differs: e stays 0 from ``soft`` on; the formula alone would rise again there.
    """

    max_params: int | None = None
    max_cost: float | None = None
    min_accuracy: float | None = None
    cost: Cost = "params"
    ratio_to: Literal["teacher", "base"] = "teacher"
    soft: int = 15

    def __post_init__(self) -> None:
        checks = (
            (
                "max_params",
                self.max_params,
                self.max_params is None or self.max_params >= 1,
                ">= 1",
            ),
            ("max_cost", self.max_cost, self.max_cost is None or self.max_cost > 0, "above 0"),
            (
                "min_accuracy",
                self.min_accuracy,
                self.min_accuracy is None or 0 <= self.min_accuracy <= 1,
                "between 0 and 1",
            ),
            ("soft", self.soft, self.soft >= 1, "at least 1"),
            ("ratio_to", self.ratio_to, self.ratio_to in ("teacher", "base"), "teacher or base"),
            (
                "cost",
                self.cost,
                callable(self.cost) or self.cost in ("params", "macs"),
                "params, macs or a function",
            ),
        )
        for name, value, right, allowed in checks:
            if not right:
                raise ConfigError(f"reward: {name}={value!r} must be {allowed}.")

    def plain(self, size: Sized, accuracy: float, teacher: Sized, teacher_accuracy: float) -> float:
        """Return the reward without limits; -1 for a child that is not smaller."""
        if size.cost >= teacher.cost or size.params > teacher.params:
            return INVALID
        return formula(size.cost / teacher.cost, accuracy, teacher_accuracy)

    def keeps_limits(self, size: Sized, accuracy: float) -> bool:
        """Return whether a child keeps every limit."""
        return (
            (self.max_params is None or size.params <= self.max_params)
            and (self.max_cost is None or size.cost <= self.max_cost)
            and (self.min_accuracy is None or accuracy >= self.min_accuracy)
        )

    def value(
        self,
        size: Sized,
        accuracy: float,
        teacher: Sized,
        teacher_accuracy: float,
        iteration: int,
    ) -> float:
        """Return the reward of a child at an iteration, counted from 0."""
        plain = self.plain(size, accuracy, teacher, teacher_accuracy)
        if plain == INVALID or self.keeps_limits(size, accuracy):
            return plain
        softness = max(0.0, 1 - iteration / self.soft) ** 4
        return (softness - 1) + softness * plain


def formula(share: float, accuracy: float, teacher_accuracy: float) -> float:
    """Return R = C (2 - C) A / A_teacher with C = 1 - share.

    Args:
        share: Cost of the student over that of the teacher, 0..1.
        accuracy: Accuracy of the student.
        teacher_accuracy: Accuracy of the teacher, above 0.

    Example:
        >>> [round(formula(share, 0.9, 0.9), 4) for share in (1.0, 0.5, 0.25, 0.1, 0.05)]
        [0.0, 0.75, 0.9375, 0.99, 0.9975]
    """
    if teacher_accuracy <= 0:
        raise ConfigError(
            f"reward: the teacher's accuracy is {teacher_accuracy}; it must be above 0. Give a "
            "trained teacher."
        )
    saved = 1 - share
    return saved * (2 - saved) * accuracy / teacher_accuracy
