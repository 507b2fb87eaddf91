from __future__ import annotations

from typing import Any

import pytest
from report_sample import sample as _sample


@pytest.fixture
def sample() -> dict[str, Any]:
    return _sample()
