"""``fit``: the one way to train a model in this library, on accelerate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.extras import require
from laconic.progress import NullProgress, Progress
from laconic.task import Split, Task
from laconic.training import guard
from laconic.training.loop import Run, Settings
from laconic.training.losses import Distance, LossFunction, Objective, default_distance
from laconic.training.optimizer import OptimizerName, chosen_parameters
from laconic.training.plan import FitSummary, Length

if TYPE_CHECKING:
    from accelerate import Accelerator


# Long for its signature and docstring: every setting of training is named and told here once.
def fit(
    model: nn.Module,
    objective: Task | LossFunction,
    *,
    data: Split | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    lr: float = 1e-3,
    table_lr: float | None = None,
    weight_decay: float = 0.01,
    batch_size: int | None = None,
    seed: int = 0,
    warmup: float = 0.1,
    clip: float = 1.0,
    teacher: nn.Module | None = None,
    temperature: float = 2.0,
    alpha: float = 0.5,
    distance: Distance | None = None,
    hidden: Sequence[str] = (),
    hidden_weight: float = 1.0,
    parameters: Iterable[str] | None = None,
    optimizer: OptimizerName = "adamw",
    masks: Mapping[str, Tensor] | None = None,
    each_epoch: Callable[[int], None] | None = None,
    wrapped: Callable[[nn.Module], None] | None = None,
    fixed_norms: bool = False,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 30.0,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    label: str = "train",
) -> FitSummary:
    """Train a model in place, with warm-up and a cosine to zero.

    The order of batches depends on seed and epoch alone. With a checkpoint the run may be
    killed at any moment; called again with the same arguments it goes on and ends with the same
    parameters to the bit. A time box is turned into a number of steps once, by measuring a few
    steps that are then undone; a resumed run keeps that number. Training flags, gradient flags,
    gradients and the global random state are as before when the call ends, however it ends.

    Args:
        model: Model to train; moved to ``device``.
        objective: Task, or a function of model and batch that returns a scalar loss.
        data: Training examples; the task's where None.
        epochs: Length in passes over the data. Exactly one of the three lengths is given.
        steps: Length in optimizer steps.
        seconds: Length as a time box.
        lr: Peak learning rate.
        table_lr: Peak rate of parameters that many weights share (codebook tables, scales); a
            third of ``lr`` where None.
        weight_decay: Decay of matrices; vectors, tables and scales never decay.
        batch_size: Examples of a step; the task's, or 64, where None.
        seed: Source of the order and of all randomness in the model.
        warmup: Share of the steps that climbs to the peak.
        clip: Largest norm of the gradient.
        teacher: Model whose outputs are matched; needs a task.
        temperature: Softening of both models' predictions.
        alpha: Share of distillation in the loss; at 1 labels are not used.
        distance: ``kl`` or ``mse``; by the task's kind where None.
        hidden: Names of modules whose outputs are matched too, in both models.
        hidden_weight: Weight of that term.
        parameters: Names of the parameters to train; all that require a gradient where None.
        optimizer: ``adamw``, or ``sgd`` with Nesterov's momentum of 0.9.
        masks: Of some parameters by name, bool of their shape: where False the value is zero
            throughout. Gradients are masked after they are clipped, values after every step.
        each_epoch: Called with the epochs done after each, and at the end of the run. It may look
            at the model and copy it; modes and the random state are restored. A resumed run
            calls it again for epochs after its last checkpoint.
        wrapped: Where several processes train, called once with the DDP module, for example to
            register a communication hook. A hook's memory is not in the checkpoint and measuring
            a time box would leave its traces there: neither goes with it.
        fixed_norms: Batch norms use and keep their running statistics.
        checkpoint: File that the run is kept in.
        checkpoint_seconds: Seconds between two writes; 0 writes after every step.
        progress: Where progress is shown.
        device: Where to train.
        label: Name of the work for progress and messages.

    Returns:
        What the run came to.

    Raises:
        ConfigError: A setting out of range, no data, a checkpoint of another run, or a loss or
            gradient that is not finite; names the step.
        MissingExtraError: ``accelerate`` is not installed.
    """
    length = Length(epochs, steps, seconds)
    split = data if data is not None else getattr(objective, "train", None)
    settings = Settings(
        split=_require_data(split, label),
        batch_size=int(getattr(objective, "batch_size", 64) if batch_size is None else batch_size),
        lr=lr,
        table_lr=lr / 3 if table_lr is None else table_lr,
        weight_decay=weight_decay,
        seed=seed,
        warmup=warmup,
        clip=clip,
        fixed_norms=fixed_norms,
        length=length,
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        label=label,
        optimizer=optimizer,
        masks=masks or {},
        each_epoch=each_epoch,
        wrapped=wrapped,
    )
    loss = Objective(
        objective,
        teacher,
        temperature,
        alpha,
        distance or default_distance(objective),
        tuple(hidden),
        hidden_weight,
    )
    _check_objective(loss, label)
    accelerate = require("accelerate", "train", purpose="training")
    target = torch.device(device)
    model.to(target)
    named = chosen_parameters(model, parameters)
    with ExitStack() as stack:
        stack.enter_context(guard.modes_kept(model))
        stack.enter_context(guard.gradients_kept(model, named))
        stack.enter_context(guard.random_state_kept(seed, target))
        stack.enter_context(guard.teacher_ready(teacher, target))
        accelerator = accelerate.Accelerator(device_placement=False)
        _refuse_half_scaling(accelerator, label)
        return Run(model, loss, named, settings, target, accelerator).train(
            progress or NullProgress()
        )


def _require_data(split: Split | None, label: str) -> Split:
    if split is None or len(split) == 0:
        raise ConfigError(
            f"{label}: there are no training examples. Give a task with a train split, or data=."
        )
    return split


def _check_objective(loss: Objective, label: str) -> None:
    if loss.teacher is not None and not isinstance(loss.task, Task):
        raise ConfigError(f"{label}: a teacher needs a Task, which says how outputs are compared.")
    if loss.hidden and loss.teacher is None:
        raise ConfigError(f"{label}: hidden={list(loss.hidden)} needs a teacher.")
    if not 0 <= loss.alpha <= 1 or not 0 < loss.temperature < float("inf"):
        raise ConfigError(
            f"{label}: alpha={loss.alpha} must be between 0 and 1, and "
            f"temperature={loss.temperature} above 0."
        )


def _refuse_half_scaling(accelerator: Accelerator, label: str) -> None:
    if accelerator.mixed_precision == "fp16":
        raise ConfigError(
            f"{label}: accelerate is set to mixed precision fp16, which needs loss scaling; "
            "'no' and 'bf16' are allowed. Set ACCELERATE_MIXED_PRECISION=no."
        )
