"""Runs one model on orders from its parent: ``python -m laconic.measure._latency_child``.

Orders come as JSON lines on standard input, replies go as JSON lines to standard output. What
libraries write there goes to standard error instead.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors.torch import load_file
from torch import Tensor

Call = Callable[[dict[str, Tensor]], object]


def main(arguments: list[str]) -> int:
    """Load the model, say so, and obey until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    model, example, threads = Path(arguments[0]), Path(arguments[1]), int(arguments[2])
    torch.set_num_threads(threads)
    start = _peak_bytes()
    try:
        call = _onnx(model, threads) if model.suffix == ".onnx" else _artifact(model)
        inputs = load_file(example)
    except Exception as error:  # whatever it is, the parent raises it again
        _say(replies, {"error": f"{type(error).__name__}: {error}"})
        return 1
    _say(replies, {"ready": True})
    for line in sys.stdin:
        order = json.loads(line)
        try:
            _say(replies, _obey(order, call, inputs, start))
        except Exception as error:  # as above
            _say(replies, {"error": f"{type(error).__name__}: {error}"})
            return 1
    return 0


def _say(replies: TextIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _obey(
    order: dict[str, Any], call: Call, inputs: dict[str, Tensor], start: int
) -> dict[str, Any]:
    if order["do"] == "memory":
        return {"peak_bytes": _peak_bytes(), "start_bytes": start}
    size = int(order["batch_size"])
    batch = {name: t[torch.arange(size) % len(t)].contiguous() for name, t in inputs.items()}
    times = []
    for _ in range(int(order["calls"])):
        begun = time.perf_counter_ns()
        call(batch)
        times.append((time.perf_counter_ns() - begun) / 1e6)
    return {"ms": times}


def _artifact(path: Path) -> Call:
    from laconic import artifact
    from laconic.task import model_outputs

    model = artifact.load(path)

    def call(batch: dict[str, Tensor]) -> object:
        with torch.inference_mode():
            return model_outputs(model, batch)

    return call


def _onnx(path: Path, threads: int) -> Call:
    from laconic.extras import require

    runtime = require("onnxruntime", "onnx", purpose="ONNX Runtime baseline")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def call(batch: dict[str, Tensor]) -> object:
        # Inputs go by name; a single one that the exporter renamed goes by position.
        named = batch if set(names) == set(batch) else dict(zip(names, batch.values(), strict=True))
        return session.run(None, {name: tensor.numpy() for name, tensor in named.items()})

    return call


def _peak_bytes() -> int:
    """Return the most memory that this process has held so far.

    Linux counts the parent's memory into ``ru_maxrss`` of a new process, but not into VmHWM.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
