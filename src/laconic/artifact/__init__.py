"""A compressed model on disk: saved, loaded, verified, inspected, exported."""

from laconic.artifact.architecture import Architecture
from laconic.artifact.encode import Effort, predict_bytes
from laconic.artifact.exchange import (
    ExportReport,
    export_compressed_tensors,
    import_checkpoint,
    is_quantized_checkpoint,
)
from laconic.artifact.export import export_dense
from laconic.artifact.folder import read_manifest
from laconic.artifact.inspect import inspect, read_forms
from laconic.artifact.limits import DEPLOYED
from laconic.artifact.manifest import Manifest
from laconic.artifact.read import load
from laconic.artifact.verify import Check, verify
from laconic.artifact.write import SaveReport, save

__all__ = [
    "DEPLOYED",
    "Architecture",
    "Check",
    "Effort",
    "ExportReport",
    "Manifest",
    "SaveReport",
    "export_compressed_tensors",
    "export_dense",
    "import_checkpoint",
    "inspect",
    "is_quantized_checkpoint",
    "load",
    "predict_bytes",
    "read_forms",
    "read_manifest",
    "save",
    "verify",
]
