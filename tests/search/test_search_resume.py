"""A search that is killed at any moment goes on to the same answer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sought_child

from laconic.errors import ConfigError

FILES = ("model.safetensors", "laconic.json", "assignment.json")


def answer(folder: Path) -> dict[str, Any]:
    held: dict[str, Any] = {name: (folder / name).read_bytes() for name in FILES}
    details = json.loads((folder / "search.json").read_text())
    held["history"] = [
        {k: v for k, v in row.items() if k != "seconds"} for row in details["search"]["history"]
    ]
    held["held_out"] = details["held_out"]
    return held


def killed(out: Path, moment: Callable[[Path], bool], how: str = "new") -> None:
    """Run the search in a process of its own and kill it once a moment has come."""
    work = out.parent / f".{out.name}.work"
    child = subprocess.Popen(
        [sys.executable, str(Path(sought_child.__file__)), str(out), how],
        cwd=Path(sought_child.__file__).parent, stderr=subprocess.PIPE,
    )  # fmt: skip
    end = time.monotonic() + 60
    while not moment(work):
        assert child.poll() is None, child.communicate()[1].decode()[-2000:]
        assert time.monotonic() < end
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not out.exists()


def generations(count: int) -> Callable[[Path], bool]:
    def there(work: Path) -> bool:
        state = work / "search.state"
        return state.exists() and len(json.loads(state.read_text())["history"]) > count

    return there


def test_a_killed_search_goes_on_to_the_same_answer(tmp_path: Path) -> None:
    sought_child.run(tmp_path / "whole")
    killed(tmp_path / "out", lambda work: len(list((work / "levels").glob("*.json"))) == 2)
    killed(tmp_path / "out", generations(3), "resume")
    with pytest.raises(ConfigError, match="holds an unfinished run"):
        sought_child.run(tmp_path / "out")
    sought_child.run(tmp_path / "out", resume=True)
    assert answer(tmp_path / "out") == answer(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
