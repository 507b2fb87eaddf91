"""What the zoo's tests share."""

from __future__ import annotations

import os

import pytest

needs_data = pytest.mark.skipif(
    "LACONIC_DATA" not in os.environ,
    reason="needs published files: set LACONIC_DATA to the folder that holds them",
)
