"""Small reference networks, and published weights of some of them."""

from __future__ import annotations

from laconic.zoo._llama import byte_llama, tiny_llama
from laconic.zoo._published import (
    pretrained,
    published,
    trained_resnet20,
    trained_resnet32,
    trained_resnet56,
)
from laconic.zoo._resnet import resnet20, resnet32, resnet56
from laconic.zoo._scorebpe import ScoreBPE
from laconic.zoo._stories import read_llama2c, stories260k
from laconic.zoo._vit import digits_vit

__all__ = [
    "ScoreBPE",
    "byte_llama",
    "digits_vit",
    "pretrained",
    "published",
    "read_llama2c",
    "resnet20",
    "resnet32",
    "resnet56",
    "stories260k",
    "tiny_llama",
    "trained_resnet20",
    "trained_resnet32",
    "trained_resnet56",
]
