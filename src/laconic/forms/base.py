"""What every shorter form of a tensor can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.errors import ConfigError, nearest
from laconic.forms.activations import Axes


@dataclass(frozen=True)
class Part:
    """One tensor of a form as it lies at rest.

    Attributes:
        tensor: Integer symbols (uint8, or int32 where ``alphabet`` > 256) or plain values.
        alphabet: Symbols lie in ``[0, alphabet)``; None marks plain values (float or integer).
        sparse_pattern: The symbols are a 0/1 map, one symbol a position, which may also be
            stored as index gaps.
    """

    tensor: Tensor
    alphabet: int | None = None
    sparse_pattern: bool = False


class Form(nn.Module, ABC):
    """Stands for a dense tensor and holds less.

    A form stands for a tensor of ``shape``; as a matrix it is ``(rows, cols)`` with
    ``rows = shape[0]`` and ``cols`` the product of the rest, so that a convolution's weight
    ``(out, in, kh, kw)`` is the matrix ``(out, in*kh*kw)``.

    In memory a form keeps packed buffers and, where a part can be trained, parameters. At rest
    it is its ``parts()`` (symbols one to an element, and values), its ``settings()`` and its
    child forms; ``from_parts`` is the exact inverse.

    Attributes:
        kind: Name in files and tables, for example ``"quantized"``.
        shape: Shape of the tensor that the form stands for.
        dtype: Type of the tensor that the form stands for.
    """

    kind: ClassVar[str]
    _kinds: ClassVar[dict[str, type[Form]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            Form._kinds[cls.kind] = cls

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = tuple(int(n) for n in shape)
        self.dtype = dtype

    @property
    def rows(self) -> int:
        """Rows of the matrix view."""
        return self.shape[0] if self.shape else 1

    @property
    def cols(self) -> int:
        """Columns of the matrix view."""
        return prod(self.shape[1:])

    @abstractmethod
    def dense(self) -> Tensor:
        """Return the tensor that the form stands for: ``shape``, ``dtype``, differentiable."""

    @abstractmethod
    def parts(self) -> dict[str, Part]:
        """Return this form's own tensors as they lie at rest, without those of child forms."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what ``from_parts`` needs beside the tensors, as plain JSON values."""

    @classmethod
    @abstractmethod
    def from_parts(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        settings: Mapping[str, Any],
        parts: Mapping[str, Tensor],
        children: Mapping[str, Form],
    ) -> Form:
        """Build the form from what ``settings``, ``parts`` and ``children`` gave.

        Raises:
            ConfigError: Settings, shapes or symbols that do not belong together.
        """

    def children_forms(self) -> dict[str, Form]:
        """Return child forms by name, in a stable order."""
        return {name: child for name, child in self.named_children() if isinstance(child, Form)}

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Form]]:
        """Yield ``(path, form)`` for this form and all below it; the root's path is ``prefix``."""
        yield prefix, self
        for name, child in self.children_forms().items():
            yield from child.walk(f"{prefix}.{name}" if prefix else name)

    def matmul(self, x: Tensor) -> Tensor:
        """Multiply: ``x (..., cols) -> (..., rows)``, that is ``x @ dense().T``.

        Where the form rounds its inputs, ``incoming(x)`` is multiplied in their place.
        """
        held = self.incoming(x)
        return F.linear(held, self.operand(held.dtype)).to(x.dtype)

    def incoming(self, x: Tensor, *, axes: Axes = "last") -> Tensor:
        """Return an input as the form multiplies it: itself, or rounded (float32 or wider).

        Args:
            x: What the layer is called with.
            axes: What a token is, as for ``Activations.levels``.
        """
        return x

    def operand(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix (rows, cols) that inputs of a type are multiplied with."""
        return self.dense().reshape(self.rows, self.cols).to(dtype)

    @property
    def rounds_inputs(self) -> bool:
        """This form or one below it rounds what it is multiplied with."""
        return any(getattr(form, "activations", None) is not None for _, form in self.walk())

    def embed(self, ids: Tensor) -> Tensor:
        """Look up rows: ``ids (...) int64 -> (..., *shape[1:])``."""
        rows = F.embedding(ids, self.dense().reshape(self.rows, self.cols))
        return rows.reshape(*ids.shape, *self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes that all parts hold in memory, fixed width, child forms included."""
        held = (*self.parameters(), *self.buffers())
        return sum(t.numel() * t.element_size() for t in held)

    @property
    def signature(self) -> str:
        """Name with nesting, for example ``"sparse(quantized)"``."""
        inner = ", ".join(child.signature for child in self.children_forms().values())
        return f"{self.kind}({inner})" if inner else self.kind

    def forward(self, x: Tensor) -> Tensor:
        """Multiply, as :meth:`matmul`."""
        return self.matmul(x)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype  # follows .to(dtype), .half(), ...
        return self

    def extra_repr(self) -> str:
        """Show shape and settings when printed."""
        return f"shape={self.shape}, " + ", ".join(f"{k}={v}" for k, v in self.settings().items())


def form_class(kind: str) -> type[Form]:
    """Return the class of a form by its name in files.

    Raises:
        ConfigError: No form has this name.
    """
    if kind not in Form._kinds:
        raise ConfigError(f"no form {kind!r}.{nearest(kind, Form._kinds)}")
    return Form._kinds[kind]
