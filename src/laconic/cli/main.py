"""The root of the command line; imports nothing heavy."""

from __future__ import annotations

import click

from laconic.cli._group import LazyGroup

_HERE = "laconic.cli"
COMMANDS = {
    "compress": (f"{_HERE}.compress", "Compress a model by a recipe, down to a budget."),
    "search": (f"{_HERE}.search", "Search which level each weight takes, within a budget."),
    "inspect": (f"{_HERE}.inspect", "Show what is in a compressed model, weight by weight."),
    "compare": (f"{_HERE}.compare", "Set several runs beside each other."),
    "measure": (f"{_HERE}.measure", "Measure the quality of a model on held-out data."),
    "bench": (f"{_HERE}.bench", "Time a compressed model against two dense baselines."),
    "export": (f"{_HERE}.export", "Write a compressed model as a dense one or as ONNX."),
    "verify": (f"{_HERE}.verify", "Check every byte of a compressed model."),
    "doctor": (f"{_HERE}.doctor", "Say what each family can do for a model, before any work."),
    "gradients": (f"{_HERE}.gradients", "Make the gradients of distributed training smaller."),
    "recipes": (f"{_HERE}.recipes", "List the built-in recipes, or show one."),
    "methods": (f"{_HERE}.methods", "List the methods, or the settings of one."),
    "study": (f"{_HERE}.study", "Run the studies: one paper's claim each."),
}

EXAMPLES = (
    "laconic doctor ./my-model",
    "laconic compress ./my-model --recipe w4 --data wikitext2 --out small",
    "laconic compress net:build --weights net.safetensors --recipe deep-compression "
    "--data digits --budget 8x --out small",
    "laconic bench small",
    "laconic export small --to dense --out dense",
)


def _version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"laconic {version('laconic')}")
        context.exit()


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    examples=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    callback=_version,
    expose_value=False,
    is_eager=True,
    help="Show the version.",
)
def main() -> None:
    """Make what deep learning carries smaller, and prove what that cost.

    MODEL is a Hugging Face folder or id, a folder that laconic wrote, or package.module:factory
    with --weights FILE. Results go to stdout, progress to stderr. Exit codes: 0 done, 1 failed
    with one line that says why, 2 wrong usage.
    """


if __name__ == "__main__":
    main()
