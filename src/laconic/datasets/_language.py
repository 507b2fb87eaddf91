"""Language data sets that are files: WikiText-2, Penn Treebank, TinyStories, novels, the web."""

from __future__ import annotations

import gzip
import json
import re
from typing import Literal

from laconic.datasets._description import dataset
from laconic.datasets._files import DataFile, find
from laconic.datasets._windows import Tokenizer, language_task
from laconic.errors import ConfigError
from laconic.task import Task

_HELD = 5  # one document in five is for the test where the authors give no split

WIKITEXT = DataFile(
    "wikitext2/valid.txt.gz",
    "3cdd8cb5bb349a05840c7c3bef9578d90d64df77e27e0c25c033ba9342757ee3",
    "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/"
    "wikitext-2/valid.txt",
)
_PTB_SOURCE = "http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz"
PTB_TRAIN = DataFile(
    "ptb/ptb.train.txt.gz",
    "d1ec43563d7ce27da8b43f9069b2a58cb9e7f2656e96d7aab0ddc61ef728e176",
    recipe=f"data/ptb.train.txt of {_PTB_SOURCE}, gzipped",
)
PTB_VALID = DataFile(
    "ptb/ptb.valid.txt.gz",
    "fdb970a6bddedf957366618daec55ab7beb159f8123600f8db16c34833dca93d",
    recipe=f"data/ptb.valid.txt of {_PTB_SOURCE}, gzipped",
)
STORIES = DataFile(
    "tinystories/stories_a.jsonl.gz",
    "11fc4a16224fac0e2db115bb6bdc0062aae2f86cc3a59e3d7fd2edaa9702be83",
    recipe='76 stories as lines {"text": ...}, from'
    " https://github.com/Niklas6/Mini_GPT, tinystories.txt",
)
BRONTE = DataFile(
    "gutenberg/charlotte_bronte.txt.gz",
    "56ddf180ebe4e014cd051a2e207b5c2277e65ed73defd055cb8e036d83efbe1a",
    "f6ddc6ec0b1e2c4f692a8365963ceaf1dbae3ef641e0f934db9c860dc71ff087",
    recipe="datasets/text/charlotte_bronte.txt of"
    " https://github.com/ml5js/ml5-data-and-models, gzipped",
)
SHAKESPEARE = DataFile(
    "gutenberg/tinyshakespeare.txt.gz",
    "13125fe8f49092165d7d489e3944db52d1ba546e64a60080cc9523bcd0c5e46a",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
)
C4 = DataFile(
    "calibration_text/c4_300.jsonl.gz",
    "f29e5b493220ebd38b3cf524873546e1e316a9bd06415a50398643e34beec3b3",
    recipe="data/c4_demo.jsonl of https://github.com/hiyouga/LLaMA-Factory, 300 lines"
    ' {"text": ...}, gzipped',
)
WIKIPEDIA = DataFile(
    "calibration_text/wikipedia_1mb.txt.gz",
    "c2949ac7550de5333fd4cf15b038cf74cb2dfe6546e523db6182ad0898b9389b",
    recipe="data/wiki_demo.txt of https://github.com/hiyouga/LLaMA-Factory, gzipped",
)


def stories() -> list[str]:
    """Return the 76 stories of TinyStories, in the order of the file."""
    return _json_lines(STORIES)


@dataset(
    "wikitext2",
    summary="WikiText-2, its validation part, by articles: 80 % to train on, 20 % to test with",
    kind="causal-lm",
    licence="CC BY-SA 3.0",
    source="Merity, Xiong, Bradbury and Socher, 2016, Pointer Sentinel Mixture Models",
    files=(WIKITEXT,),
)
def load_wikitext2(
    *,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    length: int = 128,
    limit: int | None = None,
    test_limit: int | None = None,
    calibration: int = 128,
    by_document: bool = False,
) -> Task:
    """Load WikiText-2's validation part, tokenised by its authors with ``<unk>``.

    Args:
        seed: Draws the calibration windows from the training ones.
        tokenizer: Text to token numbers; by default bytes, 0 ends a document.
        length: Tokens in a window.
        limit: At most this many training windows.
        test_limit: At most this many test windows.
        calibration: Windows for calibration.
        by_document: A window is the first ``length`` tokens of one article, padded where it is
            shorter; else all are cut one after another, whatever they begin with.
    """
    articles = re.split(r"(?m)^(?= = [^=\n]+ = $)", _text(WIKITEXT))
    train, test = _every_fifth([article for article in articles if article.strip()])
    return language_task(
        "wikitext2",
        train,
        test,
        seed=seed,
        tokenizer=tokenizer,
        length=length,
        limit=limit,
        test_limit=test_limit,
        calibration=calibration,
        by_document=by_document,
    )


@dataset(
    "ptb",
    summary="Penn Treebank as preprocessed by Mikolov: 929 589 words to train on, 73 760 to test",
    kind="causal-lm",
    licence="LDC; no open licence",
    source=_PTB_SOURCE,
    files=(PTB_TRAIN, PTB_VALID),
)
def load_ptb(
    *,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    length: int = 128,
    limit: int | None = None,
    test_limit: int | None = None,
    calibration: int = 128,
) -> Task:
    """Load the Penn Treebank; the test is its validation part.

    Args:
        seed: Draws the calibration windows from the training ones.
        tokenizer: Text to token numbers; by default bytes, 0 ends a document.
        length: Tokens in a window.
        limit: At most this many training windows.
        test_limit: At most this many test windows.
        calibration: Windows for calibration.
    """
    return language_task(
        "ptb",
        [_text(PTB_TRAIN)],
        [_text(PTB_VALID)],
        seed=seed,
        tokenizer=tokenizer,
        length=length,
        limit=limit,
        test_limit=test_limit,
        calibration=calibration,
    )


