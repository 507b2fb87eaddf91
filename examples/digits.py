"""Train a small vision transformer on real digits, compress it, and look at what that cost.

Run from the project's root: ``python examples/digits.py`` (or ``make demo``). Two minutes on two
cores; leaves the artefact, ``report.json`` and ``report.html`` in ``build/demo``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import laconic
from laconic import datasets, training, zoo
from laconic.progress import progress_on
from laconic.report.terminal import final_table, steps_table

RECIPE = Path(__file__).with_name("digits.yaml")


def main() -> None:
    """Train, compress, print the tables."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=Path("build/demo"))
    options.add_argument("--epochs", type=int, default=20, help="epochs of training")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--json", type=Path, help="write the figures and bars here")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)

    task = datasets.load("digits")
    model = zoo.digits_vit()
    progress = progress_on()
    training.fit(model, task, epochs=chosen.epochs, lr=2e-3, seed=0, progress=progress)
    result = laconic.compress(
        model,
        laconic.Recipe.load(RECIPE),
        task,
        out=chosen.out,
        force=True,
        latency=True,
        baselines=True,
        progress=progress,
    )

    from rich.console import Console

    console = Console()
    console.print(steps_table(result.report), final_table(result.report))
    console.print(f"Wrote {chosen.out} (open {chosen.out / 'report.html'})")
    if chosen.json:
        chosen.json.write_text(json.dumps(figures(result.to_dict()), indent=2) + "\n")


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """Return what the README shows, and the bars of the demo, as plain values."""
    before, after = report["original"], report["compressed"]
    top1 = [100 * side["metrics"]["top1"]["value"] for side in (before, after)]
    classes = before["metrics"]["per_class"]
    drops = [
        100 * (classes[name]["value"] - after["metrics"]["per_class"][name]["value"])
        for name in classes
    ]
    bars = [
        ("original bytes over bytes on disk", report["ratio"], 20.0, report["ratio"] >= 20),
        ("top-1, points lost", top1[0] - top1[1], 0.5, top1[0] - top1[1] <= 0.5),
        ("worst loss of a class, points", max(drops), 3.0, max(drops) <= 3),
    ]
    keys = ("name", "ours", "peer", "met")
    return {
        "benchmark": "demo",
        "rows": [{"model": "original", **_row(before)}, {"model": "compressed", **_row(after)}],
        "ratios": [
            {**dict(zip(keys, bar, strict=True)), "ratio": bar[1] / bar[2], "goal": f"{bar[2]}"}
            for bar in bars
        ],
        "environment": report["environment"],
    }


def _row(side: dict[str, Any]) -> dict[str, Any]:
    kept = ("top1", "worst_class", "loss")
    metrics = {name: side["metrics"][name] for name in kept}
    return {"bytes": side["bytes"], "metrics": metrics, "latency_ms": side["latency_ms"]}


if __name__ == "__main__":
    main()
