"""Part C of the L-GreCo study: what training on several ranks comes to, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from laconic.gradients.launch import run_ranks
from laconic.gradients.links import Place
from laconic.studies.base import Section

Runs = Mapping[str, Sequence[Mapping[str, Any]]]  # a run for each seed, by variant


def start(spec: Mapping[str, Any], *, ranks: int, timeout_s: float) -> Runs:
    """Run a job on ranks of this machine and return what rank 0 found."""
    here = [Place("127.0.0.1", "lo")] * ranks
    module = "laconic.studies._l_greco_rank"
    found: Runs = run_ranks(module, spec, here, threads=1, timeout_s=timeout_s)[0]
    return found


def mean(runs: Runs, label: str, key: str) -> float:
    """Return the mean over seeds."""
    return fmean(float(run[key]) for run in runs[label])


def table(title: str, about: str, runs: Runs) -> Section:
    """Return a row for each variant: means over seeds, bytes a step of a rank."""
    dense = mean(runs, "dense", "bytes")
    rows = []
    for label, found in runs.items():
        losses = [run["loss"] for run in found]
        row = {
            "exchange": label,
            "test loss": round(fmean(losses), 4),
            "lowest": round(min(losses), 4),
            "highest": round(max(losses), 4),
        }
        if "top1" in found[0]:
            row["top1"] = round(mean(runs, label, "top1"), 4)
        sent = mean(runs, label, "bytes")
        row |= {"bytes a step": round(sent), "dense over bytes": round(dense / sent, 2)}
        rows.append(row | {"seconds a run": round(mean(runs, label, "seconds"), 1)})
    return Section(title, about, tuple(rows), _facts(runs))


def _facts(runs: Runs) -> dict[str, Any]:
    """Return how long L-GreCo took to choose, a period, and the share of the run that is."""
    facts: dict[str, Any] = {}
    for label, found in runs.items():
        took = [p["table_ms"] + p["solver_ms"] for r in found for p in r["periods"] if p["planned"]]
        if took:
            share = sum(took) / 1e3 / sum(run["seconds"] for run in found)
            facts[f"{label}: milliseconds a choice"] = round(fmean(took), 1)
            facts[f"{label}: share of the time spent choosing"] = round(share, 4)
    return facts
