"""The best low-rank correction in the metric of a layer's inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from laconic.errors import ConfigError
from laconic.weights.factor._leading import leading_svd

_FLOOR = 1e-8  # least mean absolute input in the diagonal metric


@dataclass(frozen=True)
class Root:
    """A square root of a metric G and its pseudoinverse: ``S @ S.T = G``.

    Attributes:
        S: (cols, kept) float64 where the metric is a matrix, or (cols,) where it is diagonal.
        inverse: (kept, cols) pseudoinverse of S, or (cols,).
        retained: Directions kept.
        dead: Inputs that were always zero.
    """

    S: Tensor
    inverse: Tensor
    retained: int
    dead: int

    def apply(self, matrix: Tensor) -> Tensor:
        """Return ``matrix @ S``."""
        return matrix * self.S if self.S.dim() == 1 else matrix @ self.S

    def undo(self, matrix: Tensor) -> Tensor:
        """Return ``matrix @ pinv(S)``."""
        return matrix * self.inverse if self.inverse.dim() == 1 else matrix @ self.inverse


@dataclass(frozen=True)
class Info:
    """What a low-rank correction explains.

    Attributes:
        retained: Directions of the inputs that were kept.
        dead: Inputs that were always zero.
        energy: Share of ``tr(D G D.T)`` that the factors explain; 1 where there is no error.
        total: ``tr(D G D.T)`` over the kept directions.
        explained: (rank,) share explained by the first 1, 2, ... directions.
    """

    retained: int
    dead: int
    energy: float
    total: float
    explained: Tensor


# One decomposition serves all sites that share their inputs, such as query, key and value.
_ROOTS: WeakIdKeyDictionary = WeakIdKeyDictionary()


def gram_root(gram: Tensor, *, rtol: float | None = None) -> Root:
    """Return the root of a Gram matrix; kept for as long as the matrix lives.

    Eigenvalues at or below ``rtol`` times the largest are left out of the root and of its
    pseudoinverse alike, so that noise is never divided by.

    Args:
        gram: ``X.T @ X`` over any positive number, (cols, cols).
        rtol: ``cols`` times the rounding unit of float32 if None, at most 1.

    Raises:
        ConfigError: The matrix is not square, or a value is not finite.
    """
    if gram not in _ROOTS:
        _ROOTS[gram] = {}
    held: dict[float | None, Root] = _ROOTS[gram]
    if rtol not in held:
        held[rtol] = _decompose(gram, rtol)
    return held[rtol]


def _decompose(gram: Tensor, rtol: float | None) -> Root:
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1]:
        raise ConfigError(f"gram has the shape {tuple(gram.shape)}; it must be (in, in).")
    if not bool(torch.isfinite(gram).all()):
        raise ConfigError("gram has values that are NaN or infinite.")
    G = gram.double()
    dead = G.diagonal() <= 0
    share = min(1.0, len(G) * torch.finfo(torch.float32).eps) if rtol is None else rtol
    values, Q = torch.linalg.eigh((G + G.T) / 2)
    kept = values > max(float(values[-1]), 0.0) * share
    root, Q = values[kept].sqrt(), Q[:, kept]
    inverse = (Q / root).T
    inverse[:, dead] = 0.0
    return Root(Q * root, inverse, int(kept.sum()), int(dead.sum()))


def diagonal_root(scale: Tensor) -> Root:
    """Return the root of the metric ``diag(scale)**2``; scales are held at 1e-8 or more."""
    S = scale.double().clamp_min(_FLOOR)
    return Root(S, 1 / S, len(S), int((scale <= 0).sum()))


def metric_factors(
    delta: Tensor, root: Root, rank: int, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Info]:
    """Return the factors ``B @ A`` of the best rank-``rank`` stand-in for ``delta``.

    Best means least ``tr((D - BA) G (D - BA).T)``: the error of the layer's output on the
    calibration inputs. By Eckart and Young it is the truncated decomposition of ``D S``, taken
    back by the pseudoinverse of S.

    Shapes:
        delta (rows, cols) -> B (rows, rank), A (rank, cols), float32

    Args:
        delta: What is missing: the original weight less the compressed one.
        root: Root of the metric.
        rank: Rank of the factors; directions beyond the rank of ``D S`` are zero.
        generator: For the iteration that large matrices are decomposed with.
    """
    rows, cols = delta.shape
    B, A = delta.new_zeros(rows, rank).float(), delta.new_zeros(rank, cols).float()
    scaled = root.apply(delta.double())
    total = float(scaled.square().sum())
    width = min(rank, *scaled.shape)
    explained = torch.ones(rank, dtype=torch.float64)
    if width == 0 or total == 0:
        return B, A, Info(root.retained, root.dead, 1.0, total, explained)
    U, s, Vt = leading_svd(scaled, width, generator=generator)
    half = s.sqrt()
    B[:, :width] = (U * half).float()
    A[:width] = root.undo(half.unsqueeze(1) * Vt).float()
    explained[:width] = (s.square().cumsum(0) / total).clamp_max(1.0).cpu()
    explained[width:] = explained[width - 1]
    return B, A, Info(root.retained, root.dead, float(explained[-1]), total, explained)
