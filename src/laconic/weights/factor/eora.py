"""Add a thin correction to a compressed weight, best in the metric of the layer's inputs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from laconic.errors import ConfigError, LaconicWarning, LayerError
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.lowrank import LowRank
from laconic.forms.sum import Sum
from laconic.registry import method
from laconic.settings import setting
from laconic.weights.base import LayerStep, Site, SiteKind, Statistic
from laconic.weights.checks import finite, finite_matrix
from laconic.weights.factor._metric import (
    Info,
    Root,
    diagonal_root,
    gram_root,
    metric_factors,
)
from laconic.weights.quantize.round_to_nearest import RoundToNearest

_SHARES = (8, 4, 2, 1)  # levels: the rank over these, and twice the rank


def eora_factors(
    delta: Tensor,
    gram: Tensor,
    rank: int,
    *,
    rtol: float | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Info]:
    """Return the best rank-``rank`` correction ``B @ A`` of a weight under a Gram matrix.

    Minimises ``tr((D - BA) G (D - BA).T)`` exactly: with ``G = Q L Q.T`` and ``S = Q sqrt(L)``
    in float64, the truncated decomposition ``U s Vt`` of ``D S`` gives ``B = U sqrt(s)`` and
    ``A = sqrt(s) Vt pinv(S)``.

    >>> delta, gram = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.diag(torch.tensor([1.0, 9.0]))
    >>> B, A, info = eora_factors(delta, gram, 1)
    >>> (B @ A).abs().round(), round(info.energy, 3)
    (tensor([[0., 0.],
            [0., 1.]]), 0.9)

    Shapes:
        delta (rows, cols), gram (cols, cols) -> B (rows, rank), A (rank, cols) float32

    Args:
        delta: The original weight less the compressed one.
        gram: Raw second moment of the inputs, over any positive number.
        rank: From 1 up.
        rtol: Eigenvalues at or below this share of the largest are left out; ``cols`` times the
            rounding unit of float32 if None.
        generator: For the iteration that large matrices are decomposed with.

    Raises:
        ConfigError: A rank below 1, a Gram matrix of another size, or values not finite.

    Source: Liu et al. 2024 (EoRA), section 3.
    Differs: noise eigenvalues are left out, not replaced by the least positive one.
    """
    if rank < 1:
        raise ConfigError(f"eora: rank={rank} must be at least 1.")
    if delta.dim() != 2 or gram.shape != (delta.shape[1], delta.shape[1]):
        raise ConfigError(
            f"eora: gram has the shape {tuple(gram.shape)}; a weight of the shape "
            f"{tuple(delta.shape)} needs a square one of its inputs."
        )
    return metric_factors(delta, gram_root(gram, rtol=rtol), rank, generator=generator)


@method("eora", family="compensate", source="Liu et al. 2024 (EoRA, arXiv 2410.21271)")
@dataclass(frozen=True, kw_only=True)
class Eora(LayerStep):
    """Add two thin factors to compressed weights so that outputs come back to the original's.

    The compressed weight stays as it is; the correction is stored and counted beside it.

    Args:
        rank: Rank of the correction; 128 in the paper for models of 8 billion weights.
        metric: ``"gram"`` is EoRA; ``"absmean"`` weighs each input by its mean magnitude
            (ACT-S); ``"identity"`` is plain SVD of the residual and needs no data.
        propagate: Whose activations calibration sees: the ``original`` model's, or
            ``compensated``: every block sees what the corrected blocks before it give, as in the
            published code.
        factor_dtype: Type that the factors are stored in.
        factor_bits: Bits that the factors are rounded to instead, 2..8.
        rtol: Least eigenvalue that counts, as a share of the largest; inputs times the rounding
            unit of float32 if none.

    Shapes:
        weight (rows, cols), gram (cols, cols) -> B (rows, rank) @ A (rank, cols)

    Raises:
        LayerError: A grouped convolution, or values not finite.
        RecipeError: The weight is dense: there is nothing to correct.

    Source: Liu et al. 2024, section 3 and algorithm 1; LQER (Zhang et al. 2024) for ``absmean``;
    ZeroQuant-V2 (Yao et al. 2023) for ``identity``.
    Differs: the Gram matrix weighs all calibration rows alike.
    """

    default_types: ClassVar[tuple[SiteKind, ...]] = ("linear",)
    supported_types: ClassVar[tuple[SiteKind, ...]] = ("linear", "conv")
    shorthand: ClassVar[str | None] = "rank"

    rank: int = setting(32, help="Rank of the correction.", low=1)
    metric: Literal["gram", "absmean", "identity"] = setting("gram", help="What counts as error.")
    propagate: Literal["original", "compensated"] = setting(
        "original", help="Whose activations calibration sees."
    )
    factor_dtype: Literal["bfloat16", "float16", "float32"] = setting(
        "bfloat16", help="Type that the factors are stored in."
    )
    factor_bits: int | None = setting(None, help="Bits of the factors.", low=2, high=8)
    rtol: float | None = setting(None, help="Least eigenvalue, as a share.", low=0.0, high=1.0)

    @property
    def needs(self) -> frozenset[Statistic]:
        """Return the statistic that the metric is made of."""
        return {
            "gram": frozenset[Statistic]({"gram"}),
            "absmean": frozenset[Statistic]({"absmean"}),
            "identity": frozenset[Statistic](),
        }[self.metric]

    def levels(self) -> tuple[Self, ...]:
        """Return the step at an eighth of its rank up to twice its rank."""
        ranks = sorted({max(self.rank // share, 1) for share in _SHARES} | {2 * self.rank})
        return tuple(replace(self, rank=rank) for rank in ranks)

    def resolve(self, sites: Sequence[Site]) -> dict[str, LayerStep]:
        """Return the step for each site, after a check that none is a grouped convolution."""
        for site in sites:
            _refuse_groups(site)
        return super().resolve(sites)

    def sketch(self, form: Form, *, site: str) -> Form:
        """Return the form with an empty correction beside it."""
        self._check_form(form)
        rank = min(self.rank, form.rows, form.cols)
        B = Dense(torch.empty(form.rows, rank, dtype=self._type(), device="meta"))
        A = Dense(torch.empty(rank, form.cols, dtype=self._type(), device="meta"))
        factors: tuple[Form, ...] = (B, A)
        if self.factor_bits is not None:
            step = RoundToNearest(bits=self.factor_bits)
            factors = tuple(step.sketch(factor, site=site) for factor in factors)
        return _with_term(form, LowRank(*factors, shape=form.shape, dtype=form.dtype))

    def fit(self, site: Site, generator: torch.Generator) -> Form:
        """Return the site's form with the correction beside it."""
        self._check_form(site.form)
        _refuse_groups(site)
        rank = self._clamped(site)
        delta = finite(site.original_matrix(), site=site.name) - finite_matrix(site)
        B, A, _ = metric_factors(delta, self._root(site), rank, generator=generator)
        factors = tuple(self._factor(part, name, site.name) for part, name in ((B, "B"), (A, "A")))
        return _with_term(
            site.form, LowRank(*factors, shape=site.form.shape, dtype=site.form.dtype)
        )

    def _type(self) -> torch.dtype:
        kept: torch.dtype = getattr(torch, self.factor_dtype)
        return kept

    def _check_form(self, form: Form) -> None:
        if isinstance(form, Dense):
            raise self.refuse(form, "nothing to compensate; quantize or prune the weight first.")

    def _clamped(self, site: Site) -> int:
        most = min(site.form.rows, site.form.cols)
        if self.rank > most:
            warnings.warn(
                f"{site.name}: eora rank {self.rank} is above the smaller side of the "
                f"{site.form.rows} x {site.form.cols} weight; {most} is used.",
                LaconicWarning,
                stacklevel=3,
            )
        return min(self.rank, most)

    def _root(self, site: Site) -> Root:
        if self.metric == "identity":
            return diagonal_root(torch.ones(site.form.cols, device=site.original.device))
        if self.metric == "absmean":
            return diagonal_root(finite(site.need("absmean"), site=site.name, what="inputs"))
        gram = finite(site.need("gram"), site=site.name, what="Gram matrix")
        root = gram_root(gram, rtol=self.rtol)
        missing = len(gram) - root.retained - root.dead
        if missing > 0 or root.retained == 0:
            warnings.warn(
                f"{site.name}: calibration inputs span {root.retained} of {len(gram)} directions "
                f"({root.dead} inputs were always zero); the correction works on those only. "
                "More calibration data may reach more.",
                LaconicWarning,
                stacklevel=3,
            )
        return root

    def _factor(self, value: Tensor, name: str, site: str) -> Form:
        stored = Dense(value.to(self._type()))
        finite(stored.dense().detach(), site=site, what=f"factor {name} in {self.factor_dtype}")
        if self.factor_bits is None:
            return stored
        step = RoundToNearest(bits=self.factor_bits)
        return step.round_dense(stored, site=f"{site} (factor {name})")


def _refuse_groups(site: Site) -> None:
    if site.groups > 1:
        raise LayerError(
            f"{site.name}: eora has no correction for a convolution with {site.groups} groups, "
            "each with inputs of its own. Exclude this layer."
        )


def _with_term(form: Form, term: Form) -> Sum:
    terms = tuple(form.children_forms().values()) if isinstance(form, Sum) else (form,)
    return Sum(*terms, term, shape=form.shape, dtype=form.dtype)
