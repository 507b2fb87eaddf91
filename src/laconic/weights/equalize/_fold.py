"""Move the scale of channels from a layer's input into its weight, and back in what gives it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from laconic.errors import LayerError
from laconic.forms._check import wide
from laconic.forms.dense import Dense
from laconic.forms.layout import from_form
from laconic.forms.owner import FormOwner, form_at, placements
from laconic.weights.base import Site, Step
from laconic.weights.roles import Passage, Reader, Roles

Relation = Reader | Passage


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """Return a parameter's values, to be changed in place, in the parameter's own layout.

    Raises:
        LayerError: A form that is not dense stands for it.
    """
    path, _, key = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(owner, FormOwner) and key in placements(owner):
        form, place = form_at(owner, key), placements(owner)[key]
        if not isinstance(form, Dense):
            raise LayerError(
                f"{name}: {form.signature} stands here; only dense weights can be rescaled. "
                "Rescale before the weight is compressed."
            )
        return from_form(form.value.detach(), place.layout, place.parameter_shape)
    return owner.get_parameter(key).detach()


def is_dense(model: nn.Module, name: str) -> bool:
    """Return whether a parameter's values can be changed."""
    path, _, key = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError:  # the part that held it was removed
        return False
    if isinstance(owner, FormOwner) and key in placements(owner):
        return isinstance(form_at(owner, key), Dense)
    return owner._parameters.get(key) is not None


def layers_of(relation: Relation) -> tuple[str, ...]:
    """Return the layers whose weights a relation changes."""
    if isinstance(relation, Reader):
        return relation.layers
    return relation.source, relation.target


def name_of(relation: Relation) -> str:
    """Return what messages call a relation."""
    if isinstance(relation, Reader):
        return relation.norm
    return relation.target


def usable(
    step: Step, model: nn.Module, relations: Iterable[Relation], sites: dict[str, Site]
) -> tuple[list[Relation], dict[str, str]]:
    """Return the relations that a step may rescale, and why it leaves the others.

    Args:
        step: Its scope must hold every site of a relation.
        model: The model at work.
        relations: What was found.
        sites: The model's sites by name.
    """
    chosen: list[Relation] = []
    left: dict[str, str] = {}
    for relation in relations:
        layers = layers_of(relation)
        inside = [step.selects(sites[name]) for name in layers if name in sites]
        if not any(inside):
            left[name_of(relation)] = "outside of the scope"
        elif not all(inside):
            left[name_of(relation)] = "only some of its layers are in the scope"
        elif not all(is_dense(model, name) for name in layers):
            left[name_of(relation)] = "one of its layers is compressed already, or removed"
        else:
            chosen.append(relation)
    return chosen, left


def fold_(model: nn.Module, roles: Roles, relation: Relation, scale: Tensor) -> None:
    """Multiply weights by the scales of their inputs, and divide what gives these inputs, in place.

    Args:
        model: Any model of the roles' structure.
        roles: Where the relation was found.
        relation: A norm with its readers, or a passage.
        scale: Positive; (cols,) of a norm's readers, (rows,) of a passage's source.
    """
    if isinstance(relation, Reader):
        for name in relation.layers:
            _scale_(tensor_of(model, name), scale, roles.shapes[name].axis)
        norm = model.get_submodule(relation.norm)
        _divide_gain_(norm, relation.offset, scale)
        return
    target, source = roles.shapes[relation.target], roles.shapes[relation.source]
    _scale_(tensor_of(model, relation.target), scale[relation.columns], target.axis)
    weight, axis = tensor_of(model, relation.source), -3 - source.axis
    each = scale.new_ones(weight.shape[axis])
    each[relation.rows.to(scale.device)] = 1 / scale
    _scale_(weight, each, axis)
    if source.bias is not None:
        _scale_(tensor_of(model, source.bias), each, -1)


def _scale_(tensor: Tensor, scale: Tensor, axis: int) -> None:
    shape = [1] * tensor.dim()
    shape[axis] = -1
    kind = wide(tensor.dtype)
    tensor.copy_(tensor.to(kind) * scale.to(tensor.device, kind).reshape(shape))


def _divide_gain_(norm: nn.Module, offset: float, scale: Tensor) -> None:
    weight, bias = norm.get_parameter("weight").detach(), norm._parameters.get("bias")
    kind = wide(weight.dtype)
    held = scale.to(weight.device, kind)
    weight.copy_((weight.to(kind) + offset) / held - offset)
    if bias is not None:
        bias.detach().copy_(bias.detach().to(kind) / held)


def by_input(tensor: Tensor, axis: int) -> Tensor:
    """Return a parameter as (everything else, inputs), float32 or wider."""
    return tensor.movedim(axis, -1).reshape(-1, tensor.shape[axis]).to(wide(tensor.dtype))


def largest_weights(model: nn.Module, roles: Roles, names: Iterable[str]) -> Tensor:
    """Return the largest magnitude that each input meets in several layers, (cols,)."""
    found = [by_input(tensor_of(model, n), roles.shapes[n].axis).abs().amax(0) for n in names]
    return torch.stack(found).amax(0)


def by_source(values: Tensor, passage: Passage) -> Tensor:
    """Return the largest value among the columns that each row of a source meets, (rows,)."""
    columns = passage.columns.to(values.device)
    out = values.new_zeros(len(passage.rows))
    return out.scatter_reduce(0, columns, values, "amax")
