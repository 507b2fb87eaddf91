"""One rank of the DGC study: ``python -m laconic.studies._dgc_rank SPEC OUT``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(spec_file: str, out_file: str) -> None:
    """Train one method after the other on this rank and write its figures as JSON."""
    import torch
    import torch.distributed as dist

    from laconic.studies._dgc_text import Plan, Trainer, load_text

    spec: dict[str, Any] = json.loads(Path(spec_file).read_text(encoding="utf-8"))
    plan = Plan(**spec["plan"])
    cuda = plan.device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("nccl" if cuda else "gloo")
    text = load_text(plan)
    runs = [Trainer(plan, text, method, seed).run() for method, seed in spec["runs"]]
    Path(out_file).write_text(json.dumps({"runs": runs}), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
