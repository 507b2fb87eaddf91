"""Kernel timings of this machine: measured once, kept as JSON, never trusted from elsewhere."""

from __future__ import annotations

import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laconic.errors import LaconicWarning
from laconic.files import write_atomic

_FORMAT = 1
_BUDGET_S, _FEWEST, _MOST = 0.03, 3, 100


def cache_path() -> Path:
    """Return where timings are kept: ``kernels.json`` under ``LACONIC_CACHE`` or the home."""
    folder = os.environ.get("LACONIC_CACHE")
    return (Path(folder) if folder else Path.home() / ".cache" / "laconic") / "kernels.json"


@lru_cache(maxsize=1)
def machine() -> dict[str, Any]:
    """Return what timings depend on beside the kernel itself."""
    return {
        "torch": torch.__version__,
        "cpu": _cpu_model(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


class Timings:
    """Microseconds a call, by key; read from the cache file and written back when new.

    A file that cannot be read, or that another machine or version of torch wrote, is ignored
    with a warning and replaced.

    Args:
        path: The cache file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = self._read(warn=True)
        self._new: dict[str, float] = {}

    def get(self, key: str) -> float | None:
        """Return a timing in microseconds; None where it was never taken."""
        return self._held.get(key)

    def put(self, key: str, microseconds: float) -> None:
        """Keep a timing, to be written by :meth:`save`."""
        self._held[key] = self._new[key] = round(microseconds, 2)

    def save(self) -> None:
        """Write new timings, merged with what others wrote meanwhile; a failure is a warning."""
        if not self._new:
            return
        merged = self._read(warn=False) | self._new
        document = {"format": _FORMAT, "machine": machine(), "timings_us": merged}
        try:
            write_atomic(self._path, json.dumps(document, indent=1, sort_keys=True))
        except OSError as error:
            _warn(
                f"kernel timings cannot be kept in {self._path} ({error.strerror}); they are "
                f"measured again next time. Set LACONIC_CACHE to a folder that can be written."
            )
        self._new = {}

    def _read(self, *, warn: bool) -> dict[str, float]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            return self._ignored(f"cannot be read ({type(error).__name__})", warn)
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return self._ignored("is not JSON", warn)
        held = document.get("timings_us") if isinstance(document, dict) else None
        if not isinstance(held, dict) or not all(map(_is_timing, held.values())):
            return self._ignored("holds no timings", warn)
        if document.get("format") != _FORMAT or document.get("machine") != machine():
            return self._ignored("comes from another machine or version", warn)
        return {str(key): float(value) for key, value in held.items()}

    def _ignored(self, reason: str, warn: bool) -> dict[str, float]:
        if warn:
            _warn(f"{self._path} {reason}: kernels are measured again and the file is replaced.")
        return {}


def _warn(message: str) -> None:
    warnings.warn(message, LaconicWarning, stacklevel=5)


def _is_timing(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isfinite(value) and value > 0


def measure(calls: Mapping[str, Callable[[], Tensor]], device: torch.device) -> dict[str, float]:
    """Time calls in turns and return the shortest time of each, in microseconds."""
    wait = torch.cuda.synchronize if device.type == "cuda" else None
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    start, rounds = time.perf_counter(), 0
    spend = _BUDGET_S * len(calls)
    while rounds < _FEWEST or (rounds < _MOST and time.perf_counter() - start < spend):
        for name, call in calls.items():
            if wait:
                wait()
            before = time.perf_counter()
            call()
            if wait:
                wait()
            best[name] = min(best[name], time.perf_counter() - before)
        rounds += 1
    return {name: seconds * 1e6 for name, seconds in best.items()}
