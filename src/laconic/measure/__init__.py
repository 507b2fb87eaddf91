"""What compression cost: quality, bytes, latency, memory, and on which machine."""

from __future__ import annotations

from laconic.measure._onnx import export_onnx
from laconic.measure.compare import logit_kl, output_errors
from laconic.measure.environment import environment
from laconic.measure.intervals import Metric, bootstrap, wilson
from laconic.measure.latency import Timing, latency, peak_memory
from laconic.measure.quality import evaluate
from laconic.measure.size import dense_bytes, model_bytes
from laconic.measure.sparsity import (
    Sparsity,
    form_sparsity,
    gini,
    hoyer,
    pqi,
    retain_bound,
    sparsity,
)

__all__ = [
    "Metric",
    "Sparsity",
    "Timing",
    "bootstrap",
    "dense_bytes",
    "environment",
    "evaluate",
    "export_onnx",
    "form_sparsity",
    "gini",
    "hoyer",
    "latency",
    "logit_kl",
    "model_bytes",
    "output_errors",
    "peak_memory",
    "pqi",
    "retain_bound",
    "sparsity",
    "wilson",
]
