"""One rank of the L-GreCo study: ``python -m laconic.studies._l_greco_rank SPEC OUT``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main(spec_file: str, out_file: str) -> None:
    """Train with every variant and seed, and write what each came to as JSON."""
    import torch.distributed as dist

    from laconic.studies._l_greco_models import build_task
    from laconic.studies._l_greco_train import train

    spec: dict[str, Any] = json.loads(Path(spec_file).read_text(encoding="utf-8"))
    dist.init_process_group("nccl" if spec["device"] == "cuda" else "gloo")
    task = build_task(spec["task"])
    found: dict[str, list[dict[str, Any]]] = {variant["label"]: [] for variant in spec["variants"]}
    for seed in spec["seeds"]:
        for variant in spec["variants"]:
            begun = time.perf_counter()
            row = train(spec, variant, seed, task)
            dist.barrier()
            found[variant["label"]].append(row | {"seconds": time.perf_counter() - begun})
    Path(out_file).write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
