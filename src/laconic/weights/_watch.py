"""See what layers and stacked experts are called with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from laconic.errors import LayerError
from laconic.weights._inputs import Accumulator
from laconic.weights.base import Site

_PRODUCTS: frozenset[Any] = frozenset(
    (
        nn.functional.linear,
        torch.matmul,
        torch.bmm,
        torch.mm,
        Tensor.matmul,
        Tensor.__matmul__,
        Tensor.bmm,
        Tensor.mm,
    )
)


def owner_of(model: nn.Module, site: Site) -> nn.Module:
    """Return the module that holds a site's parameter now."""
    return model.get_submodule(site.module_name)


@contextmanager
def hooked(module: nn.Module, see: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    """Call ``see(module, x)`` before each call of a module, with its first tensor argument."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                see(module, value)
                return

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def watched_experts(module: nn.Module, site: Site, found: Accumulator) -> Iterator[None]:
    """Add up the rows that meet each of a module's stacked weights.

    Products with a part of the stack are told by its memory, so it does not matter how the
    module goes through its experts, as long as it takes views of the parameter.
    """
    inner = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        stack = getattr(module, site.name.rpartition(".")[2])
        with _Products(stack, site, found):
            return inner(*args, **kwargs)

    held = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if held is None:
            del module.forward
        else:
            module.forward = held


class _Products(TorchFunctionMode):
    """Looks at matrix products whose second factor lies in the memory of a stack of weights."""

    def __init__(self, stack: Tensor, site: Site, found: Accumulator) -> None:
        super().__init__()
        self.stack, self.site, self.found = stack.detach(), site, found

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in _PRODUCTS and len(args) >= 2 and isinstance(args[1], Tensor):
            self._see(args[0], args[1])
        return func(*args, **given)

    def _see(self, x: Tensor, weight: Tensor) -> None:
        if weight.untyped_storage().data_ptr() != self.stack.untyped_storage().data_ptr():
            return
        experts, size = self.stack.shape[0], self.stack.stride(0)
        first = (weight.storage_offset() - self.stack.storage_offset()) // size
        if weight.dim() == 2:
            self._add(first, x)
        elif weight.dim() == 3 and weight.shape[0] == x.shape[0] == experts:
            for expert in range(experts):
                self._add(expert, x[expert])

    def _add(self, expert: int, x: Tensor) -> None:
        if x.shape[-1] != self.site.form.cols:
            raise LayerError(
                f"{self.site.name}: an expert met inputs of width {x.shape[-1]}; the layout says "
                f"{self.site.form.cols}. Exclude this layer."
            )
        rows = x.reshape(-1, x.shape[-1])
        self.found.add_expert(expert, self.stack.shape[0], rows)
