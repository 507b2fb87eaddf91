"""What a graph from a file may call: nothing that reads, writes, imports or runs text."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def _words(text: str) -> list[str]:
    return text.split()


_SHARED = _words(
    "abs add all amax amin any argmax argmin argsort bmm cat ceil chunk clamp clone concat cos "
    "cosh cumsum diff div einsum eq erf exp expm1 flatten flip floor floor_divide fmod gather ge "
    "gt index_select isfinite isinf isnan le log log10 log1p log2 logical_and logical_not "
    "logical_or logsumexp lt masked_fill masked_select matmul max maximum mean median min minimum "
    "mm movedim mul multiply narrow ne neg norm permute pow prod reciprocal relu "
    "repeat_interleave roll round rsqrt scatter scatter_add select sigmoid sign sin sinh softmax "
    "log_softmax sort split sqrt square squeeze std sub subtract sum swapaxes t take_along_dim "
    "tan tanh tile topk transpose tril triu true_divide trunc unbind unflatten unsqueeze var "
    "where xlogy"
)

_TORCH = {
    *_SHARED,
    *_words(
        "arange addmm baddbmm broadcast_to cdist complex conv1d conv2d conv3d empty_like eye full "
        "full_like linspace meshgrid ones ones_like outer polar reshape stack tensordot "
        "view_as_complex view_as_real zeros zeros_like hstack vstack atan2 dropout layer_norm "
        "group_norm batch_norm embedding gelu selu celu"
    ),
}

_METHODS = {
    *_SHARED,
    *_words(
        "addmm baddbmm bool contiguous cpu detach dim double expand expand_as float half "
        "bfloat16 int long fill_ masked_fill_ add_ mul_ div_ sub_ clamp_ relu_ item mT numel "
        "new_empty new_full new_ones new_zeros repeat reshape size clamp_min clamp_max "
        "split_with_sizes swapdims to type_as unfold view view_as __getitem__ type copy_ zero_ "
        "index_add index_copy index_fill sigmoid_ tanh_ pad"
    ),
}

_FUNCTIONAL = set(
    _words(
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
        "adaptive_max_pool2d alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm celu "
        "channel_shuffle conv1d conv2d conv3d conv_transpose1d conv_transpose2d "
        "conv_transpose3d cosine_similarity dropout dropout1d dropout2d dropout3d elu embedding "
        "embedding_bag feature_alpha_dropout fold gelu glu grid_sample group_norm gumbel_softmax "
        "hardshrink hardsigmoid hardswish hardtanh instance_norm interpolate layer_norm "
        "leaky_relu linear local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d "
        "max_pool1d max_pool2d max_pool3d mish normalize one_hot pad pairwise_distance "
        "pixel_shuffle pixel_unshuffle prelu relu relu6 rms_norm scaled_dot_product_attention "
        "selu sigmoid silu softmax softmin softplus softshrink softsign tanh tanhshrink threshold "
        "unfold upsample"
    )
)

_OPERATOR = set(
    _words(
        "abs add and_ contains eq floordiv ge getitem gt iadd imul index inv invert isub "
        "itruediv le lshift lt matmul mod mul ne neg not_ or_ pos pow rshift sub truediv truth xor"
    )
)

_MATH = set(_words("ceil cos exp floor isfinite log log2 log10 pow prod sin sqrt tan tanh trunc"))

_ATTRIBUTES = frozenset(_words("shape ndim dtype device T mT H mH real imag is_cuda requires_grad"))

_MODULES = tuple(
    _words(
        "Identity Linear Bilinear Embedding EmbeddingBag Conv1d Conv2d Conv3d ConvTranspose1d "
        "ConvTranspose2d ConvTranspose3d BatchNorm1d BatchNorm2d BatchNorm3d InstanceNorm1d "
        "InstanceNorm2d InstanceNorm3d LayerNorm GroupNorm RMSNorm LocalResponseNorm "
        "MultiheadAttention TransformerEncoderLayer TransformerDecoderLayer RNN GRU LSTM "
        "ReLU ReLU6 LeakyReLU PReLU ELU CELU SELU GELU SiLU Mish Sigmoid LogSigmoid Tanh "
        "Hardtanh Hardswish Hardsigmoid Hardshrink Softshrink Softplus Softsign Tanhshrink "
        "Threshold GLU Softmax Softmin LogSoftmax Softmax2d Dropout Dropout1d Dropout2d "
        "Dropout3d AlphaDropout FeatureAlphaDropout MaxPool1d MaxPool2d MaxPool3d AvgPool1d "
        "AvgPool2d AvgPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d "
        "AdaptiveMaxPool1d AdaptiveMaxPool2d LPPool1d LPPool2d Flatten Unflatten Upsample "
        "UpsamplingNearest2d UpsamplingBilinear2d PixelShuffle PixelUnshuffle ChannelShuffle "
        "ZeroPad1d ZeroPad2d ConstantPad1d ConstantPad2d ReflectionPad1d ReflectionPad2d "
        "ReplicationPad1d ReplicationPad2d CircularPad1d CircularPad2d Fold Unfold "
        "CosineSimilarity PairwiseDistance"
    )
)


@cache
def functions() -> dict[str, Callable[..., Any]]:
    """Return every allowed function by its name in files, for example ``"F.gelu"``."""
    found: dict[str, Callable[..., Any]] = {"getattr": getattr}
    for prefix, room, names in (
        ("torch", torch, _TORCH),
        ("F", F, _FUNCTIONAL),
        ("operator", operator, _OPERATOR),
        ("math", math, _MATH),
    ):
        found |= {f"{prefix}.{n}": getattr(room, n) for n in sorted(names) if hasattr(room, n)}
    return found


@cache
def function_names() -> dict[Callable[..., Any], str]:
    """Return the name in files of every allowed function."""
    return {function: name for name, function in reversed(functions().items())}


def is_method(name: str) -> bool:
    """Return whether a method of tensors may be called."""
    return name in _METHODS and hasattr(torch.Tensor, name)


def is_attribute(name: object) -> bool:
    """Return whether an attribute of tensors may be read."""
    return isinstance(name, str) and name in _ATTRIBUTES


@cache
def module_classes() -> dict[str, type[nn.Module]]:
    """Return every allowed module class by its name in ``torch.nn``."""
    return {name: getattr(nn, name) for name in _MODULES if hasattr(nn, name)}


def constructor(cls: type[nn.Module]) -> tuple[inspect.Parameter, ...]:
    """Return the constructor's parameters that are plain settings."""
    skipped = {"self", "device", "dtype", "_weight", "_freeze", "args", "kwargs"}
    parameters = inspect.signature(cls.__init__).parameters.values()
    return tuple(p for p in parameters if p.name not in skipped)
