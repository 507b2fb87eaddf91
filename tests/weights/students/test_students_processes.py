import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from students_child import answer, search

from laconic.errors import ConfigError
from laconic.weights.students import ChildTraining

HERE = Path(__file__).parent


def test_several_workers_give_the_same_answer():
    alone, shared = (
        search(workers=workers, stages=("removal",), iterations=1) for workers in (1, 2)
    )
    assert answer(alone) == answer(shared)


def test_a_killed_search_ends_in_the_same_answer(tmp_path):
    """SIGKILL in the first stage; what was trained is not trained again."""
    folder = tmp_path / "kept"
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(HERE / "students_child.py"), str(folder)]
    running = subprocess.Popen(script, env=environment)
    begun = time.monotonic()
    while len(list(folder.glob("children/*.json"))) < 5 and running.poll() is None:
        assert time.monotonic() - begun < 60
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert answer(search(folder)) == answer(search())
    with pytest.raises(ConfigError, match=r"belongs to another run: .*child training"):
        search(folder, child=ChildTraining(epochs=2))
    with pytest.raises(ConfigError, match=r"removal.pt in the resume folder belongs to another"):
        search(folder, rollouts=2)
