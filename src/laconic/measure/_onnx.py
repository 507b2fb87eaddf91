"""A dense model as ONNX: the fp32 baseline, and what ``laconic export --to onnx`` writes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import BackendError
from laconic.extras import require

# Names of logs: packages that are not there, and constants that could not be folded.
_TALKERS = ("torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir")


def export_onnx(model: nn.Module, example: Tensor | Mapping[str, Tensor], path: Path | str) -> Path:
    """Write a dense model as ONNX, with a batch axis of any size, for the fp32 baseline.

    Args:
        model: A model without installed forms, in float32.
        example: Input, as for :func:`latency`.
        path: File to write, ending in ``.onnx``.

    Returns:
        The path.

    Raises:
        MissingExtraError: The packages onnx and onnxscript are not installed.
        BackendError: The exporter does not know an operation of the model.
    """
    for package in ("onnx", "onnxscript"):
        require(package, "onnx", purpose="ONNX export")
    inputs = {"x": example} if isinstance(example, Tensor) else dict(example)
    # Two examples: an axis of length 1 would be taken for fixed.
    held = {name: tensor[torch.arange(2) % len(tensor)] for name, tensor in inputs.items()}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with _quiet():
            program = _program(model, held, by_name=isinstance(example, Mapping))
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise BackendError(f"ONNX export of {type(model).__name__} failed: {error}") from error
    finally:
        for module, mode in modes:
            module.training = mode
    _strip(program.model)
    program.save(str(path), external_data=False)
    return Path(path)


def _program(model: nn.Module, held: dict[str, Tensor], *, by_name: bool) -> Any:
    axes: dict[str, Any] = {name: {0: torch.export.Dim("batch")} for name in held}
    return torch.onnx.export(
        model,
        args=() if by_name else tuple(held.values()),
        kwargs=held if by_name else None,
        input_names=list(held),
        dynamic_shapes=axes if by_name else tuple(axes.values()),
        dynamo=True,
        verbose=False,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporter says of itself: missing torchvision, its own deprecations.

    So too that inputs share the batch axis, which is what we ask for.
    """
    logs = [logging.getLogger(name) for name in _TALKERS]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            shared = ".*axis name: batch will not be used, since it shares"
            warnings.filterwarnings("ignore", message=shared, category=UserWarning)
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _strip(model: Any) -> None:
    """Drop what the exporter notes at each node: paths of this machine, as large as the weights."""
    for graph in (model.graph, *model.functions.values()):
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        for value in graph.inputs:
            value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
