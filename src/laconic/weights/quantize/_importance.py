"""How much the error of each weight counts."""

from __future__ import annotations

from torch import Tensor

from laconic.forms.sparse import Sparse
from laconic.weights.base import Site


def input_squares(site: Site) -> Tensor:
    """Return the mean square of each weight's input, for the values that the form holds.

    Shapes:
        -> (n,), row-major: all weights of a dense form, those kept of a sparse one

    Raises:
        ConfigError: ``sumsq`` was not gathered for the site.
    """
    squares = site.need("sumsq").reshape(site.groups, 1, -1)
    rows = site.form.rows // site.groups
    each = squares.expand(site.groups, rows, -1).reshape(site.form.rows, site.form.cols)
    if isinstance(site.form, Sparse):
        return each[site.form.mask]
    return each.reshape(-1)
