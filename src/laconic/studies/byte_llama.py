"""A small language model that a study trains itself: bytes in, a Llama of a few blocks."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from laconic import zoo
from laconic.studies.base import Conditions
from laconic.task import Task, TensorSplit
from laconic.training import fit

_LR = 3e-3


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained.

    Args:
        study: Whose it is: for file names.
        width: Channels of the residual stream.
        blocks: Number of blocks.
        heads: Heads of the queries.
        steps: Training steps.
        batch: Windows in a batch.
    """

    study: str
    width: int = 96
    blocks: int = 6
    heads: int = 6
    steps: int = 1400
    batch: int = 8


def trained(recipe: Recipe, train: TensorSplit, conditions: Conditions) -> nn.Module:
    """Return the trained model in evaluation mode, from the cache where it is there.

    Args:
        recipe: The model.
        train: Its text, ``input_ids`` (windows, length).
        conditions: Seed, device and progress.
    """
    task = Task(
        kind="causal-lm", test=train.take(1), train=train, batch_size=recipe.batch, name="library"
    )
    model: nn.Module = zoo.byte_llama(
        width=recipe.width, blocks=recipe.blocks, heads=recipe.heads, seed=conditions.seed
    )
    file = f"{recipe.study}-byte-llama-{_key(recipe, train, conditions)}.pt"
    fit(
        model, task, steps=recipe.steps, lr=_LR, seed=conditions.seed, device=conditions.device,
        checkpoint=cache_folder() / file, progress=conditions.progress, label="byte-level Llama",
    )  # fmt: skip
    return model.eval()


def cache_folder() -> Path:
    """Return the folder of trained weights: ``$LACONIC_CACHE/studies`` or under the home folder."""
    given = os.environ.get("LACONIC_CACHE")
    return (Path(given) if given else Path.home() / ".cache" / "laconic") / "studies"


def _key(recipe: Recipe, train: TensorSplit, conditions: Conditions) -> str:
    """Return a name of everything that fixes the trained weights: text, settings, versions."""
    told = (
        recipe.width, recipe.blocks, recipe.heads, recipe.steps, recipe.batch, _LR,
        conditions.seed, conditions.device, torch.__version__,
    )  # fmt: skip
    digest = hashlib.sha256(repr(told).encode())
    digest.update(train.tensors["input_ids"].numpy().tobytes())
    return digest.hexdigest()[:16]
