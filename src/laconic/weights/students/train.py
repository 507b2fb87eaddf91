"""Children are trained alike: from the teacher's cached logits, judged on examples held out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.seeds import generator_for
from laconic.settings import check_settings, setting
from laconic.task import Batch, Split, Task, TensorSplit, model_inputs
from laconic.training import distillation_loss, fit
from laconic.weights.students._fitting import InvalidChildError
from laconic.weights.students.spec import StudentSpec

AIM = "teacher_logits"
Forward = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True, kw_only=True)
class ChildTraining:
    """How every child is trained.

    Args:
        epochs: Passes over the training examples; 5, as in the paper.
        loss: ``mse`` to the teacher's logits; ``kd`` mixes softened predictions and labels;
            ``labels`` alone, without a teacher.
        lr: Peak learning rate; 5e-4, as in the paper.
        weight_decay: Decay of matrices; 5e-4, as in the paper.
        batch_size: Examples of a step.
        temperature: Softening of both predictions in ``kd``.
        alpha: Share of distillation in ``kd``.
        examples: Train on the first of them only; all where None.

    Raises:
        ConfigError: A value out of its bounds.

    Source: Ashok et al. 2018 (N2N Learning), sections 3.4 and 4.1.

    Differs: AdamW with warm-up and a cosine, the one loop of this library, for Adam at a
    constant rate.
    """

    epochs: float = setting(5, help="passes over the training examples", low=0.01, high=10_000)
    loss: Literal["mse", "kd", "labels"] = setting("mse", help="what children learn from")
    lr: float = setting(5e-4, help="peak learning rate", low=1e-7, high=1.0)
    weight_decay: float = setting(5e-4, help="decay of matrices", low=0, high=1)
    batch_size: int = setting(64, help="examples of a step", low=2)
    temperature: float = setting(3.0, help="softening of predictions", low=0.1, high=100)
    alpha: float = setting(0.3, help="share of distillation", low=0, high=1)
    examples: int | None = setting(None, help="first training examples to use", low=2)

    def __post_init__(self) -> None:
        check_settings(self, owner="child training")


@dataclass(frozen=True)
class Lesson:
    """What children are trained and judged on: tensors alone, so that it travels to workers.

    Attributes:
        train: Training examples by name, with the teacher's logits under ``AIM``.
        validation: Examples that judge; never trained on.
        forward: ``(model, batch) -> logits``.
    """

    train: Mapping[str, Tensor]
    validation: Mapping[str, Tensor]
    forward: Forward

    @classmethod
    def of(
        cls,
        teacher: nn.Module,
        task: Task,
        *,
        validation: Split | None,
        holdout: float,
        seed: int,
        device: str = "cpu",
    ) -> Lesson:
        """Split the training examples and ask the teacher once.

        Args:
            teacher: Trained model; its mode is restored.
            task: Classification with a train split; its test split is not touched.
            validation: Examples that judge; a share of the training ones where None.
            holdout: That share.
            seed: Which examples are held out.
            device: Where the teacher runs.

        Raises:
            ConfigError: No training examples, no classification, or a share out of range.
        """
        if task.kind != "classification":
            raise ConfigError(
                f"students: the task is {task.kind!r}; accuracy needs a classification task."
            )
        if task.train is None or not len(task.train):
            raise ConfigError("students: the task has no training examples. Give Task(train=...).")
        train = gathered(task.train)
        if validation is None:
            train, held = _divide(train, holdout, seed)
        else:
            held = gathered(validation)
        if not held or not len(held["y"]):
            raise ConfigError("students: there are no validation examples. Give validation=.")
        aim = answers(teacher, train, task.forward, device=device)
        return cls({**train, AIM: aim}, held, task.forward)


def gathered(split: Split) -> dict[str, Tensor]:
    """Return all examples of a split as one tensor a name, in order."""
    if isinstance(split, TensorSplit):
        return dict(split.tensors)
    batches = list(split.batches(256))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _divide(
    train: Mapping[str, Tensor], holdout: float, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    count = len(next(iter(train.values())))
    held = round(holdout * count)
    if not 0 < held < count:
        raise ConfigError(
            f"students: holdout={holdout} of {count} training examples leaves {count - held} to "
            "train on and {held} to judge by; both need examples. Use for example 0.25."
        )
    order = torch.randperm(count, generator=generator_for(seed, "students holdout"))
    first, rest = order[:held].sort().values, order[held:].sort().values
    return ({n: t[rest] for n, t in train.items()}, {n: t[first] for n, t in train.items()})


@contextmanager
def _evaluating(model: nn.Module, device: str) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    home = next((p.device for p in model.parameters()), torch.device(device))
    model.to(device).eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.to(home)
        for module, mode in modes:
            module.training = mode


def answers(
    model: nn.Module, data: Mapping[str, Tensor], forward: Forward, *, device: str = "cpu"
) -> Tensor:
    """Return a model's logits for all examples, (N, classes), on the processor."""
    with _evaluating(model, device):
        parts = [
            forward(model, {name: t.to(device) for name, t in inputs_of(batch).items()})
            .float()
            .cpu()
            for batch in TensorSplit(data).batches(256)
        ]
    return torch.cat(parts)


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """Return what goes into the model: neither labels nor the teacher's logits."""
    return {name: t for name, t in model_inputs(batch).items() if name != AIM}


