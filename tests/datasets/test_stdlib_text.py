"""The standard library as text: files apart, both domains, windows."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets_support import decoded

from laconic import datasets
from laconic.datasets import _stdlib
from laconic.errors import ConfigError, DataError

ROOT = Path(sysconfig.get_path("stdlib"))


def load(**options: Any) -> Any:
    return datasets.load(
        "stdlib-text", **{"limit": 40, "test_limit": 20, "calibration": 8} | options
    )


def test_no_file_is_in_both_parts() -> None:
    files = _stdlib.source_files()
    train, test = _stdlib.split_files(files)
    assert len(files) > 300
    assert not set(train) & set(test)
    assert sorted([*train, *test]) == sorted(files)
    assert 0.05 < len(test) / len(files) < 0.15
    assert {ROOT / "argparse.py", ROOT / "json" / "decoder.py"} <= set(files)
    skipped = ("site-packages", "test", "encodings", "__pycache__")
    assert not [path for path in files if set(skipped) & set(path.relative_to(ROOT).parts)]


def test_a_file_stays_on_its_side_whatever_else_is_there() -> None:
    files = _stdlib.source_files()
    held = set(_stdlib.split_files(files)[1])
    for part in (files[::2], files[1::3], files[::-1]):
        train, test = _stdlib.split_files(part)
        assert set(test) == held & set(part)
        assert train == [path for path in part if path not in held]


@pytest.mark.parametrize("domain", ["code", "english"])
def test_windows_hold_the_documents_of_their_own_part(domain: str) -> None:
    task = load(domain=domain, length=64)
    for part, count in ((task.train, 40), (task.test, 20), (task.calibration, 8)):
        assert part.tensors["input_ids"].shape == (count, 64)
        assert part.tensors["input_ids"].dtype == torch.int64
    read = _stdlib.read_code if domain == "code" else _stdlib.read_english
    sides = _stdlib.split_files(_stdlib.source_files())
    for part, files in zip((task.train, task.test), sides, strict=True):
        stream = b""
        for path in files:
            stream += read(path).encode() + b"\0"
            if len(stream) > 64 * 40:
                break
        size = part.tensors["input_ids"].numel()
        assert bytes(part.tensors["input_ids"].flatten().tolist()) == stream[:size]
    train = {tuple(row) for row in task.train.tensors["input_ids"].tolist()}
    assert {tuple(row) for row in task.calibration.tensors["input_ids"].tolist()} <= train


def test_code_is_code_and_english_is_not() -> None:
    code = decoded(load(test_limit=200).test)
    english = decoded(load(domain="english", test_limit=200).test)
    assert "import " in code
    assert "def " in code
    assert "def __init__(self" not in english
    assert sum(letter.isspace() or letter.isalpha() for letter in english) > 0.85 * len(english)


def test_the_same_text_comes_twice_and_the_seed_draws_the_calibration() -> None:
    first, again, other = load(), load(), load(seed=1)
    for part in ("train", "test", "calibration"):
        left, right = getattr(first, part), getattr(again, part)
        assert torch.equal(left.tensors["input_ids"], right.tensors["input_ids"])
    assert torch.equal(first.train.tensors["input_ids"], other.train.tensors["input_ids"])
    drawn = [task.calibration.tensors["input_ids"] for task in (first, other)]
    assert not torch.equal(*drawn)


def test_a_tokenizer_takes_the_place_of_bytes() -> None:
    task = load(tokenizer=lambda text: [len(word) for word in text.split()], length=16, limit=5)
    words = _stdlib.read_code(_stdlib.split_files(_stdlib.source_files())[0][0]).split()
    expected = [len(word) for word in words[:80]]
    assert task.train.tensors["input_ids"].flatten().tolist()[: len(expected)] == expected


SOURCE = '''\
#!/usr/bin/env python
# A comment that runs
# over two long lines here.

"""What it is."""

x = 1  # too short

# x = y


class A:
    """A class."""

    def f(self):
        """Say   it:

            indented.
        """
        return "no docstring"  # but this comment is long enough

    async def g(self):
        #: A comment -- with marks, kept and stripped. --
        return r"\\d"
'''


def test_english_is_docstrings_and_comments(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(SOURCE)
    assert _stdlib.read_english(tmp_path / "a.py").splitlines() == [
        "What it is.",
        "A class.",
        "Say   it:",
        "",
        "indented.",
        "/usr/bin/env python",
        "A comment that runs",
        "over two long lines here.",
        "but this comment is long enough",
        "A comment -- with marks, kept and stripped.",
    ]
    assert _stdlib.read_code(tmp_path / "a.py") == SOURCE


def test_a_source_with_an_odd_escape_gives_no_warning(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""Some words."""\nx = "\\d"\n')
    assert _stdlib.read_english(tmp_path / "a.py") == "Some words.\n"


def test_the_licence_is_english_and_no_code(tmp_path: Path) -> None:
    (tmp_path / "LICENSE.txt").write_text("Terms and conditions.")
    assert _stdlib.read_code(tmp_path / "LICENSE.txt") == ""
    assert _stdlib.read_english(tmp_path / "LICENSE.txt").startswith("Terms and conditions.\nCopy")


def test_the_docstring_of_a_file_is_in_its_english() -> None:
    # Read by other means, for the first files of the training part.
    for path in _stdlib.split_files(_stdlib.source_files())[0][:5]:
        if path.suffix != ".py":
            continue
        module = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        found = _stdlib.read_english(path)
        assert (ast.get_docstring(module) or "") in found


def test_options_out_of_their_bounds() -> None:
    with pytest.raises(ConfigError, match="domain='french' must be 'code' or 'english'"):
        load(domain="french")
    for name, value in {"length": 1, "limit": 0, "test_limit": 0, "calibration": 0}.items():
        with pytest.raises(ConfigError, match=rf"'stdlib-text': (limit|{name})={value}"):
            load(**{name: value})


def test_a_python_without_sources_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_stdlib.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="no standard library sources"):
        load()
