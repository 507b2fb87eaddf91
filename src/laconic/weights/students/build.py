"""A child network: units dropped, layers shrunk, and everything behind them re-wired."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from laconic.artifact import leaves
from laconic.artifact.arguments import to_json
from laconic.weights.students._blueprint import Blueprint, Row, count_macs, count_params, walk
from laconic.weights.students._fitting import InvalidChildError, Sizes, fitted, is_depthwise
from laconic.weights.students._junctions import WEIGHTED, Junction
from laconic.weights.students.spec import FreeTensor, StudentSpec
from laconic.weights.students.units import Network

__all__ = ["Draft", "InvalidChildError", "Plan", "Sizes", "draft", "tied_layers"]


@dataclass(frozen=True)
class Plan:
    """What a child differs in from the network it is cut from.

    Attributes:
        removed: Indices of dropped units.
        sizes: New sizes by unit index.
    """

    removed: frozenset[int] = frozenset()
    sizes: Mapping[int, Sizes] = field(default_factory=dict)


@dataclass(frozen=True)
class Draft:
    """A child without weights.

    Attributes:
        module: Its graph; layers lie on the meta device.
        key: Stands for its architecture: two children of the same layers and connections share
            it, whatever units were dropped to get there.
        params: Number of parameters.
        macs: Multiply-additions for one example.
        free: Tensors outside of its layers.
    """

    module: fx.GraphModule
    key: str
    params: int
    macs: int
    free: Mapping[str, FreeTensor] = field(default_factory=dict)

    def spec(self) -> StudentSpec:
        """Return the architecture as plain values."""
        return StudentSpec.of(self.module, self.free)


def draft(network: Network, plan: Plan) -> Draft:
    """Build a child.

    A dropped unit hands on its input. Where no layer is left on the main path of a residual
    block, the block is its shortcut. The last layer of a main path gives as many channels as the
    shortcut; a shortcut with a layer of its own gives as many as the main path. All other
    layers take what comes in, concatenations included.

    Raises:
        InvalidChildError: The child has no valid shapes; says where.

    Source: Ashok et al. 2018 (N2N Learning), section 3.1 and appendix on residual networks.
    """
    base = network.blueprint
    module = _copy(base)
    for index in sorted(plan.removed):
        _bypass_(module, network.units[index].nodes)
    alive = {node.name for node in module.graph.nodes}
    for junction in network.junctions:
        if junction.main_layers and not alive.intersection(junction.main_layers):
            _keep_shortcut_(module, junction)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    sizes = {network.units[i].nodes[0]: s for i, s in plan.sizes.items() if i not in plan.removed}
    values = _fit_(module, network, sizes)
    module.recompile()
    rows = {
        str(n.target): leaves.describe(module.get_submodule(str(n.target)), where=str(n.target))
        for n in module.graph.nodes
        if n.op == "call_module"
    }
    macs = count_macs(module, values)
    return Draft(module, _key(module, rows), count_params(module), macs, base.spec.free)


def _copy(base: Blueprint) -> fx.GraphModule:
    made, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in base.module.graph.nodes:
        copied[node] = made.node_copy(node, copied.__getitem__)
    return fx.GraphModule(base.module, made, class_name="Student")


def _named(module: fx.GraphModule) -> dict[str, fx.Node]:
    return {node.name: node for node in module.graph.nodes}


def _bypass_(module: fx.GraphModule, names: tuple[str, ...]) -> None:
    held = _named(module)
    for name in names:
        node = held[name]
        node.replace_all_uses_with(node.all_input_nodes[0])
        module.graph.erase_node(node)


def _keep_shortcut_(module: fx.GraphModule, junction: Junction) -> None:
    node = _named(module).get(junction.node)
    if node is None:
        return
    shortcut = node.args[junction.shortcut]
    if isinstance(shortcut, fx.Node):
        node.replace_all_uses_with(shortcut)
        module.graph.erase_node(node)


def _fit_(
    module: fx.GraphModule, network: Network, sizes: Mapping[str, Sizes]
) -> dict[str, Tensor]:
    """Give every layer the sizes that its input asks for, in place; return all shapes."""
    base = network.blueprint
    widths = Widths(module, network, {n: s.filters for n, s in sizes.items() if s.filters})
    seen: dict[str, int] = {}

    def prepare(node: fx.Node, x: Tensor) -> None:
        """Resize the layer of a node to what its input has."""
        path = str(node.target)
        layer = base.module.get_submodule(path)
        channel = int(x.shape[-1] if isinstance(layer, nn.Linear) else x.shape[1])
        if path in seen:
            if seen[path] != channel and list(layer.parameters()):
                raise InvalidChildError(f"{path} runs twice on different widths")
            return
        seen[path] = channel
        width = widths.of(node) if isinstance(layer, WEIGHTED) else None
        changes = fitted(layer, x, sizes.get(node.name, Sizes()), width)
        row = base.rows[path]
        settings = {**(row[1] if len(row) > 1 else {}), **_written(changes)}
        owner, _, leaf = path.rpartition(".")
        setattr(module.get_submodule(owner), leaf, leaves.build([row[0], settings]))

    try:
        values = walk(module, base.example, prepare)
    except InvalidChildError:
        raise
    except Exception as error:  # shapes that do not fit fail in many ways, all with one outcome
        raise InvalidChildError(f"{type(error).__name__}: {error}") from error
    output = list(module.graph.nodes)[-1].args[0]
    wanted = base.shape(list(base.module.graph.nodes)[-1].all_input_nodes[0])
    if not isinstance(output, fx.Node) or tuple(values[output.name].shape) != wanted:
        raise InvalidChildError("the output has another shape than the teacher's")
    return values


def _written(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in the form of records, in which a tuple is marked."""
    return {name: to_json(value, lambda _: None) for name, value in settings.items()}


