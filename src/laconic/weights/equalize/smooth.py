"""Move outliers of activations into the weights that they meet, where they do less harm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from laconic.errors import RecipeError
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.registry import method
from laconic.settings import setting
from laconic.task import Task
from laconic.weights.base import ModelStep, Site, SiteKind, Statistic
from laconic.weights.calibrate import gather_
from laconic.weights.equalize._fold import (
    Relation,
    by_source,
    fold_,
    largest_weights,
    name_of,
    usable,
)
from laconic.weights.equalize.base import RewriteJob, Rewrites
from laconic.weights.recover.base import RecoverJob
from laconic.weights.roles import Passage, Reader, Roles, find_roles
from laconic.weights.sites import find_sites

_LEAST = 1e-5


@method("smoothquant", family="equalize", source="Xiao, Lin, Seznec, Wu, Demouth, Han 2023")
@dataclass(frozen=True, kw_only=True)
class SmoothQuant(Rewrites, ModelStep):
    """Divide outlier channels of activations and multiply the weights that they meet.

    With ``s_j = max|X_j|**alpha / max|W_j|**(1 - alpha)`` over all layers that share the input,
    input channel j is divided by ``s_j`` and column j of these layers multiplied by it. The
    division is folded into the norm that gives the input, so that nothing is left to do at run
    time and the outputs stay what they are. Weights stay dense: a quantizing step comes after.

    Which norm feeds which layers is found by running the model; a norm that something else reads
    too (a residual sum, as in BERT) is left alone, and the report says so.

    Args:
        alpha: How much of the difficulty moves into the weights; 0.5 in the paper, 0.8 for
            models with strong outliers.
        down: Also scale between a layer and the one after its gate or ReLU, folded into the rows
            of the first: down projections have the largest outliers of gated models.
        values: Also scale between the values of an attention and its output projection; with
            grouped queries the columns that one value meets share their scale.

    Shapes:
        input (..., cols), weights (rows, cols) -> the same, scaled by s (cols,)

    Raises:
        RecipeError: Nothing in the model can be smoothed, or a weight is compressed already.
        LayerError: Inputs on the calibration data are not finite.

    Source: Xiao et al. 2023, equation 4 and section 4.
    Differs: channels that are always zero, or meet only zeros, keep their scale.
    """

    shorthand: ClassVar[str | None] = "alpha"
    default_types: ClassVar[tuple[SiteKind, ...]] = ("linear", "experts")
    supported_types: ClassVar[tuple[SiteKind, ...]] = ("linear", "experts")

    alpha: float = setting(0.5, help="Share of the difficulty that weights take.", low=0, high=1)
    down: bool = setting(False, help="Also between a layer and the one after its gate or ReLU.")
    values: bool = setting(False, help="Also between an attention's values and its output layer.")

    @property
    def needs(self) -> frozenset[Statistic]:
        """Return the largest magnitudes of the inputs."""
        return frozenset({"absmax"})

    def sketch(self, form: Form, *, site: str) -> Form:
        """Return the form unchanged, after a check that it is dense."""
        if not isinstance(form, Dense):
            raise self.refuse(form, "it rescales dense weights; put it before what compresses.")
        return form

    def run_(self, job: RecoverJob) -> dict[str, Any]:
        """Do nothing more: the model was rewritten already."""
        return {}

    def check_model(self, model: nn.Module, task: Task | None) -> None:
        """Find out before any work that something can be smoothed.

        Raises:
            RecipeError: Nothing can.
        """
        if task is not None:
            self._relations(model, model, task)

    def rewrite_(self, job: RewriteJob) -> dict[str, Any]:
        """Smooth both models in place; return what was smoothed and what was left, and why."""
        if job.task is None:
            raise RecipeError(f"{self.method_name} needs a task with calibration data.")
        roles, chosen, left = self._relations(job.reference, job.model, job.task)
        maxima = self._maxima(job, chosen)
        for relation in chosen:
            scale = self._scale(job.reference, roles, relation, maxima)
            for model in (job.reference, job.model):
                fold_(model, roles, relation, scale)
        return {"smoothed": [name_of(relation) for relation in chosen], "left": left}

    def _relations(
        self, reference: nn.Module, model: nn.Module, task: Task
    ) -> tuple[Roles, list[Relation], dict[str, str]]:
        roles = find_roles(reference, task)
        passages = [p for p in roles.passages if (self.values if p.mixes else self.down)]
        # Passages first: they change rows whose largest weights a norm's readers look at.
        sites = {site.name: site for site in find_sites(reference)}
        chosen, left = usable(self, model, (*passages, *roles.readers), sites)
        left |= {
            refusal.name: refusal.reason
            for refusal in roles.refused
            if "beside" in refusal.reason or "tied" in refusal.reason
        }
        if not chosen:
            reasons = [f"{name}: {reason}" for name, reason in left.items()]
            raise RecipeError(
                f"{self.method_name} found nothing to smooth: no norm is read by linear layers "
                f"alone that are in its scope. {'; '.join(reasons[:3]) or 'There is no such norm'}."
                " Leave the step out, widen its scope, or set down or values."
            )
        return roles, chosen, left

    def _maxima(self, job: RewriteJob, chosen: list[Relation]) -> dict[str, Tensor]:
        """Return the largest magnitude of each input channel, by one layer that it reaches."""
        found = {site.name: site for site in find_sites(job.reference)}
        wanted = {_meets(relation, found): frozenset[Statistic]({"absmax"}) for relation in chosen}
        maxima: dict[str, Tensor] = {}
        sites = [found[name] for name in wanted]
        for group in gather_(job.reference, sites, job.task, wanted, progress=job.progress):
            for site in group:
                absmax = site.need("absmax")
                maxima[site.name] = absmax.reshape(-1, absmax.shape[-1]).amax(0)
        return {name_of(relation): maxima[_meets(relation, found)] for relation in chosen}

    def _scale(
        self, model: nn.Module, roles: Roles, relation: Relation, maxima: dict[str, Tensor]
    ) -> Tensor:
        inputs = maxima[name_of(relation)]
        if isinstance(relation, Passage):
            weights = by_source(largest_weights(model, roles, [relation.target]), relation)
            return self.scale(by_source(inputs, relation), weights)
        known = {site.name for site in find_sites(model)}
        layers = [name for name in relation.layers if name in known]
        return self.scale(inputs, largest_weights(model, roles, layers))

    def scale(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """Return the scale of each channel from the largest magnitudes of inputs and weights.

        Shapes:
            inputs (cols,), weights (cols,) -> (cols,)
        """
        x, w = inputs.double(), weights.double().to(inputs.device)
        ratio = x.clamp_min(_LEAST) ** self.alpha / w.clamp_min(_LEAST) ** (1 - self.alpha)
        dead = (x <= 0) | (w <= 0)
        return torch.where(dead, torch.ones_like(ratio), ratio.clamp_min(_LEAST))


def _meets(relation: Relation, sites: dict[str, Site]) -> str:
    """Return a layer whose input a relation scales."""
    if isinstance(relation, Reader):
        return next(name for name in relation.layers if name in sites)
    return relation.target
