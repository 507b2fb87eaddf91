"""How the density falls over the first epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from laconic.errors import ConfigError


@dataclass(frozen=True)
class Warmup:
    """A density for each of the first epochs, then the one that was asked for.

    >>> paper = Warmup(epochs=4)
    >>> [paper.density(epoch, 0.001) for epoch in range(6)]
    [0.25, 0.0625, 0.015625, 0.00390625, 0.001, 0.001]
    >>> [round(Warmup.rooted(4).density(epoch, 1e-5), 6) for epoch in range(5)]
    [0.1, 0.01, 0.001, 0.0001, 1e-05]

    Args:
        epochs: Epochs with a density of their own; 0 has none.
        densities: One an epoch, each above 0 and up to 1. Leading ones send their epochs dense,
            with the momentum applied after the all-reduce. Default: powers of ``coefficient``.
        coefficient: The density of epoch e is ``coefficient ** (e + 1)``, never below the target.
            Default 0.25, as in the paper (75 %, 93.75 %, 98.44 %, 99.6 % sparsity). None takes
            the root of the target that reaches it after the last epoch, as the paper's code does.
        steps_per_epoch: Steps of the optimiser that make an epoch; None leaves it to the training
            script to call ``state.step_epoch(epoch)``.

    Raises:
        ConfigError: A setting out of its bounds.

    Source: Lin, Han, Mao, Wang and Dally 2018, section 3.3; the root is from their code.
    """

    epochs: int = 0
    densities: Sequence[float] | None = None
    coefficient: float | None = 0.25
    steps_per_epoch: int | None = None

    def __post_init__(self) -> None:
        if self.densities is not None:
            object.__setattr__(self, "densities", tuple(float(d) for d in self.densities))
            if self.epochs not in (0, len(self.densities)):
                raise ConfigError(
                    f"Warmup: epochs={self.epochs} and {len(self.densities)} densities; give one "
                    "density an epoch, or leave epochs out."
                )
            object.__setattr__(self, "epochs", len(self.densities))
            dense = [d == 1 for d in self.densities]
            if dense != sorted(dense, reverse=True):
                raise ConfigError(
                    f"Warmup: densities={self.densities}: dense epochs (1) must come first; "
                    "momentum that was kept apart on each rank cannot go back behind the "
                    "all-reduce. Use 0.99 instead."
                )
        if self.epochs < 0:
            raise ConfigError(f"Warmup: epochs={self.epochs} must be 0 or more.")
        for density in (*(self.densities or ()), *([self.coefficient] if self.coefficient else ())):
            if not 0 < density <= 1:
                raise ConfigError(f"Warmup: density {density} must be above 0 and up to 1.")
        if self.coefficient == 0:
            raise ConfigError("Warmup: coefficient=0 must be above 0 and up to 1, or None.")
        if self.steps_per_epoch is not None and self.steps_per_epoch < 1:
            raise ConfigError(f"Warmup: steps_per_epoch={self.steps_per_epoch} must be 1 or more.")

    @classmethod
    def rooted(cls, epochs: int, *, steps_per_epoch: int | None = None) -> Warmup:
        """Return the schedule of the paper's code: epoch e sends ``density ** ((e + 1)/(n + 1))``.

        Five epochs to a density of 0.001 go through 0.316, 0.1, 0.0316, 0.01 and 0.00316.
        """
        return cls(epochs, coefficient=None, steps_per_epoch=steps_per_epoch)

    def density(self, epoch: int, target: float) -> float:
        """Return the density of an epoch, counted from 0."""
        if epoch >= self.epochs:
            return target
        if self.densities is not None:
            return self.densities[max(epoch, 0)]
        coefficient = target ** (1 / (self.epochs + 1)) if self.coefficient is None else None
        power = (coefficient or self.coefficient or 1.0) ** (max(epoch, 0) + 1)
        return float(max(power, target))

    def is_dense(self, epoch: int) -> bool:
        """Return whether an epoch is sent dense."""
        return self.densities is not None and self.densities[epoch : epoch + 1] == (1.0,)

    def epoch_of(self, step: int) -> int | None:
        """Return the epoch that a step lies in; None where the training script tells it."""
        return None if self.steps_per_epoch is None else step // self.steps_per_epoch
