"""Inputs for recovery without data: noise shaped by the model, or text of its own.

Drawn inputs have no labels; a compressed model learns from them to answer as the original does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.seeds import generator_for
from laconic.task import Batch, Split, TensorSplit, model_inputs, model_outputs

Tokens = Literal["generated", "uniform"]
_COUNT = 4096  # inputs of an epoch; noise is fresh in each
_SEQUENCES, _LENGTH = 128, 64  # text that is generated once


@dataclass(frozen=True)
class Noise:
    """A split of Gaussian inputs, drawn anew in every epoch.

    Args:
        name: Name of the model's input.
        mean: Mean of each value, in the shape of one input.
        std: Standard deviation of each value.
        dtype: Type of the inputs.
        count: Inputs of an epoch.
    """

    name: str
    mean: Tensor
    std: Tensor
    dtype: torch.dtype = torch.float32
    count: int = _COUNT

    def __len__(self) -> int:
        return self.count

    def batches(self, size: int, *, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield batches of noise; the generator decides what is drawn."""
        source = generator or generator_for(0, "noise")
        for begin in range(0, self.count, size):
            rows = min(size, self.count - begin)
            drawn = torch.randn(rows, *self.mean.shape, generator=source)
            yield {self.name: (drawn * self.std + self.mean).to(self.dtype)}


def draw_inputs(
    original: nn.Module, example: Batch, *, seed: int, tokens: Tokens, device: torch.device | str
) -> Split:
    """Return inputs that stand in for data the user does not have.

    Args:
        original: The model before compression.
        example: A batch whose shapes and types are copied; its values are not used.
        seed: Source of all that is drawn.
        tokens: How token inputs are drawn.
        device: Where the model runs.

    Raises:
        ConfigError: The model has inputs that cannot be drawn; names them.
    """
    inputs = dict(model_inputs(example))
    if "input_ids" in inputs:
        return _draw_tokens(original, inputs, seed, tokens, torch.device(device))
    if len(inputs) != 1 or not next(iter(inputs.values())).is_floating_point():
        told = {name: str(t.dtype) for name, t in inputs.items()}
        raise ConfigError(
            f"recover: without training data inputs are drawn, which works for one floating input "
            f"or input_ids; the model takes {told}. Give a task with a train split."
        )
    name, values = next(iter(inputs.items()))
    mean, std = input_statistics(original, values[:2].to(device))
    shape = values.shape[1:]
    return Noise(name, mean.cpu().expand(shape), std.cpu().expand(shape), values.dtype)


def input_statistics(original: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the inputs that a model was trained on.

    They are read off the first batch norm: directly where it sees the input, else by least
    squares through the one convolution or linear layer before it, as if the input's values were
    independent: ``mean_o = b_o + sum_c m_c sum_k W_ock`` and ``var_o = sum_c v_c sum_k W_ock**2``.
    Zero and one where the model does not begin like that.

    Args:
        original: Model with plain layers.
        inputs: Inputs (examples, channels, ...) to run it on once; their values do not matter.

    Shapes:
        mean, std (channels, 1, ...), to be broadcast over one input.
    """
    norm, before = _first_norm(original, inputs)
    found: tuple[Tensor, Tensor] | None = None
    if norm is not None and norm.running_mean is not None and norm.running_var is not None:
        seen = norm.running_mean.double().cpu(), norm.running_var.double().cpu()
        found = (seen[0], seen[1]) if before is None else _through_layer(before, *seen)
    tail = (1,) * (inputs.dim() - 2)
    if found is None or inputs.dim() < 2:
        return torch.zeros(()), torch.ones(())
    mean, variance = found
    return mean.float().reshape(-1, *tail), variance.sqrt().float().reshape(-1, *tail)


def _first_norm(model: nn.Module, inputs: Tensor) -> tuple[Any, nn.Module | None]:
    """Return the first batch norm and the layer between it and the input, if that is all."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        calls.append((module, args[0], output))

    kinds = (nn.modules.batchnorm._BatchNorm, nn.Linear, nn.Conv1d, nn.Conv2d)
    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    modes = [(m, m.training) for m in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    for norm, seen, _ in calls:
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            if seen is inputs:
                return norm, None
            before = [m for m, first, output in calls if first is inputs and output is seen]
            return (norm, before[0]) if before else (None, None)
    return None, None


def _through_layer(
    layer: nn.Module, mean: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Return the input's mean and variance (channels,) from those of a layer's output."""
    weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
    taps = weight.detach().double().cpu().flatten(2) if weight.dim() > 2 else weight[..., None]
    taps = taps.detach().double().cpu()
    outputs, channels = taps.shape[:2]
    if getattr(layer, "groups", 1) != 1 or outputs < channels:
        return None
    offset = mean if bias is None else mean - bias.detach().double().cpu()
    solved_mean = torch.linalg.lstsq(taps.sum(-1), offset[:, None]).solution[:, 0]
    gains = taps.square().sum(-1)  # (outputs, channels)
    solved = torch.linalg.lstsq(gains, variance[:, None]).solution[:, 0]
    if not (torch.isfinite(solved_mean).all() and torch.isfinite(solved).all()):
        return None
    if (solved <= 0).any():  # one variance for all channels is always positive
        total = gains.sum(1)
        solved = torch.full_like(solved, float(total @ variance / (total @ total)))
    return solved_mean, solved


def _draw_tokens(
    original: nn.Module, inputs: dict[str, Tensor], seed: int, tokens: Tokens, device: torch.device
) -> Split:
    others = sorted(set(inputs) - {"input_ids", "attention_mask"})
    if others:
        raise ConfigError(
            f"recover: without training data only input_ids are drawn; the model also takes "
            f"{others}. Give a task with a train split."
        )
    length = min(int(inputs["input_ids"].shape[-1]), _LENGTH)
    source = generator_for(seed, "tokens")
    with torch.no_grad():
        probe = model_outputs(original, {"input_ids": inputs["input_ids"][:1].to(device)})
    predicts_tokens = probe.dim() == 3
    size = int(probe.shape[-1]) if predicts_tokens else _vocabulary(original)
    if tokens == "uniform" or not predicts_tokens:
        shape = (_COUNT, length)
        return TensorSplit({"input_ids": torch.randint(size, shape, generator=source)})
    return TensorSplit({"input_ids": generate_text(original, length, size, source, device)})


def generate_text(
    original: nn.Module, length: int, size: int, source: torch.Generator, device: torch.device
) -> Tensor:
    """Return sequences that a language model wrote itself, (sequences, length) int64.

    The first token is uniform; each further one is drawn from the model's prediction.

    Source: Liu et al. 2023 (LLM-QAT), section 2.1. Differs: no first tokens are taken greedily.
    """
    ids = torch.randint(size, (_SEQUENCES, 1), generator=source)
    modes = [(m, m.training) for m in original.modules()]
    original.eval()
    try:
        with torch.no_grad():
            while ids.shape[1] < length:
                logits = model_outputs(original, {"input_ids": ids.to(device)})[:, -1]
                share = torch.softmax(logits.float(), dim=-1).cpu()
                ids = torch.cat([ids, torch.multinomial(share, 1, generator=source)], dim=1)
    finally:
        for module, mode in modes:
            module.training = mode
    return ids


def _vocabulary(model: nn.Module) -> int:
    sizes = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    if not sizes:
        raise ConfigError(
            "recover: the model takes input_ids but has no embedding to tell how many tokens "
            "there are. Give a task with a train split."
        )
    return sizes[0]
