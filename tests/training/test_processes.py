"""Several processes share each batch and end where one process would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from laconic.task import Task, TensorSplit
from laconic.training import fit

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_processes import trained
model = trained(checkpoint=Path(sys.argv[2]) / "run.pt")
torch.save(model.state_dict(), sys.argv[2] + "/final-" + sys.argv[3])
torch.distributed.destroy_process_group()
"""


def trained(checkpoint: Path | None = None) -> nn.Module:
    torch.manual_seed(0)
    x = torch.randn(96, 4)
    split = TensorSplit({"x": x, "y": (x.sum(1) > 0).long()})
    task = Task(kind="classification", train=split, test=split, batch_size=32)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    fit(model, task, steps=9, lr=1e-2, checkpoint=checkpoint, checkpoint_seconds=0)
    return model


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    here, port = Path(__file__).parent, str(free_port())
    paths = os.pathsep.join([str(here.parents[1] / "src"), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(here), str(tmp_path), rank],
            env={
                **os.environ,
                "PYTHONPATH": paths,
                "OMP_NUM_THREADS": "1",
                "ACCELERATE_USE_CPU": "true",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "WORLD_SIZE": "2",
                "RANK": rank,
                "LOCAL_RANK": rank,
            },
        )
        for rank in ("0", "1")
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    alone = trained().state_dict()
    for rank in ("0", "1"):
        shared = torch.load(tmp_path / f"final-{rank}", weights_only=True)
        for name, value in alone.items():
            assert torch.allclose(shared[name], value, atol=1e-5), (rank, name)
    assert torch.load(tmp_path / "run.pt", weights_only=True)["position"]["step"] == 9
