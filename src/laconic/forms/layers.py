"""Layers that run on forms, and how forms get into a model and out of it.

``install_`` puts a form in the place of a parameter, ``installed`` lists what stands in a model,
``densify_`` brings plain layers back. The form is a child module: the form of ``fc1.weight`` is
``fc1.weight_form``; ``fc1.bias`` and all other names stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.errors import LayerError, nearest
from laconic.forms.base import Form
from laconic.forms.convolutions import FormConv1d, FormConv2d
from laconic.forms.dense import Dense
from laconic.forms.layout import Layout, form_shape, from_form, to_form
from laconic.forms.owner import (
    PLAIN,
    FormOwner,
    Placement,
    ScopedOwner,
    cached_dense,
    dense_at,
    derived_class,
    form_at,
    form_key,
    holding_dense,
    kernel_of,
    parameter_property,
    placements,
    plain_class,
    release_,
    set_kernel_,
)

__all__ = [
    "FormConv1d",
    "FormConv2d",
    "FormEmbedding",
    "FormLinear",
    "FormOwner",
    "Installed",
    "Layout",
    "densify_",
    "form_shape",
    "from_form",
    "holding_dense",
    "install_",
    "installed",
    "set_kernel_",
    "to_form",
]


@dataclass(frozen=True)
class Installed:
    """One form in a model.

    Attributes:
        form: The form.
        layout: How its tensor maps to the parameter.
        parameter_shape: Shape of the parameter that it stands for.
        aliases: Paths of other parameters that the same form stands for.
    """

    form: Form
    layout: Layout
    parameter_shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()


def _linear(layer: FormOwner, x: Tensor, bias: Tensor | None, natural: Layout) -> Tensor:
    """Run a linear layer: its kernel, else the form's own product, bias added in one pass."""
    run = kernel_of(layer)
    if run is not None:
        return run(x)
    form = form_at(layer, "weight")
    fits = placements(layer)["weight"].layout == natural
    own = cached_dense(layer) is None and type(form).matmul is not Form.matmul
    if form.rounds_inputs:
        own = True
        if not fits:
            raise LayerError(
                f"a {type(layer).__name__} of shape {form.shape}: a form that rounds its inputs "
                "stands for a weight that this layer uses transposed. Quantize it without "
                "activations."
            )
    if fits and own:
        out = form.matmul(x)
        return out if bias is None else out + bias
    weight = dense_at(layer, "weight")
    weight = weight if natural == "natural" else weight.transpose(0, 1)
    return F.linear(x, weight.to(x.dtype), bias)


class FormLinear(FormOwner, nn.Linear):
    """``nn.Linear`` whose weight is a form."""

    weight = parameter_property("weight")

    def forward(self, input: Tensor) -> Tensor:
        """Multiply by the form and add the bias."""
        return _linear(self, input, self.bias, "natural")


