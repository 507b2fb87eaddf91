"""Move every group's zero point to where few weights lie far from their level; needs no data."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from laconic.errors import LaconicWarning, LayerError
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.quantized import Quantized
from laconic.registry import method
from laconic.settings import setting
from laconic.weights.base import LayerStep, Site, Statistic
from laconic.weights.checks import finite, has_dense, replace_dense
from laconic.weights.quantize._uniform import ScaleType, resolve_group_size

_MOST_LEVELS_PER_UNIT = 2e4  # largest inverse scale of the published code
_FAR = 2.0**14  # levels between zero and a group far from it: a half type holds that many
_OUTLIER = 6.0  # an input that is so much larger than the median one, on weights so much smaller


@method("hqq", family="quantize", source="Badri and Shaji 2023")
@dataclass(frozen=True, kw_only=True)
class Hqq(LayerStep):
    """Round weights on levels whose zero point minimises ``sum |w - w'|**p`` of the group.

    The scale of a group is that of its range; the zero point is found by half-quadratic
    splitting and is no whole number, so that zero itself is no level. Works on whatever is
    dense in a form. It does not look at inputs: a tiny weight that meets huge inputs may move by
    half a step. Where calibration data is at hand, layers with such channels are told of.

    Args:
        bits: Stored bits per weight, 1..8, without scales and zero points.
        group_size: Weights that share a scale and a zero point, along the input axis; must
            divide it. ``"auto"`` is the largest divisor up to ``group_limit``.
        group_limit: Largest group that group_size ``"auto"`` may choose; 64 in the published code.
        scale_dtype: Type that scales and zero points are stored in.
        norm: The exponent p; 0.7 in the published code, less forgives outliers more.
        rounds: Most rounds of the splitting; 20 in the published code.
        beta: First weight of the splitting's penalty, raised by 1 % a round; 10.

    Shapes:
        weight (rows, cols) -> codes (rows, cols), scale and zero (rows, cols / group) float

    Raises:
        LayerError: ``group_size`` does not divide a row, weights are not finite, or too large
            for ``scale_dtype``.
        RecipeError: Nothing dense is left in the form.

    Warns:
        LaconicWarning: "activation-blind": calibration inputs show channels more than six times
            the median whose weights are less than a sixth of the median.

    Source: Badri and Shaji 2023, Half-Quadratic Quantization of Large Machine Learning Models.
    Differs: of all rounds the one with the least mean error is kept; scales are rounded to their
    stored type before, and zero points before the last codes are chosen.
    """

    shorthand: ClassVar[str | None] = "bits"

    bits: int = setting(4, help="Stored bits per weight, without scales.", low=1, high=8)
    group_size: int | Literal["auto", "channel"] = setting(
        "auto", help="Weights that share one scale; must divide the layer's input.", low=1
    )
    group_limit: int = setting(
        64, help="Largest group that group_size 'auto' may choose.", low=16, high=1024
    )
    scale_dtype: ScaleType = setting("float16", help="Type of scales and zero points.")
    norm: float = setting(0.7, help="Exponent of the error.", low=0.1, high=1.0)
    rounds: int = setting(20, help="Most rounds of the splitting.", low=1, high=1000)
    beta: float = setting(10.0, help="First weight of the penalty.", low=0.01, high=1e6)

    @property
    def wishes(self) -> frozenset[Statistic]:
        """Return the largest inputs, which tell whether not to look at them is a risk."""
        return frozenset({"absmax"})

    def levels(self) -> tuple[Self, ...]:
        """Return the step at 1 to 6 and 8 bits."""
        return tuple(replace(self, bits=bits) for bits in (1, 2, 3, 4, 5, 6, 8))

    def sketch(self, form: Form, *, site: str) -> Form:
        """Return the form with its dense parts quantized, on the meta device."""
        self._check_form(form)
        store = getattr(torch, self.scale_dtype)

        def change(dense: Dense, path: str) -> Form:
            return Quantized.empty(
                dense.shape,
                dense.dtype,
                bits=self.bits,
                group_size=self._group(dense, site=f"{site} ({path})" if path else site),
                scale_dtype=store,
                symmetric=False,
                zero_dtype=store,
            )

        return replace_dense(form, change)

    def fit(self, site: Site, generator: torch.Generator) -> Form:
        """Return the site's form with its dense parts quantized."""
        self._check_form(site.form)

        def change(dense: Dense, path: str) -> Form:
            name = f"{site.name} ({path})" if path else site.name
            finite(dense.dense().detach(), site=name)
            return self._quantized(dense, site=name)

        fitted = replace_dense(site.form, change)
        warn_if_blind(site)
        return fitted

    def _check_form(self, form: Form) -> None:
        if not has_dense(form):
            raise self.refuse(form, "it has no dense part left; quantize a weight once.")

    def _group(self, dense: Dense, *, site: str) -> int:
        return resolve_group_size(self.group_size, dense.cols, site=site, most=self.group_limit)

    def _quantized(self, dense: Dense, *, site: str) -> Quantized:
        size = self._group(dense, site=site)
        groups = dense.dense().detach().float().reshape(dense.rows, -1, size)
        store = getattr(torch, self.scale_dtype)
        scale, zero = self._levels(groups, store)
        if not bool(torch.isfinite(scale).all() and torch.isfinite(zero).all()):
            raise LayerError(
                f"{site}: weights up to {float(groups.abs().amax()):.3g} give scales beyond "
                f"{self.scale_dtype}. Set scale_dtype to 'float32'."
            )
        codes = self._encode(groups, scale, zero).to(torch.uint8)
        return Quantized(
            codes.reshape(dense.rows, dense.cols),
            scale.squeeze(-1).to(store),
            zero.squeeze(-1).to(store),
            bits=self.bits,
            group_size=size,
            shape=dense.shape,
            dtype=dense.dtype,
            symmetric=False,
        )

    def _levels(self, groups: Tensor, store: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return scales and zero points (rows, groups, 1), rounded to how they are stored."""
        top = 2**self.bits - 1
        if groups.numel() == 0:
            empty = groups.sum(-1, keepdim=True)
            return empty + 1, empty
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scale = torch.maximum((high - low) / top, torch.maximum(-low, high) / _FAR)
        scale = scale.clamp_min(1.0 / _MOST_LEVELS_PER_UNIT).to(store).float()
        zero = (-low / scale).to(store).float()
        best, least_error = zero, self._error(groups, scale, zero)
        beta = self.beta
        for _ in range(self.rounds):
            zero = self._improved(groups, scale, zero, beta)
            beta *= 1.01
            held = zero.to(store).float()
            error = self._error(groups, scale, held)
            if not float(error.mean()) < float(least_error.mean()):
                break
            best, least_error = held, error
        return scale, best

    def _encode(self, groups: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return (groups / scale + zero).round_().clamp_(0, 2**self.bits - 1)

    def _error(self, groups: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Return ``mean |w - w'|`` of every group, (rows, groups, 1)."""
        values = scale * (self._encode(groups, scale, zero) - zero)
        return (values - groups).abs_().mean(-1, keepdim=True)

    def _improved(self, groups: Tensor, scale: Tensor, zero: Tensor, beta: float) -> Tensor:
        """Return the zero points of the next round: the shrunk error is taken off the weights."""
        codes = self._encode(groups, scale, zero)
        gap = groups - scale * (codes - zero)
        size = gap.abs()
        shrunk = (size - size.clamp_min(1e-12).pow(self.norm - 1) / beta).clamp_min_(0)
        return (codes - (groups - gap.sign() * shrunk) / scale).mean(-1, keepdim=True)


def warn_if_blind(site: Site) -> None:
    """Warn where large inputs meet small weights, if calibration saw the site's inputs.

    Warns:
        LaconicWarning: Some channels do; the message has how many, and the largest of them.
    """
    absmax = None if site.statistics is None else site.statistics.absmax
    if absmax is None:
        return
    reach = absmax.reshape(site.groups, -1)  # (groups, cols)
    weights = site.matrix().abs().reshape(site.groups, -1, reach.shape[1]).amax(1)
    usual, common = reach.median(1, keepdim=True).values, weights.median(1, keepdim=True).values
    hit = (reach > _OUTLIER * usual) & (weights < common / _OUTLIER) & (weights > 0)
    if not bool(hit.any()):
        return
    ratio = float((reach / usual.clamp_min(1e-30))[hit].max())
    warnings.warn(
        f"{site.name}: hqq is activation-blind, and {int(hit.sum())} of {hit.numel()} inputs are "
        f"up to {ratio:.0f} times the median where weights are small; a zero point that is no "
        "whole number shifts those. Use round-to-nearest, gptq or awq for this layer.",
        LaconicWarning,
        stacklevel=3,
    )
