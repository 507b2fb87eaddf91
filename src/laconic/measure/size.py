"""Bytes on disk: what ``os.stat`` says of the files that a model needs to run."""

from __future__ import annotations

import tempfile
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from laconic.errors import ConfigError

_NAMES = ("laconic.json", "config.json")
_ENDINGS = (".safetensors", ".safetensors.index.json", ".onnx", ".onnx.data")


def model_bytes(path: Path | str) -> dict[str, int]:
    """Return the size of each file that is needed to run a model.

    Args:
        path: A folder (an artefact, or one saved by Hugging Face), or one file. In a folder,
            weights, ``laconic.json`` and ``config.json`` count; reports and tokenizers do not.

    Returns:
        Bytes by file name; their sum is the size of the model.

    Raises:
        ConfigError: Nothing stands there, or a folder without a model.
    """
    place = Path(path)
    if place.is_file():
        data = place.with_name(f"{place.name}.data")  # where ONNX keeps large weights
        return {file.name: file.stat().st_size for file in (place, data) if file.is_file()}
    if not place.is_dir():
        raise ConfigError(f"{place}: no such file or folder. Give an artefact or a model file.")
    found = {
        file.name: file.stat().st_size
        for file in sorted(place.iterdir())
        if file.is_file() and (file.name in _NAMES or file.name.endswith(_ENDINGS))
    }
    if not any(name.endswith(_ENDINGS) for name in found):
        raise ConfigError(
            f"{place}: holds no weights (*.safetensors or *.onnx). Give an artefact's folder."
        )
    return found


def dense_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's state dict as a plain safetensors file, tied weights once."""
    named: dict[str, Tensor] = {}
    seen: set[tuple[object, ...]] = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if not tensor.numel() or place not in seen:
            storage = tensor.untyped_storage().data_ptr()
            # A part of another tensor is no tie: a plain file holds both.
            named[name] = tensor.clone() if (storage,) in seen else tensor
            seen |= {place, (storage,)}
    with tempfile.TemporaryDirectory(prefix="laconic-") as folder:
        file = Path(folder) / "model.safetensors"
        save_file({name: t.detach().cpu().contiguous() for name, t in named.items()}, file)
        return file.stat().st_size