def accuracy_of(
    model: nn.Module, data: Mapping[str, Tensor], forward: Forward, *, device: str = "cpu"
) -> float:
    """Return the share of examples whose largest logit is that of the label."""
    right = answers(model, data, forward, device=device).argmax(-1) == data["y"]
    return float(right.float().mean())


@dataclass(frozen=True)
class Trained:
    """A trained child.

    Attributes:
        accuracy: On the validation examples.
        loss: Running mean of the training loss at the end.
        seconds: Time that it took.
        weights: Its state dict.
    """

    accuracy: float
    loss: float
    seconds: float
    weights: Mapping[str, Tensor]


def train_child(
    spec: StudentSpec,
    lesson: Lesson,
    training: ChildTraining,
    *,
    seed: int = 0,
    inherited: Mapping[str, Tensor] | None = None,
    device: str = "cpu",
) -> Trained:
    """Build a child, train it and judge it; the same each time, on one thread of the processor.

    Args:
        spec: Its architecture.
        lesson: What it is trained and judged on.
        training: How.
        seed: Source of its weights and of the order of batches.
        inherited: Weights of the network it was cut from; the leading part of each is copied.
        device: Where it is trained.

    Raises:
        InvalidChildError: Training left the finite numbers.
    """
    began = time.perf_counter()
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        model = spec.build(seed=seed)
        if inherited is not None:
            inherit_(model, inherited)
        summary = fit(
            model,
            _loss(lesson, training),
            data=TensorSplit(_first(lesson.train, training.examples)),
            epochs=training.epochs,
            lr=training.lr,
            weight_decay=training.weight_decay,
            batch_size=training.batch_size,
            seed=seed,
            device=device,
            label="child",
        )
        accuracy = accuracy_of(model, lesson.validation, lesson.forward, device=device)
    except ConfigError as error:
        if "finite" not in str(error):
            raise
        raise InvalidChildError(f"training failed: {error}") from error
    finally:
        torch.set_num_threads(threads)
    weights = {name: t.detach().cpu() for name, t in model.state_dict().items()}
    return Trained(accuracy, summary.last_loss, time.perf_counter() - began, weights)


def _first(data: Mapping[str, Tensor], count: int | None) -> dict[str, Tensor]:
    return {name: t[:count] for name, t in data.items()}


def _loss(lesson: Lesson, training: ChildTraining) -> Callable[[nn.Module, Batch], Tensor]:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits = lesson.forward(model, inputs_of(batch)).float()
        if training.loss == "mse":
            return F.mse_loss(logits, batch[AIM])
        hard = F.cross_entropy(logits, batch["y"])
        if training.loss == "labels":
            return hard
        soft = distillation_loss(logits, batch[AIM], temperature=training.temperature)
        return training.alpha * soft + (1 - training.alpha) * hard

    return loss


def inherit_(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy the leading part of each tensor of the same name and number of axes, in place."""
    held: dict[str, Any] = dict(model.state_dict())
    with torch.no_grad():
        for name, tensor in held.items():
            given = weights.get(name)
            if given is not None and given.dim() == tensor.dim():
                part = tuple(
                    slice(0, min(a, b)) for a, b in zip(tensor.shape, given.shape, strict=True)
                )
                tensor[part] = given[part].to(tensor)
