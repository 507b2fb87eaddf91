"""Text that every Python has: the sources of its standard library."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from laconic.datasets._description import dataset
from laconic.datasets._windows import Tokenizer, language_task
from laconic.errors import ConfigError, DataError
from laconic.task import Task

Domain = Literal["code", "english"]

# Not part of every installation, made by machines, or foreign to the library itself.
_SKIPPED = {
    "test", "tests", "idlelib", "turtledemo", "lib2to3", "encodings", "pydoc_data", "ensurepip",
    "site-packages", "dist-packages", "__pycache__", "__phello__", "lib-dynload",
}  # fmt: skip
_TEST_SHARE = 10  # one file in ten is held out
_WORDS = 5  # shorter comments are mostly code that was switched off


@dataset(
    "stdlib-text",
    summary="sources of the Python standard library, as code or as the English in it",
    kind="causal-lm",
    licence="PSF-2.0",
    source="the installed Python",
)
def load_stdlib_text(
    *,
    seed: int = 0,
    domain: Domain = "code",
    tokenizer: Tokenizer | None = None,
    length: int = 128,
    limit: int | None = 4096,
    test_limit: int | None = 512,
    calibration: int = 128,
) -> Task:
    """Load the standard library's sources, split by file.

    Whether a file is held out depends on its path alone, so it is never in the training part
    of either domain. The text differs between versions of Python.

    Args:
        seed: Draws the calibration windows from the training ones.
        domain: ``"code"`` is the files as they are; ``"english"`` their docstrings and comments,
            and the licence and credits of Python.
        tokenizer: Text to token numbers; by default bytes, 0 ends a document.
        length: Tokens in a window.
        limit: At most this many training windows; None takes all.
        test_limit: At most this many test windows; None takes all.
        calibration: Windows for calibration.

    Shapes:
        input_ids (windows, length) int64

    Raises:
        ConfigError: An option out of its bounds.
        DataError: The standard library has no source files.
    """
    if domain not in ("code", "english"):
        raise ConfigError(f"data set 'stdlib-text': domain={domain!r} must be 'code' or 'english'.")
    train, test = split_files(source_files())
    read = read_code if domain == "code" else read_english
    return language_task(
        "stdlib-text",
        (read(path) for path in train),
        (read(path) for path in test),
        seed=seed,
        tokenizer=tokenizer,
        length=length,
        limit=limit,
        test_limit=test_limit,
        calibration=calibration,
    )


def source_files() -> list[Path]:
    """Return the files, in an order that depends on their relative paths alone.

    Raises:
        DataError: There are none, as in an interpreter packed into one file.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found: list[Path] = []
    for folder, below, names in os.walk(root):
        below[:] = [n for n in below if n not in _SKIPPED and not n.startswith("config-")]
        found.extend(Path(folder, name) for name in names if name.endswith(".py"))
    if not found:
        raise DataError(
            "data set 'stdlib-text': this Python has no standard library sources."
            " Use an interpreter installed with them."
        )
    licence = root / "LICENSE.txt"
    if licence.is_file():
        found.append(licence)
    return sorted(found, key=_rank)


def split_files(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Split files into training and held-out ones by the hash of their relative path."""
    held = {path for path in files if int(_rank(path)[:8], 16) % _TEST_SHARE == 0}
    return [p for p in files if p not in held], [p for p in files if p in held]


def _rank(path: Path) -> str:
    relative = path.relative_to(sysconfig.get_path("stdlib")).as_posix()
    return hashlib.sha256(relative.encode()).hexdigest()


def read_code(path: Path) -> str:
    """Return a source file as it is; the licence, which is not code, gives nothing."""
    return path.read_text(encoding="utf-8", errors="replace") if path.suffix == ".py" else ""


def read_english(path: Path) -> str:
    """Return the docstrings and comments of a source file, or the licence with the credits."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix != ".py":
        return f"{text}\n{sys.copyright}\n"
    return "".join(f"{part}\n" for part in (*_docstrings(text), *_comments(text)))


def _docstrings(text: str) -> Iterator[str]:
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in others' sources are not our user's
        tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, owners) and (found := ast.get_docstring(node)):
            yield found


def _comments(text: str) -> Iterator[str]:
    """Yield runs of comment lines as one text each, without the hash signs."""
    block: list[str] = []
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        if token.start[0] != last + 1 and block:
            yield from _block(block)
            block = []
        block.append(token.string.lstrip("#!:").strip(" -=#*"))
        last = token.start[0]
    yield from _block(block)


def _block(lines: list[str]) -> Iterator[str]:
    joined = "\n".join(line for line in lines if line)
    if len(joined.split()) >= _WORDS:
        yield joined
