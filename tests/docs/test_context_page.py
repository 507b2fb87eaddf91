"""What the page on key-value caches promises runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers", reason="the extra 'hf' is not installed")
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "context.md").read_text(encoding="utf-8")


def test_the_python_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "context.md", "exec"), {})
    full, held = (int(number) for number in re.findall(r"\d+", capsys.readouterr().out))
    assert held < full / 2
