"""A compressed model on disk: saved, loaded, verified, inspected, exported."""

from laconic.artifact.architecture import Architecture
from laconic.artifact.encode import Effort, predict_bytes
from laconic.artifact.export import export_dense
from laconic.artifact.folder import read_manifest
from laconic.artifact.inspect import inspect
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
    "Manifest",
    "SaveReport",
    "export_dense",
    "inspect",
    "load",
    "predict_bytes",
    "read_manifest",
    "save",
    "verify",
]
