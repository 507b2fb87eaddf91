"""The shorter forms of a tensor, and the layers that run on them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from laconic.forms.base import Form, Part, form_class
from laconic.forms.codebook import Codebook
from laconic.forms.dense import Dense
from laconic.forms.layers import (
    FormConv1d,
    FormConv2d,
    FormEmbedding,
    FormLinear,
    Installed,
    Layout,
    densify_,
    from_form,
    install_,
    installed,
    to_form,
)
from laconic.forms.lowrank import LowRank
from laconic.forms.packing import pack, unpack
from laconic.forms.quantized import Quantized
from laconic.forms.sparse import Sparse
from laconic.forms.sum import Sum

_LATER = {
    "Hashed": "hashed",
    "Permuted": "permuted",
    "Rotated": "rotated",
    "TensorTrain": "tensortrain",
}

__all__ = [
    "Codebook",
    "Dense",
    "Form",
    "FormConv1d",
    "FormConv2d",
    "FormEmbedding",
    "FormLinear",
    "Installed",
    "Layout",
    "LowRank",
    "Part",
    "Quantized",
    "Sparse",
    "Sum",
    "densify_",
    "form_class",
    "from_form",
    "install_",
    "installed",
    "pack",
    "to_form",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"laconic.forms.{_LATER[name]}"), name)
    raise AttributeError(f"module 'laconic.forms' has no attribute {name!r}")
