"""Checks that every method makes on a site, and the walk over a form's dense parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from laconic.errors import LayerError
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.sparse import Sparse
from laconic.weights.base import Site


def finite(tensor: Tensor, *, site: str, what: str = "weight") -> Tensor:
    """Return the tensor if all its values are finite.

    Raises:
        LayerError: It has NaN or infinite values; the message has the site and the count.
    """
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise LayerError(
            f"{site}: {bad} of {tensor.numel()} values of the {what} are NaN or infinite. "
            "Repair the model, or exclude this layer."
        )
    return tensor


def finite_matrix(site: Site) -> Tensor:
    """Return what stands for a site's weight as a float32 matrix, all values finite."""
    return finite(site.matrix(), site=site.name)


def rows_by_group(site: Site) -> list[slice]:
    """Return the rows of the site's matrix that meet each group's or expert's inputs."""
    size = site.form.rows // site.groups
    return [slice(i * size, (i + 1) * size) for i in range(site.groups)]


def replace_dense(form: Form, change: Callable[[Dense, str], Form], path: str = "") -> Form:
    """Return the form with every dense part below it replaced; the given form is not changed.

    Parts that are not dense and have no dense part below are shared with the given form.

    Args:
        form: Any form.
        change: Takes a dense form and its path inside ``form``; returns what replaces it.
        path: Path of ``form`` itself.
    """
    if isinstance(form, Dense):
        return change(form, path)
    children = {
        name: replace_dense(child, change, f"{path}.{name}" if path else name)
        for name, child in form.children_forms().items()
    }
    if all(children[name] is child for name, child in form.children_forms().items()):
        return form
    if isinstance(form, Sparse):
        values = children["values"]
        return Sparse(form.mask, values, shape=form.shape, dtype=form.dtype, pattern=form.pattern)
    parts = {name: part.tensor.detach() for name, part in form.parts().items()}
    return type(form).from_parts(form.shape, form.dtype, form.settings(), parts, children)


def has_dense(form: Form) -> bool:
    """Return whether any part of a form is dense."""
    return any(isinstance(inner, Dense) for _, inner in form.walk())
