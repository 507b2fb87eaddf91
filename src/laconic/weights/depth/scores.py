"""Which whole blocks matter least, by scores that remove them in one shot: the baselines.

All look at the residual stream before and after each block itself, so that the last block is
judged before the model's final norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.errors import ConfigError, UnsupportedModelError, nearest
from laconic.task import Task
from laconic.weights._flow import Data, Keep, device_of, flat_output, quiet
from laconic.weights.depth.subblocks import SubBlock, sub_blocks_of, taken_out
from laconic.weights.sites import blocks_of

Score = Literal["shortgpt", "sliding-window", "weight-subcloning", "shortened-llama"]
SCORES: tuple[Score, ...] = get_args(Score)


def choose_blocks(model: nn.Module, task: Task, *, count: int, score: Score) -> list[int]:
    """Return the indices of the blocks that a score would remove, rising.

    Args:
        model: A decoder; it is left as it is.
        task: Its calibration split is looked at.
        count: How many blocks to remove, below the number there is.
        score: ``shortgpt``: smallest ``1 - cos(x, y)`` of what goes in and comes out, a mean over
            tokens (Men et al. 2024); ``sliding-window``: the span of blocks side by side whose
            end is most like its start (Gromov et al. 2024); ``weight-subcloning``: smallest
            ``|y - x| / |y|`` (Samragh et al. 2023); ``shortened-llama``: smallest loss without
            the block (Kim et al. 2024).

    Raises:
        ConfigError: An unknown score, or more blocks than there are.
        UnsupportedModelError: The model has no chain of residual blocks.
    """
    blocks = blocks_of(model)
    if score not in SCORES:
        raise ConfigError(
            f"depth: score={score!r} must be one of {list(SCORES)}.{nearest(score, SCORES)}"
        )
    if not 0 <= count < max(len(blocks), 1):
        raise ConfigError(
            f"depth: {count} of {len(blocks)} blocks cannot be removed; at least one must stay."
        )
    if score == "shortened-llama":
        return _smallest(losses_without(model, task), count)
    if score == "sliding-window":
        first = _least_place(span_distances(model, task, count)) if count else 0
        return list(range(first, first + count))
    changes = stream_changes(model, task)
    return _smallest(changes.turned if score == "shortgpt" else changes.moved, count)


@dataclass(frozen=True)
class StreamChanges:
    """How much each block changes the residual stream, means over tokens.

    Attributes:
        turned: ``1 - cos(x, y)``.
        moved: ``|y - x| / |y|``.
    """

    turned: list[float]
    moved: list[float]


def stream_changes(model: nn.Module, task: Task) -> StreamChanges:
    """Return how much each block turns and moves the residual stream on calibration data."""
    turned, moved, tokens = [0.0] * len(blocks_of(model)), [0.0] * len(blocks_of(model)), 0
    for stream in _streams(model, task):
        tokens += len(stream[0])
        for index, (x, y) in enumerate(pairwise(stream)):
            turned[index] += float((1 - F.cosine_similarity(x, y, dim=-1)).sum())
            moved[index] += float(((y - x).norm(dim=-1) / y.norm(dim=-1).clamp_min(1e-12)).sum())
    return StreamChanges([t / tokens for t in turned], [m / tokens for m in moved])


def span_distances(model: nn.Module, task: Task, length: int) -> list[float]:
    """Return ``1 - cos`` between the start and the end of every span of ``length`` blocks."""
    sums = [0.0] * (len(blocks_of(model)) - length + 1)
    tokens = 0
    for stream in _streams(model, task):
        tokens += len(stream[0])
        for first in range(len(sums)):
            cosine = F.cosine_similarity(stream[first], stream[first + length], dim=-1)
            sums[first] += float((1 - cosine).sum())
    return [total / tokens for total in sums]


def losses_without(model: nn.Module, task: Task) -> list[float]:
    """Return the mean loss on calibration data without each of the blocks."""
    parts = sub_blocks_of(model)
    losses = []
    for index in range(len(blocks_of(model))):
        with taken_out(model, [part for part in parts if part.block == index]):
            losses.append(_loss(model, task))
    return losses


def _loss(model: nn.Module, task: Task) -> float:
    total, count = 0.0, 0
    with quiet(model):
        for batch in Data(task, device_of(model)).batches():
            size = len(next(iter(batch.values())))
            total += size * float(task.compute_loss(task.forward(model, batch), batch))
            count += size
    return total / count if count else inf


def _streams(model: nn.Module, task: Task) -> Iterator[list[Tensor]]:
    """Yield for each batch the stream before every block and after the last, (tokens, width)."""
    data = Data(task, device_of(model))
    blocks = list(blocks_of(model).values())
    if not blocks:
        raise UnsupportedModelError(f"{type(model).__name__} has no list of residual blocks.")
    for batch in data.batches():
        held: list[Tensor] = []
        with ExitStack() as stack, quiet(model):
            for block in blocks:
                handle = block.register_forward_hook(_keep(held), with_kwargs=True)
                stack.callback(handle.remove)
            task.forward(model, batch)
        if len(held) != 2 * len(blocks):
            raise UnsupportedModelError(f"{type(model).__name__}: blocks are not called once each.")
        keep = data.keep(batch)
        yield [_rows(x, keep) for x in (held[0], *held[1::2])]


def _keep(held: list[Tensor]) -> Any:
    def hook(_m: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        values = (kwargs.get("hidden_states"), *args, *kwargs.values())
        held.append(next(v for v in values if isinstance(v, Tensor)).clone())
        held.append(flat_output(output)[0].clone())

    return hook


def _rows(x: Tensor, keep: Keep) -> Tensor:
    rows = x if keep is None else x[keep]
    return rows.reshape(-1, x.shape[-1]).float()


def _smallest(scores: Sequence[float], count: int) -> list[int]:
    order = torch.tensor(scores, dtype=torch.float64).argsort(stable=True)
    return sorted(int(index) for index in order[:count])


def _least_place(scores: Sequence[float]) -> int:
    return min(range(len(scores)), key=lambda index: scores[index])


def parts_of_blocks(parts: Sequence[SubBlock], blocks: Sequence[int]) -> list[SubBlock]:
    """Return all parts of some blocks."""
    return [part for part in parts if part.block in set(blocks)]
