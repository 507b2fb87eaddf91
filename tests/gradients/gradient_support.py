"""A model of mixed shapes, virtual ranks, and gradients that are the same on every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from laconic.gradients import QSGD, CommState, Dense, Half, LoopbackGroup, PowerSGD, SignSGD, TopK

Build = Callable[..., CommState]

METHODS: dict[str, tuple[type[CommState], dict[str, Any]]] = {
    "dense": (Dense, {}),
    "half": (Half, {}),
    "bfloat16": (Half, {"dtype": "bfloat16"}),
    "top-k": (TopK, {"density": 0.05}),
    "top-k half values": (TopK, {"density": 0.05, "values": "float16"}),
    "qsgd": (QSGD, {"bits": 4, "bucket": 64}),
    "qsgd feedback": (QSGD, {"bits": 3, "bucket": 64, "error_feedback": True}),
    "powersgd": (PowerSGD, {"rank": 2, "min_compression_rate": 1.5}),
    "powersgd gram-schmidt": (
        PowerSGD,
        {"rank": 2, "min_compression_rate": 1.5, "epsilon": 1e-8},
    ),
    "sign": (SignSGD, {}),
    "sign buckets": (SignSGD, {"bucket": 32}),
}
FEEDBACK = [
    name
    for name, (cls, settings) in METHODS.items()
    if "residual" in cls.slots and settings.get("error_feedback", cls is not QSGD)
]


def small_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Linear layers, a convolution and vectors."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Flatten(),
        nn.Linear(32, 24),
        nn.Tanh(),
        nn.Linear(24, 10),
    )
    return model.to(dtype)


def ranks(method: str, size: int, model: nn.Module, **more: Any) -> tuple[LoopbackGroup, list[Any]]:
    """Return virtual ranks and one state each."""
    cls, settings = METHODS[method]
    group = LoopbackGroup(size, timeout_s=20)
    states = [
        cls(model, transport=group.transport(rank), **{**settings, **more}) for rank in range(size)
    ]
    return group, states


def gradients(model: nn.Module, step: int, size: int) -> list[dict[str, Tensor]]:
    """Return one gradient a rank: a common part and a part of its own."""
    out = []
    for rank in range(size):
        lot = {}
        for at, (name, parameter) in enumerate(model.named_parameters()):
            common = torch.Generator().manual_seed(1000 * step + at)
            own = torch.Generator().manual_seed(7 + 1000 * step + 100000 * (rank + 1) + at)
            draw = [
                torch.randn(parameter.shape, generator=source, dtype=torch.float64)
                for source in (common, own)
            ]
            lot[name] = (draw[0] + 0.5 * draw[1]).to(parameter.dtype)
        out.append(lot)
    return out


def mean(lots: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: sum(lot[name] for lot in lots) / len(lots) for name in lots[0]}


def norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values.double()))
