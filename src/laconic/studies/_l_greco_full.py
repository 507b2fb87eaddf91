"""The L-GreCo study at the paper's scale: ResNet-18 on CIFAR-100, 8 ranks, 200 epochs.

The paper's ImageNet and WikiText-103 runs are not repeated; CIFAR-100 is its setting of the fewest
hours. All three families are trained, of which the paper's code has PowerSGD.
"""

from __future__ import annotations

from typing import Any

from laconic.studies import _l_greco_ranks as ranks
from laconic.studies._l_greco_models import whole_cifar100
from laconic.studies.base import Bar, Conditions, Findings

RANKS = 8
SEEDS = 3
BATCH = 128  # of all ranks
EPOCHS = 200
IMAGES = 50_000
START = 1000
OPTIMIZER = {
    "kind": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4,
    "fall": {"factor": 0.2, "at": [0.3, 0.6, 0.8]},
}  # fmt: skip
UNIFORM: dict[str, dict[str, Any]] = {
    "PowerSGD": {"rank": 4}, "TopK": {"density": 0.01}, "QSGD": {"bits": 4},
}  # fmt: skip
MODEL: dict[str, Any] = {"name": "resnet18", "options": {"classes": 100}}
DATA: dict[str, Any] = {"name": "cifar100"}
_TWO_WEEKS = 14 * 86_400.0


def bytes_name(family: str) -> str:
    """Return the bar on bytes of a family."""
    return f"{family}: bytes of L-GreCo over uniform"


def points_name(family: str) -> str:
    """Return the bar on points of top-1 of a family."""
    return f"{family}: points of top-1 below uniform"


ORDER = "PowerSGD: loss of L-GreCo over random errors"
BARS = (
    *(Bar(bytes_name(family), 1 / 1.2) for family in UNIFORM),
    *(Bar(points_name(family), 0.5) for family in UNIFORM),
    Bar(ORDER, 1.0, strict=True),
)


def variants() -> list[dict[str, Any]]:
    """Return dense, fp16, and each family uniform, with L-GreCo, and PowerSGD by random errors."""
    found: list[dict[str, Any]] = [
        {"label": "dense", "method": "dense"},
        {"label": "fp16", "method": "fp16"},
    ]
    for family, settings in UNIFORM.items():
        shared = {"method": family, "settings": settings}
        found.append({"label": f"{family}, uniform", **shared})
        found.append({"label": f"{family}, L-GreCo", **shared, "choose": "l-greco"})
    shared = {"method": "PowerSGD", "settings": UNIFORM["PowerSGD"]}
    return [*found, {"label": "PowerSGD, random errors", **shared, "choose": "random"}]


def run_full(conditions: Conditions) -> Findings:
    """Run the paper's protocol on ranks of this machine; days on 8 GPUs.

    Raises:
        DataError: CIFAR-100 is not on this machine; says where it belongs.
    """
    if DATA["name"] == "cifar100":
        whole_cifar100()  # refuse here, not in eight processes
    epoch = IMAGES // BATCH
    spec = {
        "task": DATA, "model": MODEL, "optimizer": OPTIMIZER, "variants": variants(),
        "seeds": list(range(conditions.seed, conditions.seed + SEEDS)),
        "steps": EPOCHS * epoch, "batch": BATCH // RANKS, "period": epoch, "probe_steps": 10,
        "start": START, "gamma": 0.5, "beta": 2.0, "device": conditions.device,
    }  # fmt: skip
    runs = ranks.start(spec, ranks=RANKS, timeout_s=_TWO_WEEKS)
    values = {ORDER: ranks.mean(runs, "PowerSGD, L-GreCo", "loss")
              / ranks.mean(runs, "PowerSGD, random errors", "loss")}  # fmt: skip
    for family in UNIFORM:
        ours, uniform = f"{family}, L-GreCo", f"{family}, uniform"
        points = ranks.mean(runs, uniform, "top1") - ranks.mean(runs, ours, "top1")
        values[points_name(family)] = 100 * points
        values[bytes_name(family)] = (
            ranks.mean(runs, ours, "bytes") / ranks.mean(runs, uniform, "bytes")
        )  # fmt: skip
    about = (
        f"ResNet-18 on CIFAR-100, {RANKS} ranks, batches of {BATCH} in all, {EPOCHS} epochs, means "
        f"over {SEEDS} seeds. A choice every epoch from step {START} on."
    )
    return Findings(values, {"C": ranks.table("C. Training", about, runs)})
