"""The search that is killed: a small N2N that keeps a folder; prints the answer as JSON."""

import json
import sys
from pathlib import Path

import torch
from students_support import small_task, vgg

from laconic.budget.policy import PolicySpec
from laconic.weights.students import ChildTraining, Rules, n2n


def search(folder=None, *, workers=1, **changes):
    settings = {
        "iterations": (3, 2),
        "rollouts": 3,
        "child": ChildTraining(epochs=1, lr=4e-3, batch_size=32),
        "final": ChildTraining(epochs=1, lr=4e-3),
        "policy": {
            "removal": PolicySpec(lr=0.03, hidden=8),
            "shrinkage": PolicySpec(kind="autoregressive", lr=0.03, hidden=8),
        },
        "rules": Rules(keep=("max-pool",)),
        **changes,
    }
    return n2n(vgg(), small_task(), resume=folder, workers=workers, **settings)


def answer(result):
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]
    best = sum(float(p.detach().double().sum()) for p in result.best.module.parameters())
    policy = sum(float(p.detach().double().sum()) for p in result.policy.parameters())
    told = [child.key for child in result.pareto]
    return json.loads(json.dumps([rows, best, policy, told, result.best.to_dict(), result.test]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    search(Path(sys.argv[1]))
