"""NF4 beside bitsandbytes, where it is installed."""

from __future__ import annotations

import warnings

import pytest
import torch

from laconic.forms.dense import Dense
from laconic.weights.base import Site
from laconic.weights.quantize.nf4 import NormalFloat, normal_levels

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what a peer says on import is not ours
    peer = pytest.importorskip(
        "bitsandbytes.functional", reason="bitsandbytes, the peer, is not installed"
    )


def drawn():
    return 0.02 * torch.randn(64, 256, generator=torch.Generator().manual_seed(0))


def theirs(weight, *, double):
    codes, state = peer.quantize_4bit(
        weight, blocksize=64, quant_type="nf4", compress_statistics=double
    )
    return peer.dequantize_4bit(codes, state), state


def ours(weight, **options):
    site = Site("w", "linear", Dense(weight), weight)
    form = NormalFloat(group_size=64, **options).fit(site, torch.Generator())
    return form.dense().detach()


def test_the_same_levels():
    _, state = theirs(drawn(), double=False)
    torch.testing.assert_close(normal_levels(4), state.code.float(), rtol=0, atol=3e-7)


def test_the_same_values():
    weight = drawn()
    other, _ = theirs(weight, double=False)
    found = ours(weight, double=False)
    near = (found - other).abs() <= 1e-6 * weight.abs().max()
    assert float(near.float().mean()) > 0.999  # between two levels the nearer one may be either


def test_doubly_quantized_scales_are_no_worse():
    weight = drawn()
    other, _ = theirs(weight, double=True)
    gaps = [float((w - weight).norm() / weight.norm()) for w in (ours(weight), other)]
    assert gaps[0] <= 1.01 * gaps[1]
