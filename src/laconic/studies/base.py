"""The frame of every study: conditions in, bars that were set before, a result that is JSON."""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from laconic.errors import ConfigError, LaconicWarning
from laconic.progress import NullProgress, Progress

Scale = Literal["small", "full"]
_LAYER = re.compile(r"^[\w.]+\.[\w.]+: ")  # the path of a parameter
_NUMBER = re.compile(r"\d+")
SCALES: tuple[Scale, ...] = get_args(Scale)


@dataclass(frozen=True)
class Bar:
    """What a study must reach, set before it runs.

    Args:
        name: Short and unique in the study.
        limit: Largest value that passes.
        strict: The value must lie below the limit, not at it.
    """

    name: str
    limit: float
    strict: bool = False

    def judge(self, value: float) -> dict[str, Any]:
        """Return the bar with a value and whether it passed; a value that is no number fails.

        >>> [Bar("error", 0.5, strict=strict).judge(0.5)["passed"] for strict in (False, True)]
        [True, False]
        """
        passed = value < self.limit if self.strict else value <= self.limit
        told = {"strict": True} if self.strict else {}
        return {
            "name": self.name, "limit": self.limit, **told, "value": value, "passed": passed,
        }  # fmt: skip


@dataclass(frozen=True)
class Conditions:
    """What a study is run under.

    Args:
        seed: Seed of everything random.
        device: Where the work is done.
        progress: Where progress is shown.
    """

    seed: int = 0
    device: str = "cpu"
    progress: Progress = field(default_factory=NullProgress)


@dataclass(frozen=True)
class Section:
    """One part of a study's figures, which becomes one table of the page.

    Args:
        title: Heading.
        about: What was measured, on which model and data.
        rows: Rows of the table; all have the same keys.
        facts: Single figures beside the table.
    """

    title: str
    about: str
    rows: tuple[Mapping[str, Any], ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the section as plain values."""
        return {
            "title": self.title,
            "about": self.about,
            "rows": [dict(row) for row in self.rows],
            "facts": dict(self.facts),
        }


@dataclass(frozen=True)
class Findings:
    """What a run found.

    Args:
        values: One value for each bar, by its name.
        figures: Sections by a short key.
    """

    values: Mapping[str, float]
    figures: Mapping[str, Section]


@dataclass(frozen=True)
class Study:
    """A paper's claim, how it is put to the test at each scale, and the bars.

    Args:
        name: As typed on the command line.
        claim: The claim in one line.
        source: Authors, year, title.
        bars: Bars of each scale.
        protocols: What is done at each scale.

    Raises:
        ConfigError: Two bars of a scale share a name.
    """

    name: str
    claim: str
    source: str
    bars: Mapping[Scale, tuple[Bar, ...]]
    protocols: Mapping[Scale, Callable[[Conditions], Findings]]

    def __post_init__(self) -> None:
        for scale, bars in self.bars.items():
            counts = Counter(bar.name for bar in bars)
            twice = [name for name, count in counts.items() if count > 1]
            if twice:
                raise ConfigError(f"study {self.name!r}, scale {scale}: two bars named {twice[0]}.")

    def run(
        self,
        *,
        scale: str = "small",
        seed: int = 0,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Run a scale and hold what it found against the bars.

        Args:
            scale: ``"small"`` or ``"full"``.
            seed: Seed of everything random.
            device: Where the work is done.
            progress: Where progress is shown.

        Returns:
            ``study``, ``claim``, ``source``, ``scale``, ``seed``, ``device``, ``passed``,
            ``bars``, ``figures``, ``warnings`` (the first of each kind and how many there
            were), ``seconds`` and ``environment``, all plain values.

        Raises:
            ConfigError: Unknown scale, or the protocol gave no value for a bar, or one for none.
        """
        known = next((name for name in SCALES if name == scale), None)
        if known is None:
            raise ConfigError(f"study {self.name!r}: scale={scale!r} must be one of {SCALES}.")
        from laconic import measure

        conditions = Conditions(seed, device, progress or NullProgress())
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", LaconicWarning)
            found = self.protocols[known](conditions)
        seconds = time.perf_counter() - start
        judged = self._judge(known, found)
        return {
            "study": self.name,
            "claim": self.claim,
            "source": self.source,
            "scale": known,
            "seed": seed,
            "device": device,
            "passed": all(bar["passed"] for bar in judged),
            "bars": judged,
            "figures": {key: section.to_dict() for key, section in found.figures.items()},
            "warnings": _told(heard),
            "seconds": round(seconds, 1),
            "environment": measure.environment(),
        }

    def _judge(self, scale: Scale, found: Findings) -> list[dict[str, Any]]:
        names = [bar.name for bar in self.bars[scale]]
        odd = sorted(set(names) ^ set(found.values))
        if odd:
            raise ConfigError(
                f"study {self.name!r}, scale {scale}: {odd[0]!r} is a bar without a value or a "
                "value without a bar; every bar that was set is judged, and no other."
            )
        return [bar.judge(float(found.values[bar.name])) for bar in self.bars[scale]]


def _told(heard: list[warnings.WarningMessage]) -> list[dict[str, Any]]:
    """Return our warnings, the first of each kind with their count; hand on those of others.

    Two are of a kind where only the layer that they begin with and the numbers differ.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for warning in heard:
        text = str(warning.message)
        if not issubclass(warning.category, LaconicWarning):
            where = (warning.filename, warning.lineno)
            warnings.warn_explicit(warning.message, warning.category, *where)
            continue
        kind = _NUMBER.sub("0", _LAYER.sub("", text))
        counts[kind] += 1
        first.setdefault(kind, text)
    return [{"text": text, "count": counts[kind]} for kind, text in first.items()]
