"""Minibatches: exact, without repetition, alike for all who share a seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.budget import Minibatch, Sampler
from laconic.errors import ConfigError


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=30).filter(lambda n: max(n) >= 2),
    st.floats(0, 1),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=50)
def test_exact_tokens_and_no_document_twice(lengths: list[int], share: float, seed: int) -> None:
    sampler = Sampler(lengths, least=2)
    tokens = 2 + int(share * (sampler.tokens - 2))
    rng = np.random.default_rng(seed)
    if max(lengths) == 2 and tokens % 2:
        with pytest.raises(ConfigError, match="cannot be cut"):
            sampler.draw(tokens, rng)
        return
    drawn = sampler.draw(tokens, rng)
    assert drawn.tokens == tokens
    assert len(set(drawn.documents)) == len(drawn.documents)
    for document, length in zip(drawn.documents, drawn.lengths, strict=True):
        assert 2 <= length <= lengths[document]
    whole = [n == lengths[d] for d, n in zip(drawn.documents, drawn.lengths, strict=True)]
    assert all(whole[:-2])  # only the last is cut, and the one before lends it a token


def test_same_generator_same_documents_and_fresh_ones_after() -> None:
    sampler = Sampler([10] * 50)
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    assert sampler.draw(100, one) == sampler.draw(100, other)
    assert sampler.draw(100, one) != sampler.draw(100, np.random.default_rng(3))


def test_documents_are_drawn_evenly() -> None:
    sampler, rng = Sampler([4] * 20), np.random.default_rng(0)
    counts = np.zeros(20)
    for _ in range(600):
        for document in sampler.draw(20, rng).documents:  # 5 of 20
            counts[document] += 1
    expected = 600 * 5 / 20
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected * 0.75)).all()


def test_too_short_documents_are_never_drawn() -> None:
    sampler = Sampler([1, 5, 0, 5], least=2)
    assert sampler.tokens == 10
    assert sampler.everything() == Minibatch((1, 3), (5, 5))
    assert set(sampler.draw(10, np.random.default_rng(0)).documents) == {1, 3}


def test_last_document_borrows_what_it_needs_to_be_judged() -> None:
    drawn = Sampler([5, 5], least=2).draw(6, np.random.default_rng(0))
    assert drawn.lengths == (4, 2)


def test_split_keeps_every_document_once() -> None:
    drawn = Minibatch((5, 3, 8, 1, 2), (10, 10, 10, 10, 4))
    pieces = drawn.split(3)
    assert [piece.documents for piece in pieces] == [(5, 3), (8, 1), (2,)]
    assert sum(piece.tokens for piece in pieces) == drawn.tokens
    assert len(Minibatch((1,), (9,)).split(4)) == 1


def test_limits_are_told() -> None:
    with pytest.raises(ConfigError, match="101 tokens must be between 2 and the 100"):
        Sampler([10] * 10, least=2).draw(101, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="none of 2 documents has least=4"):
        Sampler([3, 1], least=4)
    with pytest.raises(ConfigError, match="3 tokens cannot be cut"):
        Sampler([2, 2], least=2).draw(3, np.random.default_rng(0))
