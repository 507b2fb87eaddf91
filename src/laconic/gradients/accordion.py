"""Which tensors are in a critical regime: their gradient is changing fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from laconic.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Accordion:
    """Two settings a tensor: a generous one while its gradient's norm changes, else a frugal one.

    With ``norm`` and ``before`` of the accumulated gradients of this period and the last, a
    tensor is critical where ``abs(before - norm) / before >= eta``, and in its first period.

    >>> rule = Accordion()
    >>> rule.critical({"a": 1.0, "b": 3.0, "c": 1.0}, {"a": 1.2, "b": 1.0})
    {'a': False, 'b': True, 'c': True}

    Args:
        eta: Relative change from which on a tensor is critical (0.5, as in the paper).
        low: Frugal setting as a share of the default; None is 0.5, or 0.65 alone.
        high: Generous setting as a share of the default; None is 2, or 1.5 alone.
        alone: Take these settings as they are. Otherwise they only say how much error is
            allowed, and the dynamic programme spends that.

    Raises:
        ConfigError: ``eta`` is not above 0, or ``low`` above ``high``.

    Source: Agarwal, Wang, Lee, Venkataraman and Papailiopoulos 2021; together with the dynamic
        programme: Alimohammadi, Markov, Frantar and Alistarh 2024 (L-GreCo), section 5.
    """

    eta: float = 0.5
    low: float | None = None
    high: float | None = None
    alone: bool = False

    def __post_init__(self) -> None:
        if not self.eta > 0:
            raise ConfigError(f"Accordion: eta={self.eta} must be above 0.")
        low, high = self.shares
        if not 0 < low <= high:
            raise ConfigError(f"Accordion: low={low} must be above 0 and at most high={high}.")

    @property
    def shares(self) -> tuple[float, float]:
        """The frugal and the generous setting as shares of the default."""
        low, high = (0.65, 1.5) if self.alone else (0.5, 2.0)
        return self.low or low, self.high or high

    def critical(self, norms: Mapping[str, float], before: Mapping[str, float]) -> dict[str, bool]:
        """Return which tensors are critical, given their norms now and a period ago."""
        out = {}
        for name, norm in norms.items():
            last = before.get(name)
            if last is None:
                out[name] = True
            elif last == 0:
                out[name] = norm > 0
            else:
                out[name] = abs(last - norm) / last >= self.eta
        return out

    def choose(
        self,
        norms: Mapping[str, float],
        before: Mapping[str, float],
        values: Mapping[str, Sequence[float]],
        default: Mapping[str, float],
    ) -> dict[str, int]:
        """Return the index of each tensor's setting among its candidates.

        Args:
            norms: Of accumulated gradients in this period, by name.
            before: The same of the period before.
            values: Candidates by name; the nearest to the wanted setting is taken.
            default: Default setting by name.
        """
        low, high = self.shares
        out = {}
        for name, critical in self.critical(norms, before).items():
            wanted = default[name] * (high if critical else low)
            away = [abs(value - wanted) for value in values[name]]
            out[name] = away.index(min(away))
        return out