def _key(module: fx.GraphModule, rows: Mapping[str, Row]) -> str:
    """Return a digest of layers and connections that does not depend on names."""
    numbers: dict[fx.Node, int] = {}
    layers: dict[str, int] = {}
    told: list[Any] = []
    for node in module.graph.nodes:
        numbers[node] = len(numbers)
        target = str(node.target)
        if node.op == "call_module":
            new = target not in layers
            target = str(layers.setdefault(target, len(layers)))
            target += json.dumps(rows[str(node.target)], sort_keys=True) if new else ""
        args = to_json((node.args, dict(node.kwargs)), _numbered(numbers))
        told.append([node.op, target, args])
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]


def _numbered(numbers: Mapping[fx.Node, int]) -> Callable[[Any], int | None]:
    return lambda item: numbers[item] if isinstance(item, fx.Node) else None


class Widths:
    """How many channels each layer of a child gives, by what it is tied to.

    Args:
        module: The child after units were dropped.
        network: What it was cut from.
        wanted: Asked widths by node name.
    """

    def __init__(self, module: fx.GraphModule, network: Network, wanted: Mapping[str, int]) -> None:
        self.base, self.wanted = network.blueprint, wanted
        self.junctions = {junction.node: junction for junction in network.junctions}
        self.ties: dict[str, fx.Node] = {}
        self._known: dict[str, int | None] = {}
        for node in module.graph.nodes:
            if node.name in self.junctions:
                self._tie(node, self.junctions[node.name])

    def _tie(self, node: fx.Node, junction: Junction) -> None:
        shortcut, main = node.args[junction.shortcut], node.args[1 - junction.shortcut]
        if not isinstance(shortcut, fx.Node) or not isinstance(main, fx.Node):
            return
        last, other = self.giver(main), self.giver(shortcut)
        if last is None or last.name not in junction.main_nodes:
            return
        if other is not None and other.name in junction.shortcut_nodes:
            self.ties.setdefault(other.name, main)
        else:
            self.ties.setdefault(last.name, shortcut)

    def giver(self, node: fx.Node) -> fx.Node | None:
        """Return the layer that decides a node's width; None where none does."""
        while True:
            layer = self._layer(node)
            if layer is not None and not is_depthwise(layer):
                return node
            below = self._same_width(node)
            if below is None:
                return None
            node = below

    def of(self, node: fx.Node) -> int | None:
        """Return a node's width; None where it is not known before it runs."""
        if node.name not in self._known:
            self._known[node.name] = self._find(node)
        return self._known[node.name]

    def _find(self, node: fx.Node) -> int | None:
        layer, own = self._layer(node), self.base.channels(node)
        if layer is not None and not is_depthwise(layer):
            tied = self.ties.get(node.name)
            if tied is not None:
                return self.of(tied) or self.base.channels(tied)
            return self.wanted.get(node.name, own)
        if node.op == "placeholder":
            return own or None
        inputs = [n for n in node.all_input_nodes if self.base.channels(n)]
        if layer is not None or node.target is F.pad:
            before, known = self.of(inputs[0]), self.base.channels_in(node)
            if before is None:
                return None
            return before + own - known if layer is None else before * own // known
        if node.op == "call_function" and node.target in (torch.cat, torch.concat):
            listed = node.args[0] if isinstance(node.args[0], list | tuple) else ()
            parts = [self.of(n) if isinstance(n, fx.Node) else None for n in listed]
            held = [part for part in parts if part is not None]
            return sum(held) if len(held) == len(parts) else None
        below = self._same_width(node)
        return None if below is None else self.of(below)

    def _layer(self, node: fx.Node) -> nn.Module | None:
        if node.op != "call_module":
            return None
        layer = self.base.module.get_submodule(str(node.target))
        return layer if isinstance(layer, WEIGHTED) else None

    def _same_width(self, node: fx.Node) -> fx.Node | None:
        """Return the input whose width a node hands on; None where it changes it."""
        if node.name in self.junctions:
            shortcut = node.args[self.junctions[node.name].shortcut]
            return shortcut if isinstance(shortcut, fx.Node) else None
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node) or node.op in ("placeholder", "get_attr", "output"):
            return None
        keeps = self.base.channels(node) == self.base.channels_in(node) > 0
        return first if keeps else None


def tied_layers(network: Network) -> frozenset[str]:
    """Return the names of nodes whose width follows another's: they cannot be shrunk alone."""
    return frozenset(Widths(network.blueprint.module, network, {}).ties)
