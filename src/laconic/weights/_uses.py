"""Which weights a piece of a model multiplies with, on what, and what happens if that is scaled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from laconic.forms.base import Form
from laconic.weights._flow import flat_output, quiet
from laconic.weights.sites import walk_modules

Scales = Mapping[str, Tensor]
_SECOND = ("linear", "matmul", "__matmul__", "mm", "bmm")  # functions of (input, weight)
_THIRD = ("addmm", "baddbmm")  # functions of (bias, input, weight)


@dataclass(frozen=True)
class Use:
    """One product of an input with a parameter, or with a part of one such as one expert.

    Attributes:
        name: Path of the parameter.
        x: What it was multiplied with, (..., cols).
        rows: Width of the output.
        axis: Axis of the parameter that meets the input: -1, or -2 where it is kept transposed.
        bias: Path of the parameter that was added in the same call, if any.
    """

    name: str
    x: Tensor
    rows: int
    axis: int
    bias: str | None


@dataclass
class Seen:
    """What one run of a region showed.

    Attributes:
        uses: Products with parameters, in the order of calls.
        norms: Outputs of norms by module path.
        outputs: What the region returned.
    """

    uses: list[Use] = field(default_factory=list)
    norms: dict[str, list[Tensor]] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)

    def inputs(self, name: str) -> Tensor:
        """Return all rows that a parameter was multiplied with, (rows, cols) float32 or wider."""
        found = [use.x.reshape(-1, use.x.shape[-1]) for use in self.uses if use.name == name]
        return torch.cat(found)


@dataclass
class Region:
    """A part of a model that can be run again on what it was called with.

    Args:
        path: Path of the module; empty for the whole model.
        module: The module, or a copy of it.
        call: Runs it and returns its outputs.
    """

    path: str
    module: nn.Module
    call: Callable[[nn.Module], Any]

    def __post_init__(self) -> None:
        self.parameters = {self._full(name): p for name, p in self.module.named_parameters()}
        self.norms = {
            self._full(name): norm for name, norm in walk_modules(self.module) if _is_norm(norm)
        }

    def _full(self, name: str) -> str:
        return ".".join(part for part in (self.path, name) if part)

    def run(
        self,
        *,
        before: Scales | None = None,
        after: Scales | None = None,
        norms: Scales | None = None,
        first: Mapping[str, float] | None = None,
    ) -> Seen:
        """Run the region, with some values scaled along their last axis.

        Args:
            before: Scales of what parameters are multiplied with, by parameter.
            after: Scales of what comes out of products, by parameter.
            norms: Scales of what norms give, by module path.
            first: Factors of the first row that comes out of the first product, by parameter.
        """
        seen = Seen()
        watch = _Products(self.parameters, seen, before or {}, after or {}, dict(first or {}))
        with ExitStack() as stack:
            stack.enter_context(quiet(self.module))
            for path, module in self.norms.items():
                stack.enter_context(_watched_norm(module, path, seen, (norms or {}).get(path)))
            stack.enter_context(watch)
            output = self.call(self.module)
        seen.outputs = [t for t in flat_output(output) if isinstance(t, Tensor)]
        return seen


def regions_of(
    model: nn.Module, forward: Callable[[nn.Module], Any], blocks: Sequence[str]
) -> Iterator[Region]:
    """Yield the blocks of a model, or the whole of one without, as regions.

    Modules of half precision are copied to float32, one at a time.

    Args:
        model: The model.
        forward: Runs a model on a batch.
        blocks: Paths of the blocks.
    """
    if not blocks:
        yield Region("", _precise(model), forward)
        return
    calls = _record(model, forward, blocks)
    for path in blocks:
        if path not in calls:
            continue
        args, kwargs = calls[path]
        module = model.get_submodule(path)
        if (held := _precise(module)) is not module:
            args, kwargs = _floated(args), _floated(kwargs)

        def call(module: nn.Module, args: Any = args, kwargs: Any = kwargs) -> Any:
            return module(*_copied(args), **_copied(kwargs))

        yield Region(path, held, call)


def _record(
    model: nn.Module, forward: Callable[[nn.Module], Any], blocks: Sequence[str]
) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return what each block is called with, the first time."""
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    handles = []
    for path in blocks:

        def hook(m: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            calls.setdefault(path, (_copied(args), _copied(kwargs)))

        module = model.get_submodule(path)
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        with quiet(model):
            forward(model)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_mapped(item, change) for item in value)
    if type(value) is dict:
        return {key: _mapped(item, change) for key, item in value.items()}
    return value


