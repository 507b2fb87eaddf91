"""Latency of an artefact against two dense baselines: plain torch and ONNX Runtime, in fp32."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laconic import artifact, measure
from laconic.errors import BackendError, ConfigError, MissingExtraError
from laconic.forms.layers import densify_
from laconic.modelspec import load_task
from laconic.task import model_inputs

TORCH, ONNX = "torch fp32", "ONNX Runtime fp32"
Example = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class Bench:
    """Timings of the compressed model and its baselines.

    Attributes:
        timings: By variant (``"compressed"`` first) and batch size.
        missing: Baselines that could not be measured, with the reason.
        threads: Threads of each process.
    """

    timings: dict[str, dict[int, measure.Timing]]
    missing: dict[str, str]
    threads: int


def run_bench(
    folder: Path,
    *,
    data: str | None = None,
    shape: Sequence[int] | None = None,
    tokens: int = 64,
    batch_sizes: Sequence[int] = (1, 32),
    threads: int | None = None,
    repeats: int = 30,
    seed: int = 0,
) -> Bench:
    """Time an artefact and the dense model that it stands for.

    Args:
        folder: The artefact.
        data: Data set to take an input from.
        shape: Shape of a random input, the first axis counting examples.
        tokens: Length of the input of a language model.
        batch_sizes: Examples in a call.
        threads: Threads of each process; those of this process if None.
        repeats: Turns of each variant.
        seed: Seed of a random input.

    Raises:
        ConfigError: No input can be made up for this model; says what to give.
        BackendError: The compressed model, or plain torch, cannot be run.
    """
    count = threads or torch.get_num_threads()
    dense = dense_model(folder)
    example = example_input(dense, folder, data=data, shape=shape, tokens=tokens, seed=seed)
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="laconic-bench-") as work:
        plain = Path(work) / "dense"
        artifact.save(dense, plain, architecture=artifact.Architecture.of(dense, example))
        variants = {"compressed": folder, TORCH: plain}
        try:
            variants[ONNX] = measure.export_onnx(dense, example, Path(work) / "dense.onnx")
        except (MissingExtraError, BackendError) as error:
            missing[ONNX] = str(error)
        timings = measure.latency(
            variants, example, batch_sizes=batch_sizes, threads=count, repeats=repeats
        )
    return Bench(timings, missing, count)


def dense_model(folder: Path) -> nn.Module:
    """Load an artefact as a plain dense model in float32."""
    model = artifact.load(folder, kernels="exact")
    densify_(model)
    config: Any = getattr(model, "config", None)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # one forward pass is timed; ONNX knows no cache objects
    return model.float().eval()


def example_input(
    model: nn.Module,
    folder: Path,
    *,
    data: str | None = None,
    shape: Sequence[int] | None = None,
    tokens: int = 64,
    seed: int = 0,
) -> Example:
    """Return one example for a forward pass: from data, of a shape, or random tokens.

    Raises:
        ConfigError: None of the three says what the model takes, or it does not take that.
    """
    example = _example(model, folder, data=data, shape=shape, tokens=tokens, seed=seed)
    try:
        with torch.no_grad():
            model(**example) if isinstance(example, dict) else model(example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        held = example if isinstance(example, dict) else {"input": example}
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in held.items())
        raise ConfigError(
            f"{folder}: {type(model).__name__} does not take {shapes}: {error}. Give --data NAME "
            "or --input SHAPE of what it was made for."
        ) from error
    return example


def _example(
    model: nn.Module,
    folder: Path,
    *,
    data: str | None,
    shape: Sequence[int] | None,
    tokens: int,
    seed: int,
) -> Example:
    if data is not None:
        batch = next(iter(load_task(data, seed=seed).test.batches(1)))
        inputs = {name: tensor[:1] for name, tensor in model_inputs(batch).items()}
        if "input_ids" in inputs:
            inputs["input_ids"] = inputs["input_ids"][:, :tokens]
            return inputs
        return inputs if len(inputs) > 1 else next(iter(inputs.values()))
    generator = torch.Generator().manual_seed(seed)
    if shape is not None:
        return torch.randn(*shape, generator=generator)[:1]
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    if isinstance(vocabulary, int):
        return {"input_ids": torch.randint(vocabulary, (1, tokens), generator=generator)}
    raise ConfigError(
        f"{folder}: nothing says what {type(model).__name__} takes as input. Give --data NAME or "
        "--input SHAPE, for example --input 1,3,32,32."
    )
