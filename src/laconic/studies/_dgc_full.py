"""The DGC study at the paper's scale: a 2 x 1500 LSTM on PTB, 40 epochs, 4 workers; days on CPU.

Where the paper is silent: Nesterov momentum 0.9 with a peak rate of 2, which is the customary 20
of this network without momentum, and a fall of the rate to a quarter where the validation loss
has not fallen. The last twentieth of the training text is the validation part, for the published
one is the test of data set "ptb".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from laconic.studies._dgc_ranks import (
    ABLATIONS,
    DENSE,
    DGC,
    DROPPING,
    MEBIBYTE,
    Runs,
    facts_of,
    rows_of,
    train,
)
from laconic.studies._dgc_text import Plan
from laconic.studies.base import Bar, Conditions, Findings, Section

RANKS = 4
_STEPS = 315  # of an epoch: 883 109 words in 4 x 20 columns, 35 a step
PLAN = Plan(
    data="ptb",
    model={"width": 1500, "layers": 2, "dropout": 0.65},
    batch=20,
    length=35,
    lr=2.0,
    warmup=_STEPS // 4,  # one epoch of 40
    epochs=40,
)
RUNS = (DENSE, DGC, DROPPING, *ABLATIONS)
_DAYS = 30 * 24 * 3600.0

PERPLEXITY = "perplexity, DGC over dense"
SOUND = "perplexity of dense"
SENT = "MiB a step after warm-up, DGC"
AHEAD = "perplexity, DGC over gradient dropping"
BARS = (
    Bar(PERPLEXITY, 1.01),  # 72.24 over 72.30 in the paper
    Bar(SOUND, 80.0),  # 72.30 in the paper, on the test part
    Bar(SENT, 0.43),  # 0.42 in the paper
    Bar(AHEAD, 1.0, strict=True),
)


def run_full(conditions: Conditions) -> Findings:
    """Train the paper's language model by every method.

    Raises:
        DataError: Penn Treebank is not on this machine; says where it belongs.
    """
    plan = replace(PLAN, device=conditions.device)
    work = [(method, conditions.seed) for method in RUNS]
    runs = train(plan, work, ranks=RANKS, timeout_s=_DAYS)
    return Findings(values_of(runs), {"PTB": section_of(runs)})


def values_of(runs: Runs) -> Mapping[str, float]:
    """Return the value of every bar."""
    perplexity = {name: _perplexity(runs, name) for name in (DENSE, DGC, DROPPING)}
    return {
        PERPLEXITY: perplexity[DGC] / perplexity[DENSE],
        SOUND: perplexity[DENSE],
        SENT: runs.mean(DGC, "step_bytes") / MEBIBYTE,
        AHEAD: perplexity[DGC] / perplexity[DROPPING],
    }


def section_of(runs: Runs) -> Section:
    """Return the table of all methods, perplexities beside the losses."""
    about = (
        f"Penn Treebank by words, LSTM of 2 layers of 1500 with tied embedding, {RANKS} ranks, "
        f"{PLAN.epochs} epochs, the first of them warm-up; clip {PLAN.clip}, Nesterov 0.9."
    )
    rows: list[dict[str, Any]] = [
        {"method": row["method"], "perplexity": _perplexity(runs, row["method"]), **row}
        for row in rows_of(runs)
    ]
    return Section("Language model", about, tuple(rows), facts_of(runs))


def _perplexity(runs: Runs, name: str) -> float:
    return math.exp(runs.mean(name, "loss"))