def _copied(value: Any) -> Any:
    return _mapped(value, lambda tensor: tensor.clone())


def _floated(value: Any) -> Any:
    return _mapped(value, lambda t: t.float() if t.is_floating_point() else t)


def _precise(module: nn.Module) -> nn.Module:
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in module.parameters()):
        return deepcopy(module).float()
    return module


def _is_norm(module: nn.Module) -> bool:
    """Return whether a module is a leaf that scales each channel by a vector of its own."""
    own = {key: p for key, p in module._parameters.items() if p is not None}
    leaf = not any(not isinstance(child, Form) for child in module.children())
    vectors = all(p.dim() == 1 for p in own.values())
    return leaf and "weight" in own and vectors and set(own) <= {"weight", "bias"}


@contextmanager
def _watched_norm(module: nn.Module, path: str, seen: Seen, scale: Tensor | None) -> Iterator[None]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return None
        seen.norms.setdefault(path, []).append(output)
        return None if scale is None else output * scale

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class _Products(TorchFunctionMode):
    """Notes, and scales, products whose weight lies in the memory of a parameter."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        seen: Seen,
        before: Scales,
        after: Scales,
        first: dict[str, float],
    ) -> None:
        super().__init__()
        self.parameters = parameters
        self.places: dict[int, list[tuple[int, int, str]]] = {}
        for name, p in parameters.items():
            start = int(p.storage_offset())
            place = (start, start + p.numel(), name)
            self.places.setdefault(p.untyped_storage().data_ptr(), []).append(place)
        self.seen, self.before, self.after, self.first = seen, before, after, first

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        place = _input_place(func)
        if place is None or len(args) <= place + 1 or not isinstance(args[place + 1], Tensor):
            return func(*args, **given)
        weight, x = args[place + 1], args[place]
        name = self._name(weight)
        if name is None or not isinstance(x, Tensor) or self.parameters[name].dim() < 2:
            return func(*args, **given)
        if name in self.before:
            args = (*args[:place], x * self.before[name], *args[place + 1 :])
        out = func(*args, **given)
        # A product takes (in, out), "linear" takes (out, in); either may be a transposed view.
        kept = weight.stride(-1) == self.parameters[name].stride(-1)
        axis = -1 if kept == (getattr(func, "__name__", "") == "linear") else -2
        added = args[0] if place else given.get("bias", args[2] if len(args) > 2 else None)
        bias = self._name(added) if isinstance(added, Tensor) else None
        self.seen.uses.append(Use(name, x, int(out.shape[-1]), axis, bias))
        return self._scaled(name, out)

    def _name(self, tensor: Tensor) -> str | None:
        """Return the parameter in whose memory a tensor begins."""
        places = self.places.get(tensor.untyped_storage().data_ptr(), ())
        at = tensor.storage_offset()
        return next((name for start, stop, name in places if start <= at < stop), None)

    def _scaled(self, name: str, out: Tensor) -> Tensor:
        if name in self.first:
            scale = torch.ones_like(out).reshape(-1, out.shape[-1])
            scale[0] = self.first.pop(name)
            return out * scale.reshape(out.shape)
        return out * self.after[name] if name in self.after else out


def _input_place(func: Any) -> int | None:
    name = str(getattr(func, "__name__", ""))
    if name in _SECOND:
        return 0
    return 1 if name in _THIRD else None
