"""Compressed models in the layouts of other engines: written, and read back."""

from laconic.artifact.exchange.compressed_tensors import ExportReport, export_compressed_tensors
from laconic.artifact.exchange.importing import import_checkpoint, is_quantized_checkpoint

__all__ = [
    "ExportReport",
    "export_compressed_tensors",
    "import_checkpoint",
    "is_quantized_checkpoint",
]
