"""The manifest ``laconic.json``: what stands in the folder, and how it becomes a model again."""

from __future__ import annotations

import hashlib
import re
from math import prod
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from laconic.artifact import strictjson
from laconic.artifact.dtypes import DTYPES, itemsize
from laconic.artifact.limits import (
    FORMAT,
    MANIFEST,
    MAX_ALPHABET,
    MAX_DEPTH,
    MAX_NODES,
    shape_problem,
)
from laconic.errors import ArtifactError

_PREFIX = re.compile(rb'\{"digest":"([0-9a-f]{64})",')
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_IDENTIFIER = r"^[A-Za-z_][A-Za-z0-9_]*$"

Extent = Annotated[int, Field(ge=0, le=2**40)]
Shape = Annotated[list[Extent], Field(max_length=16)]
Crc = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _Row(_Model):
    """A record that is written as a list; defaults at its end are left out."""

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        names = list(cls.model_fields)
        if not isinstance(value, list):
            return value
        if len(value) > len(names):
            raise ValueError(f"has {len(value)} entries, at most {len(names)} are allowed")
        return dict(zip(names, value, strict=False))

    def row(self) -> list[Any]:
        """Return the record as it is written."""
        fields = list(type(self).model_fields.items())
        values = [getattr(self, name) for name, _ in fields]
        while values and not fields[len(values) - 1][1].is_required():
            if values[-1] != fields[len(values) - 1][1].get_default(call_default_factory=True):
                break
            values.pop()
        return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    if isinstance(value, _Row):
        return value.row()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


class FileRecord(_Row):
    """Size and SHA-256 of a file."""

    bytes: Annotated[int, Field(ge=0, le=2**60)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PartRecord(_Row):
    """One part of a form, or a plain value.

    Attributes:
        coder: How the bytes are coded; empty where the part lies in the bundle of its type.
        shape: Shape of the decoded tensor.
        content: Name of the type of plain values, or the alphabet of symbols.
        crc32: CRC-32 of the decoded bytes; symbols count one byte, or four above alphabet 256.
    """

    coder: Annotated[str, Field(max_length=40)]
    shape: Shape
    content: str | int
    crc32: Crc = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        problem = shape_problem(self.shape)
        if problem:
            raise ValueError(problem)
        if isinstance(self.content, str) and self.content not in DTYPES:
            raise ValueError(f"unknown dtype {self.content[:40]!r}")
        if isinstance(self.content, int):
            if not 2 <= self.content <= MAX_ALPHABET:
                raise ValueError(f"alphabet must be between 2 and {MAX_ALPHABET}")
            if not self.coder:
                raise ValueError("symbols cannot lie in a bundle")
        return self

    @property
    def dtype(self) -> str:
        """Type of the decoded elements."""
        if isinstance(self.content, str):
            return self.content
        return "U8" if self.content <= 256 else "I32"

    @property
    def count(self) -> int:
        """Number of decoded elements."""
        return prod(self.shape)

    @property
    def decoded_bytes(self) -> int:
        """Size of the decoded elements."""
        return self.count * itemsize(self.dtype)


class BundleRecord(_Row):
    """Short plain values of one type, one after another in the order of their records."""

    coder: Annotated[str, Field(max_length=40)]
    bytes: Annotated[int, Field(ge=0, le=2**40)]
    crc32: Crc


class FormRecord(_Row):
    """A form: its name, what it stands for, its settings, its parts and its child forms."""

    kind: Annotated[str, Field(max_length=40)]
    shape: Shape
    dtype: str
    settings: dict[str, JsonValue]
    parts: dict[Name, PartRecord]
    children: dict[Name, FormRecord] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        problem = shape_problem(self.shape)
        if problem:
            raise ValueError(problem)
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype[:40]!r}")
        return self

    def walk(self, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], FormRecord]]:
        """Return the form and all below it with their paths, parents first.

        Raises:
            ValueError: The tree is too deep.
        """
        if len(path) > MAX_DEPTH:
            raise ValueError(f"forms are nested more than {MAX_DEPTH} deep")
        below = [child.walk((*path, name)) for name, child in self.children.items()]
        return [(path, self), *(pair for pairs in below for pair in pairs)]


class SiteRecord(_Model):
    """How a form's tensor maps to the parameter, where that is not the identity."""

    layout: Literal["natural", "transposed", "stacked", "stacked-transposed"]
    parameter_shape: Shape


Place = Annotated[int, Field(ge=0, lt=2**16)]


class HuggingFaceRecord(_Model):
    """A model of the ``transformers`` library; its settings are in ``config.json``.

    Attributes:
        cls: Name of its class.
        removed: Parts of residual blocks that were taken out, by path: how many values each
            returned (0: a tensor alone), and for an attention its place in the cache.
    """

    kind: Literal["huggingface"]
    cls: Annotated[str, Field(alias="class", pattern=_IDENTIFIER, max_length=200)]
    removed: dict[Name, Annotated[list[Place], Field(min_length=1, max_length=2)]] = Field(
        default_factory=dict
    )


