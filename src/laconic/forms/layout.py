"""How the tensor of a form lies in the parameter that it stands for."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from laconic.errors import LayerError

Layout = Literal["natural", "transposed", "stacked", "stacked-transposed"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


def form_shape(layout: Layout, parameter_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the form that stands for a parameter.

    - ``natural``: the parameter's own shape;
    - ``transposed``: (in, out), as in GPT-2's ``Conv1D``, gives (out, in);
    - ``stacked``: (experts, out, in) gives (experts * out, in);
    - ``stacked-transposed``: (experts, in, out) gives (experts * out, in).

    >>> form_shape("stacked-transposed", (4, 8, 6))
    (24, 8)

    Raises:
        LayerError: An unknown layout, or a parameter without the axes that it needs.
    """
    if layout not in LAYOUTS:
        raise LayerError(f"layout={layout!r} must be one of {', '.join(LAYOUTS)}.")
    axes = {"transposed": 2, "stacked": 3, "stacked-transposed": 3}.get(layout)
    if axes is None:
        return tuple(parameter_shape)
    if len(parameter_shape) != axes:
        raise LayerError(
            f"layout={layout!r} needs a parameter of {axes} axes, got {tuple(parameter_shape)}."
        )
    if layout == "transposed":
        return parameter_shape[1], parameter_shape[0]
    experts, first, second = parameter_shape
    out, into = (first, second) if layout == "stacked" else (second, first)
    return experts * out, into


def to_form(tensor: Tensor, layout: Layout) -> Tensor:
    """Return a parameter's tensor in the shape of the form; a view wherever that can be.

    Raises:
        LayerError: The tensor has not the axes that the layout needs.
    """
    shape = form_shape(layout, tuple(tensor.shape))
    if layout == "natural":
        return tensor
    if layout == "transposed":
        return tensor.transpose(0, 1)
    return (tensor if layout == "stacked" else tensor.transpose(1, 2)).reshape(shape)


def from_form(tensor: Tensor, layout: Layout, parameter_shape: tuple[int, ...]) -> Tensor:
    """Return a form's tensor in the shape of the parameter: the inverse of :func:`to_form`.

    Raises:
        LayerError: The tensor is not that of a form for this parameter.
    """
    expected = form_shape(layout, parameter_shape)
    if tuple(tensor.shape) != expected:
        raise LayerError(
            f"a form of shape {tuple(tensor.shape)} does not stand for a parameter of shape "
            f"{tuple(parameter_shape)} in layout {layout!r}; that takes {expected}."
        )
    if layout == "natural":
        return tensor
    if layout == "transposed":
        return tensor.transpose(0, 1)
    if layout == "stacked":
        return tensor.reshape(parameter_shape)
    experts, into, out = parameter_shape
    return tensor.reshape(experts, out, into).transpose(1, 2)
