"""Latency and memory, each variant in a process of its own, in turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from types import TracebackType
from typing import Any, Self, TypedDict

import torch
from safetensors.torch import save_file
from torch import Tensor

from laconic.errors import BackendError, ConfigError

_REST_S = 0.02  # between turns, so that the last one's idle threads go to sleep
_GRACE_S = 5.0  # for a process to end once its output is closed
_TARGET_MS = 20.0  # a turn takes about this long, or one call where a call takes longer


class Timing(TypedDict):
    """Time of one call in milliseconds.

    ``spread`` is the interquartile range; ``repeats`` counts the calls that were timed.
    """

    median: float
    min: float
    spread: float
    batch_size: int
    threads: int
    repeats: int


def latency(
    variants: Mapping[str, Path | str],
    example: Tensor | Mapping[str, Tensor],
    *,
    batch_sizes: Sequence[int] = (1, 32),
    threads: int = 1,
    repeats: int = 30,
    warmup: int = 3,
    timeout_s: float = 300.0,
) -> dict[str, dict[int, Timing]]:
    """Time one forward pass of each variant.

    Every variant runs in a process of its own, for thread pools of two run-times in one process
    slow each other; the processes run in turns, so that a disturbance meets all alike.

    Args:
        variants: By name, an artefact's folder, or a ``.onnx`` file for ONNX Runtime.
        example: Input of a forward pass, with the examples along the first axis; it is repeated
            to fill a batch. A mapping is passed by name: ``{"input_ids": (1, T)}``.
        batch_sizes: Examples in a call, each at least 1.
        threads: Threads of each process.
        repeats: Turns of each variant; a turn of a fast model is several calls.
        warmup: Calls before the first turn.
        timeout_s: Longest wait for one reply of a process.

    Returns:
        Timings by variant and batch size.

    Raises:
        ConfigError: No variants, or an option out of its bounds.
        BackendError: A process failed; the message has the variant and what it said.
    """
    _check(variants, batch_sizes, threads=threads, repeats=repeats, warmup=warmup)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = _write_example(example, Path(folder))
        children = {
            name: stack.enter_context(_Child(name, Path(path), file, threads, timeout_s))
            for name, path in variants.items()
        }
        result: dict[str, dict[int, Timing]] = {name: {} for name in variants}
        for size in batch_sizes:
            for name, times in _turns(children, size, repeats, warmup).items():
                result[name][size] = _summary(times, size, threads)
    return result


def peak_memory(
    path: Path | str,
    example: Tensor | Mapping[str, Tensor],
    *,
    batch_size: int = 1,
    threads: int = 1,
    timeout_s: float = 300.0,
) -> dict[str, int]:
    """Return the most memory that a process held while it loaded and ran a model once.

    Args:
        path: An artefact's folder, or a ``.onnx`` file.
        example: Input of a forward pass, as for :func:`latency`.
        batch_size: Examples in the call.
        threads: Threads of the process.
        timeout_s: Longest wait for one reply of the process.

    Returns:
        ``peak_bytes``, resident, and ``start_bytes``, the same before the model was loaded
        (interpreter and libraries).

    Raises:
        ConfigError: An option out of its bounds.
        BackendError: The process failed.
    """
    _check({"model": path}, [batch_size], threads=threads, repeats=1, warmup=1)
    with tempfile.TemporaryDirectory() as folder:
        file = _write_example(example, Path(folder))
        with _Child("model", Path(path), file, threads, timeout_s) as child:
            child.ask({"do": "time", "batch_size": batch_size, "calls": 1})
            reply = child.ask({"do": "memory"})
    return {"peak_bytes": int(reply["peak_bytes"]), "start_bytes": int(reply["start_bytes"])}


def _check(variants: Mapping[str, Path | str], sizes: Sequence[int], **counts: int) -> None:
    for name, value in {**counts, "batch_sizes": min(sizes, default=0)}.items():
        if value < 1:
            raise ConfigError(f"latency: {name}={value} must be at least 1.")
    if not variants:
        raise ConfigError("latency: no variants; give at least one artefact or .onnx file.")
    for name, path in variants.items():
        if not Path(path).exists():
            raise ConfigError(f"latency: variant {name!r}: {path} does not exist.")


def _turns(
    children: Mapping[str, _Child], size: int, repeats: int, warmup: int
) -> dict[str, list[float]]:
    """Let the children run in turns; return milliseconds of single calls by variant."""
    calls = {}
    for name, child in children.items():
        warm = child.time(size, warmup)
        calls[name] = max(1, min(50, round(_TARGET_MS / max(min(warm), 1e-3))))
    times: dict[str, list[float]] = {name: [] for name in children}
    for turn in range(repeats):
        # The order is reversed every other turn: nobody always runs after the same neighbour.
        order = list(children)[:: 1 if turn % 2 == 0 else -1]
        for name in order:
            time.sleep(_REST_S)
            times[name].extend(children[name].time(size, calls[name]))
    return times


def _summary(times: list[float], size: int, threads: int) -> Timing:
    low, _, high = quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {
        "median": median(times),
        "min": min(times),
        "spread": high - low,
        "batch_size": size,
        "threads": threads,
        "repeats": len(times),
    }


def _named(example: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"x": example} if isinstance(example, Tensor) else dict(example)


def _fill(tensor: Tensor, size: int) -> Tensor:
    """Repeat examples until there are ``size`` of them."""
    return tensor[torch.arange(size) % len(tensor)].contiguous()


def _write_example(example: Tensor | Mapping[str, Tensor], folder: Path) -> Path:
    tensors = _named(example)
    if not tensors or any(t.ndim < 1 or len(t) < 1 for t in tensors.values()):
        raise ConfigError("latency: example needs tensors with at least one example each.")
    save_file(
        # Clones: two inputs may be one tensor, which the format does not hold twice.
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
        folder / "example.safetensors",
    )
    return folder / "example.safetensors"


class _Child:
    """One process with one model; it waits for orders, one JSON line each."""

    def __init__(
        self, name: str, model: Path, example: Path, threads: int, timeout_s: float
    ) -> None:
        self._name, self._timeout_s = name, timeout_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the child
        paths = [entry for entry in sys.path if entry]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "laconic.measure._latency_child",
                str(model.resolve()), str(example), str(threads),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=env,
        )  # fmt: skip

    def __enter__(self) -> Self:
        try:
            self._read()  # ready: the model is loaded
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def time(self, batch_size: int, calls: int) -> list[float]:
        """Run some calls and return the milliseconds of each."""
        reply = self.ask({"do": "time", "batch_size": batch_size, "calls": calls})
        return [float(ms) for ms in reply["ms"]]

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Send an order and return the reply."""
        if self._process.stdin is None:
            raise BackendError(f"latency: variant {self._name!r}: the process has no input.")
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._failure("it ended") from error
        return self._read()

    def _read(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise BackendError(f"latency: variant {self._name!r}: the process has no output.")
        late = threading.Event()

        def stop() -> None:
            late.set()  # before the kill, which lets the reader go on
            self._process.kill()

        watch = threading.Timer(self._timeout_s, stop)
        watch.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            why = f"no reply in {self._timeout_s:g} s" if late.is_set() else "it ended"
            raise self._failure(why)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise BackendError(f"latency: variant {self._name!r}: {reply['error']}")
        return reply

    def _failure(self, why: str) -> BackendError:
        try:
            self._process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:  # its output is closed, but it lives on
            self._process.kill()
            self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()[-5:]
        return BackendError(
            f"latency: variant {self._name!r}: {why} (exit code {self._process.returncode}):"
            f" {' | '.join(said) or 'it said nothing'}"
        )