class GraphRecord(_Model):
    """A graph of allow-listed modules, functions and methods.

    Attributes:
        modules: Class and constructor arguments of each leaf module, by path.
        nodes: What runs, in order; see ``docs/format.md``.
        constants: Names of values that the traced code held, beside parameters and buffers.
    """

    kind: Literal["graph"]
    modules: dict[Name, list[JsonValue]]
    nodes: Annotated[list[list[JsonValue]], Field(max_length=MAX_NODES)]
    constants: list[Name] = Field(default_factory=list)


class FactoryRecord(_Model):
    """A model that only its own code can build.

    Attributes:
        factory: ``package.module:function``, or the model's class.
        reason: Why the model could not be stored as a graph.
    """

    kind: Literal["factory"]
    factory: Annotated[str, Field(max_length=1000)]
    reason: Annotated[str, Field(max_length=10_000)]


ArchitectureRecord = Annotated[
    HuggingFaceRecord | GraphRecord | FactoryRecord, Field(discriminator="kind")
]


class Manifest(_Model):
    """Everything that ``laconic.json`` says, its own digest aside.

    Attributes:
        format: Version of the layout.
        files: Size and checksum of every other file that belongs to the model.
        architecture: How the module tree is built.
        forms: Tree of forms by parameter name.
        sites: Layout of forms that do not have their parameter's own shape.
        values: All other parameters and buffers.
        buffers: Those of ``values`` that are buffers, where a graph's modules do not tell.
        transient: Those of ``buffers`` that are not part of the state dict.
        aliases: Other names of a parameter or buffer, and the name it is stored under.
        bundles: Where short values lie, by type.
        recipe: The recipe that made the model, if any.
        provenance: Versions and seeds.
    """

    format: Literal[1]
    files: dict[str, FileRecord]
    architecture: ArchitectureRecord
    forms: dict[Name, FormRecord] = Field(default_factory=dict)
    sites: dict[Name, SiteRecord] = Field(default_factory=dict)
    values: dict[Name, PartRecord] = Field(default_factory=dict)
    buffers: list[Name] = Field(default_factory=list)
    transient: list[Name] = Field(default_factory=list)
    aliases: dict[Name, Name] = Field(default_factory=dict)
    bundles: dict[str, BundleRecord] = Field(default_factory=dict)
    recipe: dict[str, JsonValue] = Field(default_factory=dict)
    provenance: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in self.files:
            if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
                raise ValueError(f"file name {name[:80]!r} is not allowed")
        for name in self.bundles:
            if name not in DTYPES:
                raise ValueError(f"bundle of unknown dtype {name[:40]!r}")
        stored = {*self.forms, *self.values}
        if len(stored) != len(self.forms) + len(self.values):
            raise ValueError("a name stands both in forms and in values")
        for what, names, known in (
            ("sites", self.sites, self.forms),
            ("buffers", self.buffers, self.values),
            ("transient", self.transient, self.buffers),
        ):
            unknown = set(names) - set(known)
            if unknown:
                raise ValueError(f"{what} names {min(unknown)[:80]!r}, which is not stored")
        for alias, name in self.aliases.items():
            if name not in stored or alias in stored:
                raise ValueError(f"alias {alias[:80]!r} does not lead to a stored tensor")
        for form in self.forms.values():
            form.walk()
        return self

    def to_bytes(self) -> bytes:
        """Return the file: canonical, in the fewest bytes, its digest in front."""
        body = {
            name: _dumped(value)
            for name in type(self).model_fields
            if (value := getattr(self, name)) or name == "format"
        }
        rest = strictjson.dumps(body)[1:].encode()
        return b'{"digest":"%s",' % hashlib.sha256(rest).hexdigest().encode() + rest

    @staticmethod
    def from_bytes(data: bytes) -> Manifest:
        """Read the file and check every field.

        Raises:
            ArtifactError: It is damaged, hostile, or made by a newer laconic.
        """
        body = strictjson.loads(data, file=MANIFEST)
        prefix = _PREFIX.match(data)
        if not isinstance(body, dict) or prefix is None:
            raise ArtifactError(MANIFEST, "not a manifest: it must begin with its digest")
        if hashlib.sha256(data[prefix.end() :]).hexdigest().encode() != prefix[1]:
            raise ArtifactError(MANIFEST, "damaged: its digest does not match its content")
        del body["digest"]
        version = body.get("format")
        if type(version) is not int:
            raise ArtifactError(MANIFEST, f"format must be {FORMAT}, not {str(version)[:40]!r}")
        if version > FORMAT:
            raise ArtifactError(
                MANIFEST,
                f"format {version} was made by a newer laconic; this one reads up to "
                f"{FORMAT}. Upgrade laconic.",
            )
        try:
            return Manifest.model_validate(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(step) for step in first["loc"])[:200]
            raise ArtifactError(MANIFEST, f"{first['msg']}", tensor=where or None) from error
        except RecursionError as error:
            raise ArtifactError(MANIFEST, "records are nested too deeply") from error


def _dumped(value: Any) -> Any:
    if isinstance(value, _Row):
        return value.row()
    if isinstance(value, _Model):
        return value.model_dump(by_alias=True, exclude_defaults=True)
    if isinstance(value, dict):
        return {key: _dumped(item) for key, item in value.items()}
    return value
