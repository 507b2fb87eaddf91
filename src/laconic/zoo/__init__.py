"""Small reference networks, and published weights of some of them.

Every factory works without arguments and returns a module in eval mode, so each is a MODEL for
the command line too: ``laconic compress laconic.zoo:trained_resnet20``.
"""

from __future__ import annotations

from laconic.zoo._depthwise import depthwise_conv
from laconic.zoo._gru import gru_classifier
from laconic.zoo._hubfolder import hub_tokenizer, save_stories260k
from laconic.zoo._lenet import lenet5, lenet_300_100
from laconic.zoo._llama import byte_llama, tiny_llama
from laconic.zoo._mlp import mlp
from laconic.zoo._published import (
    pretrained,
    published,
    trained_mnist_mlp,
    trained_resnet20,
    trained_resnet32,
    trained_resnet56,
)
from laconic.zoo._residual import conv_bn_residual
from laconic.zoo._resnet import resnet20, resnet32, resnet56
from laconic.zoo._scorebpe import ScoreBPE
from laconic.zoo._stories import read_llama2c, stories260k
from laconic.zoo._vit import digits_vit

__all__ = [
    "ScoreBPE",
    "byte_llama",
    "conv_bn_residual",
    "depthwise_conv",
    "digits_vit",
    "gru_classifier",
    "hub_tokenizer",
    "lenet5",
    "lenet_300_100",
    "mlp",
    "pretrained",
    "published",
    "read_llama2c",
    "resnet20",
    "resnet32",
    "resnet56",
    "save_stories260k",
    "stories260k",
    "tiny_llama",
    "trained_mnist_mlp",
    "trained_resnet20",
    "trained_resnet32",
    "trained_resnet56",
]
