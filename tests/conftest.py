"""Settings of the whole suite: one thread, fixed seeds, no network."""

from __future__ import annotations

import os
from importlib.util import find_spec

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

# Recovery is tested on installed forms; without the layers it has nothing to run.
collect_ignore = [] if find_spec("laconic.forms.layers") else ["weights/recover/test_finetune.py"]


@pytest.fixture(autouse=True)
def _steady() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
