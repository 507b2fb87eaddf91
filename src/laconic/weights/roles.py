"""What a layer is for in its block, found by running it: who reads a norm, what passes unchanged.

Nothing is told by names. A norm's readers are the layers whose input rows are rows that the norm
gave; that nothing else reads them is shown by scaling the norm's output and the readers' inputs
against each other: the block's output must stay what it is. One layer's outputs pass to another
where scaling rows of the first scales columns of the second's input and does nothing else: the
values of an attention and its output projection (each value meets several columns with grouped
queries), the ungated half of a gated feed-forward layer, both sides of a ReLU. Scales are powers
of two, so that floating point gives the very same output where a relation holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.task import Task
from laconic.weights._flow import Data, device_of
from laconic.weights._proportion import (
    constant_ratio,
    flat,
    gain_offset,
    matched,
    row_set,
    row_sets,
)
from laconic.weights._uses import Region, Seen, regions_of
from laconic.weights.sites import blocks_of, find_sites

PROBE_EXAMPLES = 2
_EXACT = 1e-6  # change of an output, as a share of its largest value, that is rounding alone


@dataclass(frozen=True)
class Reader:
    """A norm and all that reads it: layers whose inputs are the norm's outputs, nothing else.

    Attributes:
        block: Index of the residual block; None where the model has none.
        norm: Path of the norm's module; its gain is ``offset + weight``.
        offset: 0, or 1 where the norm multiplies by one plus its weight (Gemma).
        layers: Parameters that are multiplied with what the norm gives, in the order of calls;
            those that are no sites (a router) among them.
        parent: Path of the smallest module that holds all these layers.
    """

    block: int | None
    norm: str
    offset: float
    layers: tuple[str, ...]
    parent: str


@dataclass(frozen=True)
class Passage:
    """Outputs of one layer that reach the input of another scaled by factors of other origin.

    Attributes:
        block: Index of the residual block; None where the model has none.
        source: Parameter of the first layer.
        rows: (n,) int64, the rows of the source (of each expert) whose outputs pass.
        target: Parameter of the second layer.
        columns: (cols,) int64, for each column of the target the index in ``rows`` of what it
            meets.
        parent: Path of the target's module.
        mixes: What passes is mixed between tokens, as the values of an attention are.
    """

    block: int | None
    source: str
    rows: Tensor
    target: str
    columns: Tensor
    parent: str
    mixes: bool

    @property
    def repeats(self) -> int:
        """Columns that one row meets: 1, or with grouped queries the heads of a group."""
        return len(self.columns) // len(self.rows)


@dataclass(frozen=True)
class Refusal:
    """A relation that does not hold.

    Attributes:
        block: Index of the residual block; None where the model has none.
        name: The norm, or the layer that has no source.
        reason: Why, in words.
    """

    block: int | None
    name: str
    reason: str


@dataclass(frozen=True)
class Shape:
    """How a layer's parameter lies.

    Attributes:
        axis: Axis that meets the input: -1, or -2 where it is kept transposed (GPT-2).
        bias: Path of the parameter that is added to the output, if any.
    """

    axis: int
    bias: str | None


@dataclass
class Roles:
    """Relations in all blocks of a model, those that do not hold, and how the layers lie."""

    readers: list[Reader] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)


def find_roles(model: nn.Module, task: Task) -> Roles:
    """Return which norms, layers and layers belong together in each residual block.

    A model without residual blocks is looked at as a whole. The model is run on two examples,
    and each block some dozen times on what it was called with; nothing is changed.

    Args:
        model: A dense model; weights that stand as forms take no part.
        task: Gives the examples and runs the model.

    Raises:
        ConfigError: The task has no calibration or training examples.
    """
    if not len(task.calibration_split() or ()):
        raise ConfigError(
            "roles: the task has no calibration or training examples to run the model on. Give "
            "--data NAME, or a Task with calibration."
        )
    batch = next(Data(task, device_of(model)).batches(PROBE_EXAMPLES))
    sites = {site.name for site in find_sites(model)}
    blocks = list(blocks_of(model))
    found = Roles()
    for region in regions_of(model, lambda held: task.forward(held, batch), blocks):
        block = blocks.index(region.path) if blocks else None
        _Search(region, block, sites, found).run()
    return _without_shared(model, found)


class _Search:
    """Looks for relations in one region."""

    def __init__(self, region: Region, block: int | None, sites: set[str], found: Roles) -> None:
        self.region, self.block, self.sites, self.found = region, block, sites, found
        self.base = region.run()
        self.draw = torch.Generator().manual_seed(0)
        self.order = list(dict.fromkeys(use.name for use in self.base.uses))
        self.width = {use.name: use.rows for use in self.base.uses}
        found.shapes |= {use.name: Shape(use.axis, use.bias) for use in self.base.uses}

    def run(self) -> None:
        """Add what holds, and what does not, to what was found."""
        fed: set[str] = set()  # layers that read a norm
        for norm in self.base.norms:
            layers = self._readers(norm)
            fed.update(layers)
            self._norm(norm, layers)
        for target in self.order:
            if target in self.sites and target not in fed:
                self._target(target)

    def _refuse(self, name: str, reason: str) -> None:
        self.found.refused.append(Refusal(self.block, name, reason))

    # --- norms ----------------------------------------------------------------------------------

    def _readers(self, norm: str) -> tuple[str, ...]:
        given = row_set(torch.cat([flat(out) for out in self.base.norms[norm]]))
        return tuple(
            name
            for name in self.order
            if all(row in given for row in row_set(self.base.inputs(name)))
        )

    def _norm(self, norm: str, layers: tuple[str, ...]) -> None:
        if not layers:
            self._refuse(norm, "no layer reads what it gives as it is")
            return
        scale = self._twos(self.base.norms[norm][0].shape[-1])
        seen = self.region.run(norms={norm: scale}, before=dict.fromkeys(layers, 1 / scale))
        if not self._same(seen):
            self._refuse(
                norm,
                f"beside {', '.join(layers)} something that is no linear layer reads what it "
                "gives, such as a residual sum",
            )
            return
        offset = gain_offset(self.region.norms[norm], self.base.norms[norm][0])
        if offset is None:
            self._refuse(norm, "its output does not grow in proportion with its weight")
            return
        parent = _parent(layers)
        self.found.readers.append(Reader(self.block, norm, offset, layers, parent))

    # --- passages -------------------------------------------------------------------------------

    def _target(self, target: str) -> None:
        cols = self.base.inputs(target).shape[1]
        before = self.order[: self.order.index(target)]
        for source in reversed(before):
            if source not in self.sites:
                continue
            for rows in row_sets(self.width[source], cols):
                columns = self._columns(source, rows, target)
                if columns is not None and self._holds(source, rows, target, columns):
                    parent, mixes = target.rpartition(".")[0], self._mixes(source, target)
                    held = Passage(self.block, source, rows, target, columns, parent, mixes)
                    self.found.passages.append(held)
                    return
        self._refuse(
            target,
            "no rows of a layer before it reach its input in proportion: an activation, a norm "
            "or a sum lies between, or the layer before is in another block",
        )

    def _columns(self, source: str, rows: Tensor, target: str) -> Tensor | None:
        """Return which of ``rows`` each column of the target's input is in proportion to."""
        held = self.base.inputs(target)
        factors, ratios = [], []
        for _ in range(2):  # two draws tell rows apart whose factors are close in one
            drawn = 0.5 + 1.5 * torch.rand(len(rows), generator=self.draw)
            seen = self.region.run(after={source: self._spread(source, rows, drawn)})
            moved = seen.inputs(target)
            if moved.shape != held.shape:
                return None
            ratio = constant_ratio(moved, held)
            if ratio is None:
                return None
            factors.append(drawn.to(ratio))
            ratios.append(ratio)
        return matched(torch.stack(factors), torch.stack(ratios))

    def _mixes(self, source: str, target: str) -> bool:
        """Return whether one row of the source's output reaches several rows of the target."""
        held = self.base.inputs(target)
        moved = self.region.run(first={source: 2.0}).inputs(target)
        return int((moved != held).any(1).sum()) > 1

    def _holds(self, source: str, rows: Tensor, target: str, columns: Tensor) -> bool:
        """Return whether scaling rows of the source is undone at the target alone."""
        scale = self._twos(len(rows))
        after = {source: self._spread(source, rows, scale)}
        return self._same(self.region.run(after=after, before={target: 1 / scale[columns]}))

    def _spread(self, source: str, rows: Tensor, scale: Tensor) -> Tensor:
        device = self.region.parameters[source].device
        full = torch.ones(self.width[source], dtype=scale.dtype)
        return full.index_copy(0, rows, scale.cpu()).to(device)

    def _twos(self, count: int) -> Tensor:
        """Return powers of two, 1/4 to 4."""
        powers = torch.randint(-2, 3, (count,), generator=self.draw)
        device = next(iter(self.region.parameters.values())).device
        return torch.exp2(powers.float()).to(device)

    def _same(self, seen: Seen) -> bool:
        pairs = zip(seen.outputs, self.base.outputs, strict=True)
        for new, old in pairs:
            if new.is_floating_point():
                limit = _EXACT * float(old.abs().amax()) if old.numel() else 0.0
                if not bool(((new - old).abs() <= limit).all()):
                    return False
        return True


def _parent(layers: Sequence[str]) -> str:
    """Return the path of the smallest module that holds all parameters."""
    paths = [name.split(".")[:-1] for name in layers]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _without_shared(model: nn.Module, found: Roles) -> Roles:
    """Take out relations with parameters that stand in several places of the model."""
    places: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        places[id(parameter)] = places.get(id(parameter), 0) + 1
    names = dict(model.named_parameters(remove_duplicate=False))
    shared = {name for name, p in names.items() if places[id(p)] > 1}

    def alone(block: int | None, name: str, parameters: Sequence[str]) -> bool:
        tied = [p for p in parameters if p in shared]
        if tied:
            reason = f"{', '.join(tied)} is tied to a weight in another place"
            found.refused.append(Refusal(block, name, reason))
        return not tied

    found.readers = [
        r for r in found.readers if alone(r.block, r.norm, (*r.layers, f"{r.norm}.weight"))
    ]
    found.passages = [p for p in found.passages if alone(p.block, p.target, (p.source, p.target))]
    return found
