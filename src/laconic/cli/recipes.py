"""``laconic recipes``."""

from __future__ import annotations

import click

from laconic.cli._group import Command
from laconic.cli._options import json_option
from laconic.cli._output import show, show_json

EXAMPLES = (
    "laconic recipes",
    "laconic recipes deep-compression > mine.yaml",
)


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the built-in recipes, or show the one of this NAME (or .yaml file)."""
    from laconic.recipe import Recipe, builtin_texts

    if name is not None:
        recipe = Recipe.load(name)
        if as_json:
            show_json(recipe.to_dict())
        else:
            click.echo(recipe.to_yaml(), nl=False)
        return
    recipes = [Recipe.load(known) for known in builtin_texts()]
    if as_json:
        show_json([recipe.to_dict() for recipe in recipes])
        return
    from laconic.report.terminal import plain_table

    rows = [
        [recipe.name, " > ".join(step.method_name for step in recipe.steps), recipe.description]
        for recipe in recipes
    ]
    show(plain_table("Recipes", ["name", "steps", "what for"], rows, text_columns=3))
