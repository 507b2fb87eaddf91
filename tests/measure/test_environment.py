"""What is said of the machine, and what is not."""

from __future__ import annotations

import getpass
import json
import platform
import re
from importlib import metadata
from pathlib import Path

import pytest
import torch

from laconic.measure import environment


def words(said: object) -> list[str]:
    """Return the texts in a JSON value, without the keys."""
    if isinstance(said, dict):
        said = list(said.values())
    if isinstance(said, list):
        return [word for part in said for word in words(part)]
    return [str(said)]


def test_versions_and_the_machine_are_said() -> None:
    said = environment()
    assert set(said) == {"cpu", "gpu", "platform", "python", "threads", "versions"}
    assert said["python"] == platform.python_version()
    for package in ("laconic", "torch", "numpy", "safetensors"):
        assert said["versions"][package] == metadata.version(package)
    assert said["threads"] == torch.get_num_threads() == 1
    assert said["cpu"]["cores"] >= 1
    assert said["cpu"]["model"]
    assert len(said["gpu"]) == torch.cuda.device_count()


def test_it_is_plain_json() -> None:
    said = environment()
    assert json.loads(json.dumps(said)) == said


def test_no_host_user_or_place_is_said() -> None:
    text = "\n".join(words(environment()))
    assert str(Path.home()) not in text
    assert not re.search(r"(?m)(^|[ =:])/\w", text)
    for name in {platform.node(), getpass.getuser()} - {""}:
        assert not re.search(rf"\b{re.escape(name)}\b", text)


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "transformers":
            raise metadata.PackageNotFoundError(package)
        return "1.2"

    monkeypatch.setattr(metadata, "version", version)
    versions = environment()["versions"]
    assert "transformers" not in versions
    assert versions["numpy"] == "1.2"
