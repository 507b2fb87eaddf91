"""Places where two paths meet and must agree in width: residual sums and gates."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from laconic.weights.students._blueprint import Blueprint

_MEETINGS = {operator.add, operator.mul, operator.sub, torch.add, torch.mul, torch.sub}
_MEETING_METHODS = {"add", "mul", "sub", "multiply"}
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class Junction:
    """A residual block or a gate, seen from where its two paths meet.

    Attributes:
        node: Name of the node where they meet.
        shortcut: Place of the shortcut among the node's two arguments.
        main_layers: Convolutions and linear layers of the main path, in order.
        main_nodes: All nodes of the main path.
        shortcut_nodes: All nodes of the shortcut; empty where it is the input itself.
    """

    node: str
    shortcut: int
    main_layers: tuple[str, ...]
    main_nodes: frozenset[str]
    shortcut_nodes: frozenset[str]


def is_weighted(blueprint: Blueprint, node: fx.Node) -> bool:
    """Return whether a node is a convolution or linear layer."""
    return node.op == "call_module" and isinstance(
        blueprint.module.get_submodule(str(node.target)), WEIGHTED
    )


def find_junctions(blueprint: Blueprint) -> list[Junction]:
    """Return the residual blocks and gates of a network, in the order in which they end.

    The shortcut is the path with fewer layers since the two parted; at a tie the second.
    """
    order = {node: place for place, node in enumerate(blueprint.module.graph.nodes)}
    above: dict[fx.Node, set[fx.Node]] = {}
    for node in order:
        above[node] = set().union(*({n} | above[n] for n in node.all_input_nodes))
    found = []
    for node in order:
        if not _meets(blueprint, node):
            continue
        ends = [n for n in node.args[:2] if isinstance(n, fx.Node)]
        common = set.intersection(*({end} | above[end] for end in ends))
        if not common:
            continue
        fork = max(common, key=order.__getitem__)
        paths = [_between(fork, end, above) for end in ends]
        layers = [
            [n for n in sorted(path, key=order.__getitem__) if is_weighted(blueprint, n)]
            for path in paths
        ]
        main = 1 if len(layers[1]) > len(layers[0]) else 0
        found.append(
            Junction(
                node.name,
                1 - main,
                tuple(n.name for n in layers[main]),
                frozenset(n.name for n in paths[main]),
                frozenset(n.name for n in paths[1 - main]),
            )
        )
    return found


def _meets(blueprint: Blueprint, node: fx.Node) -> bool:
    known = (node.op == "call_function" and node.target in _MEETINGS) or (
        node.op == "call_method" and node.target in _MEETING_METHODS
    )
    if not known or len(node.args) < 2:
        return False
    widths = [blueprint.channels(n) for n in node.args[:2] if isinstance(n, fx.Node)]
    apart = len(widths) == 2 and node.args[0] is not node.args[1]
    return apart and widths[0] == widths[1] > 0


def _between(fork: fx.Node, end: fx.Node, above: Mapping[fx.Node, set[fx.Node]]) -> set[fx.Node]:
    """Return the nodes from after the fork to the end."""
    return {n for n in {end} | above[end] if fork in above[n]}
