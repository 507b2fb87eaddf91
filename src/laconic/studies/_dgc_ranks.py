"""The text runs of the DGC study: starts the ranks, gathers their figures, makes the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch

from laconic import gradients
from laconic.errors import CommunicationError
from laconic.gradients.launch import run_ranks
from laconic.gradients.links import Place
from laconic.studies._dgc_text import Plan, TextLSTM
from laconic.studies.base import Section

DENSE, DGC, DROPPING = "dense", "DGC", "dropping"
ABLATIONS = ("DGC, no masking", "DGC, no clipping", "DGC, no warm-up")
MEBIBYTE = 2**20
_MODULE = "laconic.studies._dgc_rank"


@dataclass(frozen=True)
class Runs:
    """Figures of rank 0, by method, a run for each seed.

    Args:
        by_method: What each training gave.
        same: Whether all ranks ended every training with the same weights, bit by bit.
    """

    by_method: Mapping[str, Sequence[Mapping[str, Any]]]
    same: bool

    def mean(self, method: str, figure: str) -> float:
        """Return a figure's mean over seeds; infinity where a training diverged."""
        values = [run[figure] for run in self.by_method[method]]
        finite = all(value is not None and math.isfinite(value) for value in values)
        return fmean(values) if finite else math.inf

    def over(self, method: str, other: str, figure: str, *, seeds: int | None = None) -> float:
        """Return one method's mean over another's, of the seeds that both have."""
        count = min(len(self.by_method[name]) for name in (method, other))
        part = Runs({n: self.by_method[n][:count] for n in (method, other)}, self.same)
        return part.mean(method, figure) / part.mean(other, figure)


def train(
    plan: Plan,
    runs: Sequence[tuple[str, int]],
    *,
    ranks: int = 4,
    timeout_s: float = 3600.0,
) -> Runs:
    """Train each method with each seed on ranks that are processes of their own.

    Args:
        plan: What all have in common.
        runs: Method and seed of each training.
        ranks: Number of processes, on the loopback interface.
        timeout_s: Seconds until all are stopped.

    Raises:
        CommunicationError: A rank failed or was too late, or ranks do not agree on what they ran.
    """
    spec = {"plan": asdict(plan), "runs": [list(run) for run in runs]}
    places = [Place("127.0.0.1", "lo") for _ in range(ranks)]
    found = [rank["runs"] for rank in run_ranks(_MODULE, spec, places, timeout_s=timeout_s)]
    if any(len(rank) != len(runs) for rank in found):
        counts = [len(rank) for rank in found]
        raise CommunicationError(
            f"study 'dgc': {len(runs)} trainings were asked for, ranks finished {counts}. "
            "Run the study again."
        )
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for run in found[0]:
        by_method.setdefault(run["method"], []).append(run)
    digests = [[run["digest"] for run in rank] for rank in found]
    return Runs(by_method, all(rank == digests[0] for rank in digests))


def rows_of(runs: Runs) -> tuple[dict[str, Any], ...]:
    """Return a row for each method; ratios are over dense with the same seeds."""
    return tuple(
        {
            "method": name,
            "seeds": len(found),
            "test loss": _shown(runs.mean(name, "loss")),
            "over dense": _shown(runs.over(name, DENSE, "loss")),
            "training loss, end": _shown(runs.mean(name, "train_loss")),
            "bytes sent a step": round(runs.mean(name, "sent")),
            "times fewer": 1 / runs.over(name, DENSE, "sent"),
            "received a step": round(runs.mean(name, "received")),
            "times fewer received": 1 / runs.over(name, DENSE, "received"),
            "ms a step": round(runs.mean(name, "ms")),
        }
        for name, found in runs.by_method.items()
    )


def facts_of(runs: Runs) -> dict[str, Any]:
    """Return what the vectors cost, and whether the ranks agreed."""
    run = runs.by_method[DGC][0]
    whole, vectors = run["dense_bytes"], run["vectors"]
    coded = run["step_bytes"] - vectors
    losses = {
        f"test loss of {name} by seed": ", ".join(f"{r['loss']:.4f}" for r in runs.by_method[name])
        for name in (DENSE, DGC, DROPPING)
    }
    return {
        **losses,
        "handed to collectives in a step, bytes, dense": whole,
        "handed by DGC after warm-up, without heads": run["step_bytes"],
        "of that, vectors, which stay dense": vectors,
        "times fewer, all tensors": whole / run["step_bytes"],
        "times fewer, matrices alone": (whole - vectors) / coded,
        "weights bit-equal on all ranks after every training": "yes" if runs.same else "no",
    }


def paper_bytes() -> tuple[float, Section]:
    """Return MiB of a step of the paper's language model, and a section; nothing is trained."""
    model = paper_model("meta")
    optimizer = gradients.DGCSGD(model.parameters(), lr=1.0, nesterov=True)
    transport = gradients.LoopbackGroup(1).transport(0)
    report = gradients.DGC(
        model, optimizer, density=0.001, nesterov=True, transport=transport
    ).report()
    sent, whole = report["step_bytes"] / MEBIBYTE, report["dense_bytes"] / MEBIBYTE
    about = (
        "The paper's LSTM for PTB, 2 layers of 1500, 10000 words, output tied to the embedding, at "
        "density 0.001. Format bytes of one rank's step, all tensors; nothing is trained."
    )
    row = {
        "model": "2 x 1500 LSTM",
        "dense MiB": whole,
        "DGC MiB": sent,
        "times fewer": whole / sent,
    }
    paper = {"model": "in the paper", "dense MiB": 194.68, "DGC MiB": 0.42, "times fewer": 462}
    return sent, Section("C. Bytes of the paper's language model", about, (row, paper))


def paper_model(device: str) -> TextLSTM:
    """Return the paper's network for PTB."""
    with torch.device(device):
        return TextLSTM(10_000, 1500, layers=2, dropout=0.65)


def _shown(value: float) -> float | str:
    return value if math.isfinite(value) else "diverged"
