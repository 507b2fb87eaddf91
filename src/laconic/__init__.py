"""Make what deep learning carries smaller, and prove what that cost.

Names are resolved when they are first used: ``import laconic`` loads none of the heavy libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laconic.artifact import export_dense as export_dense
    from laconic.artifact import load as load
    from laconic.artifact import save as save
    from laconic.artifact.inspect import inspect as inspect
    from laconic.artifact.verify import verify as verify
    from laconic.context.cache import kv_cache as kv_cache
    from laconic.pipeline import compress as compress
    from laconic.plan import make_plan as make_plan
    from laconic.recipe import Recipe as Recipe
    from laconic.result import Result as Result
    from laconic.search.run import search as search
    from laconic.task import Task as Task
    from laconic.task import TensorSplit as TensorSplit

__version__ = "0.1.0"

_HOMES = {
    "Recipe": "laconic.recipe",
    "Result": "laconic.result",
    "Task": "laconic.task",
    "TensorSplit": "laconic.task",
    "compress": "laconic.pipeline",
    "export_dense": "laconic.artifact",
    "inspect": "laconic.artifact",
    "kv_cache": "laconic.context",
    "load": "laconic.artifact",
    "make_plan": "laconic.plan",
    "save": "laconic.artifact",
    "search": "laconic.search",
    "verify": "laconic.artifact",
}

__all__ = [
    "Recipe",
    "Result",
    "Task",
    "TensorSplit",
    "compress",
    "export_dense",
    "inspect",
    "kv_cache",
    "load",
    "make_plan",
    "save",
    "search",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'laconic' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
