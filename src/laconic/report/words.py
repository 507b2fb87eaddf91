"""Figures as people read them; what was not measured says so."""

from __future__ import annotations

import math

from laconic.report.model import Figures, Latency, Metric, Report
from laconic.units import format_bytes

NOT_MEASURED = "not measured"
_SHARES = ("top1", "top5", "accuracy", "worst_class", "agreement")
_UP = (*_SHARES, "r2", "psnr", "f1")
_TITLES = {
    "top1": "Accuracy (top-1)",
    "top5": "Accuracy (top-5)",
    "accuracy": "Accuracy",
    "worst_class": "Worst class",
    "perplexity": "Perplexity",
    "loss": "Loss",
    "mse": "Mean squared error",
    "r2": "R²",
    "logit_kl": "Logit KL",
    "bits_per_byte": "Bits per byte",
}
_AGAINST_ORIGINAL = {
    "logit_kl": "Mean divergence from the original's predictions, in nats.",
    "agreement": "Share of predictions that are the original's.",
}
_PREFERRED = ("top1", "accuracy", "perplexity", "bits_per_byte", "r2", "mse")


def title(metric: str) -> str:
    """Return the name of a metric as a heading."""
    return _TITLES.get(metric, metric.replace("_", " ").capitalize())


def higher_is_better(metric: str) -> bool:
    """Return the direction of a metric."""
    return metric in _UP


def direction(metric: str) -> str:
    """Say the direction of a metric."""
    return "higher is better" if higher_is_better(metric) else "lower is better"


def is_share(metric: str) -> bool:
    """Return whether a metric is a share that reads as a percentage."""
    return metric in _SHARES


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with a fixed count of meaningful digits."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    if places > 6:
        return f"{value:.1e}"
    return f"{value:,.{places}f}"


def percent(share: float | None, places: int = 1) -> str:
    """Write a share as a percentage."""
    return NOT_MEASURED if share is None else f"{100 * share:.{places}f} %"


def size(count: float | None) -> str:
    """Write a byte count."""
    return NOT_MEASURED if count is None else format_bytes(count)


def times(ratio: float | None) -> str:
    """Write a ratio, for example ``6.54x``."""
    return NOT_MEASURED if ratio is None else f"{number(ratio)}x"


def seconds(value: float | None) -> str:
    """Write a duration."""
    if value is None:
        return NOT_MEASURED
    if value < 90:
        return f"{number(value, 2)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def metric_value(name: str, metric: Metric | None) -> str:
    """Write a metric without its interval."""
    if metric is None:
        return NOT_MEASURED
    return percent(metric.value, 2) if is_share(name) else number(metric.value, 4)


def reference_value(name: str, original: Metric | None) -> str:
    """Write the original's value; for a distance from the original it is the reference itself."""
    if original is None and name in _AGAINST_ORIGINAL:
        return "reference"
    return metric_value(name, original)


def interval(name: str, metric: Metric | None) -> str:
    """Write the 95 % interval of a metric; empty where there is none."""
    if metric is None or metric.low is None or metric.high is None:
        return ""
    if is_share(name):
        return f"{100 * metric.low:.2f} to {100 * metric.high:.2f} %"
    return f"{number(metric.low, 4)} to {number(metric.high, 4)}"


def milliseconds(latency: Latency | None) -> str:
    """Write the median time of a call."""
    return NOT_MEASURED if latency is None else f"{number(latency.median)} ms"


def ratio_of(report: Report) -> float | None:
    """Return original bytes / compressed bytes, where both are known."""
    before, after = report.original.bytes, report.compressed.bytes
    return before / after if before and after else report.ratio


def primary(report: Report) -> str | None:
    """Return the metric of the headline: the one named, else the first that was measured."""
    if report.primary_metric:
        return report.primary_metric
    names = [*_PREFERRED, *report.compressed.metrics, *report.original.metrics]
    for figures in (report.compressed, report.original):
        for name in names:
            if figures.metric(name):
                return name
    return None


def shown_metrics(report: Report) -> list[str]:
    """Return the metrics that have one value, the headline's first."""
    first = primary(report)
    names = dict.fromkeys([*report.original.metrics, *report.compressed.metrics])
    single = [
        name for name in names if report.original.metric(name) or report.compressed.metric(name)
    ]
    return ([first] if first else []) + [name for name in single if name != first]


def size_sentence(report: Report) -> str:
    """Say what became of the size; a growth is called one."""
    before, after, ratio = report.original.bytes, report.compressed.bytes, ratio_of(report)
    if not before or not after or ratio is None:
        return "The size of one of the two was not measured."
    if after > before:
        return f"Larger than the original by {percent(after / before - 1)}."
    return f"{percent(1 - after / before)} of the bytes on disk are gone."


def metric_sentence(name: str, original: Metric | None, compressed: Metric | None) -> str:
    """Say how a metric moved, and whether the intervals overlap."""
    if name in _AGAINST_ORIGINAL:
        return _AGAINST_ORIGINAL[name]
    if original is None or compressed is None:
        return "One of the two was not measured."
    change = compressed.value - original.value
    if change == 0:
        return "The same value as the original."
    if is_share(name):
        moved = f"{abs(100 * change):.2f} points {'higher' if change > 0 else 'lower'}"
    elif original.value:
        share = abs(change / original.value)
        moved = f"{percent(share, 2)} {'higher' if change > 0 else 'lower'}"
    else:
        moved = f"{number(abs(change), 4)} {'higher' if change > 0 else 'lower'}"
    better = (change > 0) == higher_is_better(name)
    return f"{moved} ({'better' if better else 'worse'}).{_overlap(original, compressed)}"


def _overlap(one: Metric, two: Metric) -> str:
    if one.low is None or one.high is None or two.low is None or two.high is None:
        return ""
    apart = one.high < two.low or two.high < one.low
    return f" The 95 % intervals {'do not overlap' if apart else 'overlap'}."


def latency_sentence(
    original: Latency | None, compressed: Latency | None, *, of: str = "original"
) -> str:
    """Say whether the compressed model is faster; a slow-down is called one."""
    if original is None or compressed is None or not compressed.median or not original.median:
        return "Latency was not measured; add --latency, or run laconic bench."
    ratio = compressed.median / original.median
    noise = max(original.spread or 0.0, compressed.spread or 0.0)
    if abs(compressed.median - original.median) <= noise:
        return "No difference beyond the spread of the repeats."
    if ratio > 1:
        return f"Slower: a call takes {times(ratio)} the time of the {of}."
    return f"Faster: {times(1 / ratio)} the speed of the {of}."


def is_slower(original: Figures, compressed: Figures) -> bool:
    """Return whether the compressed model's median call takes longer."""
    one, two = original.call, compressed.call
    return bool(one and two and two.median > one.median)


def batch_sizes(report: Report) -> list[int]:
    """Return the batch sizes at which a latency was measured; 1 where none was."""
    return sorted({*report.original.latency_ms, *report.compressed.latency_ms}) or [1]


def examples(batch_size: int) -> str:
    """Name a batch size."""
    return "1 example" if batch_size == 1 else f"{batch_size} examples"


def data_name(report: Report) -> str:
    """Return the name of the data set; empty where there is none."""
    return str(report.task.get("data") or report.task.get("name") or "")
