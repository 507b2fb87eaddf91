"""One rank of ``laconic gradients bench``: ``python -m laconic.cli._gradients_rank SPEC OUT``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(spec_file: str, out_file: str) -> None:
    """Time this rank's steps and write them as JSON."""
    import torch
    import torch.distributed as dist

    from laconic.cli._options import load
    from laconic.gradients.timing import Variant, time_rank
    from laconic.task import Batch

    spec: dict[str, Any] = json.loads(Path(spec_file).read_text(encoding="utf-8"))
    dist.init_process_group("gloo")
    torch.manual_seed(spec["seed"])
    weights = Path(spec["weights"]) if spec["weights"] else None
    model, task, _ = load(spec["model"], weights, spec["data"], spec["data_options"], spec["seed"])
    if task is None or task.train is None:
        raise SystemExit(f"--data {spec['data']} has no training split")
    drawn = torch.Generator().manual_seed(spec["seed"] + dist.get_rank())
    batches: list[Batch] = []
    while len(batches) < spec["batches"]:
        for batch in task.train.batches(spec["batch_size"], generator=drawn):
            batches.append(batch)
            if len(batches) == spec["batches"]:
                break

    def loss(module: torch.nn.Module, step: int) -> torch.Tensor:
        batch = batches[step % len(batches)]
        return task.compute_loss(task.forward(module, batch), batch)

    variants = [Variant(**row) for row in spec["variants"]]
    found = time_rank(
        variants, model.train(), loss, lr=spec["lr"], warmup=spec["warmup"], steps=spec["steps"]
    )
    Path(out_file).write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
