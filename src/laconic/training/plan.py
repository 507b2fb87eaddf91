"""How long a run is, and what it came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from laconic.errors import ConfigError


@dataclass(frozen=True)
class Length:
    """The asked length of a run: exactly one of the three is given.

    Args:
        epochs: Passes over the training examples, above 0; may be a fraction.
        steps: Optimizer steps, at least 1.
        seconds: Time box, above 0.

    Raises:
        ConfigError: None or more than one is given, or one is out of its range.
    """

    epochs: float | None = None
    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if len(given) != 1:
            raise ConfigError(
                f"fit: give exactly one of epochs, steps and seconds; got {given or 'none'}."
            )
        name, value = next(iter(given.items()))
        if not isfinite(value) or value <= 0 or (name == "steps" and value < 1):
            raise ConfigError(f"fit: {name}={value} must be above 0.")


@dataclass(frozen=True)
class StepPlan:
    """Number of optimizer steps, fixed before the first one and kept in the checkpoint.

    Attributes:
        total: Steps of the whole run.
        seconds: The time box that was asked for; None where there was none.
        step_seconds: Measured time of a step that turned the box into ``total``.
    """

    total: int
    seconds: float | None = None
    step_seconds: float | None = None


@dataclass(frozen=True)
class FitSummary:
    """What a run came to.

    Attributes:
        steps: Optimizer steps done, those before a resume included.
        epochs: Passes over the training examples.
        seconds: Time that training took, that before a resume included.
        asked_seconds: The time box; None where the length was given in epochs or steps.
        step_seconds: Measured time of a step that turned the box into steps.
        first_loss: Loss of the first step.
        last_loss: Running mean of the loss at the end (factor 0.9).
        resumed_at: Step at which an earlier run was taken up; None where none was.
        trained_values: Numbers that were trained.
    """

    steps: int
    epochs: float
    seconds: float
    asked_seconds: float | None
    step_seconds: float | None
    first_loss: float
    last_loss: float
    resumed_at: int | None
    trained_values: int

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        return asdict(self)
