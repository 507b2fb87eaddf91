"""What each family of methods can do for a model, from quick fits without data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from torch import nn

from laconic import measure, registry
from laconic.coding import entropy
from laconic.errors import LaconicWarning, LayerError, RecipeError
from laconic.forms.base import Form, Part
from laconic.progress import NullProgress, Progress
from laconic.seeds import generator_for
from laconic.weights.base import LayerStep, Site, Where
from laconic.weights.sites import blocks_of, find_sites, unsupported

_GROUPS = (16, 128)  # group sizes that quantizers choose from by themselves
_MOST_WEIGHTS = 20_000_000
_WORST = 5
_HURTS = 1.15  # times the median error of all weights: such a weight stands out

# Family, what it is called in the table, method, settings.
_PROBES: tuple[tuple[str, str, str, dict[str, object]], ...] = (
    ("quantize", "8 bits", "round-to-nearest", {"bits": 8}),
    ("quantize", "4 bits", "round-to-nearest", {"bits": 4}),
    ("quantize", "3 bits", "round-to-nearest", {"bits": 3}),
    ("cluster", "16 centroids", "kmeans", {"bits": 4}),
    ("prune", "50 % zeros", "magnitude", {"sparsity": 0.5}),
    ("prune", "80 % zeros", "magnitude", {"sparsity": 0.8}),
    ("prune", "2 of 4 zeros", "magnitude", {"pattern": "2:4"}),
    ("factor", "half the parameters", "svd", {"keep": 0.5}),
)


@dataclass(frozen=True)
class Expectation:
    """What one setting of one family would give.

    Attributes:
        family: Family of the method.
        setting: The setting in words.
        method: Name of the method in recipes.
        predicted_bytes: Bytes of the whole model: parts at their order-0 entropy where that is
            below their fixed width, and what is left alone as it is.
        ratio: Original bytes / predicted bytes.
        error: ``|W - W'| / |W|`` over all weights that were judged.
        typical: Median of the relative errors of single weights.
        worst: Weights with the largest relative error, and it.
        judged: Weights (sites) that were fitted; the others are taken to shrink alike.
        of: Sites that the method works on.
        skipped: Sites that the method refused, with the reason.
    """

    family: str
    setting: str
    method: str
    predicted_bytes: int
    ratio: float
    error: float
    typical: float
    worst: tuple[tuple[str, float], ...]
    judged: int
    of: int
    skipped: dict[str, str]


@dataclass(frozen=True)
class Diagnosis:
    """What stands in a model and what can be expected of each family.

    Attributes:
        original_bytes: Bytes of all its tensors.
        sites: Number of weights that methods can work on.
        blocks: Number of residual blocks.
        covered: Share of the bytes that lies in sites.
        expectations: One row a setting.
        tied: Names that share a weight, by the name that keeps it.
        odd_widths: Row length of weights that no group from 16 to 128 divides.
        unsupported: Weights that no method works on, with the reason.
        hurt: Weights that stand out in two settings or more, and in how many.
        sparsity: How sparse the weights of each judged site are, by name.
    """

    original_bytes: int
    sites: int
    blocks: int
    covered: float
    expectations: tuple[Expectation, ...]
    tied: dict[str, tuple[str, ...]]
    odd_widths: dict[str, int]
    unsupported: dict[str, str]
    hurt: tuple[tuple[str, int], ...]
    sparsity: tuple[tuple[str, measure.Sparsity], ...] = ()


def diagnose(
    model: nn.Module,
    *,
    seed: int = 0,
    most_weights: int = _MOST_WEIGHTS,
    progress: Progress | None = None,
) -> Diagnosis:
    """Fit each family once to the actual weights, without data; the model is not changed.

    Args:
        model: Trained model.
        seed: Seed of what methods draw.
        most_weights: Weights to fit a setting on, in whole sites spread over the model; at
            least one site.
        progress: Where progress is shown.
    """
    shown = progress or NullProgress()
    sites = find_sites(model)
    total = _tensor_bytes(model)
    bar = shown.start("doctor", len(_PROBES))
    expectations = []
    for family, words, name, settings in _PROBES:
        step = registry.get(name).cls(**settings)
        step = _everywhere(step)
        expectations.append(_expect(step, family, words, sites, total, seed, most_weights))
        shown.advance(bar, note=f"{family}: {words}")
    shown.finish(bar)
    return Diagnosis(
        original_bytes=total,
        sites=len(sites),
        blocks=len(blocks_of(model)),
        covered=sum(_dense_bytes(site) for site in sites) / total if total else 0.0,
        expectations=tuple(expectations),
        tied={site.name: site.aliases for site in sites if site.aliases},
        odd_widths={site.name: site.form.cols for site in sites if _is_odd(site.form.cols)},
        unsupported=unsupported(model),
        hurt=_hurt(expectations),
        sparsity=_sparsities(_spread(sites, most_weights)),
    )


def _sparsities(sites: Sequence[Site]) -> tuple[tuple[str, measure.Sparsity], ...]:
    """Measure what each site keeps; one whose weights are not finite has no figures."""
    return tuple(
        (site.name, measure.form_sparsity(site.form))
        for site in sites
        if bool(torch.isfinite(site.form.dense()).all())
    )


def _everywhere(step: LayerStep) -> LayerStep:
    """Let quantizers work on embeddings too: there they are as harmless as elsewhere."""
    family = registry.get(step.method_name).family
    if family != "quantize":
        return step
    return replace(step, where=Where(types=step.supported_types))


def _expect(
    step: LayerStep,
    family: str,
    words: str,
    sites: Sequence[Site],
    total: int,
    seed: int,
    most: int,
) -> Expectation:
    selected = [site for site in sites if step.selects(site)]
    chosen = _spread(selected, most)
    fits = [(site, _fit(step, site, seed)) for site in chosen]
    rows = [(site, _judge(site, fit)) for site, fit in fits if isinstance(fit, Form)]
    skipped = {site.name: fit for site, fit in fits if isinstance(fit, str)}
    before = sum(_dense_bytes(site) for site, _ in rows)
    after = sum(row.bytes for _, row in rows)
    reachable = sum(_dense_bytes(site) for site in selected if site.name not in skipped)
    shrunk = reachable * after / before if before else float(reachable)
    predicted = round(total - reachable + shrunk)
    squares = sum(row.square for _, row in rows)
    lost = sum(row.lost for _, row in rows)
    worst = sorted(((site.name, row.error) for site, row in rows), key=lambda item: -item[1])
    return Expectation(
        family=family,
        setting=words,
        method=step.method_name,
        predicted_bytes=predicted,
        ratio=total / predicted if predicted else math.inf,
        error=math.sqrt(lost / squares) if squares else 0.0,
        typical=median(error for _, error in worst) if worst else 0.0,
        worst=tuple(worst[:_WORST]),
        judged=len(rows),
        of=len(selected),
        skipped=skipped,
    )


def _fit(step: LayerStep, site: Site, seed: int) -> Form | str:
    """Fit one site; return the reason where the method refuses it."""
    try:
        with warnings.catch_warnings():
            # A layer that stays dense shows in the figures; here it is no news.
            warnings.simplefilter("ignore", LaconicWarning)
            return step.resolve([site])[site.name].fit(site, generator_for(seed, 0, site.name))
    except (LayerError, RecipeError) as error:
        return str(error)


@dataclass(frozen=True)
class _Row:
    bytes: float
    square: float
    lost: float

    @property
    def error(self) -> float:
        return math.sqrt(self.lost / self.square) if self.square else 0.0


@torch.no_grad()
def _judge(site: Site, form: Form) -> _Row:
    original = site.matrix()
    lost = (form.dense().float().reshape(original.shape) - original).double().square().sum()
    return _Row(predicted_bytes(form), float(original.double().square().sum()), float(lost))


def predicted_bytes(form: Form) -> float:
    """Return the bytes of a form at rest: symbols at their order-0 entropy or fixed width."""
    return sum(_part_bytes(part) for part in _parts(form))


def _parts(form: Form) -> Iterator[Part]:
    for _, inner in form.walk():
        yield from inner.parts().values()


def _part_bytes(part: Part) -> float:
    count = part.tensor.numel()
    if part.alphabet is None:
        return float(count * part.tensor.element_size())
    if count == 0 or part.alphabet < 2:
        return 0.0
    symbols = part.tensor.detach().cpu().flatten().numpy()
    width = math.ceil(math.log2(part.alphabet))
    return count * min(float(entropy(np.ascontiguousarray(symbols), part.alphabet)), width) / 8


def _spread(sites: Sequence[Site], most: int) -> list[Site]:
    """Return sites spread evenly over the model whose weights are at most ``most``."""
    total = sum(site.original.numel() for site in sites)
    if total <= most:
        return list(sites)
    stride = math.ceil(total / most)
    kept: list[Site] = []
    held = 0
    for site in sites[::stride]:
        if not kept or held + site.original.numel() <= most:
            kept.append(site)
            held += site.original.numel()
    return kept


def _hurt(expectations: Sequence[Expectation]) -> tuple[tuple[str, int], ...]:
    """Return the weights that stand out in several settings, most often first."""
    counts: dict[str, int] = {}
    for row in expectations:
        for name, error in row.worst:
            if error > _HURTS * row.typical:
                counts[name] = counts.get(name, 0) + 1
    often = [(name, count) for name, count in counts.items() if count >= 2]
    return tuple(sorted(often, key=lambda item: -item[1])[:_WORST])


def _is_odd(cols: int) -> bool:
    low, high = _GROUPS
    return cols > low and not any(cols % size == 0 for size in range(low, high + 1))


def _dense_bytes(site: Site) -> int:
    return site.original.numel() * site.original.element_size()


def _tensor_bytes(model: nn.Module) -> int:
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
