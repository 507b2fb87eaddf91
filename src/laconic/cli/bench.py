"""``laconic bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from laconic.cli._group import Command
from laconic.cli._options import (
    FOLDER,
    example_options,
    json_option,
    prepare,
    require_artifact,
    run_options,
)
from laconic.cli._output import note, show, show_json

if TYPE_CHECKING:
    from laconic.bench import Bench

EXAMPLES = (
    "laconic bench small",
    "laconic bench small --data digits --batch 1 --batch 64 --threads 1",
    "laconic bench small --input 1,3,32,32 --json",
)


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("folder", type=FOLDER)
@example_options
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 32),
    show_default=True,
    help="Examples in a call; may be given again.",
)
@click.option(
    "--repeats", type=click.IntRange(min=3), default=30, show_default=True, help="Turns of each."
)
@run_options
@json_option
def command(
    folder: Path,
    data: str | None,
    input_shape: tuple[int, ...] | None,
    tokens: int,
    batches: tuple[int, ...],
    repeats: int,
    seed: int,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Time the compressed model in FOLDER against two dense baselines.

    The baselines are plain torch and ONNX Runtime, both in fp32. Every variant runs in a process
    of its own, in turns with the others. Where the compressed model is slower, it says so.
    """
    if device != "cpu":
        raise click.UsageError(f"--device {device}: bench times on the cpu.")
    from laconic.bench import run_bench

    require_artifact(folder)
    prepare(seed, threads, device)
    result = run_bench(
        folder,
        data=data,
        shape=input_shape,
        tokens=tokens,
        batch_sizes=batches,
        threads=threads,
        repeats=repeats,
        seed=seed,
    )
    for name, reason in result.missing.items():
        note(f"laconic: {name} was not measured: {reason}")
    if as_json:
        show_json(result)
        return
    _show(result)


def _show(result: Bench) -> None:
    from laconic.report import words
    from laconic.report.model import Latency
    from laconic.report.terminal import plain_table

    rows = []
    for name, by_size in result.timings.items():
        for size, timing in by_size.items():
            ours = result.timings["compressed"][size]
            rows.append(
                [
                    name,
                    words.examples(size),
                    f"{words.number(timing['median'])} ms",
                    f"{words.number(timing['min'])} ms",
                    f"{words.number(timing['spread'])} ms",
                    "" if name == "compressed" else words.times(ours["median"] / timing["median"]),
                ]
            )
    rows += [[name, "", words.NOT_MEASURED, "", "", ""] for name in result.missing]
    headings = ["variant", "batch", "median", "least", "spread", "compressed takes"]
    show(plain_table(f"Latency, {result.threads} thread(s)", headings, rows, text_columns=2))
    for name, by_size in result.timings.items():
        for size, timing in by_size.items() if name != "compressed" else ():
            now = Latency.model_validate(result.timings["compressed"][size])
            said = words.latency_sentence(Latency.model_validate(timing), now, of="baseline")
            show(f"{words.examples(size)}, against {name}: {said}")