class TransposedLinear(FormOwner):
    """GPT-2's ``Conv1D``, a linear layer that keeps (in, out), whose weight is a form."""

    weight = parameter_property("weight")

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the form and add the bias."""
        return _linear(self, x, cast(Tensor, self.bias), "transposed")


class FormEmbedding(FormOwner, nn.Embedding):
    """``nn.Embedding`` whose table is a form; only the rows asked for are built."""

    weight = parameter_property("weight")

    def forward(self, input: Tensor) -> Tensor:
        """Look up rows; the padding row gets no gradient."""
        run = kernel_of(self)
        if run is not None:
            return run(input)
        form = form_at(self, "weight")
        table = cached_dense(self)
        if table is not None or isinstance(form, Dense):
            table = dense_at(self, "weight")
            return F.embedding(input, table, self.padding_idx, sparse=self.sparse)
        rows = form.embed(input)
        if self.padding_idx is not None and rows.requires_grad:
            padded = (input == self.padding_idx).unsqueeze(-1)
            rows = torch.where(padded, rows.detach(), rows)
        return rows


_LAYERS: dict[type[nn.Module], type[FormOwner]] = {
    nn.Linear: FormLinear,
    nn.Conv1d: FormConv1d,
    nn.Conv2d: FormConv2d,
    nn.Embedding: FormEmbedding,
}
for _plain, _layer in _LAYERS.items():
    setattr(_layer, PLAIN, _plain)


def class_for(plain: type[nn.Module], names: frozenset[str]) -> type[FormOwner]:
    """Return the class of a module whose ``names`` are held by forms."""
    layer = None
    if "weight" in names:
        layer = next((ours for base, ours in _LAYERS.items() if issubclass(plain, base)), None)
        layer = TransposedLinear if plain.__name__ == "Conv1D" else layer
    if layer is None:
        return derived_class(plain, names, ScopedOwner)
    if names == {"weight"} and _LAYERS.get(plain) is layer:
        return layer
    return derived_class(plain, names - {"weight"}, layer)


def install_(
    model: nn.Module,
    name: str,
    form: Form,
    *,
    layout: Layout | None = None,
    parameter_shape: tuple[int, ...] | None = None,
) -> None:
    """Put a form in the place of a parameter, in place; every parameter tied to it follows.

    Args:
        model: Model that holds the parameter.
        name: Path of the parameter, for example ``"fc1.weight"``; where a form stands there
            already it is replaced.
        form: What stands for it from now on.
        layout: How the form's tensor maps to the parameter; None keeps the layout of the form
            that stands there, and is ``"natural"`` otherwise (``"transposed"`` for GPT-2's
            ``Conv1D``).
        parameter_shape: Shape of the parameter; None takes the one it has.

    Raises:
        LayerError: There is no such parameter, the form has another shape, or the layer works in
            a way that a form cannot.
    """
    held = installed(model).get(name) or _alias_entry(model, name)
    places = _places(model, name)
    module, key = places[0]
    _check_layer(module, name)
    parameter = module._parameters.get(key)
    if parameter_shape is None:
        parameter_shape = held.parameter_shape if held else _shape(parameter)
    if layout is None:
        layout = held.layout if held else _usual_layout(module, key)
    expected = form_shape(layout, parameter_shape)
    wrong = parameter is not None and tuple(parameter.shape) != tuple(parameter_shape)
    if form.shape != expected or wrong:
        shape = _shape(parameter) if wrong else tuple(parameter_shape)
        raise LayerError(
            f"{name}: a form of shape {form.shape} cannot stand for a parameter of shape {shape} "
            f"in layout {layout!r}; it must have shape {form_shape(layout, shape)}."
        )
    for owner, own in places:
        _put(owner, own, form, layout, tuple(parameter_shape))


def _shape(parameter: Tensor | None) -> tuple[int, ...]:
    return () if parameter is None else tuple(parameter.shape)


def _alias_entry(model: nn.Module, name: str) -> Installed | None:
    return next((e for e in installed(model).values() if name in e.aliases), None)


def _usual_layout(module: nn.Module, key: str) -> Layout:
    name = plain_class(type(module)).__name__
    return "transposed" if key == "weight" and name == "Conv1D" else "natural"


def _places(model: nn.Module, name: str) -> list[tuple[nn.Module, str]]:
    """Return every (module, parameter name) that holds what ``name`` holds, itself first."""
    path, _, key = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise _no_parameter(model, name) from error
    form = module._modules.get(form_key(key)) if isinstance(module, FormOwner) else None
    parameter = module._parameters.get(key)
    if form is None and parameter is None:
        raise _no_parameter(model, name)
    places = [(module, key)]
    for other in model.modules():
        if form is not None and isinstance(other, FormOwner):
            names = [n for n in placements(other) if form_at(other, n) is form]
        elif form is None:
            names = [n for n, p in other._parameters.items() if p is parameter]
        else:
            continue
        places += [(other, n) for n in names if (other, n) != (module, key)]
    return places


def _no_parameter(model: nn.Module, name: str) -> LayerError:
    names = [*installed(model), *(n for n, _ in model.named_parameters())]
    return LayerError(
        f"{name}: {type(model).__name__} has no parameter of this name (parametrised weights "
        f"must be made plain first).{nearest(name, names)}"
    )


def _check_layer(module: nn.Module, name: str) -> None:
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        raise LayerError(f"{name}: a lazy layer has no weight yet; run the model once before.")
    if isinstance(module, nn.Embedding):
        for setting in ("max_norm", "scale_grad_by_freq"):
            value = getattr(module, setting)
            if value:
                raise LayerError(
                    f"{name}: nn.Embedding with {setting}={value} changes its table or gradients "
                    f"by itself, which a form cannot; set it to {None if value else False}."
                )


def _put(owner: nn.Module, key: str, form: Form, layout: Layout, shape: tuple[int, ...]) -> None:
    """Put a form into one module."""
    held = placements(owner) if isinstance(owner, FormOwner) else {}
    if key in held:
        position = held[key].position
    else:
        position = list(owner._parameters).index(key)
        del owner._parameters[key]
    names = {**held, key: Placement(layout, shape, position)}
    form.train(owner.training)
    owner.__class__ = class_for(plain_class(type(owner)), frozenset(names))
    owned = cast(FormOwner, owner)
    owned._modules[form_key(key)] = form
    placements(owned).update(names)
    set_kernel_(owned, None)


def installed(model: nn.Module) -> dict[str, Installed]:
    """Return the forms in a model by the path of the first parameter that each stands for."""
    found: dict[int, tuple[str, Installed]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, FormOwner):
            continue
        for key, place in placements(module).items():
            name = f"{path}.{key}" if path else key
            form = form_at(module, key)
            first, entry = found.get(id(form), (name, None))
            aliases = (*entry.aliases, name) if entry else ()
            layout, shape = (
                (entry.layout, entry.parameter_shape)
                if entry
                else (place.layout, place.parameter_shape)
            )
            found[id(form)] = (first, Installed(form, layout, shape, aliases))
    return dict(found.values())


def densify_(model: nn.Module) -> None:
    """Bring back plain layers with dense parameters, in place: the inverse of ``install_``.

    Parameters that were tied are tied again.
    """
    made: dict[tuple[int, Layout], nn.Parameter] = {}
    for module in list(model.modules()):
        if not isinstance(module, FormOwner):
            continue
        set_kernel_(module, None)
        places = dict(placements(module))
        fresh = {key: _parameter(module, key, made) for key in places}
        plain = release_(module)
        for key, place in reversed(places.items()):
            items = list(plain._parameters.items())
            items.insert(place.position, (key, fresh[key]))
            plain._parameters.clear()
            plain._parameters.update(items)


def _parameter(
    module: FormOwner, key: str, made: dict[tuple[int, Layout], nn.Parameter]
) -> nn.Parameter:
    form, layout = form_at(module, key), placements(module)[key].layout
    if (id(form), layout) not in made:
        dense = dense_at(module, key)
        if not (isinstance(dense, nn.Parameter) and isinstance(form, Dense)):
            train = any(p.requires_grad for p in form.parameters())
            values = dense.detach().clone(memory_format=torch.contiguous_format)
            dense = nn.Parameter(values, requires_grad=train and values.is_floating_point())
        made[id(form), layout] = dense
    return made[id(form), layout]
