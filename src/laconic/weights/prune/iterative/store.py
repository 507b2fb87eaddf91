"""Where a run stands, and its files: killed at any moment it goes on to the same masks."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.files import write_atomic
from laconic.weights.prune.iterative.history import Row
from laconic.weights.prune.iterative.masks import Masks

Tensors = dict[str, Tensor]
_PLAIN = ("first", "late", "latest", "best", "chosen", "stopped", "warning")


@dataclass
class State:
    """Where a run stands between two iterations.

    Attributes:
        masks: Of the next training.
        rows: What was found so far.
        first: Weights trained in iteration 0, where they rank all prunings.
        late: What is rewound to, where that is an epoch of iteration 0.
        latest: Weights trained last, where nothing is rewound.
        best: Iteration that is chosen so far.
        chosen: Its trained parameters and buffers.
        stopped: Why the run is over; empty while it is not.
        warning: What to warn of at the end.
    """

    masks: Masks
    rows: list[Row] = field(default_factory=list)
    first: Tensors = field(default_factory=dict)
    late: Tensors = field(default_factory=dict)
    latest: Tensors = field(default_factory=dict)
    best: int = 0
    chosen: Tensors = field(default_factory=dict)
    stopped: str = ""
    warning: str = ""

    def __post_init__(self) -> None:
        self.chosen_masks = self.masks
        self.trained_under = self.masks


@dataclass
class Epochs:
    """The best epoch of the training that is under way."""

    iteration: int
    epoch: int | None = None
    score: float = float("-inf")
    state: Tensors = field(default_factory=dict)
    late: Tensors = field(default_factory=dict)


def snapshot(model: nn.Module) -> Tensors:
    """Return copies of all parameters and buffers, those that are not saved included."""
    named = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    return {name: tensor.detach().clone() for name, tensor in named}


def fingerprint_of(settings: Mapping[str, Any], initial: Tensors, masks: Masks) -> str:
    """Return what tells one run from another: its settings, initial weights and first masks."""
    found = sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in [*initial.items(), *masks.kept.items()]:
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(raw.numpy().tobytes())
    return found.hexdigest()


class Store:
    """The files of a run: ``state.pt``, ``epochs.pt`` and the checkpoint of the training.

    Args:
        folder: Where they lie; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.fingerprint = folder, ""

    def open(self, fingerprint: str, masks: Masks) -> State | None:
        """Return where an earlier run of the same arguments stopped; None where none did.

        Raises:
            ConfigError: The folder holds another run, or a damaged file.
        """
        self.fingerprint = fingerprint
        held = self._read("state.pt")
        if held is None:
            return None
        state = State(
            Masks(held["masks"], masks.layouts),
            [Row(**row) for row in json.loads(held["rows"])],
            **{key: held[key] for key in _PLAIN},
        )
        state.chosen_masks = Masks(held["chosen_masks"], masks.layouts)
        state.trained_under = Masks(held["trained_under"], masks.layouts)
        return state

    def write(self, state: State) -> None:
        """Keep where the run stands after an iteration; the files of its training go."""
        if self.folder is None:
            return
        rows = json.dumps([{**asdict(row), "pqi_by_weight": {**row.pqi_by_weight}}
                           for row in state.rows])  # fmt: skip
        content = {name: getattr(state, name) for name in _PLAIN}
        masks = ("masks", "chosen_masks", "trained_under")
        content |= {name: dict(getattr(state, name).kept) for name in masks}
        self._write("state.pt", {**content, "rows": rows})
        self._path("epochs.pt").unlink(missing_ok=True)
        done = self.training_path(len(state.rows) - 1)
        if done is not None:
            done.unlink(missing_ok=True)

    def epochs(self, iteration: int) -> Epochs:
        """Return the best epoch so far of a training that was killed, or none."""
        held = self._read("epochs.pt")
        if held is None or held["iteration"] != iteration:
            return Epochs(iteration)
        return Epochs(*(held[key] for key in ("iteration", "epoch", "score", "state", "late")))

    def write_epochs(self, epochs: Epochs) -> None:
        """Keep the best epoch so far."""
        if self.folder is not None:
            self._write("epochs.pt", dict(epochs.__dict__))

    def training_path(self, iteration: int) -> Path | None:
        """Return where the training of an iteration keeps its own checkpoint."""
        return None if self.folder is None else self._path(f"training-{iteration:03d}.pt")

    def _path(self, name: str) -> Path:
        return (self.folder or Path()) / name

    def _write(self, name: str, content: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save({**content, "fingerprint": self.fingerprint}, buffer)
        write_atomic(self._path(name), buffer.getvalue())

    def _read(self, name: str) -> dict[str, Any] | None:
        if self.folder is None or not self._path(name).is_file():
            return None
        path = self._path(name)
        try:
            held: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            found = held["fingerprint"]
        except Exception as error:  # a damaged file fails in many ways, all with the same remedy
            raise ConfigError(
                f"{path} cannot be read ({type(error).__name__}). Remove the folder to start again."
            ) from error
        if found != self.fingerprint:
            raise ConfigError(
                f"{path.parent} holds a run with other settings, initial weights or masks. Give "
                "what that run was given, another folder, or remove it to start again."
            )
        return held
