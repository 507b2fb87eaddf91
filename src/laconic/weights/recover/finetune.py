"""Recover quality by training what the forms leave free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError, RecipeError
from laconic.forms.base import Form
from laconic.forms.layers import installed
from laconic.registry import method
from laconic.settings import setting
from laconic.task import Batch, Task
from laconic.training import fit
from laconic.training.plan import Length
from laconic.units import parse_seconds, split_unit
from laconic.weights.base import SITE_KINDS, ModelStep, SiteKind
from laconic.weights.recover.base import RecoverJob
from laconic.weights.recover.draw import draw_inputs

_DEFAULT_TIME = "60s"


@method("recover", family="recover", source="Han et al. 2016; Hinton et al. 2015")
@dataclass(frozen=True, kw_only=True)
class Recover(ModelStep):
    """Train scales, tables, factors and surviving weights; codes and patterns stay as they are.

    What a form keeps in buffers cannot move: the zeros of a sparse form, the codes of a quantized
    one. A codebook's entry gets the sum of its members' gradients. With the original model at
    hand its predictions are matched; without a train split inputs are drawn and nothing but the
    original's answers is used.

    Args:
        time: Length of the training: a number with its unit, ``60s``, ``2m``, ``3 epochs`` or
            ``500 steps``. It is also what a bare value in a recipe means. 60s where no length is
            given; only one of time, epochs and steps may be.
        epochs: Length in passes over the training data.
        steps: Length in optimizer steps.
        lr: Peak learning rate of weights.
        table_lr: Peak rate of tables and scales, which move many weights at once; a third of
            ``lr`` where none.
        weight_decay: Decay of matrices.
        batch_size: Examples of a step; the task's where none.
        distill: Match the original model's predictions where it is given.
        temperature: Softening of predictions.
        alpha: Share of distillation in the loss; the rest is the task's own.
        train: ``forms`` trains compressed weights only; ``all`` also norms, biases and the
            dense rest.
        fixed_norms: Batch norms keep their running statistics.
        tokens: Text for language models without data: written by the original, or uniform.

    Raises:
        ConfigError: More than one length, a bad one, or a setting out of its bounds.

    Source: Han, Mao & Dally 2016 (Deep Compression), sections 2 and 3.3; Hinton, Vinyals & Dean
    2015, section 2.
    """

    shorthand: ClassVar[str | None] = "time"
    default_types: ClassVar[tuple[SiteKind, ...]] = SITE_KINDS

    time: str | None = setting(None, help="length: 60s, 2m, 3 epochs or 500 steps")
    epochs: float | None = setting(None, help="length in passes over the data", low=1e-3)
    steps: int | None = setting(None, help="length in optimizer steps", low=1)
    lr: float = setting(1e-3, help="peak learning rate", low=1e-8, high=1.0)
    table_lr: float | None = setting(None, help="peak rate of tables and scales", low=0, high=1.0)
    weight_decay: float = setting(0.0, help="decay of matrices", low=0, high=1.0)
    batch_size: int | None = setting(None, help="examples of a step", low=1)
    distill: bool = setting(True, help="match the original model's predictions")
    temperature: float = setting(2.0, help="softening of predictions", low=0.1, high=100.0)
    alpha: float = setting(0.5, help="share of distillation in the loss", low=0, high=1)
    train: Literal["forms", "all"] = setting("all", help="compressed weights only, or all")
    fixed_norms: bool = setting(False, help="batch norms keep their running statistics")
    tokens: Literal["generated", "uniform"] = setting(
        "generated", help="text for language models without data"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.where.types is not None or self.overrides:
            raise ConfigError(
                "recover: where.types and overrides do not apply to training; choose parameters "
                "by name with where.include and where.exclude."
            )
        if sum(length is not None for length in (self.time, self.epochs, self.steps)) > 1:
            raise ConfigError(
                f"recover: time={self.time!r}, epochs={self.epochs}, steps={self.steps}: only "
                "one length may be given."
            )
        self.length()

    def length(self) -> Length:
        """Return the length as training takes it."""
        if self.epochs is not None or self.steps is not None:
            return Length(epochs=self.epochs, steps=self.steps)
        return parse_length(self.time or _DEFAULT_TIME)

    def check_forms(self, forms: Iterable[Form]) -> None:
        """Refuse a model in which nothing is compressed yet.

        Args:
            forms: The forms (or their sketches) of all sites when the step begins.

        Raises:
            RecipeError: All are dense.
        """
        if all(form.kind == "dense" for form in forms):
            raise RecipeError(
                "recover has nothing to recover: no step before it compressed a weight. Put it "
                "after a step such as magnitude, round-to-nearest or svd."
            )

    def check_data(self, task: Task | None) -> None:
        """Refuse to train without a task, or without data and without the original's answers.

        Raises:
            RecipeError: There is nothing to learn from.
        """
        if task is None:
            raise RecipeError(
                "recover needs a task: it says how the model is run and what its inputs look like. "
                "Give --data NAME, or a Task; one without a train split is enough."
            )
        if not self.distill and (task.train is None or not len(task.train)):
            raise RecipeError(
                "recover: distill=False trains on labels alone and the task has no train split. "
                "Give a Task with train, or leave distill on."
            )

    def run_(self, job: RecoverJob) -> dict[str, Any]:
        """Train the compressed model in place and return a summary.

        Raises:
            RecipeError: Nothing is compressed.
            ConfigError: Neither training data nor an original model to learn from.
        """
        forms = {name: entry.form for name, entry in installed(job.model).items()}
        self.check_forms(forms.values())
        teacher, task = job.original if self.distill else None, job.task
        names = self.parameter_names(job.model, forms)
        drawn = task is None or task.train is None
        summary = fit(
            job.model,
            self._data_free(job, teacher) if task is None or task.train is None else task,
            **asdict(self.length()),
            lr=self.lr,
            table_lr=self.table_lr,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            seed=job.seed,
            teacher=teacher,
            temperature=self.temperature,
            alpha=1.0 if drawn else self.alpha,
            distance="mse" if task is None else None,
            parameters=names,
            fixed_norms=self.fixed_norms or drawn,
            checkpoint=job.checkpoint,
            progress=job.progress,
            device=job.device,
            label="recover",
        )
        return {
            **summary.to_dict(),
            "data": "drawn" if drawn else "train",
            "distilled": teacher is not None,
        }

    def parameter_names(self, model: nn.Module, forms: Mapping[str, Form]) -> list[str]:
        """Return the names of the parameters that the step trains.

        Args:
            model: The compressed model.
            forms: Its installed forms by site name.

        Raises:
            ConfigError: The scope holds none.
        """
        site_of = {id(p): site for site, form in forms.items() for p in form.parameters()}
        compressed = {site for site, form in forms.items() if form.kind != "dense"}
        chosen = []
        for name, parameter in model.named_parameters():
            site = site_of.get(id(parameter))
            wanted = self.train == "all" or site in compressed
            inside = self.where.matches(site or name, "linear", SITE_KINDS)
            if wanted and inside and parameter.is_floating_point():
                chosen.append(name)
        if not chosen:
            raise ConfigError(
                f"recover: train={self.train!r} with include={list(self.where.include)}, "
                f"exclude={list(self.where.exclude)} leaves no parameter to train."
            )
        return chosen

    def _data_free(self, job: RecoverJob, teacher: nn.Module | None) -> Task:
        """Return a task of drawn inputs; labels are never asked for."""
        if teacher is None:
            raise ConfigError(
                "recover: there is neither a train split nor an original model to learn from "
                f"(distill={self.distill}). Give a task with training data, or the original."
            )
        example = job.example or _example(job.task)
        home = next((p.device for p in teacher.parameters()), torch.device("cpu"))
        try:
            split = draw_inputs(
                teacher.to(job.device),
                example,
                seed=job.seed,
                tokens=self.tokens,
                device=job.device,
            )
        finally:
            teacher.to(home)
        if job.task is not None:
            return replace(job.task, train=split)
        return Task(kind="custom", test=split, train=split, loss=_no_loss, name="drawn")


def parse_length(text: str) -> Length:
    """Read a length of training: ``"60s"``, ``"3 epochs"`` or ``"500 steps"``.

    Raises:
        ConfigError: No number with one of these units.
    """
    where = f"recover: time={text!r}"
    try:
        number, unit = split_unit(text)
        if unit in ("epoch", "epochs"):
            return Length(epochs=number)
        if unit in ("step", "steps") and number == int(number):
            return Length(steps=int(number))
        return Length(seconds=parse_seconds(text))
    except ConfigError as error:
        raise ConfigError(
            f"{where} must be above 0 with its unit: a time (60s, 2m), epochs (3 epochs) or "
            "whole steps (500 steps)."
        ) from error


def _example(task: Task | None) -> Batch:
    """Return a batch whose shapes are copied; its values are never trained on."""
    if task is None:
        raise ConfigError(
            "recover: without a task the shape of inputs is not known. Give an example batch or "
            "a task."
        )
    return next(iter((task.calibration_split() or task.test).batches(2)))


def _no_loss(outputs: Tensor, batch: Batch) -> Tensor:
    raise ConfigError("recover: drawn inputs have no labels, so that there is no task loss.")
