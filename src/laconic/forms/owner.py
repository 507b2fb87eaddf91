"""What a module becomes when a form stands for one of its parameters.

The module stays the same object: its class is changed to a subclass that reads the parameter's
name as a property, so that hooks, attributes and every other reference to it live on. What
belongs to laconic is kept under names that no module's own attributes clash with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, cast

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from laconic.errors import LayerError
from laconic.forms.base import Form
from laconic.forms.layout import Layout, from_form

Run = Callable[[Tensor], Tensor]
PLAIN = "_laconic_plain"  # class attribute: the class before any form was installed
_PLACEMENTS = "_laconic_placements"
_SCOPE, _KERNEL, _CACHE = "_laconic_scope", "_laconic_kernel", "_laconic_dense"


@dataclass(frozen=True)
class Placement:
    """How a form lies in its module.

    Attributes:
        layout: How the form's tensor maps to the parameter.
        parameter_shape: Shape of the parameter.
        position: Where the parameter stood among the module's own.
    """

    layout: Layout
    parameter_shape: tuple[int, ...]
    position: int


class FormOwner(nn.Module):
    """A module some of whose parameters are stood for by forms; made by ``install_``."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get(_PLACEMENTS, ()):
            form = form_at(self, name)
            tied = getattr(value, "_form_id", None) == id(form)
            if tied or getattr(form, "value", None) is value:
                return  # tied to the weight of the same form already
            raise LayerError(
                f"{type(self).__name__}.{name} is held by a form ({form.signature}); give it "
                "another with install_, or call densify_ on the model first."
            )
        super().__setattr__(name, value)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; training drops kernels and caches, whose weights would be stale."""
        if mode:
            set_kernel_(self, None)
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        set_kernel_(self, None)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        set_kernel_(self, None)
        super()._load_from_state_dict(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = self.__dict__.copy()
        for key in (_SCOPE, _KERNEL, _CACHE):
            state.pop(key, None)
        return _revive, (plain_class(type(self)), tuple(placements(self))), state


class ScopedOwner(FormOwner):
    """An owner that is no layer of ours: its own forward runs, each dense tensor built once."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward."""
        with holding_dense(self), rounding_inputs(self):
            return super().forward(*args, **kwargs)


def form_key(name: str) -> str:
    """Return the name of the child module that holds the form of a parameter.

    >>> form_key("weight")
    'weight_form'
    """
    return f"{name}_form"


def placements(owner: FormOwner) -> dict[str, Placement]:
    """Return how the forms of a module lie, by parameter name, in the order of installation."""
    return cast("dict[str, Placement]", owner.__dict__.setdefault(_PLACEMENTS, {}))


def release_(owner: FormOwner) -> nn.Module:
    """Give a module its own class back, in place; its forms and their placements are dropped."""
    for name in placements(owner):
        del owner._modules[form_key(name)]
    set_kernel_(owner, None)
    del owner.__dict__[_PLACEMENTS]
    plain: nn.Module = owner
    plain.__class__ = plain_class(type(owner))
    return plain


def form_at(owner: FormOwner, name: str) -> Form:
    """Return the form that stands for a parameter.

    Raises:
        LayerError: No form does.
    """
    form = owner._modules.get(form_key(name))
    if not isinstance(form, Form):
        raise LayerError(
            f"{type(owner).__name__}: no form stands for {name!r}; layers of this class are made "
            "by install_."
        )
    return form


def dense_at(owner: FormOwner, name: str) -> Tensor:
    """Return the dense tensor of a parameter, in the parameter's own layout."""
    cached = cached_dense(owner)
    if name == "weight" and cached is not None:
        return cached
    scope = owner.__dict__.get(_SCOPE)
    if scope is not None and name in scope:
        return cast(Tensor, scope[name])
    form = form_at(owner, name)
    held = placements(owner)[name]
    tensor = from_form(form.dense(), held.layout, held.parameter_shape)
    if scope is not None:
        scope[name] = tensor
    return tensor


@contextmanager
def holding_dense(owner: FormOwner) -> Iterator[None]:
    """Build each dense tensor of a module at most once inside the ``with`` block."""
    if _SCOPE in owner.__dict__:
        yield
        return
    owner.__dict__[_SCOPE] = {}
    try:
        yield
    finally:
        owner.__dict__.pop(_SCOPE, None)


@contextmanager
def rounding_inputs(owner: FormOwner) -> Iterator[None]:
    """Round what a module multiplies with those of its forms that round their inputs.

    The module's own forward runs on dense tensors, each built once; products with them, or with
    parts of them such as one expert's weight, are told by their memory.
    """
    forms = {name: form_at(owner, name) for name in placements(owner)}
    rounding = {name: form for name, form in forms.items() if form.rounds_inputs}
    if not rounding:
        yield
        return
    with _Rounding(owner.__dict__[_SCOPE], rounding):
        yield


