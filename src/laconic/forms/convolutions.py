"""Convolutions that run on forms: densely, or as two smaller ones where the form is low rank."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from laconic.forms.base import Form
from laconic.forms.lowrank import LowRank
from laconic.forms.owner import (
    FormOwner,
    cached_dense,
    dense_at,
    form_at,
    kernel_of,
    parameter_property,
)
from laconic.forms.sparse import Sparse
from laconic.forms.sum import Sum


class FormConv1d(FormOwner, nn.Conv1d):
    """``nn.Conv1d`` whose weight is a form."""

    weight = parameter_property("weight")

    def forward(self, input: Tensor) -> Tensor:
        """Convolve with the form's dense tensor, or in two steps where it is low rank."""
        return convolve(self, input)


class FormConv2d(FormOwner, nn.Conv2d):
    """``nn.Conv2d`` whose weight is a form."""

    weight = parameter_property("weight")

    def forward(self, input: Tensor) -> Tensor:
        """Convolve with the form's dense tensor, or in two steps where it is low rank."""
        return convolve(self, input)


Conv = FormConv1d | FormConv2d


def convolve(layer: Conv, x: Tensor) -> Tensor:
    """Convolve with the dense tensor of a layer's form, or in two steps where that is less."""
    run = kernel_of(layer)
    if run is not None:
        return run(x)
    form = form_at(layer, "weight")
    rounds = form.rounds_inputs
    dense = layer.groups > 1 or cached_dense(layer) is not None or not _smaller_conv(form)
    if dense and not rounds:
        return _run_conv(layer, x, dense_at(layer, "weight"), layer.bias)
    out = _convolve_form(layer, form, x)
    return out if layer.bias is None else out + _channels(layer.bias, layer)


def _smaller_conv(form: Form) -> bool:
    """Return whether a form convolves in fewer multiplications than its dense tensor."""
    if isinstance(form, Sum):
        return any(_smaller_conv(term) for term in form.terms)
    if isinstance(form, LowRank):
        held = sum(factor.rows * factor.cols for factor in form.factors)
        return held < form.rows * form.cols
    return isinstance(form, Sparse) and form.pattern == "row"


def _convolve_form(layer: Conv, form: Form, x: Tensor) -> Tensor:
    """Convolve with a form without bias; groups are 1 where it has factors."""
    if isinstance(form, Sum):
        first, *rest = (_convolve_form(layer, term, x) for term in form.terms)
        return sum(rest, start=first)
    if isinstance(form, LowRank) and (_smaller_conv(form) or form.rounds_inputs):
        *ones, kernel = form.factors
        out = _convolve_dense(layer, kernel, form.shape[1:], x)
        for factor in reversed(ones):
            held = factor.incoming(out, axes="example")
            weight = _channels(factor.operand(held.dtype), layer)
            conv = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
            out = conv(held, weight).to(x.dtype)
        return out
    if isinstance(form, Sparse) and form.pattern == "row":
        kept = _convolve_dense(layer, form.values, form.shape[1:], x)
        axis = kept.dim() - len(layer.kernel_size) - 1
        sizes = [*kept.shape]
        sizes[axis] = form.rows
        return kept.new_zeros(sizes).index_copy(axis, form.kept_index(), kept)
    return _convolve_dense(layer, form, form.shape[1:], x)


def _convolve_dense(layer: Conv, form: Form, each: tuple[int, ...], x: Tensor) -> Tensor:
    held = form.incoming(x, axes="example")
    weight = form.operand(held.dtype).reshape(form.rows, *each)
    return _run_conv(layer, held, weight, None).to(x.dtype)


def _run_conv(layer: Conv, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve as the layer does: its stride, dilation, groups and padding of any mode."""
    return cast(Tensor, layer._conv_forward(x, weight.to(x.dtype), bias))


def _channels(tensor: Tensor, layer: Conv) -> Tensor:
    """Append the spatial axes of a layer to a bias (out,) or a matrix (out, in)."""
    return tensor[(..., *(None,) * len(layer.kernel_size))]
