"""Train a small vision transformer on real digits, compress it, and look at what that cost.

Run from the project's root: ``python examples/digits.py`` (or ``make demo``). Two minutes on two
cores; leaves the artefact, ``report.json`` and ``report.html`` in ``build/demo``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

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


if __name__ == "__main__":
    main()
