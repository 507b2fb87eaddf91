"""Gradients made smaller on the wire, through the hook that DistributedDataParallel has.

Names are resolved when they are first used; torch is loaded then.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laconic.gradients.accordion import Accordion as Accordion
    from laconic.gradients.base import CommState as CommState
    from laconic.gradients.base import GatherState as GatherState
    from laconic.gradients.base import Observer as Observer
    from laconic.gradients.base import ReduceState as ReduceState
    from laconic.gradients.checkpoint import load as load
    from laconic.gradients.checkpoint import save as save
    from laconic.gradients.ddp import hook as hook
    from laconic.gradients.dense import Dense as Dense
    from laconic.gradients.dgc import DGC as DGC
    from laconic.gradients.half import Half as Half
    from laconic.gradients.lgreco import LGreCo as LGreCo
    from laconic.gradients.loopback import LoopbackGroup as LoopbackGroup
    from laconic.gradients.optimizer import DGCSGD as DGCSGD
    from laconic.gradients.powersgd import PowerSGD as PowerSGD
    from laconic.gradients.qsgd import QSGD as QSGD
    from laconic.gradients.sign import SignSGD as SignSGD
    from laconic.gradients.topk import TopK as TopK
    from laconic.gradients.warmup import Warmup as Warmup

_HOMES = {
    "Accordion": "accordion",
    "CommState": "base",
    "DGC": "dgc",
    "DGCSGD": "optimizer",
    "Dense": "dense",
    "GatherState": "base",
    "Half": "half",
    "LGreCo": "lgreco",
    "LoopbackGroup": "loopback",
    "Observer": "base",
    "PowerSGD": "powersgd",
    "QSGD": "qsgd",
    "ReduceState": "base",
    "SignSGD": "sign",
    "TopK": "topk",
    "Warmup": "warmup",
    "hook": "ddp",
    "load": "checkpoint",
    "save": "checkpoint",
}

__all__ = [
    "DGC",
    "DGCSGD",
    "QSGD",
    "Accordion",
    "CommState",
    "Dense",
    "GatherState",
    "Half",
    "LGreCo",
    "LoopbackGroup",
    "Observer",
    "PowerSGD",
    "ReduceState",
    "SignSGD",
    "TopK",
    "Warmup",
    "hook",
    "load",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'laconic.gradients' has no attribute {name!r}")
    return getattr(import_module(f"laconic.gradients.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
