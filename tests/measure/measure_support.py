"""Small models whose figures can be worked out by hand."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor, nn

from laconic.task import Task, TensorSplit


class Echo(nn.Module):
    """Returns its input plus nothing: what goes in as ``x`` comes out as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class Chain(nn.Module):
    """A language model whose next token depends on the token before it alone."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(logits.clone())

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.table(input_ids)


def classification(logits: Tensor, y: list[int], **options: object) -> Task:
    split = TensorSplit({"x": logits, "y": torch.tensor(y)})
    return Task(kind="classification", test=split, **options)  # type: ignore[arg-type]


def regression(x: Tensor, y: Tensor, **options: object) -> Task:
    split = TensorSplit({"x": x, "y": y})
    return Task(kind="regression", test=split, **options)  # type: ignore[arg-type]


def language(ids: Tensor, **more: Tensor) -> Task:
    return Task(kind="causal-lm", test=TensorSplit({"input_ids": ids, **more}))


def chances(*rows: list[float]) -> Tensor:
    """Logits of given probabilities."""
    return torch.tensor([[log(p) for p in row] for row in rows])
