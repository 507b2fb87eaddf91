"""Fill the database: statistics are gathered once, and every level is fitted from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Literal

import torch
from torch import nn

from laconic import artifact
from laconic.forms.layers import install_
from laconic.progress import NullProgress, Progress
from laconic.search.database import FormDatabase
from laconic.search.fitting import Level, fit_site
from laconic.seeds import generator_for
from laconic.task import Task
from laconic.weights.base import Site, Statistic
from laconic.weights.calibrate import gather_

LevelsOf = Callable[[Site], Sequence[Level | None]]


def fill_(
    database: FormDatabase,
    model: nn.Module,
    sites: Sequence[Site],
    levels_of: LevelsOf,
    task: Task | None,
    *,
    calibration: int | None = None,
    seed: int = 0,
    effort: artifact.Effort = "fast",
    progress: Progress | None = None,
) -> None:
    """Fit the levels of all sites that the database lacks, in place.

    Args:
        database: Takes the forms; sites that it has are not fitted again.
        model: The dense model; it is left as it is.
        sites: Sites of ``model``.
        levels_of: Levels of a site, in the database's order; None for those it does not have.
        task: Gives the calibration data where a level needs statistics.
        calibration: None: statistics are those of the dense model, as for sparsity. Else this
            level is put in at every site that has it once its block is fitted, so that later
            blocks see what it gives, as for bit-widths.
        seed: Seed of everything random.
        effort: Entropy coding that costs are predicted for.
        progress: Where progress is shown.

    Raises:
        ConfigError: A level needs statistics and there is no calibration data.

    Source: Sieberling et al. 2024 (EvoPress), appendix on databases.
    """
    levels = {site.name: list(levels_of(site)) for site in sites}
    done = _finished(database, sites)
    left = [site for site in sites if site.name not in done]
    if not left:
        return
    at_work = model if calibration is None else deepcopy(model).eval().requires_grad_(False)
    if calibration is not None:
        for site in sites:
            if site.name in done:
                _put_in(at_work, database, site, calibration)
    shown = progress or NullProgress()
    bar = shown.start("levels", len(sites))
    shown.advance(bar, len(done))
    needs = _needs(left, levels, task)
    propagate: Literal["original", "compensated"] = "original"
    if calibration is not None:
        propagate = "compensated"
    for group in gather_(at_work, left, task, needs, propagate=propagate):
        for site in group:
            draw = partial(_drawn, seed, site.name)
            fitted = fit_site(site, levels[site.name], draw, effort=effort)
            database.put(site.name, levels[site.name], fitted)
            if calibration is not None:
                _put_in(at_work, database, site, calibration)
            shown.advance(bar, note=site.name)
    shown.finish(bar)


def _drawn(seed: int, name: str, place: int) -> torch.Generator:
    return generator_for(seed, "level", place, name)


def _finished(database: FormDatabase, sites: Sequence[Site]) -> set[str]:
    """Return the sites that need no fit: a block counts only as a whole.

    Inside a block all sites are fitted from what its original weights give, so that a block of
    which some are done is done again.
    """
    there = set(database.sites)
    open_blocks = {site.block for site in sites if site.name not in there} - {None}
    return {s.name for s in sites if s.name in there and s.block not in open_blocks}


def _needs(
    sites: Sequence[Site], levels: dict[str, list[Level | None]], task: Task | None
) -> dict[str, frozenset[Statistic]]:
    data = task is not None and bool(len(task.calibration_split() or ()))
    found = {}
    for site in sites:
        own = [level for level in levels[site.name] if level is not None]
        needed = frozenset[Statistic]().union(*(level.needs for level in own))
        wished = frozenset[Statistic]().union(*(level.wishes for level in own))
        found[site.name] = needed | (wished if data else frozenset())
    return found


def _put_in(model: nn.Module, database: FormDatabase, site: Site, level: int) -> None:
    if database.entries[site.name][level] is None:
        return
    form = database.form(site.name, level)
    if form is not None:
        install_(model, site.name, form, layout=site.layout)
