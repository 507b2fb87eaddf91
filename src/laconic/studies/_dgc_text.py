"""A language model of the DGC study and its training on one rank of several."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from laconic import datasets, gradients
from laconic.gradients.transport import Traffic
from laconic.seeds import generator_for
from laconic.task import Task, TensorSplit

State = tuple[Tensor, Tensor]
_COLUMNS = 16  # texts that are read side by side in the test


class TextLSTM(nn.Module):
    """An LSTM whose output matrix is its embedding, as in the paper.

    Args:
        vocabulary: Tokens.
        width: Units of a layer, and length of an embedding.
        layers: LSTM layers.
        dropout: Share dropped before, between and behind the layers.
        both_biases: PyTorch adds up two biases a gate; false holds the second one at zero.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        *,
        layers: int = 1,
        dropout: float = 0.0,
        both_biases: bool = True,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, layers, dropout=dropout if layers > 1 else 0.0)
        self.bias = nn.Parameter(torch.zeros(vocabulary)) if both_biases else None
        self.dropout = dropout
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        for name, parameter in self.lstm.named_parameters():
            if not both_biases and name.startswith("bias_hh"):
                nn.init.zeros_(parameter.requires_grad_(False))

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return logits (T, B, vocabulary) of tokens (T, B) int64, and the state behind them."""
        entered = F.dropout(self.embedding(tokens), self.dropout, self.training)
        hidden, state = self.lstm(entered, state)
        hidden = F.dropout(hidden, self.dropout, self.training)
        return F.linear(hidden, self.embedding.weight, self.bias), state


def columns(split: TensorSplit, count: int) -> Tensor:
    """Return the tokens of all windows, one after another, in columns: (tokens, count) int64."""
    stream = split.tensors["input_ids"].flatten()
    rows = len(stream) // count
    return stream[: rows * count].view(count, rows).T.contiguous()


def pieces(text: Tensor, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and targets of at most ``length`` rows, from the top to the bottom."""
    for start in range(0, len(text) - 1, length):
        stop = min(start + length, len(text) - 1)
        yield text[start:stop], text[start + 1 : stop + 1]


def loss_of(model: nn.Module, text: Tensor, length: int) -> float:
    """Return the mean cross-entropy in nats a token, the state carried along."""
    model.eval()
    total, state = 0.0, None
    with torch.no_grad():
        for inputs, targets in pieces(text, length):
            logits, state = model(inputs, state)
            total += float(F.cross_entropy(logits.flatten(0, 1), targets.flatten())) * len(inputs)
    model.train()
    return total / (len(text) - 1)


@dataclass(frozen=True)
class Plan:
    """What all methods have in common.

    Args:
        data: ``"stdlib-text"``, by bytes, or ``"ptb"``, by words.
        model: Arguments of :class:`TextLSTM`.
        batch: Columns of each rank.
        length: Steps back in time.
        steps: Steps of the optimiser; with ``epochs`` those of one epoch at most.
        epochs: Passes over the text; None stops after ``steps``.
        lr: Peak, reached by a straight line over 20 steps; a cosine to zero, or with epochs a
            quarter wherever the validation loss has not fallen.
        momentum: Of Nesterov's kind.
        clip: Threshold of the norm of the gradient of all ranks.
        density: Share of entries sent.
        warmup: Steps of each of the four warm-up densities.
        windows: Training windows of 128 tokens; None takes all.
        device: Where every rank works; on ``"cuda"`` each on a device of its own.
    """

    data: str
    model: Mapping[str, Any]
    batch: int
    length: int
    lr: float
    warmup: int
    steps: int | None = None
    epochs: int | None = None
    windows: int | None = None
    momentum: float = 0.9
    clip: float = 0.25
    density: float = 0.001
    device: str = "cpu"


@dataclass
class Words:
    """Words as numbers; new ones are taken in, in the order of the text."""

    known: dict[str, int] = field(default_factory=dict)

    def __call__(self, text: str) -> list[int]:
        """Return one number a word; the end of a line is a word."""
        words = text.replace("\n", " <eos> ").split()
        return [self.known.setdefault(word, len(self.known)) for word in words]


def load_text(plan: Plan) -> tuple[TensorSplit, TensorSplit, int]:
    """Return the training and test text of a plan, and the size of its vocabulary."""
    words = Words() if plan.data == "ptb" else None
    options: dict[str, Any] = {"limit": plan.windows} if plan.windows else {"limit": None}
    if words is not None:
        options["tokenizer"] = words
    task: Task = datasets.load(plan.data, **options)
    train, test = task.train, task.test
    if not isinstance(train, TensorSplit) or not isinstance(test, TensorSplit):
        raise TypeError(f"data set {plan.data!r} does not hold its windows in memory")
    return train, test, 256 if words is None else len(words.known)


def exchanger(name: str, model: nn.Module, plan: Plan) -> tuple[Any, Optimizer, bool]:
    """Return the state of a method, its optimiser, and whether the mean gradient is clipped.

    Args:
        name: ``"dense"``, ``"dropping"``, ``"DGC"``, or ``"DGC, no "`` and one of ``"masking"``,
            ``"clipping"``, ``"warm-up"``.
        model: The DDP module.
        plan: Gives density, momentum and clipping.
    """
    shared: dict[str, Any] = {"momentum": plan.momentum, "nesterov": True}
    parameters = [p for p in model.parameters() if p.requires_grad]
    if name in ("dense", "dropping"):
        optimizer = torch.optim.SGD(parameters, lr=plan.lr, **shared)
        state = (
            gradients.Dense(model)
            if name == "dense"
            else gradients.TopK(model, density=plan.density)
        )
        return state, optimizer, True
    steps = None if name.endswith("no warm-up") else plan.warmup
    warmup = gradients.Warmup(4, steps_per_epoch=steps) if steps else gradients.Warmup()
    clipped = not name.endswith("no clipping")
    own = gradients.DGCSGD(parameters, lr=plan.lr, **shared)
    dgc = gradients.DGC(
        model, own, density=plan.density, **shared,
        masking=not name.endswith("no masking"), warmup=warmup,
        clip_norm=plan.clip if clipped else None, clip_scope="model", clip_dense=clipped,
    )  # fmt: skip
    return dgc, own, False


