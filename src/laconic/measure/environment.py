"""The machine and the versions behind a figure; no host names, users or paths."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    "laconic", "torch", "numpy", "safetensors", "constriction", "zstandard",
    "transformers", "onnxruntime", "scikit-learn",
)  # fmt: skip
# Instruction sets that decide which kernels are fast.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimd", "sve")


def environment() -> dict[str, Any]:
    """Return versions, processor, threads and platform as plain JSON values.

    Example:
        >>> sorted(environment())
        ['cpu', 'gpu', 'platform', 'python', 'threads', 'versions']
    """
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": {
            "model": _cpu_model(),
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "flags": _cpu_flags(),
        },
        "gpu": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # an optional package that is not installed has no version
    return found


def _cpu_lines(key: str) -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return ""
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _cpu_model() -> str:
    return _cpu_lines("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    present = set((_cpu_lines("flags") or _cpu_lines("Features")).split())
    return [flag for flag in _FLAGS if flag in present]
