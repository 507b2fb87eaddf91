"""Contexts made smaller: what a model keeps of the tokens that it has read.

Names are resolved when they are first used; torch is loaded then.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laconic.context.cache import KvSettings as KvSettings
    from laconic.context.cache import kv_cache as kv_cache
    from laconic.context.window import Window as Window

_HOMES = {"KvSettings": "cache", "Window": "window", "kv_cache": "cache"}

__all__ = ["KvSettings", "Window", "kv_cache"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'laconic.context' has no attribute {name!r}")
    return getattr(import_module(f"laconic.context.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
