"""The nouns of the weights wing: Site, Statistics, Where, Step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from laconic.errors import ConfigError, RecipeError, nearest
from laconic.forms.base import Form
from laconic.forms.layout import Layout
from laconic.settings import bounds_of, check_settings, setting

if TYPE_CHECKING:
    from torch import nn

    from laconic.task import Task
    from laconic.weights.recover.base import RecoverJob

SiteKind = Literal["linear", "conv", "embedding", "experts"]
Statistic = Literal["gram", "absmax", "absmean", "sumsq"]
SITE_KINDS: tuple[SiteKind, ...] = ("linear", "conv", "embedding", "experts")


@dataclass
class Statistics:
    """What calibration gathered at a site's input; only what was asked for is filled.

    With ``X (tokens, cols)`` the rows that met the weight (im2col rows for a convolution; one
    leading axis of ``groups`` on every field for a grouped convolution or stacked experts):

    Attributes:
        count: Rows seen.
        gram: ``X.T @ X / count``, (cols, cols) float32; raw second moment, no mean taken off.
        absmax: ``max |x_j|``, (cols,) float32.
        absmean: ``mean |x_j|``, (cols,) float32.
        sumsq: ``mean x_j**2``, (cols,) float32.
    """

    count: int = 0
    gram: Tensor | None = None
    absmax: Tensor | None = None
    absmean: Tensor | None = None
    sumsq: Tensor | None = None


@dataclass
class Site:
    """One weight in a model.

    Attributes:
        name: Path of the parameter, for example ``"model.layers.0.mlp.up_proj.weight"``.
        kind: linear (GPT-2's Conv1D too), conv, embedding or experts.
        form: What stands for the weight now; ``Dense`` at first.
        original: The dense weight in the form's shape, as it was.
        layout: How the form's tensor maps to the parameter (see ``forms.layers``).
        block: Index of the residual block that holds the site; None outside the blocks.
        groups: Groups of a convolution, or experts in a stack: rows come in that many equal parts,
            and every part meets inputs of its own.
        aliases: Other parameter names tied to this one.
        statistics: What calibration gathered, where a step asked for it.
    """

    name: str
    kind: SiteKind
    form: Form
    original: Tensor
    layout: Layout = "natural"
    block: int | None = None
    groups: int = 1
    aliases: tuple[str, ...] = ()
    statistics: Statistics | None = None

    @property
    def module_name(self) -> str:
        """Path of the module that owns the parameter."""
        return self.name.rpartition(".")[0]

    def matrix(self) -> Tensor:
        """Return what stands for the weight now as a float32 matrix (rows, cols)."""
        return self.form.dense().detach().float().reshape(self.form.rows, self.form.cols)

    def original_matrix(self) -> Tensor:
        """Return the original weight as a float32 matrix (rows, cols)."""
        return self.original.detach().float().reshape(self.form.rows, self.form.cols)

    def need(self, statistic: Statistic) -> Tensor:
        """Return one statistic.

        Raises:
            ConfigError: It was not gathered for this site.
        """
        value: Tensor | None = getattr(self.statistics, statistic) if self.statistics else None
        if value is None:
            raise ConfigError(
                f"{self.name}: no statistic {statistic!r} was gathered; the step needs "
                "calibration data that reaches this layer. Give --data or a Task."
            )
        return value


@dataclass(frozen=True)
class Where:
    """Which sites a step works on.

    Args:
        include: Name patterns (``fnmatch``) of which one must match.
        exclude: Name patterns of which none may match.
        types: Site kinds; None takes those that the method works on by default.
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    types: tuple[SiteKind, ...] | None = None

    def matches(self, name: str, kind: SiteKind, default_types: tuple[SiteKind, ...]) -> bool:
        """Return whether a site is in the scope."""
        return (
            kind in (self.types or default_types)
            and any(fnmatchcase(name, pattern) for pattern in self.include)
            and not any(fnmatchcase(name, pattern) for pattern in self.exclude)
        )


@dataclass(frozen=True)
class Override:
    """Other settings for some of a step's sites: the first override that matches counts."""

    include: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Step(ABC):
    """One step of a recipe: its settings, and how it changes the forms of a model.

    Args:
        where: Scope of the step.
        overrides: Other settings for sites that match a pattern.
    """

    method_name: ClassVar[str]
    shorthand: ClassVar[str | None] = None  # field that a bare value in a recipe sets
    default_types: ClassVar[tuple[SiteKind, ...]] = ("linear", "conv", "experts")
    supported_types: ClassVar[tuple[SiteKind, ...]] = SITE_KINDS

    where: Where = field(default_factory=Where)
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        check_settings(self, owner=self.method_name)
        beyond = sorted(set(self.where.types or ()) - set(self.supported_types))
        if beyond:
            raise ConfigError(
                f"{self.method_name}: where.types={beyond} is not one of "
                f"{list(self.supported_types)}.{nearest(beyond[0], self.supported_types)}"
            )
        for override in self.overrides:
            self._check_override(override)

    def _check_override(self, override: Override) -> None:
        """Build the step as it is at the override's sites, so that a wrong one fails now."""
        allowed = bounds_of(type(self))
        strange = sorted(set(override.settings) - set(allowed))
        if strange:
            raise ConfigError(
                f"{self.method_name}: an override has no setting {strange[0]!r}."
                f"{nearest(strange[0], allowed)} Allowed: {', '.join(allowed)}."
            )
        replace(self, overrides=(), **override.settings)

    @property
    def needs(self) -> frozenset[Statistic]:
        """Statistics that calibration must gather before the step runs."""
        return frozenset()

    def selects(self, site: Site) -> bool:
        """Return whether the step works on a site."""
        return self.where.matches(site.name, site.kind, self.default_types)

    def for_site(self, name: str) -> Self:
        """Return the step with the first matching override applied."""
        for override in self.overrides:
            if any(fnmatchcase(name, pattern) for pattern in override.include):
                return replace(self, overrides=(), **override.settings)
        return self

    @abstractmethod
    def sketch(self, form: Form, *, site: str) -> Form:
        """Return the form that the step would leave, on the meta device: plan and type check.

        Args:
            form: Form before the step; its parts may lie on the meta device.
            site: Name for messages.

        Raises:
            RecipeError: The step does not compose with this kind of form; says why.
            LayerError: The settings do not fit the shape.
        """

    def check_forms(self, forms: Iterable[Form]) -> None:
        """Check the forms of all sites as they stand before the step.

        Raises:
            RecipeError: The model gives the step nothing to work on.
        """
        if not list(forms):
            raise RecipeError(
                f"{self.method_name}: the model has no weight that a method can work on. "
                "`laconic doctor MODEL` lists what it has, and why."
            )

    def check_structure(self, model: nn.Module) -> None:  # noqa: B027 - most need none
        """Check before any work that the model has what the step works on.

        Raises:
            RecipeError: It has not; says what is missing.
        """

    def check_data(self, task: Task | None) -> None:
        """Check before any work that there is the data that the step, or an override of it, needs.

        Raises:
            RecipeError: There is none.
        """
        others = (replace(self, overrides=(), **o.settings) for o in self.overrides)
        needs = self.needs.union(*(step.needs for step in others))
        if needs and (task is None or not len(task.calibration_split() or ())):
            raise RecipeError(
                f"{self.method_name} needs calibration data for {', '.join(sorted(needs))}. Give "
                "--data NAME, or a Task with train or calibration."
            )

    @property
    def needs_initial(self) -> bool:
        """Whether the step goes back to the weights from before the model was trained."""
        return False

    def check_initial(self, given: bool) -> None:
        """Check before any work that there are the initial weights that the step needs.

        Raises:
            RecipeError: There are none.
        """
        if self.needs_initial and not given:
            raise RecipeError(
                f"{self.method_name} goes back to the weights from before training, and none are "
                "given. Give compress(initial=the untrained model); on the command line a seeded "
                "package.module:factory, or --initial FILE. Or set rewind to none, which goes on "
                "from the trained weights."
            )

    def refuse(self, form: Form, reason: str) -> RecipeError:
        """Return the error for a form that the step cannot work on."""
        return RecipeError(f"{self.method_name} cannot follow {form.signature}: {reason}")


@dataclass(frozen=True, kw_only=True)
class LayerStep(Step):
    """A step that works on one site at a time."""

    @property
    def propagate(self) -> Literal["original", "compensated"]:
        """Return whose activations calibration sees: the original's, or the compressed model's."""
        return "original"

    @property
    def sequential(self) -> bool:
        """Return whether calibration goes layer by layer inside a block, in the order they run.

        Each layer then sees what the compressed ones before it give. Only with ``compensated``.
        """
        return False

    @property
    def wishes(self) -> frozenset[Statistic]:
        """Statistics that are gathered where there is calibration data, and done without else."""
        return frozenset()

    @abstractmethod
    def fit(self, site: Site, generator: torch.Generator) -> Form:
        """Return the new form of a site; neither the site nor the model is changed.

        Args:
            site: Weight, current form and the statistics that ``needs`` asked for.
            generator: Source of randomness, seeded for this step and site.

        Raises:
            LayerError: The settings do not fit the layer, or a value is not finite.
        """

    def resolve(self, sites: Sequence[Site]) -> dict[str, LayerStep]:
        """Return the step for each selected site; a method with a global view changes it here."""
        return {site.name: self.for_site(site.name) for site in sites}

    def levels(self) -> tuple[LayerStep, ...]:
        """Return the settings that a budget may choose from, from smallest to largest.

        Empty where the method has no dial between size and quality.
        """
        return ()


@dataclass(frozen=True, kw_only=True)
class CompensatedStep(LayerStep, ABC):
    """A step that works on matrices with the inputs that the compressed layers before it give.

    Args:
        true_sequential: Layers of a block go in the order in which they run, and each sees what
            the compressed ones before it give; else all of a block see its original layers.
    """

    default_types: ClassVar[tuple[SiteKind, ...]] = ("linear", "conv")
    supported_types: ClassVar[tuple[SiteKind, ...]] = ("linear", "conv", "experts")

    true_sequential: bool = setting(False, help="Layers of a block go one after another.")

    @property
    def propagate(self) -> Literal["original", "compensated"]:
        """Return ``compensated``: each block sees what the compressed blocks before it give."""
        return "compensated"

    @property
    def sequential(self) -> bool:
        """Return whether layers of a block see the compressed ones before them."""
        return self.true_sequential


@dataclass(frozen=True, kw_only=True)
class ModelStep(Step):
    """A step that works on the whole model, such as recovery by training."""

    default_types: ClassVar[tuple[SiteKind, ...]] = SITE_KINDS

    @abstractmethod
    def run_(self, job: RecoverJob) -> dict[str, Any]:
        """Change the parameters of the compressed model in place; return a summary as JSON."""

    def sketch(self, form: Form, *, site: str) -> Form:
        """Return the form unchanged: training moves values, not structure."""
        return form