class _Rounding(TorchFunctionMode):
    """Rounds the first factor of products whose second is the dense tensor of a form."""

    def __init__(self, scope: dict[str, Tensor], forms: dict[str, Form]) -> None:
        super().__init__()
        self.scope, self.forms = scope, forms

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        form = self._form(args) if _is_product(func) else None
        if form is not None:
            x = args[0]
            args = (form.incoming(x).to(x.dtype), *args[1:])
        return func(*args, **(kwargs or {}))

    def _form(self, args: tuple[Any, ...]) -> Form | None:
        if len(args) < 2 or not isinstance(args[1], Tensor):
            return None
        memory = args[1].untyped_storage().data_ptr()
        for name, form in self.forms.items():
            held = self.scope.get(name)
            if held is not None and held.untyped_storage().data_ptr() == memory:
                return form
        return None


def _is_product(func: Any) -> bool:
    name = str(getattr(func, "__name__", ""))
    return name == "linear" or "matmul" in name or name.endswith("mm")


def set_kernel_(owner: FormOwner, run: Run | None, *, dense: Tensor | None = None) -> None:
    """Set in place how a layer runs outside of training: a kernel, or a cached dense weight.

    Neither is a parameter or buffer. Both are dropped when the module trains, moves, loads a
    state, is copied or gets another form.

    Args:
        owner: A layer that ``install_`` made.
        run: Takes the layer's input and returns its output, bias included; None for none.
        dense: The weight in the layer's own layout; None caches nothing.
    """
    for key, value in ((_KERNEL, run), (_CACHE, dense)):
        if value is None:
            owner.__dict__.pop(key, None)
        else:
            owner.__dict__[key] = value


def kernel_of(owner: FormOwner) -> Run | None:
    """Return the kernel that :func:`set_kernel_` set; None while the layer trains."""
    return None if owner.training else cast("Run | None", owner.__dict__.get(_KERNEL))


def cached_dense(owner: FormOwner) -> Tensor | None:
    """Return the dense weight that :func:`set_kernel_` cached; None while the layer trains."""
    return None if owner.training else cast("Tensor | None", owner.__dict__.get(_CACHE))


def plain_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the class that an owner had before forms were installed; others as they are."""
    return cast("type[nn.Module]", cls.__dict__.get(PLAIN, cls))


def derived_class(
    plain: type[nn.Module], names: frozenset[str], layer: type[FormOwner]
) -> type[FormOwner]:
    """Return a subclass of ``plain``, of its name, some of whose parameters are properties.

    Args:
        plain: Class before any form was installed.
        names: Parameters that need a property.
        layer: Our layer for ``weight``, or ``ScopedOwner``.
    """
    made = _DERIVED.get((plain, names, layer))
    if made is None:
        made = _DERIVED[plain, names, layer] = _derive(plain, names, layer)
    return made


_DERIVED: dict[tuple[type[nn.Module], frozenset[str], type[FormOwner]], type[FormOwner]] = {}


def _derive(
    plain: type[nn.Module], names: frozenset[str], layer: type[FormOwner]
) -> type[FormOwner]:
    if issubclass(layer, plain):
        bases: tuple[type, ...] = (layer,)
    elif any(issubclass(plain, base) for base in layer.__mro__[1:] if base not in _GENERAL):
        bases = (plain, layer)  # the module's own super().forward() reaches our layer
    else:
        bases = (layer, plain)
    namespace: dict[str, Any] = {name: parameter_property(name) for name in sorted(names)}
    namespace |= {
        PLAIN: plain,
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
    }
    if layer is ScopedOwner:
        namespace["forward"] = _scoped(plain)
    return type(plain.__name__, bases, namespace)


_GENERAL = (FormOwner, ScopedOwner, nn.Module, object)


def _scoped(plain: type[nn.Module]) -> Callable[..., Any]:
    @functools.wraps(plain.forward)  # callers inspect the signature
    def forward(self: FormOwner, *args: Any, **kwargs: Any) -> Any:
        with holding_dense(self), rounding_inputs(self):
            return plain.forward(self, *args, **kwargs)

    return forward


def parameter_property(name: str) -> Any:
    """Return a property that gives the dense tensor of a parameter held by a form.

    The tensor counts as a Parameter, since ``nn.Module.get_parameter`` and Hugging Face's
    ``tie_weights`` accept nothing else; writing into it does not reach the form.
    """

    def read(self: FormOwner) -> Tensor:
        tensor = dense_at(self, name)
        if not isinstance(tensor, nn.Parameter):
            tensor = tensor.view_as(tensor)  # the marks must not reach a cached tensor
            tensor._is_param = True
            tensor._form_id = id(form_at(self, name))  # type: ignore[attr-defined]  # our mark
        return tensor

    return property(read, doc=f"Dense tensor of {name}, built from its form at each access.")


def _revive(plain: type[nn.Module], names: tuple[str, ...]) -> FormOwner:
    from laconic.forms.layers import class_for

    cls = class_for(plain, frozenset(names))
    return cls.__new__(cls)