@dataset(
    "tinystories",
    summary="76 short stories in simple words: 61 to train on, 15 to test with",
    kind="causal-lm",
    licence="CDLA-Sharing-1.0",
    source="https://huggingface.co/datasets/roneneldan/TinyStories",
    files=(STORIES,),
)
def load_tinystories(
    *,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    length: int = 128,
    limit: int | None = None,
    test_limit: int | None = None,
    calibration: int = 64,
    by_document: bool = False,
) -> Task:
    """Load 76 stories of TinyStories (Eldan and Li, 2023); every fifth is for the test.

    Args:
        seed: Draws the calibration windows from the training ones.
        tokenizer: Text to token numbers; by default bytes, 0 ends a document.
        length: Tokens in a window.
        limit: At most this many training windows.
        test_limit: At most this many test windows.
        calibration: Windows for calibration.
        by_document: A window is the first ``length`` tokens of one story, padded where it is
            shorter; else all are cut one after another, whatever they begin with.
    """
    train, test = _every_fifth(stories())
    return language_task(
        "tinystories",
        train,
        test,
        seed=seed,
        tokenizer=tokenizer,
        length=length,
        limit=limit,
        test_limit=test_limit,
        calibration=calibration,
        by_document=by_document,
    )


@dataset(
    "gutenberg",
    summary="novels of Charlotte Bronte, or Shakespeare: the last tenth is for the test",
    kind="causal-lm",
    licence="public domain",
    source="https://www.gutenberg.org/",
    files=(BRONTE, SHAKESPEARE),
)
def load_gutenberg(
    *,
    seed: int = 0,
    author: Literal["bronte", "shakespeare"] = "bronte",
    tokenizer: Tokenizer | None = None,
    length: int = 128,
    limit: int | None = None,
    test_limit: int | None = None,
    calibration: int = 128,
) -> Task:
    """Load plain text of one author; the last tenth, from a line's start, is for the test.

    Args:
        seed: Draws the calibration windows from the training ones.
        author: ``"bronte"`` (3.8 MB) or ``"shakespeare"`` (1.1 MB).
        tokenizer: Text to token numbers; by default bytes, 0 ends a document.
        length: Tokens in a window.
        limit: At most this many training windows.
        test_limit: At most this many test windows.
        calibration: Windows for calibration.
    """
    if author not in ("bronte", "shakespeare"):
        raise ConfigError(
            f"data set 'gutenberg': author={author!r} must be 'bronte' or 'shakespeare'."
        )
    text = _text(BRONTE if author == "bronte" else SHAKESPEARE)
    cut = text.index("\n", len(text) * 9 // 10) + 1
    return language_task(
        "gutenberg",
        [text[:cut]],
        [text[cut:]],
        seed=seed,
        tokenizer=tokenizer,
        length=length,
        limit=limit,
        test_limit=test_limit,
        calibration=calibration,
    )


@dataset(
    "calibration-text",
    summary="300 web documents of C4, or 1 MB of Wikipedia: text to calibrate with",
    kind="causal-lm",
    licence="ODC-BY 1.0 (C4); CC BY-SA 3.0 (Wikipedia)",
    source="https://huggingface.co/datasets/allenai/c4",
    files=(C4, WIKIPEDIA),
)
def load_calibration_text(
    *,
    seed: int = 0,
    source: Literal["c4", "wikipedia"] = "c4",
    tokenizer: Tokenizer | None = None,
    length: int = 128,
    limit: int | None = None,
    test_limit: int | None = None,
    calibration: int = 128,
    by_document: bool = False,
) -> Task:
    """Load web documents or encyclopaedia articles; every fifth document is for the test.

    Args:
        seed: Draws the calibration windows from the training ones.
        source: ``"c4"`` or ``"wikipedia"``.
        tokenizer: Text to token numbers; by default bytes, 0 ends a document.
        length: Tokens in a window.
        limit: At most this many training windows.
        test_limit: At most this many test windows.
        calibration: Windows for calibration.
        by_document: A window is the first ``length`` tokens of one document, padded where it is
            shorter; else all are cut one after another, whatever they begin with.
    """
    if source not in ("c4", "wikipedia"):
        raise ConfigError(
            f"data set 'calibration-text': source={source!r} must be 'c4' or 'wikipedia'."
        )
    documents = _json_lines(C4) if source == "c4" else _text(WIKIPEDIA).splitlines(keepends=True)
    train, test = _every_fifth([document for document in documents if document.strip()])
    return language_task(
        "calibration-text",
        train,
        test,
        seed=seed,
        tokenizer=tokenizer,
        length=length,
        limit=limit,
        test_limit=test_limit,
        calibration=calibration,
        by_document=by_document,
    )


def _every_fifth(documents: list[str]) -> tuple[list[str], list[str]]:
    test = documents[_HELD - 1 :: _HELD]
    return [d for i, d in enumerate(documents) if i % _HELD != _HELD - 1], test


def _text(file: DataFile) -> str:
    return gzip.decompress(find(file).read_bytes()).decode("utf-8")


def _json_lines(file: DataFile) -> list[str]:
    # Not splitlines: JSON may hold U+2028 and the like as they are, within a line.
    return [json.loads(line)["text"] for line in _text(file).split("\n") if line.strip()]
