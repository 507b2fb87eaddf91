"""What an assignment sets: a weight's form, or whether a part of a block is there."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from laconic.errors import ConfigError
from laconic.forms.layers import from_form
from laconic.search.database import FormDatabase
from laconic.weights.base import Site
from laconic.weights.depth.subblocks import SubBlock, exchange_
from laconic.weights.sites import blocks_of


class Unit(Protocol):
    """One row of a level table, as it is put into a model."""

    @property
    def name(self) -> str:
        """Name of the row."""
        ...

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all that it changes."""
        ...

    def put_(self, model: nn.Module, level: int) -> None:
        """Put a level into the model, in place; whatever stood there is gone without a trace."""
        ...


@dataclass
class SiteUnit:
    """A weight whose levels are forms of a database.

    The model keeps dense parameters: the dense tensor of a form is written into the parameter
    once for each switch, and the model then runs at the speed of the original.

    Args:
        site: The weight.
        database: Its forms.
    """

    site: Site
    database: FormDatabase

    @property
    def name(self) -> str:
        """Name of the weight."""
        return self.site.name

    @property
    def paths(self) -> tuple[str, ...]:
        """The weight and those tied to it."""
        return self.site.name, *self.site.aliases

    def put_(self, model: nn.Module, level: int) -> None:
        """Write the dense tensor of a level into the parameter, in place."""
        form = self.database.form(self.site.name, level)
        dense = self.site.original if form is None else form.dense()
        parameter = model.get_parameter(self.site.name)
        with torch.no_grad():
            value = from_form(dense.detach(), self.site.layout, tuple(parameter.shape))
            parameter.copy_(value.to(parameter.device))


class PartUnit:
    """A part of a residual block that is removed at level 0 and there at level 1.

    Args:
        part: The part.
    """

    def __init__(self, part: SubBlock) -> None:
        self.part = part
        self._held: dict[str, nn.Module] = {}

    @property
    def name(self) -> str:
        """Name of the part."""
        return self.part.name

    @property
    def paths(self) -> tuple[str, ...]:
        """Path of its block."""
        return (f"{self.part.block_path}.",)

    def put_(self, model: nn.Module, level: int) -> None:
        """Take the part out or put it back, in place."""
        if level == 0 and not self._held:
            for path, module in self.part.replacements().items():
                self._held[path] = exchange_(model, path, module)
        elif level == 1:
            for path, held in self._held.items():
                exchange_(model, path, held)
            self._held = {}


def first_blocks(model: nn.Module, units: Sequence[Unit]) -> list[int]:
    """Return the first block whose output a unit may change, a unit each.

    0 also for what runs before the blocks; the number of blocks for what runs after them, which
    is told by the order of modules: behind the list of blocks. Weights tied to one before count
    as before.
    """
    blocks = list(blocks_of(model))
    order = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    last = max(
        (i for i, name in enumerate(order) if any(name.startswith(f"{b}.") for b in blocks)),
        default=-1,
    )

    def place(path: str) -> int:
        for index, block in enumerate(blocks):
            if path.startswith(f"{block}."):
                return index
        if path not in order:
            raise ConfigError(f"search: {path} is neither a weight nor a part of the model.")
        return len(blocks) if order.index(path) > last else 0

    return [min(place(path) for path in unit.paths) for unit in units]


def detached(units: Sequence[Unit]) -> list[Unit]:
    """Return units of their own for a copy of the model; databases are shared."""
    return [PartUnit(unit.part) if isinstance(unit, PartUnit) else unit for unit in units]


def sharing_copy(model: nn.Module) -> nn.Module:
    """Return a model of the same modules, copied, that holds the very same tensors, in eval mode.

    To put other parameters or modules into it leaves the model alone; to write into its tensors
    does not.
    """
    tensors = [*model.parameters(), *model.buffers()]
    copy: nn.Module = deepcopy(model, {id(tensor): tensor for tensor in tensors})
    return copy.eval()
