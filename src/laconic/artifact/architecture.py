"""How a model's module tree is told on disk, so that it can be built without its code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from laconic.artifact import graph, hub, strictjson
from laconic.artifact.limits import CONFIG, GENERATION
from laconic.artifact.manifest import (
    ArchitectureRecord,
    FactoryRecord,
    GraphRecord,
    HuggingFaceRecord,
)
from laconic.artifact.removed import removed_in
from laconic.artifact.tree import ensure_, named_tensors, put_
from laconic.errors import ArtifactError, ConfigError, UnsupportedModelError

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """The module tree of a model: a Hugging Face class, a graph, or the factory that makes it.

    Attributes:
        record: What stands in the manifest.
        files: Further files by name, such as ``config.json``.
        constants: Tensors that a graph holds beside parameters and buffers.
        extra_buffers: Buffers outside the state dict that must be stored all the same.
    """

    record: ArchitectureRecord
    files: Mapping[str, bytes] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    extra_buffers: frozenset[str] = frozenset()

    @property
    def kind(self) -> str:
        """``"huggingface"``, ``"graph"`` or ``"factory"``."""
        return self.record.kind

    @property
    def reason(self) -> str | None:
        """Why the model needs its own code to load; None where it does not."""
        return self.record.reason if isinstance(self.record, FactoryRecord) else None

    def without_removed(self, model: nn.Module) -> Architecture:
        """Return the architecture as it is once the parts that the model lacks are removed."""
        removed = removed_in(model)
        if not isinstance(self.record, HuggingFaceRecord) or removed == self.record.removed:
            return self
        return replace(self, record=self.record.model_copy(update={"removed": removed}))

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Inputs | None = None) -> Architecture:
        """Tell the architecture of a model; forms that are installed do not matter.

        Args:
            model: The model; it is not changed.
            example_inputs: One tensor, positional arguments, or named arguments of ``forward``.
                With them a traced graph is run and compared with the model.

        Returns:
            That of its Hugging Face class; else a graph; else, where it cannot be traced, its
            own class as a factory with the reason.
        """
        if hub.is_hugging_face(model):
            return _hugging_face(model)
        try:
            return _traced(model, example_inputs)
        except UnsupportedModelError as error:
            owner = f"{type(model).__module__}:{type(model).__qualname__}"
            return cls.factory(owner, reason=str(error))

    @classmethod
    def factory(cls, factory: str, *, reason: str = "asked for") -> Architecture:
        """Name the function or class that makes the model, as ``"package.module:function"``.

        Raises:
            ConfigError: The name has no colon.
        """
        if factory.count(":") != 1:
            raise ConfigError(f"factory={factory!r} must be 'package.module:function'.")
        return cls(FactoryRecord(kind="factory", factory=factory[:1000], reason=reason[:2000]))


def _hugging_face(model: nn.Module) -> Architecture:
    config = hub.config_of(model)
    files = {CONFIG: strictjson.dumps(config).encode()}
    held: Any = getattr(model, "generation_config", None)
    if held is not None:
        usual = type(held).from_model_config(model.config)
        if hub.cleaned(held.to_diff_dict()) != hub.cleaned(usual.to_diff_dict()):
            files[GENERATION] = held.to_json_string().encode()
    record = HuggingFaceRecord.model_validate(
        {"kind": "huggingface", "class": type(model).__name__, "removed": removed_in(model)}
    )
    return Architecture(record, files, extra_buffers=hub.changed_buffers(model, config))


def _traced(model: nn.Module, example_inputs: Inputs | None) -> Architecture:
    args, kwargs = _calls(example_inputs)
    copy = graph.plain_copy(model)
    given = _given_names(copy, args, kwargs)
    record, constants = graph.trace(copy, given)
    rebuilt = _rebuild(record, copy, constants)
    if example_inputs is not None:
        with torch.no_grad():
            expected = copy(*deepcopy(args), **deepcopy(kwargs))
            if not _alike(rebuilt(*args, **kwargs), expected):
                raise UnsupportedModelError(
                    "the traced graph gives other outputs than the model: its forward depends "
                    "on its inputs in a way that tracing does not see"
                )
    return Architecture(record, constants=constants)


def _calls(example_inputs: Inputs | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if example_inputs is None:
        return (), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    return tuple(example_inputs), {}


def _given_names(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> set[str]:
    names = graph.input_names(model)
    return {*names[: len(args)], *kwargs}


def _rebuild(record: GraphRecord, model: nn.Module, constants: Mapping[str, Tensor]) -> nn.Module:
    """Build the model from its graph as a loader would, with the tensors of ``model``."""
    try:
        made = graph.skeleton(record)
        for name, tensor in constants.items():
            ensure_(made, name, shape=list(tensor.shape), dtype=tensor.dtype, buffer="transient")
            put_(made, name, tensor)
        for held in named_tensors(model, without=set()):
            for name in (held.name, *held.aliases):
                shape, dtype = list(held.tensor.shape), held.tensor.dtype
                ensure_(made, name, shape=shape, dtype=dtype, buffer=held.buffer_kind)
                put_(made, name, held.tensor)
        graph.connect_(made, record, torch.device("cpu"))
    except (ArtifactError, ValueError) as error:
        raise UnsupportedModelError(f"the graph cannot be built again: {error}") from error
    return made


def _alike(left: Any, right: Any) -> bool:
    if isinstance(right, Tensor):
        same = isinstance(left, Tensor) and left.shape == right.shape and left.dtype == right.dtype
        return same and torch.allclose(left, right, rtol=1e-4, atol=1e-6, equal_nan=True)
    if isinstance(right, Mapping):
        keys = isinstance(left, Mapping) and set(left) == set(right)
        return keys and all(_alike(left[key], right[key]) for key in right)
    if isinstance(right, list | tuple):
        same = isinstance(left, list | tuple) and len(left) == len(right)
        return same and all(_alike(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)
