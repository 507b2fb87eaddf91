"""Windows of tokens: which are rounded when, against a slow reference."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.context import Window
from laconic.errors import ConfigError, LayerError

R, G = 8, 4


def drawn(tokens, *, batch=2, heads=3, width=12, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, tokens, width, generator=source)


def slow_group(values, bits):
    """Oracle: one group as plain numbers, with half-float scale and least value."""
    least = float(torch.tensor(min(values)).half())
    scale = float(((torch.tensor(max(values)) - torch.tensor(min(values))) / (2**bits - 1)).half())
    scale = scale or 1.0
    found = []
    for value in values:
        code = min(max(round((value - least) / scale), 0), 2**bits - 1)
        found.append(least + scale * code)
    return found


def slow(states, bits, along, rounded):
    """Oracle: the first ``rounded`` tokens of (batch, heads, tokens, width) group by group."""
    out = states.clone()
    batch, heads, _, width = states.shape
    for b in range(batch):
        for h in range(heads):
            plane = out[b, h]
            if along == "channel":
                for start in range(0, rounded, G):
                    for j in range(width):
                        group = plane[start : start + G, j].tolist()
                        plane[start : start + G, j] = torch.tensor(slow_group(group, bits))
            else:
                for t in range(rounded):
                    for start in range(0, width, G):
                        group = plane[t, start : start + G].tolist()
                        plane[t, start : start + G] = torch.tensor(slow_group(group, bits))
    return out


def held(window):
    """What the window stands for now."""
    parts = [] if not window.rounded else [window.old.states()]
    return torch.cat([*parts, window.recent], dim=-2)


def rounded_of(tokens, along):
    return tokens // R * R if along == "channel" else max(tokens - R, 0)


@pytest.mark.parametrize("along", ["channel", "token"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_is_the_slow_reference(along, bits):
    states = drawn(21)
    window = Window(bits, G, R, along)
    window.append(states)
    assert window.rounded == rounded_of(21, along)
    expected = slow(states, bits, along, window.rounded)
    torch.testing.assert_close(held(window), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("along", ["channel", "token"])
@pytest.mark.parametrize("tokens", range(1, 3 * R + 1))
def test_bookkeeping_and_token_by_token_is_prefill(along, tokens):
    states = drawn(tokens)
    whole, single = Window(2, G, R, along), Window(2, G, R, along)
    assert torch.equal(whole.append(states), states)  # a first call attends to exact states
    for t in range(tokens):
        seen = single.append(states[:, :, t : t + 1])
        assert seen.shape == (2, 3, t + 1, 12)
        assert torch.equal(seen[:, :, -1], states[:, :, t])
        assert single.length == t + 1
        assert single.rounded == rounded_of(t + 1, along)
    assert (whole.length, whole.rounded) == (single.length, single.rounded)
    assert torch.equal(held(whole), held(single))
    exact = rounded_of(tokens, along)
    assert torch.equal(held(whole)[:, :, exact:], states[:, :, exact:])


@settings(deadline=None, max_examples=40)
@given(
    pieces=st.lists(st.integers(1, 11), min_size=1, max_size=6),
    bits=st.integers(1, 8),
    along=st.sampled_from(["channel", "token"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_however_tokens_come(pieces, bits, along, dtype):
    states = drawn(sum(pieces)).to(dtype)
    whole, parts = Window(bits, G, R, along), Window(bits, G, R, along)
    whole.append(states)
    at = 0
    for size in pieces:
        seen = parts.append(states[:, :, at : at + size])
        at += size
        assert seen.dtype == dtype
        assert seen.shape[-2] == at
    assert torch.equal(held(whole), held(parts))


@pytest.mark.parametrize("window", [Window(2, G, None, "channel"), Window(2, G, R, "full")])
def test_without_end_or_in_full_it_is_exact(window):
    states = drawn(50)
    for t in range(50):
        seen = window.append(states[:, :, t : t + 1])
        assert torch.equal(seen, states[:, :, : t + 1])
    assert window.rounded == 0


@pytest.mark.parametrize("along", ["channel", "token"])
def test_bytes_are_what_is_allocated(along):
    window = Window(2, G, R, along)
    window.append(drawn(20).half())
    tokens = {"channel": 16, "token": 16}[along]  # 12 leave the token window: room for 16
    codes = 2 * 3 * tokens * ceil(12 / 8) * 2
    scales = 2 * 2 * (2 * 3 * tokens * 12 // G)
    recent = 2 * 3 * (20 - window.rounded) * 12 * 2
    assert window.nbytes == codes + scales + recent
    tensors = [window.recent, *window.old._held.values()]
    assert window.nbytes == sum(t.untyped_storage().nbytes() for t in tensors)


def test_groups_without_range_are_exact():
    states = torch.full((1, 1, 16, 8), 0.75)
    states[..., 3] = 0
    window = Window(2, G, R, "channel")
    window.append(states)
    assert torch.equal(held(window), states)


@pytest.mark.parametrize("along", ["channel", "token"])
@pytest.mark.parametrize("length", [0, 1, 5, 8, 11, 16, 17, 19, 20])
def test_cut_keeps_the_first_tokens_and_goes_on(along, length):
    states, more = drawn(20), drawn(13, seed=1)
    window = Window(4, G, R, along)
    window.append(states)
    before = held(window)
    window.cut(length)
    assert window.length == length
    assert torch.equal(held(window) if length else before[:, :, :0], before[:, :, :length])
    for t in range(13):
        seen = window.append(more[:, :, t : t + 1])
        assert torch.equal(seen[:, :, -1], more[:, :, t])
    assert window.length == length + 13
    assert window.recent.shape[-2] <= R
    far = (held(window) - torch.cat([before[:, :, :length], more], -2)).abs().max()
    assert float(far) < 0.3  # a sixteenth of a range at most


@pytest.mark.parametrize("along", ["channel", "token"])
def test_rows_of_the_batch(along):
    states = drawn(20, batch=3)
    window = Window(2, G, R, along)
    window.append(states)
    before = held(window)
    window.select(torch.tensor([2, 2, 0]))
    assert torch.equal(held(window), before[[2, 2, 0]])
    window.repeat(2)
    assert torch.equal(held(window), before[[2, 2, 2, 2, 0, 0]])
    seen = window.append(drawn(1, batch=6, seed=2))
    assert seen.shape == (6, 3, 21, 12)


def test_refusals():
    with pytest.raises(ConfigError, match=r"group=4 does not divide the 6 channels .*\[1, 2, 3\]"):
        Window(2, G, R, "token").append(drawn(2, width=6))
    Window(2, G, R, "channel").append(drawn(20, width=6))
    bad = drawn(20)
    bad[0, 0, 3, 3] = float("nan")
    with pytest.raises(LayerError, match=r"not finite or beyond torch\.float16"):
        Window(2, G, R, "channel").append(bad)
    with pytest.raises(LayerError, match=r"not finite or beyond torch\.float16"):
        Window(2, G, R, "token").append(drawn(20) * 1e6)
    Window(2, G, R, "token").append((drawn(20) * 1e6).bfloat16())
