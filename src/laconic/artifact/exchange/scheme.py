"""What a form is in the words of other engines: codes, scales and zero points on a plain grid."""

from __future__ import annotations

from dataclasses import dataclass
from re import fullmatch

import torch
from torch import Tensor

from laconic.forms.activations import Activations
from laconic.forms.base import Form
from laconic.forms.lowrank import LowRank
from laconic.forms.quantized import Quantized
from laconic.forms.sparse import Sparse
from laconic.forms.sum import Sum


@dataclass(frozen=True)
class Scheme:
    """How a weight is quantized.

    Attributes:
        bits: Bits of a code, 1..8.
        symmetric: There is no zero point.
        group_size: Columns that share a scale; None is one scale a row.
        inputs: How inputs are rounded; None leaves them.
    """

    bits: int
    symmetric: bool
    group_size: int | None
    inputs: Activations | None = None

    def __str__(self) -> str:
        group = "channel" if self.group_size is None else f"group {self.group_size}"
        told = f"{self.bits} bit, {group}, {'symmetric' if self.symmetric else 'asymmetric'}"
        if self.inputs is None:
            return told
        return f"{told}, inputs {self.inputs.bits} bit a {self.inputs.granularity}"


@dataclass(frozen=True)
class Grid:
    """A weight on a plain grid: ``scale * (code - zero)``.

    Attributes:
        scheme: Bits, symmetry and group.
        codes: (rows, cols) uint8.
        scale: (rows, groups), the float type that it is stored in.
        zero: (rows, groups) uint8; None where symmetric, which stands for ``2**(bits - 1)``.
        input_scale: (1,) float32, where the rounding of inputs has a static scale.
    """

    scheme: Scheme
    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    input_scale: Tensor | None = None


def grid_of(form: Form) -> Grid | None:
    """Return a form as a plain grid; None where it is none and must be written dense.

    Sparse forms with quantized values become grids whose zeros are written out, where every row
    keeps as many weights of every group and the grid holds an exact zero.
    """
    if isinstance(form, Quantized):
        return _plain(form)
    if isinstance(form, Sparse) and isinstance(form.values, Quantized):
        return _filled(form, form.values)
    return None


def correction_of(form: Form) -> tuple[Form, LowRank] | None:
    """Return ``(base, correction)`` of a sum of a base and one low-rank term; else None."""
    if not isinstance(form, Sum):
        return None
    thin = [term for term in form.terms if isinstance(term, LowRank)]
    rest = [term for term in form.terms if not isinstance(term, LowRank)]
    return (rest[0], thin[0]) if len(thin) == len(rest) == 1 else None


def _plain(form: Quantized) -> Grid | None:
    zero = form.zero()
    if zero is not None and zero.is_floating_point():
        return None  # a grid's zero points are whole: rounding them would change the weights
    whole = form.group_size == form.cols
    group = None if whole else form.group_size
    scheme = Scheme(form.bits, form.symmetric, group, form.activations)
    return Grid(scheme, form.codes(), form.scale.detach(), zero, form.input_scale)


def _filled(form: Sparse, values: Quantized) -> Grid | None:
    found = fullmatch(r"(\d+):(\d+)", form.pattern)
    whole = values.group_size == values.cols
    if values.rows != form.rows or not values.symmetric or not (whole or found):
        return None
    group = None if whole else values.group_size * int(found[2]) // int(found[1]) if found else None
    if group is not None and found and values.group_size % int(found[1]):
        return None  # a group of scales would end within a group of the pattern
    codes = torch.full((form.rows, form.cols), 2 ** (values.bits - 1), dtype=torch.uint8)
    codes[form.mask] = values.codes().reshape(-1)
    scheme = Scheme(values.bits, True, group, values.activations)
    return Grid(scheme, codes, values.scale.detach(), None, values.input_scale)
