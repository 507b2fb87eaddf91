"""Read the mask of a sparse form."""

from __future__ import annotations

from torch import Tensor

from laconic.forms.sparse import Sparse


def kept_mask(form: Sparse) -> Tensor:
    """Return which weights a sparse form keeps.

    Shapes:
        -> bool (rows, cols)
    """
    return form.mask.reshape(form.rows, form.cols)
