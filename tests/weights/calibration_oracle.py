"""Calibration on small data, and the same statistics from plain hooks."""

from __future__ import annotations

import torch

from laconic.task import Task, TensorSplit
from laconic.weights.calibrate import gather_

ALL = frozenset({"gram", "absmax", "absmean", "sumsq"})


def task_of(x, *, size=4, **other):
    split = TensorSplit({"x": x, **other})
    return Task(
        kind="custom", test=split, calibration=split, batch_size=size, loss=lambda out, batch: out
    )


def gathered(model, sites, task, wants=ALL, **options):
    """Statistics by site, and the names in each group."""
    found, groups = {}, []
    for group in gather_(model, sites, task, {s.name: wants for s in sites}, **options):
        groups.append([site.name for site in group])
        found.update({site.name: site.statistics for site in group})
    return found, groups


def naive(model, task, names, keep=None):
    """Oracle: all inputs of layers by plain hooks on whole passes, as float64 rows."""
    rows = {name: [] for name in names}
    handles = [
        model.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(
            lambda module, args, name=name: rows[name].append(args[0].detach())
        )
        for name in names
    ]
    model.eval()
    with torch.no_grad():
        for batch in task.calibration_split().batches(task.batch_size):
            task.forward(model, batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat([x.flatten(0, -2) for x in xs]).double() for name, xs in rows.items()}


def check(statistics, rows):
    assert statistics.count == len(rows)
    expected = {
        "gram": rows.T @ rows / len(rows),
        "absmax": rows.abs().amax(0),
        "absmean": rows.abs().mean(0),
        "sumsq": rows.square().mean(0),
    }
    for key, value in expected.items():
        found = getattr(statistics, key)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), value, rtol=1e-4, atol=1e-5)
