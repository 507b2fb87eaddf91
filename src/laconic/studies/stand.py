"""A stand for comparing methods: one model on which sets of forms are put in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace

from torch import nn

from laconic import measure
from laconic.forms.base import Form
from laconic.forms.layers import install_
from laconic.seeds import generator_for
from laconic.task import Task
from laconic.weights.base import LayerStep, Site, Statistic
from laconic.weights.calibrate import gather_
from laconic.weights.sites import find_sites

Forms = Mapping[str, Form]  # form of each site by its name


class Stand:
    """The original of a model, and a copy of it that carries one set of forms at a time.

    A set of forms is kept apart from the models, so that many variants cost no more memory than
    what tells them apart.

    Args:
        original: Trained model; neither it nor its parameters are changed.
        seed: Seed of what the steps draw.
        device: Where both models lie.

    Attributes:
        original: The model in evaluation mode.
        model: The copy.
    """

    def __init__(self, original: nn.Module, *, seed: int = 0, device: str = "cpu") -> None:
        self.original = deepcopy(original).to(device).eval().requires_grad_(False)
        self.model = deepcopy(self.original)
        self.seed, self.device = seed, device
        self.dense: Forms = {site.name: site.form for site in self._sites()}

    def put(self, forms: Forms) -> nn.Module:
        """Put a set of forms on the copy, dense weights wherever it has none; return the copy."""
        for site in self._sites():
            install_(self.model, site.name, forms.get(site.name, site.form), layout=site.layout)
        return self.model

    def divergence(self, forms: Forms, task: Task) -> float:
        """Return the mean KL(original, copy with these forms) on a task's test examples."""
        model = self.put(forms)
        return measure.logit_kl(self.original, model, task, device=self.device)["value"]

    def apply(
        self, steps: Sequence[LayerStep], task: Task | None, *, start: Forms | None = None
    ) -> dict[str, Form]:
        """Run steps one after another, as a recipe does, and return the forms they leave.

        Args:
            steps: Steps, first one first.
            task: Gives the calibration data; may be None where no step needs any.
            start: Forms to start from; dense weights where None.
        """
        forms = {**self.dense, **(start or {})}
        for index, step in enumerate(steps):
            self.put(forms)
            model = self.model if step.propagate == "compensated" else self.original
            sites = [site for site in self._sites(forms) if step.selects(site)]
            needs = {site.name: step.for_site(site.name).needs for site in sites}
            resolved = step.resolve(sites)
            for group in gather_(
                model, sites, task, needs, propagate=step.propagate, sequential=step.sequential
            ):
                for site in group:
                    source = generator_for(self.seed, index, site.name)
                    forms[site.name] = resolved[site.name].fit(site, source)
                    install_(self.model, site.name, forms[site.name], layout=site.layout)
        return forms

    def correct(
        self, bases: Mapping[str, Forms], steps: Mapping[str, LayerStep], task: Task | None
    ) -> dict[tuple[str, str], dict[str, Form]]:
        """Fit steps to compressed models, all on one walk over the original's activations.

        Args:
            bases: Sets of forms by name.
            steps: Steps by name, of one scope; their calibration sees the original model.
            task: Gives the calibration data.

        Returns:
            The forms of every base with every step on top, by both names.
        """
        some = next(iter(steps.values()))
        sites = [site for site in self._sites() if some.selects(site)]
        every = frozenset[Statistic]().union(*(step.needs for step in steps.values()))
        found = {(b, s): dict(forms) for b, forms in bases.items() for s in steps}
        for group in gather_(self.original, sites, task, {site.name: every for site in sites}):
            for site in group:
                for base, name, at in self._pairs(bases, steps, site):
                    source = generator_for(self.seed, name, site.name)
                    found[base, name][site.name] = steps[name].fit(at, source)
        return found

    def _pairs(
        self, bases: Mapping[str, Forms], steps: Mapping[str, LayerStep], site: Site
    ) -> Iterator[tuple[str, str, Site]]:
        for base, forms in bases.items():
            for name in steps:
                yield base, name, replace(site, form=forms[site.name])

    def _sites(self, forms: Forms | None = None) -> list[Site]:
        sites = find_sites(self.original)
        return [replace(site, form=(forms or {}).get(site.name, site.form)) for site in sites]


def bytes_of(forms: Forms, names: Sequence[str]) -> int:
    """Return the bytes of some sites' forms at fixed width, before entropy coding."""
    return sum(forms[name].nbytes for name in names)
