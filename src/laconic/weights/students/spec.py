"""The architecture of a student as plain JSON, from which it can be built anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from laconic.artifact import Architecture, graph
from laconic.artifact.manifest import GraphRecord
from laconic.artifact.tree import ensure_, find, named_tensors, put_
from laconic.errors import ArtifactError, ConfigError, UnsupportedModelError
from laconic.seeds import generator_for

_DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.uint8, torch.bool,
)}  # fmt: skip
_FORMAT = 1


@dataclass(frozen=True)
class FreeTensor:
    """A parameter, buffer or constant that lies outside the layers.

    Attributes:
        shape: Its shape.
        dtype: Its type, for example ``"float32"``.
        role: What it is.
        values: All its values in a flat list; None where it is drawn anew.
        mean: Mean of what is drawn.
        std: Standard deviation of what is drawn.
    """

    shape: tuple[int, ...]
    dtype: str
    role: Literal["parameter", "persistent", "transient"]
    values: tuple[float, ...] | None = None
    mean: float = 0.0
    std: float = 0.0


@dataclass(frozen=True)
class StudentSpec:
    """A network as a graph of plain layers, without weights.

    Attributes:
        record: Layers and calls, in the form that artefacts use.
        free: Tensors outside the layers, by name.
    """

    record: GraphRecord
    free: Mapping[str, FreeTensor]

    @classmethod
    def of(cls, model: nn.Module, known: Mapping[str, FreeTensor] | None = None) -> StudentSpec:
        """Tell the architecture of a traceable model; it is not changed, weights do not matter.

        Buffers and constants outside layers are kept with their values. A parameter outside
        layers is drawn anew with its mean and spread, or kept where all its values are equal.

        Raises:
            UnsupportedModelError: It cannot be traced; names the module.
        """
        copy = graph.plain_copy(model)
        record, constants = _traced(copy)
        inside = tuple(f"{path}." for path in record.modules)
        told, free = known or {}, dict[str, FreeTensor]()
        for name, tensor in constants.items():
            free[name] = told.get(name) or _free(tensor, "transient")
        for held in named_tensors(copy, without=set()):
            for name in (held.name, *held.aliases):
                if not name.startswith(inside):
                    role = held.buffer_kind or "parameter"
                    free[name] = told.get(name) or _free(held.tensor, role)
        return cls(record, free)

    def build(self, *, seed: int = 0, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
        """Build the network in eval mode.

        Args:
            seed: Source of the initial weights, drawn layer by layer in the order in which they
                run; the global random state is left alone.
            weights: A state dict to load instead.

        Raises:
            ConfigError: ``weights`` do not fit.
        """
        model = assemble(self)
        _materialise_(model, self, seed)
        if weights is not None:
            try:
                model.load_state_dict(dict(weights))
            except RuntimeError as error:
                raise ConfigError(f"student: the weights do not fit its layers: {error}") from error
        return model.eval()

    def to_json(self) -> str:
        """Write as JSON."""
        free = {name: vars(t) for name, t in self.free.items()}
        content = {"format": _FORMAT, "graph": self.record.model_dump(mode="json"), "free": free}
        return json.dumps(content, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> StudentSpec:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: The text is nothing of the kind.
        """
        try:
            content = json.loads(text)
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']!r} is not {_FORMAT}")
            free = {name: _read_free(row) for name, row in content["free"].items()}
            return cls(GraphRecord.model_validate(content["graph"]), free)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"student spec: not an architecture ({error}). Give what StudentSpec.to_json wrote."
            ) from error


def _read_free(row: Mapping[str, Any]) -> FreeTensor:
    values = row["values"]
    return FreeTensor(
        **{
            **row,
            "shape": tuple(row["shape"]),
            "values": None if values is None else tuple(values),
        }
    )


def _traced(copy: nn.Module) -> tuple[GraphRecord, dict[str, Tensor]]:
    try:
        return graph.trace(copy)
    except UnsupportedModelError as error:
        where = _Locator().locate(copy)
        raise UnsupportedModelError(
            f"students: the teacher cannot be traced{where}: {error}. Write its forward without "
            "control flow on values, of torch.nn modules and torch functions."
        ) from error


class _Locator(fx.Tracer):
    """Traces once more to name the module in which tracing stops."""

    def __init__(self) -> None:
        super().__init__()
        self.path = ""

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        before, self.path = self.path, self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        self.path = before
        return result

    def locate(self, model: nn.Module) -> str:
        """Return `` at module 'path'``, or nothing where the place is not known."""
        try:
            self.trace(model)
        except Exception:  # the same failure again; only the place is wanted
            return f" at module {self.path or 'forward of the model itself'!r}"
        return ""


def _free(tensor: Tensor, role: Literal["parameter", "persistent", "transient"]) -> FreeTensor:
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise UnsupportedModelError(f"students: a tensor of type {dtype} lies outside the layers.")
    flat = tensor.detach().double().flatten()
    equal = flat.numel() == 0 or bool((flat == flat[0]).all())
    if role != "parameter" or equal:
        return FreeTensor(shape, dtype, role, tuple(flat.tolist()))
    return FreeTensor(shape, dtype, role, None, float(flat.mean()), float(flat.std()))


def assemble(spec: StudentSpec) -> fx.GraphModule:
    """Build the module tree and its graph; layers lie on the meta device."""
    try:
        model = graph.skeleton(spec.record)
        for name, free in spec.free.items():
            dtype = _DTYPES[free.dtype]
            kind = "" if free.role == "parameter" else free.role
            ensure_(model, name, shape=list(free.shape), dtype=dtype, buffer=kind)
            if free.values is not None:
                put_(model, name, torch.tensor(free.values).reshape(free.shape).to(dtype))
        graph.connect_(model, spec.record, torch.device("cpu"))
    except (ArtifactError, ValueError) as error:
        raise ConfigError(f"student spec: it cannot be built ({error}).") from error
    return model


def _materialise_(model: fx.GraphModule, spec: StudentSpec, seed: int) -> None:
    """Draw the weights of all layers, in the order they run, then those outside layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(seed, "student weights").initial_seed())
        done: set[str] = set()
        for node in model.graph.nodes:
            target = str(node.target)
            if node.op == "call_module" and target not in done:
                done.add(target)
                reset_(model.get_submodule(target))
        _draw_free_(model, spec)


def reset_(layer: nn.Module) -> None:
    """Put a layer on the processor and draw its weights anew, in place.

    Raises:
        UnsupportedModelError: The layer has weights and no rule to draw them.
    """
    layer.to_empty(device="cpu")
    for part in layer.modules():
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        if callable(reset):
            reset()
        elif own:
            raise UnsupportedModelError(
                f"students: {type(part).__name__} has weights and no rule to draw them."
            )


def _draw_free_(model: nn.Module, spec: StudentSpec) -> None:
    """Draw the parameters outside layers anew, in place, from the global random state."""
    for name, free in spec.free.items():
        if free.values is None and find(model, name) is not None:
            drawn = torch.randn(free.shape) * free.std + free.mean
            put_(model, name, drawn.to(_DTYPES[free.dtype]))


def architecture(model: nn.Module, example: Tensor) -> Architecture:
    """Return how a student is told in an artefact: always as a graph.

    Raises:
        UnsupportedModelError: It is not a graph; a student always is.
    """
    told = Architecture.of(model, example)
    if told.kind != "graph":
        raise UnsupportedModelError(f"student: it cannot be stored as a graph: {told.reason}")
    return told
