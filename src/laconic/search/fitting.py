"""Levels of one site: what each is made by, what it costs, and the error that it brings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from laconic import artifact
from laconic.errors import LayerError
from laconic.forms.base import Form
from laconic.weights.base import LayerStep, Site, Statistic
from laconic.weights.second_order import shared_factors

Draw = Callable[[int], torch.Generator]  # index of the step in its level -> source of randomness


@dataclass(frozen=True)
class Level:
    """One setting that a site may take: recipe steps, one after another.

    Attributes:
        name: For tables and files, such as ``"3 bits + rank 1/8"``.
        steps: What makes the form; none leaves the site as it is.
    """

    name: str
    steps: tuple[LayerStep, ...]

    @property
    def needs(self) -> frozenset[Statistic]:
        """Statistics that its steps ask for."""
        return frozenset[Statistic]().union(*(step.needs for step in self.steps))

    @property
    def wishes(self) -> frozenset[Statistic]:
        """Statistics that its steps use where there is calibration data."""
        return frozenset[Statistic]().union(*(step.wishes for step in self.steps))


@dataclass(frozen=True)
class Fitted:
    """One level at one site.

    Attributes:
        form: What the steps made of the site.
        cost: Predicted bytes.
        error: Relative squared error of the output.
        name: Settings of the level that differ from those of other levels.
        said: Warnings of the fit; given on where the level is chosen.
    """

    form: Form
    cost: int
    error: float
    name: str
    said: tuple[warnings.WarningMessage, ...] = ()


def fit_site(
    site: Site, levels: Sequence[Level | None], draw: Draw, *, effort: artifact.Effort = "fast"
) -> list[Fitted | None]:
    """Fit every level at a site; None stands for one that it does not have.

    All levels see the same statistics, and a Gram matrix is factored once for all of them. The
    site's form is what it was when the function returns.

    Args:
        site: The site, with the statistics that the levels need.
        levels: Levels in the order of the table; None where this site has none.
        draw: Source of randomness for each step of a level, the same for each level.
        effort: Entropy coding that the predicted bytes are of.

    Raises:
        LayerError: No level fits the site's shape; tells what the last one said.
    """
    found: list[Fitted | None] = []
    refused: LayerError | None = None
    with shared_factors():
        for level in levels:
            if level is None:
                found.append(None)
                continue
            try:
                found.append(_fit_level(site, level, draw, effort))
            except LayerError as error:
                refused = error
                found.append(None)
    if refused and not any(found):
        raise refused
    return found


def _fit_level(site: Site, level: Level, draw: Draw, effort: artifact.Effort) -> Fitted:
    held = site.form
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            for place, step in enumerate(level.steps):
                site.form = step.fit(site, draw(place))
            form = site.form
        finally:
            site.form = held
    cost = artifact.predict_bytes(form, effort=effort)
    return Fitted(form, cost, output_error(site, form), level.name, tuple(said))


def level_names(levels: Sequence[LayerStep]) -> list[str]:
    """Return what tells the levels of one site apart, such as ``bits=3``."""
    differing = [
        field.name
        for field in fields(levels[0])
        if any(getattr(s, field.name) != getattr(levels[0], field.name) for s in levels)
    ]
    shown = [[f"{name}={getattr(step, name)}" for name in differing] for step in levels]
    return [", ".join(words) or "as given" for words in shown]


def output_error(site: Site, form: Form) -> float:
    """Return the squared error that a form brings at a site, as a share of what is there.

    With a Gram matrix ``G`` it is ``tr(D G D.T) / tr(W G W.T)`` for ``D`` the difference from the
    original weight ``W``: the squared error of the output over its square. Without one ``G`` is
    the identity. A share, for norms between layers make the scale of a weight meaningless, and
    an embedding can then be weighed against a layer that was calibrated.

    Source: Malinovskii et al. 2024 (HIGGS), theorem 1: the loss grows with the sum of the layers'
    relative squared errors, each times a factor; here all factors are alike.
    """
    original = site.original_matrix()
    gram = site.statistics.gram if site.statistics else None
    dense = form.dense().detach().float().reshape(form.rows, form.cols)
    error, whole = _energy(dense - original, gram), _energy(original, gram)
    return error / whole if whole > 0 else error


def _energy(matrix: Tensor, gram: Tensor | None) -> float:
    if gram is None:
        return float(matrix.double().square().sum())
    if gram.dim() == 3:  # a Gram matrix for each group's or expert's rows
        matrix = matrix.reshape(gram.shape[0], -1, matrix.shape[1])
    return float(((matrix @ gram) * matrix).double().sum().clamp_min(0))
