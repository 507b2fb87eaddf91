"""Recipes: an ordered list of steps, the same from YAML and from Python.

A recipe is checked whole before any work starts. A wrong one raises ``RecipeError`` with the
line, the field, what came, what is allowed and the nearest name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

import torch
import yaml

from laconic import registry
from laconic.errors import ConfigError, LayerError, RecipeError, nearest
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.settings import bounds_of
from laconic.weights.base import Override, Step, Where

Coding = Literal["fast", "smallest"]
_TOP = ("name", "description", "coding", "steps")
_CODINGS = ("fast", "smallest")
_WHERE = ("include", "exclude", "types")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An ordered list of steps and how the result is entropy-coded.

    Args:
        steps: Steps in the order in which they run.
        name: For tables and files.
        description: One sentence for ``laconic recipes``.
        coding: ``fast`` keeps to coders that decode at 100 M symbols/s a core; ``smallest``
            takes the smallest of all.

    Raises:
        RecipeError: No steps, something that is not a step, a text of the wrong type, or an
            unknown coding.
    """

    steps: tuple[Step, ...]
    name: str = "recipe"
    description: str = ""
    coding: Coding = "fast"

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        for field in ("name", "description"):
            if not isinstance(getattr(self, field), str):
                raise RecipeError(f"recipe: {field}={getattr(self, field)!r} must be a text.")
        if not self.steps:
            raise RecipeError(f"recipe {self.name!r} has no steps; give at least one.")
        strangers = [type(step).__name__ for step in self.steps if not isinstance(step, Step)]
        if strangers:
            raise RecipeError(f"recipe {self.name!r}: {strangers} are not steps of laconic.")
        if self.coding not in _CODINGS:
            raise RecipeError(f"recipe {self.name!r}: {_wrong_coding(self.coding)}")

    def check(self) -> None:
        """Try the steps on a sketch of one linear weight; those with a scope are tried alone.

        Raises:
            RecipeError: Two steps of the same scope do not compose; says which and why.
        """
        for number, clash in self.clashes():
            raise RecipeError(f"recipe {self.name!r}, step {number}: {clash}") from clash

    def clashes(self) -> Iterator[tuple[int, RecipeError]]:
        """Yield the number and the error of each step that cannot follow those before it."""
        everywhere, scoped = Where(), False
        form: Form = Dense(torch.empty(256, 256, device="meta"))
        for number, step in enumerate(self.steps, 1):
            if step.where != everywhere:
                scoped = True
                continue
            try:
                if not scoped:  # else a step before may have worked on sites of its own
                    step.check_forms((form,))
                form = step.sketch(form, site="any")
            except LayerError:
                continue  # only the plan, with real shapes, can tell
            except RecipeError as error:
                yield number, error

    @classmethod
    def load(cls, name_or_path: str | Path) -> Recipe:
        """Read a recipe from a YAML file, or a built-in one by its name.

        Raises:
            RecipeError: Neither a file nor a built-in name, or the content is wrong.
        """
        path = Path(name_or_path)
        if path.suffix in (".yaml", ".yml") or path.is_file():
            if not path.is_file():
                raise RecipeError(f"recipe file {path} does not exist.")
            try:
                return cls.from_yaml(path.read_text(encoding="utf-8"), source=path.name)
            except UnicodeDecodeError as error:
                raise RecipeError(f"recipe file {path.name} is not UTF-8 text: {error}.") from error
        texts = builtin_texts()
        if str(name_or_path) not in texts:
            raise RecipeError(
                f"no recipe {str(name_or_path)!r}.{nearest(str(name_or_path), texts)} "
                f"Built in: {', '.join(texts)}; or give the path of a .yaml file."
            )
        return cls.from_yaml(texts[str(name_or_path)], source=str(name_or_path))

    @classmethod
    def from_yaml(cls, text: str, *, source: str = "recipe") -> Recipe:
        """Read a recipe from YAML text; ``source`` names it in messages."""
        return _Reader(source).read(text)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values: what YAML holds."""
        return {
            "name": self.name,
            **({"description": self.description} if self.description else {}),
            **({"coding": self.coding} if self.coding != "fast" else {}),
            "steps": [{step.method_name: step_settings(step)} for step in self.steps],
        }

    def to_yaml(self) -> str:
        """Write the recipe as YAML; ``from_yaml`` gives an equal recipe."""
        return yaml.dump(
            self.to_dict(), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100,
        )  # fmt: skip


def _wrong_coding(coding: object) -> str:
    return f"coding={coding!r} must be 'fast' or 'smallest'.{nearest(str(coding), _CODINGS)}"


def step_settings(step: Step) -> dict[str, Any]:
    """Return the settings of a step that differ from their defaults, as plain values."""
    found: dict[str, Any] = {}
    for field in fields(step):
        value = getattr(step, field.name)
        if field.name == "overrides":
            rows = [{"include": list(o.include), **o.settings} for o in step.overrides]
            found |= {"overrides": rows} if rows else {}
        elif field.name == "where":
            scope = {
                key: list(getattr(value, key))
                for key in _WHERE
                if getattr(value, key) != getattr(Where(), key)
            }
            found |= {"where": scope} if scope else {}
        elif value != field.default:
            found[field.name] = value
    return found


def builtin_texts() -> dict[str, str]:
    """Return the YAML text of every built-in recipe by its name."""
    folder = resources.files("laconic") / "recipes"
    files = sorted(
        (f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda file: file.name
    )
    texts = [file.read_text(encoding="utf-8") for file in files]
    return {yaml.load(text, Loader=_Loader)["name"]: text for text in texts}


_CORE = {  # plain values of YAML 1.2: 2:4 is a text, 1e-3 a number, 010 ten, "no" a text
    "bool": ("true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": ("[-+]?[0-9]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
_KEPT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2, in which fewer texts turn into something else."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as in the base class
        first: [rule for rule in rules if rule[0] in _KEPT]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def _whole(self, node: yaml.ScalarNode) -> int:
        return int(node.value)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that a reader of YAML 1.1 or 1.2 would take for something else."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as in the base class
        first: list(rules) for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _name, (_pattern, _firsts) in _CORE.items():
    for _yaml in (_Loader, _Dumper):
        _yaml.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), list(_firsts)
        )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader._whole)


class _Reader:
    """Turns YAML nodes into steps and keeps the line of each for messages."""

    def __init__(self, source: str) -> None:
        self.source = source

    def error(self, node: yaml.Node, message: str) -> RecipeError:
        return RecipeError(f"{self.source}, line {node.start_mark.line + 1}: {message}")

    def read(self, text: str) -> Recipe:
        """Read a whole recipe; every mistake is told with its line."""
        try:
            root = yaml.compose(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise RecipeError(f"{self.source} is not YAML: {error}") from error
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(
                f"{self.source}, line 1: a recipe is a mapping with the key 'steps', such as "
                "'steps: [round-to-nearest]'."
            )
        top = self.mapping(root, _TOP, "a recipe")
        if not isinstance(top.get("steps"), yaml.SequenceNode):
            raise self.error(root, "a recipe needs 'steps', a list of methods with settings.")
        values = {key: self.value(node) for key, node in top.items() if key != "steps"}
        for key, value in values.items():
            if not isinstance(value, str):
                raise self.error(top[key], f"{key}={value!r} must be a text.")
        if values.get("coding", "fast") not in _CODINGS:
            raise self.error(top["coding"], _wrong_coding(values["coding"]))
        nodes = top["steps"].value
        if not nodes:
            raise self.error(top["steps"], "steps=[] must hold at least one step.")
        recipe = Recipe(steps=tuple(self.step(node) for node in nodes), **values)
        for number, clash in recipe.clashes():
            raise self.error(nodes[number - 1], f"step {number}: {clash}") from clash
        return recipe

    def mapping(self, node: yaml.Node, allowed: tuple[str, ...], what: str) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, f"{what} must be a mapping of settings.")
        found: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key not in allowed:
                raise self.error(
                    key_node,
                    f"{what} has no field {key!r}.{nearest(key, allowed)} "
                    f"Allowed: {', '.join(allowed)}.",
                )
            if key in found:
                raise self.error(key_node, f"{what}: field {key!r} is given twice.")
            found[key] = value_node
        return found

    def value(self, node: yaml.Node) -> Any:
        # Nodes are composed once, so that the line is known; a loader turns them into values.
        loader = _Loader("")
        try:
            return loader.construct_object(node, deep=True)
        except yaml.YAMLError as error:
            raise self.error(node, f"cannot be read: {error}") from error

    def step(self, node: yaml.Node) -> Step:
        """Read one step: a bare name, a name with settings, or a name with its shorthand."""
        if isinstance(node, yaml.ScalarNode):
            return self.build(node, str(node.value), {})
        if not isinstance(node, yaml.MappingNode) or len(node.value) != 1:
            raise self.error(
                node,
                "a step is one method name, alone or with its settings: "
                "'- round-to-nearest: {bits: 4}'.",
            )
        name_node, settings = node.value[0]
        cls = self.method(name_node)
        if isinstance(settings, yaml.MappingNode):
            allowed = (*bounds_of(cls), "where", "overrides")
            return self.build(
                name_node, str(name_node.value), self.mapping(settings, allowed, cls.method_name)
            )
        if isinstance(settings, yaml.ScalarNode) and self.value(settings) is None:
            return self.build(name_node, str(name_node.value), {})
        if cls.shorthand is None:
            raise self.error(settings, f"{cls.method_name} takes a mapping of settings.")
        return self.build(name_node, str(name_node.value), {cls.shorthand: settings})

    def method(self, node: yaml.Node) -> type[Step]:
        try:
            cls = registry.get(str(node.value)).cls
        except ConfigError as error:
            raise self.error(node, str(error)) from error
        if not (is_dataclass(cls) and issubclass(cls, Step)):
            raise self.error(node, f"{node.value!r} is not a step.")
        return cls

    def build(self, node: yaml.Node, name: str, settings: dict[str, yaml.Node]) -> Step:
        cls = self.method(node) if isinstance(node, yaml.ScalarNode) else registry.get(name).cls
        values: dict[str, Any] = {}
        for key, value_node in settings.items():
            if key == "where":
                values[key] = self.where(value_node)
            elif key != "overrides":
                values[key] = self.value(value_node)
        step = self.made(cls, values, node, settings)
        if "overrides" in settings:
            values["overrides"] = self.overrides(settings["overrides"], cls, values)
            step = self.made(cls, values, settings["overrides"], {})
        return step

    def made(
        self, cls: type[Step], values: dict[str, Any], node: yaml.Node, at: dict[str, yaml.Node],
        what: str = "",
    ) -> Step:  # fmt: skip
        """Build a step; an error is told at the node of the field that it names."""
        try:
            return cls(**values)
        except ConfigError as error:
            named = re.match(r"[^:]*: (\w+)", str(error))
            place = at.get(named.group(1), node) if named else node
            raise self.error(place, f"{what}{error}") from error

    def where(self, node: yaml.Node) -> Where:
        found = self.mapping(node, _WHERE, "where")
        lists = {key: self.names(value, f"where.{key}") for key, value in found.items()}
        return Where(**cast("dict[str, Any]", lists))  # the step itself refuses unknown types

    def names(self, node: yaml.Node, what: str) -> tuple[str, ...]:
        value = self.value(node)
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise self.error(node, f"{what}={value!r} must be a name pattern or a list of them.")
        return tuple(values)

    def overrides(
        self, node: yaml.Node, cls: type[Step], values: dict[str, Any]
    ) -> tuple[Override, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, "overrides must be a list of {include: ..., setting: ...}.")
        rows = []
        for row in node.value:
            found = self.mapping(row, ("include", *bounds_of(cls)), "an override")
            if "include" not in found or len(found) < 2:
                raise self.error(row, "an override needs 'include' and at least one setting.")
            include = self.names(found.pop("include"), "include")
            settings = {key: self.value(value) for key, value in found.items()}
            # built once with the step's own settings, so that a wrong one fails at its line
            self.made(cls, {**values, **settings}, row, found, what="override: ")
            rows.append(Override(include, settings))
        return tuple(rows)
