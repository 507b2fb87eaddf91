"""What a recipe would do to a model, site by site, before any work starts."""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from laconic.errors import LaconicWarning, RecipeError, nearest
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.recipe import Recipe
from laconic.weights.base import SITE_KINDS, ModelStep, Site, Step
from laconic.weights.sites import find_sites, unsupported


@dataclass(frozen=True)
class SitePlan:
    """What would be done to one site.

    Attributes:
        name: Path of the parameter.
        kind: Kind of the site.
        shape: Shape of the weight.
        steps: Names of the steps that work on it, in order.
        form: Sketch of the form that would result, on the meta device.
        original_bytes: Bytes of the dense weight.
        predicted_bytes: Bytes at fixed width; entropy coding makes the file smaller.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    steps: tuple[str, ...]
    form: Form
    original_bytes: int
    predicted_bytes: int


@dataclass(frozen=True)
class Plan:
    """What a recipe would do to a model.

    Attributes:
        sites: One row a site, in model order.
        rest_bytes: Bytes of what no step touches: biases, norms, buffers.
        unsupported: Weights that no method works on, with the reason.
    """

    sites: tuple[SitePlan, ...]
    rest_bytes: int
    unsupported: dict[str, str]

    @property
    def original_bytes(self) -> int:
        """Bytes of all tensors of the original model."""
        return self.rest_bytes + sum(site.original_bytes for site in self.sites)

    @property
    def predicted_bytes(self) -> int:
        """Bytes of all tensors afterwards at fixed width, before entropy coding."""
        return self.rest_bytes + sum(site.predicted_bytes for site in self.sites)


def make_plan(model: nn.Module, recipe: Recipe) -> Plan:
    """Try every step on a sketch of every site it selects.

    Raises:
        RecipeError: A step selects no site, or does not compose with what came before it.
        LayerError: A step's settings do not fit a layer.
    """
    sites = find_sites(model)
    forms = {site.name: sketch_of(site) for site in sites}
    done: dict[str, list[str]] = {site.name: [] for site in sites}
    for number, step in enumerate(recipe.steps, 1):
        step.check_forms(forms.values())
        step.check_structure(model)
        selected = require_selection(step, sites, number)
        if isinstance(step, ModelStep):
            _check_parameters(step, model, number)
        _warn_of_idle_overrides(step, selected, number)
        for site in selected:
            forms[site.name] = _sketched(step, number, site, forms[site.name])
            done[site.name].append(step.method_name)
    if not any(done.values()):
        raise RecipeError(f"recipe {recipe.name!r}: no step selects any weight of this model.")
    rows = tuple(
        SitePlan(
            site.name,
            site.kind,
            site.form.shape,
            tuple(done[site.name]),
            forms[site.name],
            site.form.nbytes,
            forms[site.name].nbytes,
        )
        for site in sites
    )
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    everything = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    covered = sum(row.original_bytes for row in rows)
    return Plan(rows, everything - covered, unsupported(model))


def _check_parameters(step: Step, model: nn.Module, number: int) -> None:
    names = [name for name, _ in model.named_parameters()]
    if not any(step.where.matches(name, "linear", SITE_KINDS) for name in names):
        hint = "".join(nearest(pattern, names) for pattern in step.where.include)
        raise RecipeError(
            f"step {number} ({step.method_name}) selects none of the {len(names)} parameters: "
            f"include={list(step.where.include)}, exclude={list(step.where.exclude)}.{hint}"
        )


def _warn_of_idle_overrides(step: Step, selected: list[Site], number: int) -> None:
    for override in step.overrides:
        if not any(fnmatchcase(s.name, p) for s in selected for p in override.include):
            names = [site.name for site in selected]
            hint = "".join(nearest(pattern, names) for pattern in override.include)
            warnings.warn(
                f"step {number} ({step.method_name}): the override for "
                f"{list(override.include)} matches none of the {len(names)} sites of the "
                f"step.{hint}",
                LaconicWarning,
                stacklevel=3,
            )


def _sketched(step: Step, number: int, site: Site, form: Form) -> Form:
    try:
        return step.for_site(site.name).sketch(form, site=site.name)
    except RecipeError as error:
        raise RecipeError(f"step {number} at {site.name}: {error}") from error


def sketch_of(site: Site) -> Form:
    """Return the site's form with its parts on the meta device."""
    if isinstance(site.form, Dense):
        return Dense(torch.empty(site.form.shape, dtype=site.form.dtype, device="meta"))
    return deepcopy(site.form).to("meta")


def require_selection(step: Step, sites: list[Site], number: int) -> list[Site]:
    """Return the sites a step selects.

    A scope that names only kinds of sites may find none: a recipe for language models also serves
    a model without embeddings. A name pattern that matches nothing is a mistake. Steps on the
    whole model choose parameters, not sites, and may select none of the latter.

    Raises:
        RecipeError: No site fits; the message shows what the scope asked for and what there is.
    """
    selected = [site for site in sites if step.selects(site)]
    kinds = sorted({site.kind for site in sites})
    only_types = step.where.include == ("*",) and not step.where.exclude
    if (
        selected
        or isinstance(step, ModelStep)
        or (only_types and step.where.types and not set(step.where.types) & set(kinds))
    ):
        return selected
    names = [site.name for site in sites]
    hint = "".join(nearest(pattern, names) for pattern in step.where.include)
    raise RecipeError(
        f"step {number} ({step.method_name}) selects no site: include="
        f"{list(step.where.include)}, exclude={list(step.where.exclude)}, types="
        f"{list(step.where.types or step.default_types)}; the model has {len(sites)} sites of "
        f"types {kinds}.{hint} `laconic compress --dry-run` lists them."
    )
