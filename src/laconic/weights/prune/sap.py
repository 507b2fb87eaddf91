"""Sparsity-informed adaptive pruning: the PQ Index says how many weights may go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError, RecipeError
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.layers import densify_, install_, installed, to_form
from laconic.forms.sparse import Sparse
from laconic.registry import method
from laconic.settings import setting
from laconic.task import Task
from laconic.weights.base import SITE_KINDS, ModelStep, Site, SiteKind, Where
from laconic.weights.prune._step import held_values, sparse_sketch
from laconic.weights.prune.iterative import (
    IterativePruning,
    Masks,
    PruningRun,
    SparsityInformed,
    Trainer,
    held_out,
    scorer,
)
from laconic.weights.prune.iterative.loop import LoopSettings, Score, Train
from laconic.weights.recover.base import RecoverJob
from laconic.weights.sites import find_sites


@method("sap", family="prune", source="Diao et al. 2023")
@dataclass(frozen=True, kw_only=True)
class Sap(LoopSettings, ModelStep):
    """Prune by what the PQ Index allows, rewind to the initial weights, retrain, again.

    A step of a recipe trains the model anew from its initial weights, so that the ranking and the
    rewinding belong together; the weights that it is given are then only what the report compares
    with. The user gives the initial weights: ``compress(initial=model)``; on the command line a
    ``package.module:factory`` that builds the same weights at every call, or ``--initial FILE``.
    Without them ``rewind: none`` starts from the given weights and goes on from what was trained
    last: that is fine-tuning, and not the published method.

    Some training examples are held out: epochs and masks are chosen on them, never on the test
    set. In Python :meth:`run` takes any training and scoring function.

    Args:
        scope: What competes: all weights (``global``), those of a ``layer``, or of a ``neuron``.
        p: Lower norm of the PQ Index; 0.5 in the paper.
        q: Upper norm; 1 in the paper.
        eta: Share of p-th powers that may be removed, in terms of what stays.
        gamma: Factor on the share of weights that the bound leaves free. At 1 small networks
            lose 3 to 20 % an iteration; above 1 density falls faster.
        beta: Largest share of a scope that goes in one iteration.
        criterion: Which weights go first: by ``magnitude``, or at ``random`` as a baseline.
        iterations: Prunings; there is one training more.
        rewind: ``init``; ``epoch:K``, the state after K epochs of the first training; or none.
        stop: None does all iterations and keeps the last masks. A number ends at that density,
            exactly. ``pqi`` ends where the index has risen over its minimum, the edge of
            underfitting, and keeps the masks of the minimum.
        rise: How far over its minimum the index must lie for that, as a share.
        patience: For how many iterations one after another.
        skip: Name patterns of weights that are trained and not pruned.
        epochs: Passes of each training; 200 in the paper.
        lr: Peak learning rate; 0.1 in the paper.
        weight_decay: Decay of matrices; 5e-4 in the paper.
        batch_size: Examples of a step; the task's where none; 250 in the paper.
        optimizer: ``sgd`` with Nesterov's momentum as in the paper, or ``adamw``.
        validation: Share of the training examples that is held out.

    Shapes:
        weight (rows, cols) -> mask (rows, cols), values (rows, kept) or (1, kept in all)

    Raises:
        ConfigError: A setting out of its bounds, or initial weights that do not fit.
        RecipeError: No initial weights to rewind to, no training examples, or a form that is
            neither dense nor sparse with dense values.
        LayerError: Weights that are NaN or infinite.

    Source: Diao et al. 2023, algorithm 1 and section 4.
    Differs: epochs are chosen on held-out examples and buffers are rewound too; biases and norms
        do not decay.
    """

    shorthand: ClassVar[str | None] = "iterations"
    default_types: ClassVar[tuple[SiteKind, ...]] = ("linear", "conv", "experts")
    supported_types: ClassVar[tuple[SiteKind, ...]] = SITE_KINDS

    eta: float = setting(0.0, help="share of p-th powers that may be removed", low=0)
    gamma: float = setting(1.0, help="factor on the share that the bound leaves free", low=0)
    beta: float = setting(0.9, help="largest share of a scope that goes", low=0.01, high=0.99)
    criterion: Literal["magnitude", "random"] = setting("magnitude", help="which go first")
    epochs: int = setting(25, help="passes of each training", low=1)
    lr: float = setting(0.1, help="peak learning rate", low=1e-8, high=10.0)
    weight_decay: float = setting(5e-4, help="decay of matrices", low=0, high=1.0)
    batch_size: int | None = setting(None, help="examples of a step", low=1)
    optimizer: Literal["sgd", "adamw"] = setting("sgd", help="sgd with momentum, or adamw")
    validation: float = setting(0.15, help="share that is held out", low=0.01, high=0.9)

    def __post_init__(self) -> None:
        given: Any = self.skip
        if isinstance(given, list):  # YAML has no tuples
            object.__setattr__(self, "skip", tuple(given))
        super().__post_init__()
        self.check_loop()
        if self.overrides:
            raise ConfigError("sap: overrides do not apply; choose weights with skip and where.")

    @property
    def needs_initial(self) -> bool:
        """Whether the step rewinds."""
        return self.rewind is not None

    def loop(self) -> IterativePruning:
        """Return the loop with this schedule."""
        shared = {name: getattr(self, name) for name in LoopSettings.__dataclass_fields__}
        schedule = SparsityInformed(eta=self.eta, gamma=self.gamma, beta=self.beta)
        return IterativePruning(
            schedule=schedule, criterion=self.criterion, name=self.method_name, **shared
        )

    def run(
        self,
        make_model: Callable[[], nn.Module],
        train: Train,
        evaluate: Score,
        **options: Any,
    ) -> PruningRun:
        """Prune a model of one's own with a training of one's own.

        Args:
            make_model: Makes the model with its initial weights.
            train: ``(model, masks, turn)``; trains in place, see
                :class:`laconic.weights.prune.iterative.Trainer`.
            evaluate: Score on validation examples, the higher the better.
            options: Others of :meth:`IterativePruning.run`: ``judge``, ``seed``, ``folder``, ...

        Returns:
            History, masks and trained weights.
        """
        sites = [site for site in find_sites(make_model()) if self.selects(site)]
        return self.loop().run(make_model, train, evaluate, masks=Masks.of_sites(sites), **options)

    def selects(self, site: Site) -> bool:
        """Return whether a site is pruned."""
        skipped = Where(include=self.skip).matches(site.name, site.kind, SITE_KINDS)
        return super().selects(site) and not skipped

    def check_data(self, task: Task | None) -> None:
        """Refuse to train without training examples.

        Raises:
            RecipeError: There are none.
        """
        if task is None or task.train is None or not len(task.train):
            raise RecipeError(
                "sap trains again and again and needs a task with a train split. Give --data NAME, "
                "or a Task with train."
            )

    def check_form(self, form: Form) -> None:
        """Refuse a form whose zeros would not make it smaller.

        Raises:
            RecipeError: It is neither dense nor sparse with dense values.
        """
        dense = isinstance(form, Dense)
        if not dense and not (isinstance(form, Sparse) and isinstance(form.values, Dense)):
            raise self.refuse(form, "zeros save nothing in it; prune before this form is made.")

    def sketch(self, form: Form, *, site: str) -> Form:
        """Return the sparse form at the density to end at, else as if nothing were removed.

        How many weights go is only known from training, and what a layer loses too.
        """
        self.check_form(form)
        kept = held_values(form) if isinstance(form, Sparse) else form.rows * form.cols
        if isinstance(self.stop, int | float):
            kept = min(kept, max(1, round(self.stop * form.rows * form.cols)))
        return sparse_sketch(form, (1, kept), "unstructured")

    def run_(self, job: RecoverJob) -> dict[str, Any]:
        """Prune and train a model in place; return the history of the run.

        Raises:
            RecipeError: There are no initial weights, or a form in the scope has no zeros to give.
            ConfigError: The initial weights do not fit.
        """
        self.check_initial(job.initial is not None)
        self.check_data(job.task)
        sites = [site for site in find_sites(job.model) if self.selects(site)]
        for site in sites:
            self.check_form(site.form)
        base, names = self._dense(job)
        if job.initial is not None and self.rewind is not None:
            _take_initial(base, job.initial, names)
        train, validation = held_out(_required(job.task), self.validation, seed=job.seed)
        trainer = Trainer(
            task=train,
            epochs=self.epochs,
            lr=self.lr,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            parameters=tuple(names),
            device=job.device,
        )
        folder = None if job.checkpoint is None else job.checkpoint.with_suffix(".sap")
        run = self.loop().run(
            lambda: base,
            trainer,
            scorer(validation, device=job.device),
            masks=Masks.of_sites(sites),
            first_is_trained=self.rewind is None,
            seed=job.seed,
            folder=folder,
            progress=job.progress,
        )
        self._give(job.model, run, names)
        return _summary(run, self, len(validation.test))

    def _dense(self, job: RecoverJob) -> tuple[nn.Module, list[str]]:
        """Return a plain copy of the model, and the names of what is trained in it."""
        fixed = {
            alias
            for name, entry in installed(job.model).items()
            if not isinstance(entry.form, Dense | Sparse)
            for alias in (name, *entry.aliases)
        }
        base = deepcopy(job.model)
        densify_(base)
        scope = Where(include=self.where.include, exclude=self.where.exclude)
        names = [
            name
            for name, parameter in base.named_parameters()
            if parameter.is_floating_point()
            and name not in fixed
            and scope.matches(name, "linear", SITE_KINDS)
        ]
        return base.to(job.device), names

    def _give(self, model: nn.Module, run: PruningRun, names: Iterable[str]) -> None:
        """Put what was trained into the model: sparse forms, and values for the rest."""
        run.masks.install_(model, run.state)
        forms = installed(model)
        plain = dict(model.named_parameters()) | dict(model.named_buffers())
        pruned = set(run.masks.kept)
        with torch.no_grad():
            for name in [*names, *(n for n, _ in model.named_buffers() if n in run.state)]:
                if name in pruned:
                    continue
                if name in forms:
                    value = to_form(run.state[name], forms[name].layout).contiguous()
                    install_(model, name, Dense(value), layout=forms[name].layout)
                else:
                    plain[name].copy_(run.state[name])


def _required(task: Task | None) -> Task:
    if task is None:
        raise RecipeError("sap needs a task with a train split.")
    return task


def _take_initial(model: nn.Module, initial: nn.Module, names: Iterable[str]) -> None:
    """Give a model its initial weights, in place: those that are trained, and all buffers.

    Raises:
        ConfigError: The initial model lacks one, or has it in another shape.
    """
    held: dict[str, Tensor] = dict(initial.named_parameters(remove_duplicate=False))
    held |= dict(initial.named_buffers(remove_duplicate=False))
    own: dict[str, Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
    buffers = [name for name, _ in model.named_buffers() if name in held]
    with torch.no_grad():
        for name in [*names, *buffers]:
            found = tuple(held[name].shape) if name in held else None
            if found != tuple(own[name].shape):
                raise ConfigError(
                    f"sap: the initial model has {name} {found or 'nowhere'}, the trained one "
                    f"{tuple(own[name].shape)}. Give the initial weights of this very architecture."
                )
            own[name].copy_(held[name])


def _summary(run: PruningRun, step: Sap, validation: int) -> dict[str, Any]:
    told = run.to_dict()
    del told["settings"]
    return {
        **told,
        "density": run.chosen.density,
        "p": step.p,
        "q": step.q,
        "scope": step.scope,
        "validation examples": validation,
    }
