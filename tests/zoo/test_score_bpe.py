from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo_support import needs_data, small_bpe

from laconic import zoo
from laconic.errors import DataError, UnsupportedModelError
from laconic.zoo._scorebpe import ScoreBPE, read_score_bpe

WORDS = [" ", "a", "b", "c", "ab", "bc", " a", "abc", "cc", " ab", "é"]
TOKENIZER = small_bpe(WORDS)
IDS = {word: 259 + place for place, word in enumerate(WORDS)}


def merge_slowly(tokenizer: ScoreBPE, text: str) -> list[int]:
    """Merge the whole text as llama2.c does: look for the best pair, from the left, every time."""
    tokens: list[int] = []
    for character in " " + text if text else "":
        data = character.encode()
        tokens += [tokenizer.ids[data]] if data in tokenizer.ids else [b + 3 for b in data]
    while True:
        best: tuple[float, int, int] | None = None
        for place in range(len(tokens) - 1):
            pair = tokenizer.pieces[tokens[place]] + tokenizer.pieces[tokens[place + 1]]
            joined = tokenizer.ids.get(pair)
            if joined is not None and (best is None or tokenizer.scores[joined] > best[0]):
                best = (tokenizer.scores[joined], place, joined)
        if best is None:
            return tokens
        tokens[best[1] : best[1] + 2] = [best[2]]


def test_the_best_score_merges_first() -> None:
    # "ab" comes before "bc" and " a", then "abc" before " ab".
    assert TOKENIZER.encode("abc", add_special_tokens=False) == [IDS[" "], IDS["abc"]]
    assert TOKENIZER("ab") == [1, IDS[" ab"]]
    assert TOKENIZER.encode("c", end=True) == [1, IDS[" "], IDS["c"], 2]


def test_the_leftmost_of_equal_pairs_merges_first() -> None:
    found = TOKENIZER.encode("ccc", add_special_tokens=False)
    assert found == [IDS[" "], IDS["cc"], IDS["c"]]


def test_unknown_characters_become_bytes() -> None:
    # 0xE6 0x97 0xA5 is one character; é is a piece.
    assert TOKENIZER("日é") == [1, IDS[" "], 0xE6 + 3, 0x97 + 3, 0xA5 + 3, IDS["é"]]
    assert TOKENIZER.decode([0xE6 + 3, 0x97 + 3, IDS["a"]]) == "\ufffda"


def test_an_empty_text_has_no_tokens_of_its_own() -> None:
    assert TOKENIZER("") == [1]
    assert TOKENIZER.decode([1, 2]) == ""


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="abc é日\n", max_size=40))
def test_tokens_are_those_of_the_plain_algorithm_and_give_the_text_back(text: str) -> None:
    for words in (WORDS, [*WORDS, "b c"]):  # the last piece has a space within
        tokenizer = small_bpe(words)
        assert tokenizer.encode(text, add_special_tokens=False) == merge_slowly(tokenizer, text)
        assert tokenizer.decode(tokenizer(text)) == text


def test_a_foreign_token_is_refused() -> None:
    with pytest.raises(DataError, match="token 270 is not between 0 and 269"):
        TOKENIZER.decode([270])


def test_a_file_is_read_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tok.bin"
    rows = zip(TOKENIZER.pieces, TOKENIZER.scores, strict=True)
    data = struct.pack("<i", 6) + b"".join(struct.pack("<fi", s, len(p)) + p for p, s in rows)
    path.write_bytes(data)
    assert read_score_bpe(path, 270) == TOKENIZER
    for broken, size in ((data[:-1], 270), (data + b"x", 270), (data, 271), (data[:100], 270)):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"tok\.bin: "):
            read_score_bpe(path, size)


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="abc é日\n", max_size=40))
def test_the_tokenizer_of_transformers_gives_the_same(text: str) -> None:
    fast = FAST
    assert fast.encode(text) == TOKENIZER(text)
    assert fast.encode(text, add_special_tokens=False) == TOKENIZER(text)[1:]
    assert fast.decode(fast.encode(text), skip_special_tokens=True) == text


FAST = zoo.hub_tokenizer(TOKENIZER)


@pytest.mark.parametrize(
    ("words", "piece"),
    [
        # a|aa and aa|a share the token aa: the leftmost is another one than that of smaller rank.
        (["a", "aa", "aaa"], "aaa"),
        # abc, once there, takes the first token of an abc right behind it, as abca comes first.
        (["a", "b", "c", "ab", "bc", "abca", "abc"], "abc"),
        # s between two of them can go to either.
        (["a", "b", "c", "s", "ab", "bc", "abcs", "sabc", "abc"], "abc"),
    ],
)
def test_scores_that_no_list_of_merges_can_say_are_refused(words: list[str], piece: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"piece b'{piece}' merges from 2 pairs"):
        zoo.hub_tokenizer(small_bpe(words))


@needs_data
def test_the_published_tokenizer_encodes_as_llama2c_does() -> None:
    _, tokenizer = zoo.stories260k()
    text = 'Once upon a time, Lily\'s née friend said: "Hi!"\nThe end.  日'
    assert tokenizer.encode(text, add_special_tokens=False) == merge_slowly(tokenizer, text)
    assert tokenizer.decode(tokenizer(text)) == text
    assert zoo.hub_tokenizer(tokenizer).encode(text) == tokenizer(text)
