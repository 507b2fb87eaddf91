"""The second-order solver that GPTQ and SparseGPT share.

Removing or rounding one weight of a row costs least when the later ones make up for it, and how
is told by the inverse of the Gram matrix of the inputs (Hassibi and Stork 1993). Columns are
visited in order, so that the rows of one Cholesky factor hold all the inverses that are needed
(Frantar et al. 2023, GPTQ, section 3.3).
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from laconic.errors import LaconicWarning, LayerError
from laconic.weights.checks import finite

_MOST_DAMPING = 1.0


@dataclass(frozen=True)
class Factor:
    """Upper Cholesky factor of the inverse of a damped Gram matrix.

    Attributes:
        upper: U (cols, cols) float32 with ``inverse(H) = U.T @ U``.
        dead: (cols,) inputs that were zero in all calibration rows.
        damping: Share of the mean diagonal that was added.
        blind: No input was ever anything but zero: H is the identity.
    """

    upper: Tensor
    dead: Tensor
    damping: float
    blind: bool


class Column(Protocol):
    """Decides what a column of weights becomes."""

    def begin(self, start: int, stop: int, weight: Tensor) -> None:
        """Look at columns ``start:stop`` as they stand when their block begins."""
        ...

    def __call__(self, index: int, weight: Tensor) -> Tensor:
        """Return the new values of column ``index`` from ``weight``, the rest of the block."""
        ...


def inverse_factor(gram: Tensor, *, damping: float, site: str) -> Factor:
    """Factor the inverse of a Gram matrix; damping grows tenfold until it can be factored.

    Inside :func:`shared_factors` a matrix that was factored before is not factored again.

    Args:
        gram: ``X.T @ X`` over any positive number, (cols, cols).
        damping: First share of the mean diagonal to add to it, 0.01 in both papers.
        site: Name for messages.

    Raises:
        LayerError: Values are not finite, or damping of 1 does not make it positive definite.
    """
    held = _HELD.get()
    factor = next(
        (
            made
            for known, wanted, made in held or ()
            if wanted == damping and known.shape == gram.shape and torch.equal(known, gram)
        ),
        None,
    )
    if factor is None:
        factor = _factored(gram, damping, site)
        if held is not None:
            held.append((gram, damping, factor))
    if factor.damping > damping:
        warnings.warn(
            f"{site}: damping was raised from {damping} to {factor.damping:g} to factor the Gram "
            "matrix; more calibration data gives a better fit.",
            LaconicWarning,
            stacklevel=2,
        )
    return factor


_HELD: ContextVar[deque[tuple[Tensor, float, Factor]] | None] = ContextVar("factors", default=None)
_MOST_HELD = 4  # orders and damping that the levels of one site have between them


@contextmanager
def shared_factors() -> Iterator[None]:
    """Keep the last few factors inside the block: all levels of a site share one Gram matrix."""
    token = _HELD.set(deque(maxlen=_MOST_HELD))
    try:
        yield
    finally:
        _HELD.reset(token)


def _factored(gram: Tensor, damping: float, site: str) -> Factor:
    # H: (cols, cols) float64, made positive definite here
    H = finite(gram, site=site, what="Gram matrix").double().clone()
    diagonal = H.diagonal()
    dead = diagonal <= 0
    diagonal[dead] = 1.0
    blind = bool(dead.all())
    mean = float(diagonal[~dead].mean()) if not blind else 1.0
    if not blind:
        diagonal[dead] = mean
    added, wanted = 0.0, damping
    while True:
        diagonal += (wanted - added) * mean
        added = wanted
        lower, failed = torch.linalg.cholesky_ex(H)
        if not int(failed):
            break
        if wanted >= _MOST_DAMPING:
            raise LayerError(
                f"{site}: the Gram matrix is not positive even with damping {wanted}. "
                "Give more calibration data, or exclude this layer."
            )
        wanted = min(max(wanted, 1e-4) * 10, _MOST_DAMPING)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return Factor(upper.float(), dead, added, blind)


def sweep(weight: Tensor, upper: Tensor, column: Column, *, block: int) -> Tensor:
    """Replace columns one by one and let the later ones make up for the error.

    Args:
        weight: (rows, cols) float32, in the order of visits; it is not changed.
        upper: U of :func:`inverse_factor` in the same order.
        column: Decides what each column becomes.
        block: Columns after which the error is carried to all later ones at once; it changes
            speed and not the result.

    Returns:
        The new weights (rows, cols).
    """
    W = weight.clone()
    cols = W.shape[1]
    for start in range(0, cols, block):
        stop = min(start + block, cols)
        column.begin(start, stop, W[:, start:stop])
        errors = torch.empty_like(W[:, start:stop])
        for i in range(start, stop):
            new = column(i, W[:, i:stop])
            error = (W[:, i] - new) / upper[i, i]
            W[:, i] = new
            W[:, i + 1 : stop] -= torch.outer(error, upper[i, i + 1 : stop])
            errors[:, i - start] = error
        W[:, stop:] -= errors @ upper[start:stop, stop:]
    return W
