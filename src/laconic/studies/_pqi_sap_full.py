"""The PQI study at the paper's scale: CIFAR-10, ResNet-18, 16 trainings a run, days on a GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from laconic.studies._pqi_sap_models import flipped, resnet18, whole_cifar10
from laconic.studies._pqi_sap_runs import (
    Bench,
    curve_rows,
    informed,
    lowest,
    on_test,
    points_lost,
    summary_row,
)
from laconic.studies.base import Bar, Conditions, Findings, Section
from laconic.weights.prune.iterative import (
    IterativePruning,
    PruningRun,
    lottery_ticket,
    one_shot,
)

SEEDS = 4
PRUNINGS = 15
TRAINING = {"epochs": 200, "lr": 0.1, "weight_decay": 5e-4, "batch_size": 250, "clip": 1.0}
SCOPES = ("global", "layer", "neuron")
_LT, _OS, _SAP = "LT 20 %, global", "OS 20 %, global", "SAP (0.5, 1), global"

# Set from the shape that the paper's figures have, not from a table, which it does not give.
DIP = "lowest PQI over dense, LT 20 % (worst seed)"
FASTER = "kept after 5 prunings, SAP (0.5, 1) over LT 20 %, global"
LOSS = "points lost by SAP (0.5, 1), global, in 5 prunings (mean of seeds)"
ORDER = "top-1 at the end, OS 20 % over LT 20 %, global"
BARS = (
    Bar(DIP, 1.0, strict=True),
    Bar(FASTER, 1.0, strict=True),
    Bar(LOSS, 1.0),
    Bar(ORDER, 1.0),
)


def variants(prunings: int = PRUNINGS) -> dict[str, IterativePruning]:
    """Return what is compared: LT, OS, SAP with both pairs of norms, in every scope."""
    found: dict[str, IterativePruning] = {}
    for scope in SCOPES:
        shared: dict[str, Any] = {"scope": scope, "iterations": prunings}
        found[f"LT 20 %, {scope}"] = lottery_ticket(**shared)
        found[f"OS 20 %, {scope}"] = one_shot(**shared)
        found[f"SAP (0.5, 1), {scope}"] = informed(**shared)
        found[f"SAP (1, 2), {scope}"] = informed(p=1.0, q=2.0, **shared)
    return found


def run_full(conditions: Conditions) -> Findings:
    """Run the paper's protocol; a run that is stopped goes on from its last epoch.

    Raises:
        DataError: CIFAR-10 is not complete on this machine; says where it belongs.
    """
    cache = os.environ.get("LACONIC_CACHE")
    home = Path(cache) if cache else Path.home() / ".cache" / "laconic"
    task = whole_cifar10()
    bench = Bench(
        make=lambda seed: resnet18(seed=seed),
        data=lambda seed: task,
        training=TRAINING,
        validation=0.1,
        transform=flipped,
        device=conditions.device,
        folder=home / "studies" / "pqi-sap",
        progress=conditions.progress,
    )
    plans = variants()
    runs = bench.run_all(plans, range(conditions.seed, conditions.seed + SEEDS))
    return Findings(values_of(runs), sections_of(plans, runs))


def values_of(runs: Mapping[str, Sequence[PruningRun]]) -> dict[str, float]:
    """Return the value of every bar."""
    fifth = {
        name: [run.history[min(5, len(run.history) - 1)] for run in found]
        for name, found in runs.items()
    }
    kept = {name: fmean(row.density for row in rows) for name, rows in fifth.items()}
    last = {n: fmean(on_test(run.history[-1]) for run in found) for n, found in runs.items()}
    lost = [points_lost(run, row) for run, row in zip(runs[_SAP], fifth[_SAP], strict=True)]
    return {
        DIP: max(lowest(run).pqi / run.history[0].pqi for run in runs[_LT]),
        FASTER: kept[_SAP] / kept[_LT],
        LOSS: fmean(lost),
        ORDER: last[_OS] / last[_LT],
    }


def sections_of(
    plans: Mapping[str, IterativePruning], runs: Mapping[str, Sequence[PruningRun]]
) -> dict[str, Section]:
    """Return the table of all variants and two curves."""
    about = (
        f"CIFAR-10, ResNet-18, {TRAINING['epochs']} epochs a training, mean over {SEEDS} seeds. "
        "A tenth of the training images is held out to choose epochs."
    )
    table = tuple(summary_row(name, plans[name], found) for name, found in runs.items())
    curves = {
        key: Section(f"{name}, by iteration", about, curve_rows(runs[name]))
        for key, name in (("LT", _LT), ("SAP", _SAP))
    }
    return {"methods": Section("Methods", about, table), **curves}
