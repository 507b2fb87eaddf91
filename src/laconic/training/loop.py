"""The steps of a training run: take up or plan, step, save."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from math import isfinite
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.progress import Progress
from laconic.task import Batch, Split
from laconic.training import guard
from laconic.training.checkpoint import (
    Position,
    Saved,
    moving_buffers,
    random_state,
    read_checkpoint,
    set_random_state,
    write_checkpoint,
)
from laconic.training.losses import Objective
from laconic.training.optimizer import (
    OPTIMIZERS,
    Masters,
    Named,
    OptimizerName,
    Pruned,
    make_optimizer,
    set_rates,
)
from laconic.training.order import BatchOrder, batch_length, epoch_length
from laconic.training.plan import FitSummary, Length, StepPlan
from laconic.training.schedule import cosine_factor

if TYPE_CHECKING:
    from accelerate import Accelerator

_BOX_SHARE = 0.1  # share of a time box that measuring a step may take
_WRITE_SHARE = 20  # training time between checkpoints, at least, in times of writing one


@dataclass(frozen=True)
class Settings:
    """Settings of a run; :func:`laconic.training.fit` says what each means."""

    split: Split
    batch_size: int
    lr: float
    table_lr: float
    weight_decay: float
    seed: int
    warmup: float
    clip: float
    fixed_norms: bool
    length: Length
    checkpoint: Path | None
    checkpoint_seconds: float
    label: str
    optimizer: OptimizerName = "adamw"
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    each_epoch: Callable[[int], None] | None = None
    wrapped: Callable[[nn.Module], None] | None = None

    def __post_init__(self) -> None:
        bounds = {
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "lr": (0 < self.lr < float("inf"), "above 0"),
            "table_lr": (0 <= self.table_lr < float("inf"), "at least 0"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "warmup": (0 <= self.warmup <= 1, "between 0 and 1"),
            "clip": (self.clip > 0, "above 0"),
            "checkpoint_seconds": (self.checkpoint_seconds >= 0, "at least 0"),
            "optimizer": (self.optimizer in OPTIMIZERS, f"one of {list(OPTIMIZERS)}"),
        }
        for name, (right, allowed) in bounds.items():
            if not right:
                raise ConfigError(f"{self.label}: {name}={getattr(self, name)} must be {allowed}.")
        if self.wrapped and (self.checkpoint is not None or self.length.seconds is not None):
            raise ConfigError(
                f"{self.label}: wrapped goes with neither checkpoint nor seconds, as a hook's "
                "memory is not part of them. Give epochs or steps, and save that state yourself."
            )


class Run:
    """One run: the model, its optimizer, and where it stands."""

    def __init__(
        self,
        model: nn.Module,
        loss: Objective,
        named: Named,
        settings: Settings,
        device: torch.device,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.loss, self.named, self.settings = model, loss, named, settings
        self.device, self.accelerator = device, accelerator
        self.running: nn.Module = model
        if accelerator.num_processes > 1:
            self.running = accelerator.prepare_model(model)
            if settings.wrapped:
                settings.wrapped(self.running)
        self.masters = Masters(named)
        self.pruned = Pruned(settings.masks, named)
        self.optimizer = self._make_optimizer()
        self.position = Position()
        guard.train_mode(self.running, fixed_norms=settings.fixed_norms)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        s = self.settings
        return make_optimizer(
            self.model,
            self.named,
            self.masters,
            kind=s.optimizer,
            lr=s.lr,
            table_lr=s.table_lr,
            weight_decay=s.weight_decay,
        )

    def train(self, progress: Progress) -> FitSummary:
        """Take up or plan the run, then do its steps."""
        plan = self._resume()
        resumed_at = self.position.step if plan else None
        if resumed_at is None:
            self._clear_pruned()
        plan = plan or self._plan()
        if resumed_at is None:
            self._save(plan)
        s, where = self.settings, self.position
        order = BatchOrder(s.split, s.batch_size, s.seed, epoch=where.epoch, offset=where.offset)
        bar = progress.start(s.label, plan.total)
        progress.advance(bar, where.step)
        started = written = time.perf_counter()
        spent, cost = where.seconds, 0.0
        while where.step < plan.total:
            value = self._step(
                next(order), plan.total, cosine_factor(where.step, plan.total, warmup=s.warmup)
            )
            self._note(value, order, spent + time.perf_counter() - started)
            progress.advance(bar, note=f"loss {where.recent_loss:.4g}")
            self._tell_epoch(plan)
            now = time.perf_counter()
            due = now - written >= max(s.checkpoint_seconds, _WRITE_SHARE * cost)
            if s.checkpoint_seconds == 0 or due or where.step == plan.total:
                self._save(plan)
                written = time.perf_counter()
                cost = written - now
        progress.finish(bar)
        return self._summary(plan, resumed_at)

    def _step(self, batch: Batch, total: int, factor: float) -> float:
        """Do one optimizer step at a share of the peak rate and return its loss."""
        s, step = self.settings, self.position.step
        set_rates(self.optimizer, factor)
        self.masters.clear()
        loss = self.loss(self.running, self._share(batch))
        value = float(loss.detach())
        # Of several processes all must stop at the same place: there the gradient tells.
        if not isfinite(value) and self.accelerator.num_processes == 1:
            raise self._not_finite(f"the loss is {value}", step, total)
        self.accelerator.backward(loss)
        self.masters.take_gradients()
        norm = float(torch.nn.utils.clip_grad_norm_(self.masters.tensors(), s.clip))
        if not isfinite(norm):
            raise self._not_finite(f"the gradient's norm is {norm}", step, total)
        self.pruned.clear_gradients(self.masters)
        self.optimizer.step()
        self._clear_pruned()
        return value

    def _clear_pruned(self) -> None:
        self.pruned.clear_values(self.masters)
        self.masters.give_values()

    def _tell_epoch(self, plan: StepPlan) -> None:
        """Call ``each_epoch`` at the end of an epoch and of the run; it leaves all as it was."""
        s, step = self.settings, self.position.step
        per_epoch = epoch_length(s.split, s.batch_size)
        if s.each_epoch is None or (step % per_epoch and step < plan.total):
            return
        drawn = random_state(self.device)
        with guard.modes_kept(self.running):
            s.each_epoch(-(-step // per_epoch))
        set_random_state(drawn, self.device)

    def _share(self, batch: Batch) -> Batch:
        """Move a batch to the device; of several processes each takes an equal part."""
        count, rank = self.accelerator.num_processes, self.accelerator.process_index
        whole = batch_length(batch) // count * count
        if whole == 0:
            raise ConfigError(
                f"{self.settings.label}: a batch of {batch_length(batch)} cannot be shared by "
                f"{count} processes. Raise batch_size."
            )
        part = slice(rank, whole if count > 1 else None, count)
        return {name: t[part].to(self.device) for name, t in batch.items()}

    def _not_finite(self, what: str, step: int, total: int) -> ConfigError:
        rate = self.optimizer.param_groups[0]["lr"]
        return ConfigError(
            f"{self.settings.label}: {what} at step {step + 1} of {total} (learning rate "
            f"{rate:.3g}); it must be finite. Lower lr, or check the data for NaN and infinity."
        )

    def _note(self, value: float, order: BatchOrder, seconds: float) -> None:
        where = self.position
        if where.step == 0:
            where.first_loss = where.recent_loss = value
        where.recent_loss = 0.9 * where.recent_loss + 0.1 * value
        where.step += 1
        where.epoch, where.offset, where.seconds = order.epoch, order.offset, seconds

    def _plan(self) -> StepPlan:
        """Turn the asked length into a number of steps."""
        s, length = self.settings, self.settings.length
        if length.steps is not None:
            return StepPlan(length.steps)
        if length.epochs is not None:
            per_epoch = epoch_length(s.split, s.batch_size)
            return StepPlan(max(1, round(length.epochs * per_epoch)))
        box = float(length.seconds or 0)
        begun = time.perf_counter()
        with self._undone():
            step_seconds = self._measure(box)
        left = box - (time.perf_counter() - begun)
        step_seconds = self._agreed(step_seconds)
        total = int(self._agreed(float(max(1, int(left / step_seconds)))))
        return StepPlan(total, box, step_seconds)

    def _measure(self, box: float) -> float:
        """Return the median time of a step, after a warm one, at a learning rate of zero."""
        s, begun, taken = self.settings, time.perf_counter(), list[float]()
        order = BatchOrder(s.split, s.batch_size, s.seed)
        self._step(next(order), 1, 0.0)
        while len(taken) < 3 or (
            len(taken) < 20 and time.perf_counter() - begun < _BOX_SHARE * box
        ):
            start = time.perf_counter()
            self._step(next(order), 1, 0.0)
            taken.append(max(time.perf_counter() - start, 1e-6))
        return median(taken)

    def _agreed(self, value: float) -> float:
        """Return the first process's value in all processes."""
        if self.accelerator.num_processes == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return float(shared)

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Undo the steps of the block: values, buffers, optimizer and random state."""
        values, drawn = self.masters.state(), random_state(self.device)
        buffers = {name: b.clone() for name, b in moving_buffers(self.model).items()}
        try:
            yield
        finally:
            self._set(values, buffers)
            self.optimizer = self._make_optimizer()
            set_random_state(drawn, self.device)

    def _set(self, values: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
        self.masters.load(values)
        held = moving_buffers(self.model)
        with torch.no_grad():
            for name, value in buffers.items():
                held[name].copy_(value)

    def _resume(self) -> StepPlan | None:
        """Set everything to what the checkpoint holds; None where there is none."""
        path = self.settings.checkpoint
        if path is None or not path.exists():
            return None
        saved = read_checkpoint(path, self._fingerprint())
        self._set(saved.masters, saved.buffers)
        self.optimizer.load_state_dict(saved.optimizer)
        set_random_state(saved.random, self.device)
        self.position = saved.position
        return saved.plan

    def _save(self, plan: StepPlan) -> None:
        if self.settings.checkpoint is None or not self.accelerator.is_main_process:
            return
        saved = Saved(
            plan,
            self.position,
            self.masters.state(),
            moving_buffers(self.model),
            self.optimizer.state_dict(),
            random_state(self.device),
        )
        write_checkpoint(self.settings.checkpoint, saved, self._fingerprint())

    def _fingerprint(self) -> dict[str, Any]:
        """Return what must agree between a run and its checkpoint."""
        s, loss = self.settings, self.loss
        shapes = "\n".join(f"{name} {tuple(p.shape)}" for name, p in self.named.items())
        return {
            "length": [s.length.epochs, s.length.steps, s.length.seconds],
            "examples": len(s.split),
            "parameters": sha256(shapes.encode()).hexdigest()[:16],
            "teacher": loss.teacher is not None,
            "hidden": list(loss.hidden),
            "device": self.device.type,
            "masks": self.pruned.digest(),
            **{name: getattr(loss, name) for name in ("temperature", "alpha", "hidden_weight")},
            "distance": str(loss.distance),
            **{
                name: getattr(s, name)
                for name in (
                    "batch_size", "lr", "table_lr", "weight_decay",
                    "seed", "warmup", "clip", "fixed_norms", "optimizer",
                )
            },
        }  # fmt: skip

    def _summary(self, plan: StepPlan, resumed_at: int | None) -> FitSummary:
        where, s = self.position, self.settings
        return FitSummary(
            steps=where.step,
            epochs=round(where.step / epoch_length(s.split, s.batch_size), 3),
            seconds=round(where.seconds, 3),
            asked_seconds=plan.seconds,
            step_seconds=plan.step_seconds,
            first_loss=where.first_loss,
            last_loss=where.recent_loss,
            resumed_at=resumed_at,
            trained_values=sum(p.numel() for p in self.named.values()),
        )
