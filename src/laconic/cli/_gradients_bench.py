"""``laconic gradients bench``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from laconic.cli._gradients_options import adaptive_option, check_method, settings_option
from laconic.cli._group import Command
from laconic.cli._options import data_options, json_option, load, prepare, weights_option
from laconic.cli._output import note, show, show_json

EXAMPLES = (
    "laconic gradients bench net:build --data digits --method dgc --method powersgd",
    "laconic gradients bench ./my-model --data tinystories --ranks 4 --link 100 --link 1000 "
    "--method topk --set density=0.01 --plot steps.svg",
)
_PEERS = {"DDP": "ddp", "PyTorch fp16": "torch-fp16", "PyTorch PowerSGD": "torch-powersgd"}


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("model")
@weights_option
@data_options
@click.option("--method", "methods", multiple=True, default=("dgc",), show_default=True,
              help="Methods to time beside plain DDP and PyTorch's own hooks.")  # fmt: skip
@settings_option
@adaptive_option
@click.option("--ranks", type=click.IntRange(2, 64), default=2, show_default=True,
              help="Processes on this machine.")  # fmt: skip
@click.option("--link", "links", type=click.FloatRange(min=0, min_open=True), multiple=True,
              metavar="MBIT", help="Link speed in Mbit/s; needs the right to make network "
              "namespaces. Loopback, without a limit, where none is given.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), default=50, show_default=True,
              help="Counted steps of each variant.")  # fmt: skip
@click.option("--warmup", type=click.IntRange(min=2), default=10, show_default=True,
              help="Steps before those.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True,
              help="Examples of a rank in a step.")  # fmt: skip
@click.option("--lr", type=click.FloatRange(min=0), default=0.01, show_default=True,
              help="Step length.")  # fmt: skip
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write an SVG.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Seed of everything random.")  # fmt: skip
@json_option
def command(
    model: str,
    weights: Path | None,
    data: str | None,
    data_options: dict[str, Any],
    methods: tuple[str, ...],
    settings: dict[str, Any],
    adaptive: bool,
    ranks: int,
    links: tuple[float, ...],
    steps: int,
    warmup: int,
    batch_size: int,
    lr: float,
    plot: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Time training steps of MODEL on this machine, a process a rank, at each link speed.

    A step is split into computing, making and reading messages, and waiting for the wire; all
    variants take turns. With more ranks than cores computing is slower than on machines of their
    own, and the table says so.
    """
    from laconic.gradients.timing import PEERS

    if data is None:
        raise click.UsageError("--data NAME is needed: steps are timed on its training split.")
    known = [m for m in methods if m not in PEERS]
    for method in known:
        check_method(method, _own(method, settings, known))
    prepare(seed, None, "cpu")
    load(model, weights, data, data_options, seed)  # whatever is wrong is said here, once
    variants: list[dict[str, Any]] = [
        *({"label": label, "method": peer} for label, peer in _PEERS.items()),
        *(
            {
                "label": f"l-greco ({m})" if adaptive else m,
                "method": m,
                "settings": _own(m, settings, known),
                "adaptive": adaptive,
            }
            for m in known
        ),
        {"label": "no exchange", "method": "no-exchange"},
    ]
    spec = {
        "model": model, "weights": str(weights.resolve()) if weights else None, "data": data,
        "data_options": data_options, "seed": seed, "variants": variants, "lr": lr,
        "batch_size": batch_size, "batches": min(steps, 32), "steps": steps, "warmup": warmup,
    }  # fmt: skip
    found = [_measured(spec, ranks, link) for link in links or (None,)]
    if plot:
        _draw(found, plot)
    if as_json:
        show_json({"model": model, "ranks": ranks, "cores": _cores(), "links": found})
        return
    _show(found, ranks)


def _own(method: str, settings: dict[str, Any], methods: Sequence[str]) -> dict[str, Any]:
    """Return the settings that go to a method: all to a single one, else those that it has."""
    from laconic import registry
    from laconic.settings import bounds_of

    if len(methods) == 1:
        return settings
    has = bounds_of(registry.get(method, wing="gradients").cls)
    return {key: value for key, value in settings.items() if key in has}


def _measured(spec: dict[str, Any], ranks: int, link: float | None) -> dict[str, Any]:
    from laconic.gradients.launch import run_ranks
    from laconic.gradients.links import shaped_links
    from laconic.gradients.timing import summarize

    note(f"{ranks} ranks, {_speed(link)} ...")
    with shaped_links(ranks, link) as places:
        before = places[0].traffic()
        told = run_ranks("laconic.cli._gradients_rank", spec, places, timeout_s=3600)
        after = places[0].traffic()
    kernel = {"received": after[0] - before[0], "sent": after[1] - before[1]}
    return {"link_mbit": link, "rows": summarize(told), "kernel_bytes_of_rank_0": kernel}


def _speed(link: float | None) -> str:
    return "loopback without a limit" if link is None else f"{link:g} Mbit/s a rank"


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _show(found: list[dict[str, Any]], ranks: int) -> None:
    from laconic.report.terminal import plain_table
    from laconic.units import format_bytes

    for link in found:
        dense = next(r["step_ms"] for r in link["rows"] if r["variant"] == "DDP")
        rows = [
            [row["variant"], f"{row['step_ms']:.1f} ms",
             *(f"{row[k]:.1f} ms" if k in row else "" for k in
               ("compute_ms", "compress_ms", "transfer_ms")),
             format_bytes(row["sent_bytes"]) if "sent_bytes" in row else "",
             f"{dense / row['step_ms']:.2f}x"]
            for row in link["rows"]
        ]  # fmt: skip
        headings = ["variant", "step", "compute", "compress", "transfer", "sent", "speed over DDP"]
        title = f"{ranks} ranks, {_speed(link['link_mbit'])}: median step of the slowest rank"
        show(plain_table(title, headings, rows, text_columns=1))
    if ranks > _cores():
        note(f"{ranks} ranks share {_cores()} cores: computing is slower than on as many machines.")


def _draw(found: list[dict[str, Any]], path: Path) -> None:
    from laconic.files import write_atomic
    from laconic.report.stacked import Bar, stacked_bars

    parts = ("compute_ms", "compress_ms", "transfer_ms")
    panels = {
        _speed(link["link_mbit"]): [
            Bar(row["variant"], tuple(row[p] for p in parts))
            if parts[0] in row
            else Bar(row["variant"], (row["step_ms"], 0.0, 0.0), split=False)
            for row in link["rows"]
        ]
        for link in found
    }
    svg = stacked_bars(panels, ("compute", "compress", "transfer"), unit="ms")
    write_atomic(path, svg)
    note(f"Wrote {path}")
