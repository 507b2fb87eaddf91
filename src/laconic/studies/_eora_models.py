"""Language models of the EoRA study: a published one, and one trained here on Python's library."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from laconic import datasets, zoo
from laconic.errors import DataError, LaconicWarning
from laconic.modelspec import load_task
from laconic.studies.base import Conditions
from laconic.studies.byte_llama import Recipe, trained
from laconic.task import Task, TensorSplit

Domain = Literal["code", "english"]

LENGTH = 96  # tokens in a window, and
CALIBRATION = 64  # windows that statistics are gathered on
WIDTH, BLOCKS, HEADS = 96, 6, 6
_TEST = 256
_TRAIN = 8192  # windows of each domain
_STEPS = 1400
_BATCH = 8


@dataclass(frozen=True)
class Subject:
    """A language model, its text, and what to call it.

    Attributes:
        name: For tables.
        model: In evaluation mode.
        task: Calibration and held-out text.
        width: Channels of the residual stream.
        published: The weights are others' and not trained here.
    """

    name: str
    model: nn.Module
    task: Task
    width: int
    published: bool


def language_model(conditions: Conditions) -> Subject:
    """Return stories260K on stories it was not calibrated on, else the model trained here.

    Warns where the published weights or the stories are missing: figures are then others.
    """
    try:
        model, tokenizer = zoo.stories260k()
        task = load_task(
            "tinystories", tokenizer=tokenizer, seed=conditions.seed,
            options={"length": LENGTH, "calibration": CALIBRATION},
        )  # fmt: skip
    except DataError as error:
        warnings.warn(
            f"the published stories260K is not used: {error} A byte-level model trained here on "
            "Python's standard library takes its place.",
            LaconicWarning,
            stacklevel=2,
        )
        return trained_here(conditions)
    width = int(model.config.hidden_size)
    return Subject("stories260K (published weights)", model, task, width, published=True)


def trained_here(conditions: Conditions) -> Subject:
    """Return the byte-level Llama on source code, of files held out."""
    task = domain_task("code", conditions.seed)
    model = byte_model(conditions)
    return Subject("byte-level Llama trained here", model, task, WIDTH, published=False)


def domain_task(domain: Domain, seed: int) -> Task:
    """Return the text of a domain: windows to calibrate with, and ones of files held out."""
    return datasets.load(
        "stdlib-text", seed=seed, domain=domain, length=LENGTH, limit=_TRAIN,
        test_limit=_TEST, calibration=CALIBRATION,
    )  # fmt: skip


def byte_model(conditions: Conditions) -> nn.Module:
    """Return a byte-level Llama trained on both domains, from the cache where it is there."""
    parts = [_tokens(domain_task(domain, 0)) for domain in ("code", "english")]
    train = TensorSplit({"input_ids": torch.cat(parts)})
    recipe = Recipe("eora", WIDTH, BLOCKS, HEADS, _STEPS, _BATCH)
    return trained(recipe, train, conditions)


def _tokens(task: Task) -> torch.Tensor:
    split = task.train
    if not isinstance(split, TensorSplit):
        raise DataError("study 'eora': the standard library's text is not held in memory.")
    return split.tensors["input_ids"]