class Trainer:
    """One method on this rank, from its initial weights to its figures.

    Every rank reads columns of its own; all ranks of all methods begin with the same weights.

    Args:
        plan: What all methods have in common.
        text: Training text, test text and vocabulary.
        method: See :func:`exchanger`.
        seed: Draws the initial weights and, apart from rank to rank, what is dropped out.
    """

    def __init__(
        self, plan: Plan, text: tuple[TensorSplit, TensorSplit, int], method: str, seed: int
    ) -> None:
        train, test, vocabulary = text
        self.plan, self.method, self.seed = plan, method, seed
        rank, size = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(generator_for(seed, "weights").initial_seed())
        model = TextLSTM(vocabulary, **plan.model).to(plan.device)
        torch.manual_seed(generator_for(seed, "rank", rank).initial_seed())
        whole = columns(train, size * plan.batch)
        held = len(whole) // 20 if plan.epochs else 0  # to see when the rate should fall
        self.valid = whole[len(whole) - held :].to(plan.device)
        mine = whole[: len(whole) - held, rank * plan.batch : (rank + 1) * plan.batch]
        self.train = mine.contiguous().to(plan.device)
        self.test = columns(test, _COLUMNS).to(plan.device)
        self.ddp = DistributedDataParallel(model)
        self.state, self.optimizer, self.clips = exchanger(method, self.ddp, plan)
        self.ddp.register_comm_hook(self.state, gradients.hook)
        self.carried: State | None = None
        self.taken = 0
        self.after_warmup: tuple[int, Traffic] | None = None

    def run(self) -> dict[str, Any]:
        """Train and return loss, bytes and a digest of the weights."""
        begun = time.perf_counter()
        losses = self._by_steps() if self.plan.epochs is None else self._by_epochs()
        seconds = time.perf_counter() - begun
        start, before = self.after_warmup or (0, Traffic())
        now, steps = self.state.transport.traffic, self.taken - start
        report = self.state.report()
        flat = torch.cat([p.detach().flatten().cpu() for p in self.ddp.module.parameters()])
        return {
            "method": self.method,
            "seed": self.seed,
            "loss": self._test_loss(),
            "train_loss": losses,
            "steps": self.taken,
            "skipped": report["skipped"],
            "ms": 1000 * seconds / self.taken,
            **{k: (getattr(now, k) - getattr(before, k)) / steps for k in ("sent", "received")},
            "step_bytes": report["step_bytes"],
            "dense_bytes": report["dense_bytes"],
            "vectors": sum(
                row["bytes"] for row in report["tensors"].values() if len(row["shape"]) < 2
            ),
            "digest": hashlib.sha256(flat.numpy().tobytes()).hexdigest(),
        }

    def _test_loss(self) -> float | None:
        """Return the test loss on rank 0; the others have the same weights, as digests show."""
        if dist.get_rank():
            return None
        return loss_of(self.ddp.module, self.test, self.plan.length)

    def _by_steps(self) -> float:
        """Take the plan's steps, in as many passes as that needs; return the last losses' mean."""
        total, seen = self.plan.steps or 1, list[float]()
        while self.taken < total:
            seen += self._pass(total - self.taken, partial(_cosine, total=total))
        tail = seen[-50:]
        return sum(tail) / len(tail)

    def _by_epochs(self) -> float:
        """Take the plan's epochs; the rate falls to a quarter where validation does not gain."""
        best, scale, seen = math.inf, 1.0, list[float]()
        for _ in range(self.plan.epochs or 1):
            seen = self._pass(self.plan.steps, partial(_rising, top=scale))
            loss = loss_of(self.ddp.module, self.valid, self.plan.length)
            scale, best = (scale if loss < best else scale / 4), min(best, loss)
        return sum(seen) / len(seen)

    def _pass(self, most: int | None, rate: Callable[[int], float]) -> list[float]:
        self.carried, seen = None, list[float]()
        for inputs, targets in pieces(self.train, self.plan.length):
            if most is not None and len(seen) >= most:
                break
            for group in self.optimizer.param_groups:
                group["lr"] = self.plan.lr * rate(self.taken)
            seen.append(self._step(inputs, targets))
        return seen

    def _step(self, inputs: Tensor, targets: Tensor) -> float:
        if self.taken == 4 * self.plan.warmup:
            self.after_warmup = self.taken, Traffic(**self.state.transport.traffic.as_dict())
        self.optimizer.zero_grad()
        logits, state = self.ddp(inputs, self.carried)
        self.carried = (state[0].detach(), state[1].detach())
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        if self.clips:
            nn.utils.clip_grad_norm_(self.ddp.parameters(), self.plan.clip)
        self.optimizer.step()
        self.taken += 1
        return float(loss.detach())


def _rising(at: int, top: float = 1.0) -> float:
    return top * min(1.0, (at + 1) / 20)


def _cosine(at: int, total: int) -> float:
    return _rising(at) * 0.5 * (1 + math.cos(math.pi * at / total))
