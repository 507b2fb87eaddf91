"""Checkpoints of a training run: atomic, tensors and plain values alone, exact to the bit."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.files import write_atomic
from laconic.forms.base import Form
from laconic.training.plan import StepPlan

_VERSION = 1


@dataclass
class Position:
    """Where a run stands.

    Attributes:
        step: Steps done.
        epoch: Epoch of the next batch.
        offset: Batches of that epoch already used.
        seconds: Time spent so far.
        first_loss: Loss of the first step.
        recent_loss: Running mean of the loss.
    """

    step: int = 0
    epoch: int = 0
    offset: int = 0
    seconds: float = 0.0
    first_loss: float = float("nan")
    recent_loss: float = float("nan")


@dataclass(frozen=True)
class Saved:
    """Content of a checkpoint: tensors, optimizer, plan, position and random state."""

    plan: StepPlan
    position: Position
    masters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: dict[str, Tensor]


def moving_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that training may move: all but the codes and masks of forms."""
    fixed = {id(b) for m in model.modules() if isinstance(m, Form) for b in m.buffers()}
    return {name: b for name, b in model.named_buffers() if id(b) not in fixed}


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the global random sources that training draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Set the global random sources to an earlier state."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def write_checkpoint(path: Path, saved: Saved, fingerprint: dict[str, Any]) -> None:
    """Write a checkpoint atomically: a run killed at any moment leaves the old or the new one."""
    content = {
        "version": _VERSION,
        "fingerprint": fingerprint,
        "plan": asdict(saved.plan),
        "position": asdict(saved.position),
        "masters": saved.masters,
        "buffers": {name: b.detach().clone() for name, b in saved.buffers.items()},
        "optimizer": saved.optimizer,
        "random": saved.random,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


def read_checkpoint(path: Path, fingerprint: dict[str, Any]) -> Saved:
    """Read a checkpoint of the same run.

    Raises:
        ConfigError: The file is damaged, or belongs to a run with other settings; says which.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version, found = content["version"], content["fingerprint"]
    except Exception as e:  # a damaged file fails in many ways, all with the same remedy
        raise ConfigError(
            f"training checkpoint {path.name} cannot be read ({type(e).__name__}: {e}). "
            "Remove it to start again."
        ) from e
    if version != _VERSION:
        raise ConfigError(
            f"training checkpoint {path.name} has version {version}, not {_VERSION}. "
            "Remove it to start again."
        )
    differing = sorted(k for k in fingerprint if found.get(k) != fingerprint[k])
    if differing:
        told = ", ".join(
            f"{k} {_short(found.get(k))} -> {_short(fingerprint[k])}" for k in differing
        )
        raise ConfigError(
            f"training checkpoint {path.name} belongs to another run ({told}). Give the settings "
            "of that run, or remove the file to start again."
        )
    return Saved(
        StepPlan(**content["plan"]),
        Position(**content["position"]),
        *(content[key] for key in ("masters", "buffers", "optimizer", "random")),
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
