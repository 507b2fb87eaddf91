"""How sparse a set of weights is: PQ Index, Gini and Hoyer, and how many weights must stay.

All three do not change with the scale of the weights, are 0 where all magnitudes are equal, and
grow as few weights carry more. They count the *survivors* of pruning: with a mask, what was pruned
is left out, for zeros that are counted make anything look sparse.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, prod

import torch
from torch import Tensor

from laconic.errors import ConfigError
from laconic.forms.base import Form
from laconic.forms.sparse import Sparse

_CHUNK = 1 << 17  # values raised to powers at a time: they stay in the cache
_SLACK = 1e-9  # rounding that may lift a bound over a whole number

Dims = int | tuple[int, ...] | None


@dataclass(frozen=True)
class Sparsity:
    """Measures of one set of weights, with all that makes them comparable.

    Attributes:
        pqi: PQ Index; only values with the same ``p`` and ``q`` can be compared.
        gini: Gini index.
        hoyer: Hoyer's measure.
        p: Lower norm of the PQ Index.
        q: Upper norm.
        survivors: Weights that were counted.
        zeros: Zeros among them; counted like any other weight.
    """

    pqi: float
    gini: float
    hoyer: float
    p: float
    q: float
    survivors: int
    zeros: int


def sparsity(w: Tensor, *, p: float = 0.5, q: float = 1.0, mask: Tensor | None = None) -> Sparsity:
    """Return all measures of a tensor at once.

    Args:
        w: Weights of any shape.
        p: Lower norm of the PQ Index.
        q: Upper norm.
        mask: Which weights count; all where None.

    Example:
        >>> sparsity(torch.tensor([1.0, 0.0, 0.0, 0.0])).pqi
        0.75
    """
    held = w.detach() if mask is None else w.detach()[mask]
    return Sparsity(
        pqi=float(pqi(held, p, q)),
        gini=float(gini(held)),
        hoyer=float(hoyer(held)),
        p=p,
        q=q,
        survivors=held.numel(),
        zeros=int((held == 0).sum()),
    )


def form_sparsity(form: Form, *, p: float = 0.5, q: float = 1.0) -> Sparsity:
    """Return all measures of the weights that a form keeps.

    Of a sparse form those are its surviving values; of any other all that it stands for.

    Args:
        form: What stands for a weight.
        p: Lower norm of the PQ Index.
        q: Upper norm.
    """
    held = form.values if isinstance(form, Sparse) else form
    return sparsity(held.dense(), p=p, q=q)


def pqi(
    w: Tensor, p: float = 0.5, q: float = 1.0, mask: Tensor | None = None, dim: Dims = None
) -> Tensor:
    """Return the PQ Index ``1 - mean(|w|^p)^(1/p) / mean(|w|^q)^(1/q)``.

    0 where all magnitudes are equal, ``1 - d^(1/q - 1/p)`` where one of d weights is not zero.
    Means are taken in float64 of magnitudes over the largest one, and their roots as logarithms,
    so that no scale of the weights and no small ``p`` overflows.

    Args:
        w: Weights.
        p: Lower norm, above 0; below 1 it is a quasi-norm.
        q: Upper norm, above ``p``.
        mask: Which weights count, of the shape of ``w``; all where None.
        dim: Axes that are reduced; all where None.

    Shapes:
        w (...), mask (...) bool -> float64 without the reduced axes, values in [0, 1)

    Raises:
        ConfigError: Not 0 < p < q, a mask of another shape, or weights that are NaN or infinite.

    Source: Diao et al. 2023, Pruning Deep Neural Networks from a Sparsity Perspective,
        definition 1. No weights, or zeros alone, have an index of 0.

    Example:
        >>> round(float(pqi(torch.tensor([1.0, 2.0, 3.0, 4.0]))), 6)
        0.055586
    """
    check_norms(p, q)
    if dim is None and mask is None:
        return _flat_index(w.detach().reshape(-1), p, q)
    held, counted = _rows("pqi", w, mask, dim)
    count = counted.sum(-1)
    top = held.amax(-1)
    shares = held / torch.where(top > 0, top, 1.0).unsqueeze(-1)
    low, high = (_power(shares, exponent).sum(-1) for exponent in (p, q))
    return _index(low, high, count, p, q).reshape(_kept_shape(w, dim))


def retain_bound(
    index: Tensor | float, d: Tensor | int, p: float = 0.5, q: float = 1.0, eta: float = 0.0
) -> Tensor:
    """Return how many of ``d`` weights must stay at least, by their PQ Index.

    ``r >= d (1 + eta)^(-q / (q - p)) (1 - I)^(p q / (q - p))``: with fewer, what is removed
    has more than ``eta`` times the p-th powers of what stays. Rounded up, in 1..d.

    Args:
        index: PQ Index with the same ``p`` and ``q``.
        d: Number of weights; 0 gives 0.
        p: Lower norm.
        q: Upper norm.
        eta: Largest share of p-th powers that may be removed, in terms of what stays; 0 or more.

    Returns:
        int64, in the shape that index and d have together.

    Raises:
        ConfigError: Not 0 < p < q, or ``eta`` below 0.

    Source: Diao et al. 2023, theorem 1, by Hoelder's inequality.

    Example:
        >>> int(retain_bound(pqi(torch.tensor([4.0, 1, 1, 1, 1]), 1, 2), 5, 1, 2))
        4
    """
    check_norms(p, q)
    if not 0 <= eta < float("inf"):
        raise ConfigError(f"retain_bound: eta={eta} must be at least 0. Use 0 as in the paper.")
    count = torch.as_tensor(d).double()
    rest = (1 - torch.as_tensor(index).double()).clamp(0, 1)
    bound = count * (1 + eta) ** (-q / (q - p)) * rest ** (p * q / (q - p))
    whole = torch.ceil(bound - _SLACK - 1e-12 * count)
    return torch.minimum(whole.clamp_min(1), count).long()


def gini(w: Tensor, mask: Tensor | None = None, dim: Dims = None) -> Tensor:
    """Return the Gini index of the magnitudes: 0 where all are equal, ``1 - 1/d`` for one alone.

    Args:
        w: Weights.
        mask: Which weights count; all where None.
        dim: Axes that are reduced; all where None.

    Shapes:
        w (...), mask (...) bool -> float64 without the reduced axes

    Raises:
        ConfigError: A mask of another shape, or weights that are NaN or infinite.

    Source: Hurley and Rickard 2009, Comparing Measures of Sparsity, table 1.

    Example:
        >>> float(gini(torch.tensor([1.0, 2.0, 3.0, 4.0])))
        0.25
    """
    held, counted = _rows("gini", w, mask, dim)
    count, size = counted.sum(-1, keepdim=True), held.shape[-1]
    ordered = held.masked_fill(~counted, -1.0).sort(-1).values.clamp_min(0)
    rank = torch.arange(1, size + 1, device=w.device) - (size - count)  # among what counts
    total = ordered.sum(-1)
    known = count.clamp_min(1).double()
    weighted = (ordered * ((known - rank + 0.5) / known)).sum(-1)
    found = 1 - 2 * weighted / torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, found, 0.0).clamp_min(0).reshape(_kept_shape(w, dim))


def hoyer(w: Tensor, mask: Tensor | None = None, dim: Dims = None) -> Tensor:
    """Return Hoyer's measure ``(sqrt(d) - |w|_1 / |w|_2) / (sqrt(d) - 1)``, 0..1.

    Args:
        w: Weights.
        mask: Which weights count; all where None.
        dim: Axes that are reduced; all where None.

    Shapes:
        w (...), mask (...) bool -> float64 without the reduced axes

    Raises:
        ConfigError: A mask of another shape, or weights that are NaN or infinite.

    Source: Hoyer 2004, Non-negative Matrix Factorization with Sparseness Constraints, section
        3.1. A single weight, and zeros alone, have 0.

    Example:
        >>> float(hoyer(torch.tensor([0.0, 0.0, 3.0, 0.0])))
        1.0
    """
    held, counted = _rows("hoyer", w, mask, dim)
    root = counted.sum(-1).double().sqrt()
    top = held.amax(-1, keepdim=True)
    shares = held / torch.where(top > 0, top, 1.0)
    long = shares.square().sum(-1).sqrt()
    found = (root - shares.sum(-1) / torch.where(long > 0, long, 1.0)) / (root - 1).clamp_min(1e-12)
    known = (long > 0) & (root > 1)
    return torch.where(known, found, 0.0).clamp(0, 1).reshape(_kept_shape(w, dim))


def check_norms(p: float, q: float) -> None:
    """Check the two norms of a PQ Index.

    Raises:
        ConfigError: Not 0 < p < q.
    """
    if not (0 < p < q and isfinite(q)):
        raise ConfigError(
            f"PQ Index: p={p}, q={q}; 0 < p < q is needed. The paper uses (0.5, 1) and (1, 2)."
        )


def _flat_index(flat: Tensor, p: float, q: float) -> Tensor:
    """Return the index of a whole tensor, piece by piece: one pass, little memory."""
    if flat.numel() == 0:
        return torch.zeros((), dtype=torch.float64, device=flat.device)
    # Raw ends in the tensor's own type: a NaN stays one, and nothing is copied.
    low, high = torch.aminmax(flat)
    top = torch.maximum(low.double().abs(), high.double().abs())
    _require_finite("pqi", top)
    sums = torch.zeros(2, dtype=torch.float64, device=flat.device)
    for piece in torch.split(flat, _CHUNK):
        shares = piece.double().abs_().div_(torch.where(top > 0, top, 1.0))
        sums += torch.stack([_power(shares, p).sum(), _power(shares, q).sum()])
    return _index(sums[0], sums[1], torch.tensor(flat.numel(), device=flat.device), p, q)


def _index(low: Tensor, high: Tensor, count: Tensor, p: float, q: float) -> Tensor:
    """Return the index from sums of p-th and q-th powers of magnitudes over the largest one."""
    known = (count > 0) & (high > 0)
    number = count.clamp_min(1).double().log()
    left = (torch.where(known, low, 1.0).log() - number) / p
    right = (torch.where(known, high, 1.0).log() - number) / q
    return torch.where(known, 1 - torch.exp(left - right), 0.0).clamp_min(0.0)


def _power(shares: Tensor, exponent: float) -> Tensor:
    if exponent == 0.5:
        return shares.sqrt()
    if exponent == 1:
        return shares
    return shares.square() if exponent == 2 else shares.pow(exponent)


def _rows(owner: str, w: Tensor, mask: Tensor | None, dim: Dims) -> tuple[Tensor, Tensor]:
    """Return magnitudes (groups, values) in float64, 0 where not counted, and what counts."""
    if mask is not None and (mask.shape != w.shape or mask.dtype != torch.bool):
        raise ConfigError(
            f"{owner}: mask {mask.dtype} {tuple(mask.shape)} for weights {tuple(w.shape)}; it "
            "must be bool and of their shape."
        )
    kept = prod(_kept_shape(w, dim))
    size = w.numel() // kept if kept else 0
    counted = torch.ones_like(w, dtype=torch.bool) if mask is None else mask
    order = (*_kept_dims(w, dim), *sorted(_dims(w, dim)))
    held = w.detach().double().abs().masked_fill(~counted, 0.0)
    rows = [(t.permute(order) if w.dim() else t).reshape(kept, size) for t in (held, counted)]
    if size == 0:  # nothing to reduce: one value that does not count stands in
        held, counted = (t.new_zeros(kept, 1) for t in rows)
        return held, counted
    _require_finite(owner, rows[0].max() if kept else held.new_zeros(()))
    return rows[0], rows[1]


def _require_finite(owner: str, top: Tensor) -> None:
    if not bool(torch.isfinite(top)):
        raise ConfigError(
            f"{owner}: weights are NaN or infinite. Repair the model, or leave this tensor out."
        )


def _dims(w: Tensor, dim: Dims) -> set[int]:
    if dim is None:
        return set(range(w.dim()))
    given = (dim,) if isinstance(dim, int) else dim
    wrong = [axis for axis in given if not -w.dim() <= axis < w.dim()]
    if wrong:
        raise ConfigError(f"dim={dim}: weights {tuple(w.shape)} have no axis {wrong[0]}.")
    return {axis % w.dim() for axis in given}


def _kept_dims(w: Tensor, dim: Dims) -> list[int]:
    reduced = _dims(w, dim)
    return [axis for axis in range(w.dim()) if axis not in reduced]


def _kept_shape(w: Tensor, dim: Dims) -> tuple[int, ...]:
    return tuple(w.shape[axis] for axis in _kept_dims(w, dim))
