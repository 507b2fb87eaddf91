"""No data set reaches the network here; files come from folders of the test."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    reach = urllib.request.urlopen

    def local(address: str, **options: Any) -> Any:
        if not address.startswith("file:"):
            raise urllib.error.URLError("no network in tests")
        return reach(address, **options)

    monkeypatch.setattr(urllib.request, "urlopen", local)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of a test, empty; the cache is empty and elsewhere."""
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"
