"""``laconic export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from laconic.cli._group import Command
from laconic.cli._options import (
    FOLDER,
    example_options,
    json_option,
    out_options,
    prepare,
    require_apart,
    require_artifact,
    run_options,
)
from laconic.cli._output import note, show_json

if TYPE_CHECKING:
    from laconic.artifact import ExportReport

EXAMPLES = (
    "laconic export small --to dense --out dense",
    "laconic export small --to compressed-tensors --out served",
    "laconic export small --to onnx --data digits --out small.onnx",
)


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("folder", type=FOLDER)
@click.option(
    "--to",
    "target",
    type=click.Choice(["dense", "compressed-tensors", "onnx"]),
    default="dense",
    show_default=True,
    help="A Hugging Face folder (or safetensors and a graph); one that vLLM loads packed; or one "
    "ONNX file in fp32.",
)
@click.option(
    "--mixed",
    is_flag=True,
    help="compressed-tensors: let layers that engines fuse (q, k, v) differ; vLLM refuses that.",
)
@example_options
@out_options
@run_options
@json_option
def command(
    folder: Path,
    target: str,
    mixed: bool,
    data: str | None,
    input_shape: tuple[int, ...] | None,
    tokens: int,
    out: Path,
    force: bool,
    seed: int,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Write the compressed model in FOLDER for other tools; the result runs without laconic.

    \b
    dense               the compressed model's values at the original's size
    compressed-tensors  quantized linear layers packed, for transformers and vLLM; a low-rank
                        correction goes into adapter/ as a LoRA
    onnx                one file in fp32 for ONNX Runtime
    """
    from laconic import artifact, measure
    from laconic.bench import dense_model, example_input
    from laconic.files import refuse_existing

    require_artifact(folder)
    require_apart(out, folder)
    prepare(seed, threads, device)
    refuse_existing(out, force=force)
    if target == "dense":
        artifact.export_dense(folder, out, force=force)
    elif target == "compressed-tensors":
        _say(artifact.export_compressed_tensors(folder, out, force=force, mixed=mixed))
    else:
        model = dense_model(folder)
        example = example_input(
            model, folder, data=data, shape=input_shape, tokens=tokens, seed=seed
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        measure.export_onnx(model, example, out)
    sizes = measure.model_bytes(out)
    if as_json:
        show_json({"out": str(out), "files": sizes, "bytes": sum(sizes.values())})
        return
    from laconic.units import format_bytes

    note(f"Wrote {out}")
    click.echo(f"{format_bytes(sum(sizes.values()))} in {len(sizes)} file(s)")


def _say(report: ExportReport) -> None:
    note(f"{len(report.packed)} layers packed, {len(report.adapter)} with a correction in adapter/")
    for name, reason in report.dense.items():
        note(f"written dense: {name}: {reason}")
