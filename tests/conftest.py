"""Settings of the whole suite: one thread, fixed seeds, no network.

Hypothesis draws the same examples on every run, so that a run says something about the change
and not about luck; ``benchmarks/fuzz_artifact.py`` is the search with fresh seeds.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

settings.register_profile("steady", derandomize=True, database=None)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _steady() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
