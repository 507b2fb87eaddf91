"""Tensors of a module tree by name: walked, found, and put in place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

BufferKind = Literal["", "persistent", "transient"]
"""What a tensor is: a parameter, or a buffer in or outside the state dict."""


@dataclass(frozen=True)
class Named:
    """One parameter or buffer of a model.

    Attributes:
        name: Its first name.
        tensor: The tensor.
        buffer: It is a buffer.
        persistent: It is part of the state dict.
        aliases: Other names of the same tensor.
    """

    name: str
    tensor: Tensor
    buffer: bool
    persistent: bool
    aliases: tuple[str, ...]

    @property
    def buffer_kind(self) -> BufferKind:
        """Empty for a parameter."""
        if not self.buffer:
            return ""
        return "persistent" if self.persistent else "transient"


def named_tensors(model: nn.Module, *, without: set[int]) -> Iterator[Named]:
    """Yield every parameter and buffer once, with its other names.

    Args:
        model: The model.
        without: ``id`` of tensors to leave out.
    """
    names: dict[int, list[str]] = {}
    found: dict[int, tuple[Tensor, bool, bool]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        lost = module._non_persistent_buffers_set
        for held, buffer in ((module._parameters, False), (module._buffers, True)):
            for leaf, tensor in held.items():
                if tensor is None or id(tensor) in without:
                    continue
                names.setdefault(id(tensor), []).append(prefix + leaf)
                found.setdefault(id(tensor), (tensor, buffer, leaf not in lost))
    for key, (tensor, buffer, persistent) in found.items():
        first, *others = dict.fromkeys(names[key])
        yield Named(first, tensor, buffer, persistent, tuple(others))


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that owns a parameter or buffer, and its name there.

    Raises:
        ValueError: No module stands at the path.
    """
    path, _, leaf = name.rpartition(".")
    module = model
    for atom in path.split(".") if path else ():
        below = module._modules.get(atom)
        if below is None:
            raise ValueError(f"the model has no module {path!r}")
        module = below
    return module, leaf


def find(model: nn.Module, name: str) -> Tensor | None:
    """Return the parameter or buffer of a name, None where there is none."""
    try:
        owner, leaf = owner_of(model, name)
    except ValueError:
        return None
    held = owner._parameters.get(leaf)
    return held if held is not None else owner._buffers.get(leaf)


def put_(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor where a parameter or buffer stands, in place.

    Raises:
        ValueError: Nothing stands there.
    """
    owner, leaf = owner_of(model, name)
    if leaf in owner._parameters:
        if not isinstance(tensor, nn.Parameter):
            old = owner._parameters[leaf]
            grad = tensor.is_floating_point() and (old is None or old.requires_grad)
            tensor = nn.Parameter(tensor, requires_grad=grad)
        setattr(owner, leaf, tensor)
    elif leaf in owner._buffers:
        owner._buffers[leaf] = tensor.detach() if isinstance(tensor, nn.Parameter) else tensor
    else:
        raise ValueError(f"the model has no parameter or buffer {name!r}")


def ensure_(
    model: nn.Module, name: str, *, shape: list[int], dtype: torch.dtype, buffer: BufferKind
) -> None:
    """Add a parameter or buffer unless one stands there already, in place.

    Args:
        model: The model.
        name: Path of the tensor.
        shape: Its shape.
        dtype: Its type.
        buffer: Empty for a parameter.

    Raises:
        ValueError: Something else stands there.
    """
    if find(model, name) is None:
        add_(model, name, shape=shape, dtype=dtype, buffer=buffer)


def add_(
    model: nn.Module, name: str, *, shape: list[int], dtype: torch.dtype, buffer: BufferKind
) -> None:
    """Add a parameter or buffer on the meta device, and the modules on its path, in place.

    Raises:
        ValueError: Something else stands there.
    """
    *atoms, leaf = name.split(".")
    module = model
    for atom in atoms:
        module = descend_(module, atom)
    tensor = torch.empty(shape, dtype=dtype, device="meta")
    try:
        if buffer:
            module.register_buffer(leaf, tensor, persistent=buffer == "persistent")
        else:
            made = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
            module.register_parameter(leaf, made)
    except KeyError as error:
        raise ValueError(f"{name!r} cannot be made: {error}") from error


def descend_(module: nn.Module, atom: str) -> nn.Module:
    """Return the child of a name, made empty where there is none.

    Raises:
        ValueError: Something that is no module has the name.
    """
    below = module._modules.get(atom)
    if below is not None:
        return below
    made = nn.Module()
    try:
        module.add_module(atom, made)
    except KeyError as error:
        raise ValueError(f"module {atom!r} cannot be made: {error}") from error
    return made
