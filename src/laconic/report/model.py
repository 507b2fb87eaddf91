"""The definition of ``report.json``: every key that a report may have, with its type.

A value that was not measured is absent or null, never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    Tag,
    ValidationError,
    model_validator,
)

from laconic.errors import ConfigError, nearest


class _Row(BaseModel):
    """A row with fixed keys: a key that nobody would show is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(BaseModel):
    """A measured value with its 95 % interval and the number of examples behind it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    value: float
    low: float | None = None
    high: float | None = None
    n: NonNegativeInt | None = None
    name: str | None = Field(default=None, description="What it belongs to: the worst class.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"interval low={self.low} lies above high={self.high}")
        return self


def _as_metric(value: Any) -> Any:
    """Turn a bare number into a metric without an interval."""
    return {"value": value} if isinstance(value, int | float) else value


def _one_or_group(value: Any) -> str:
    """Tell a metric from a group of them, such as ``per_class``."""
    group = isinstance(value, Mapping) and "value" not in value
    return "group" if group else "one"


MetricValue = Annotated[Metric, BeforeValidator(_as_metric)]
MetricEntry = Annotated[
    Annotated[MetricValue, Tag("one")] | Annotated[dict[str, MetricValue], Tag("group")],
    Discriminator(_one_or_group),
]


class Latency(BaseModel):
    """Time of one call in milliseconds, over repeats taken in turns with the original."""

    model_config = ConfigDict(extra="allow", frozen=True)

    median: NonNegativeFloat
    min: NonNegativeFloat | None = None
    spread: NonNegativeFloat | None = Field(default=None, description="Interquartile range.")
    batch_size: int | None = None
    threads: int | None = None
    repeats: int | None = None


def _by_batch_size(value: Any) -> Any:
    """Turn one timing, or a bare median, into timings by batch size."""
    if isinstance(value, int | float):
        return {1: {"median": value}}
    if isinstance(value, Latency):
        return {value.batch_size or 1: value}
    if isinstance(value, Mapping) and "median" in value:
        return {value.get("batch_size") or 1: value}
    return {} if value is None else value


class Figures(_Row):
    """What was measured of one model.

    Attributes:
        bytes: Size on disk of the files that are needed to run it.
        files: The same by file name.
        metrics: Quality on held-out data by metric name; nested by class in ``per_class``.
        latency_ms: Time of one call by batch size; empty where it was not measured.
        memory_bytes: Peak memory of one call.
    """

    bytes: NonNegativeInt | None = None
    files: dict[str, NonNegativeInt] = {}
    metrics: dict[str, MetricEntry | None] = {}
    latency_ms: Annotated[dict[int, Latency], BeforeValidator(_by_batch_size)] = {}
    memory_bytes: NonNegativeInt | None = None

    def metric(self, name: str) -> Metric | None:
        """Return a metric by name; None where it was not measured."""
        found = self.metrics.get(name)
        return found if isinstance(found, Metric) else None

    @property
    def call(self) -> Latency | None:
        """Time of a call at the smallest batch size; None where it was not measured."""
        return self.latency_ms[min(self.latency_ms)] if self.latency_ms else None

    @property
    def per_class(self) -> dict[str, Metric]:
        """Quality of each class by its name; empty where it was not measured."""
        found = self.metrics.get("per_class")
        return found if isinstance(found, dict) else {}


class StepRow(BaseModel):
    """What one step of the recipe did and cost; a method may add keys of its own."""

    model_config = ConfigDict(extra="allow", frozen=True)

    step: str
    seconds: NonNegativeFloat | None = None
    bytes_after: NonNegativeInt | None = None
    metrics_after: dict[str, MetricEntry | None] | None = None

    @property
    def figures(self) -> Figures:
        """Size and quality after the step."""
        return Figures(bytes=self.bytes_after, metrics=self.metrics_after or {})


class SiteRow(_Row):
    """One weight of the model.

    Attributes:
        bits: Stored bits per weight, with scales, indices and coding.
        entropy_bits: Order-0 entropy of its symbols per weight.
        error: ``|W - W'| / |W|`` (Frobenius).
        output_error: Relative error of the layer's output on held-out inputs.
    """

    name: str
    kind: str
    form: str
    shape: tuple[int, ...]
    weights: NonNegativeInt
    bytes_original: NonNegativeInt
    bytes_stored: NonNegativeInt | None = None
    bits: NonNegativeFloat | None = None
    entropy_bits: NonNegativeFloat | None = None
    error: NonNegativeFloat | None = None
    output_error: NonNegativeFloat | None = None
    aliases: tuple[str, ...] = ()


class TradeOffPoint(_Row):
    """One point of the trade-off plot: a model of some size and its quality."""

    name: str
    kind: Literal["original", "step", "uniform", "compressed"]
    bytes: Annotated[int, Field(gt=0)]
    metrics: dict[str, MetricEntry | None] = {}

    def metric(self, name: str) -> Metric | None:
        """Return a metric by name; None where it was not measured."""
        found = self.metrics.get(name)
        return found if isinstance(found, Metric) else None


class Report(_Row):
    """A whole report.

    Attributes:
        format_version: Version of this definition.
        name: What was compressed, for the title.
        task: Data set, split and number of examples behind the metrics.
        primary_metric: The metric of the headline and of the plot.
        ratio: Original bytes / compressed bytes.
        budget: What was asked for, where a budget was given.
        recipe: The recipe as plain values.
        kernels: How each layer runs on this device, by site name.
        skipped: Weights that were left alone, with the reason.
        trade_off: Points of the plot; built from the steps where it is empty.
        commands: Commands that reproduce the run.
        warnings: What the run warned of.
    """

    format_version: Literal[1] = 1
    name: str = "model"
    task: dict[str, Any] = {}
    primary_metric: str | None = None
    original: Figures
    compressed: Figures
    ratio: NonNegativeFloat | None = None
    budget: dict[str, Any] | None = None
    steps: tuple[StepRow, ...] = ()
    sites: tuple[SiteRow, ...] = ()
    recipe: dict[str, Any] | None = None
    environment: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    kernels: dict[str, str] = {}
    skipped: dict[str, str] = {}
    trade_off: tuple[TradeOffPoint, ...] = ()
    commands: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _ratio_agrees(self) -> Self:
        before, after = self.original.bytes, self.compressed.bytes
        if self.ratio is not None and before and after:
            real = before / after
            if abs(self.ratio - real) > 0.01 * real:
                raise ValueError(f"ratio={self.ratio} but the bytes give {real:.4g}")
        return self


def parse(report: Mapping[str, Any] | Report) -> Report:
    """Check a report against the definition.

    Raises:
        ConfigError: A key is missing, unknown or of the wrong type; says which.
    """
    if isinstance(report, Report):
        return report
    try:
        return Report.model_validate(report)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top level"
        hint = ""
        if first["type"] == "extra_forbidden":
            hint = nearest(str(first["loc"][-1]), _known_keys())
        raise ConfigError(
            f"report.json: {where}: {first['msg']}, got {_short(first['input'])}.{hint} "
            "docs/report.md lists every key."
        ) from error


def _known_keys() -> set[str]:
    models: tuple[type[BaseModel], ...] = (Report, Figures, SiteRow, TradeOffPoint)
    return {key for model in models for key in model.model_fields}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
