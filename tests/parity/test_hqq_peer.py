"""HQQ beside its authors' package, where it is installed."""

from __future__ import annotations

import warnings

import pytest
import torch

from laconic.forms.dense import Dense
from laconic.weights.base import Site
from laconic.weights.quantize.hqq import Hqq

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what a peer says on import is not ours
    peer = pytest.importorskip("hqq.core.quantize", reason="hqq, the peer, is not installed")


def theirs(weight, bits):
    codes, held = peer.Quantizer.quantize(
        weight.clone(), nbits=bits, channel_wise=True, group_size=64, optimize=True,
        round_zero=False, axis=1, device="cpu", compute_dtype=torch.float32, bitpack=False,
    )  # fmt: skip
    values = (codes.float().reshape(-1, 64) - held["zero"].float()) * held["scale"].float()
    return values.reshape(weight.shape)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["normal", "heavy"])
def test_errors_agree_within_a_percent(bits, kind):
    source = torch.Generator().manual_seed(bits)
    weight = 0.02 * torch.randn(128, 256, generator=source)
    if kind == "heavy":
        weight = weight * (1 + 4 * (torch.rand(128, 256, generator=source) < 0.02))
    site = Site("w", "linear", Dense(weight), weight)
    found = Hqq(bits=bits, group_size=64, scale_dtype="float32").fit(site, torch.Generator())
    gaps = [
        float((w - weight).abs().mean()) for w in (found.dense().detach(), theirs(weight, bits))
    ]
    assert gaps[0] <= 1.01 * gaps[1]
    assert gaps[0] >= 0.9 * gaps[1]
