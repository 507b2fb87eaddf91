"""What the pages on DGC and L-GreCo promise runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_page(page: str, port: str) -> list[str]:
    """Run the Python of a page as the only rank of torchrun; returns its lines."""
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / page).read_text("utf-8"), re.DOTALL
    )
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    script = f"import torch\ntorch.set_num_threads(1)\n{code}\ndist.destroy_process_group()\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=os.environ | place,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_dgc() -> None:
    lines = run_page("dgc.md", "0")
    densities = [float(line.split()[1]) for line in lines]
    assert densities == pytest.approx([0.25, 0.0625, 0.01, 0.01], rel=0.01)
    ratios = [float(line.split()[2].rstrip("x")) for line in lines]
    assert ratios == sorted(ratios)
    assert ratios[-1] > 10


def test_l_greco() -> None:
    lines = run_page("l-greco.md", "0")
    assert [line.split()[0] for line in lines] == ["25", "45"]
    for line in lines:
        found = re.search(r"(\d+) of (\d+)$", line)
        assert found is not None
        assert int(found[1]) < int(found[2])
