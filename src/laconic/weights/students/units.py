"""The units of a network that may be dropped or shrunk, and those that must stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from laconic.errors import ConfigError, UnsupportedModelError, nearest
from laconic.weights.students._blueprint import Blueprint
from laconic.weights.students._junctions import Junction, find_junctions, is_weighted

Granularity = Literal["unit", "layer"]
KINDS = (
    "unknown", "conv", "max-pool", "activation", "norm", "linear", "dropout", "avg-pool", "softmax",
)  # fmt: skip
FEATURES = len(KINDS) + 6
PAPER_KEEP = ("linear", "avg-pool")
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CLASSES: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
    ("conv", _CONVS),
    ("linear", (nn.Linear,)),
    ("max-pool", (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool2d)),
    ("avg-pool", (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)),
    (
        "norm",
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d),
    ),
    ("dropout", (nn.Dropout, nn.Dropout1d, nn.Dropout2d)),
    ("softmax", (nn.Softmax, nn.LogSoftmax)),
    (
        "activation",
        (
            nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish,
            nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus,
        ),
    ),
)  # fmt: skip
_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d, F.adaptive_max_pool2d), "max-pool"),
    **dict.fromkeys((F.avg_pool2d, F.adaptive_avg_pool2d), "avg-pool"),
    **dict.fromkeys(
        (F.relu, torch.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.sigmoid,
         torch.sigmoid, torch.tanh, F.hardswish),
        "activation",
    ),
    **dict.fromkeys((F.softmax, F.log_softmax, torch.softmax), "softmax"),
}  # fmt: skip
_HEADS = ("conv", "linear", "max-pool", "avg-pool")
_FOLLOWERS = ("norm", "activation", "dropout")


@dataclass(frozen=True)
class Unit:
    """One unit, in the order in which the network runs.

    Attributes:
        index: Its place.
        name: Path of its layer, or the name of its node where it is a function.
        kind: One of ``KINDS``.
        kernel: Size of its window along the first axis; 0 where it has none.
        stride: Step of the window; 0 where it has none.
        filters: Channels or features that it gives; 0 where it gives what it gets.
        padding: Padding along the first axis.
        skip_start: Its place in its residual block, from 1; 0 outside of blocks.
        skip_end: Units from it to the end of the block, from 1; 0 outside of blocks.
        fixed: Why it must stay; empty where it may be dropped.
        group: Number of its residual block or gate; None outside of them.
        nodes: Names of its nodes in the graph: the layer, and what is dropped with it.
        layer: Path of its layer; None for a function.
    """

    index: int
    name: str
    kind: str
    kernel: int
    stride: int
    filters: int
    padding: int
    skip_start: int
    skip_end: int
    fixed: str
    group: int | None
    nodes: tuple[str, ...]
    layer: str | None


@dataclass(frozen=True)
class Network:
    """A network with its units and its junctions: what the two stages work on.

    Attributes:
        blueprint: The traced network.
        units: Its units in order.
        junctions: Its residual blocks and gates.
    """

    blueprint: Blueprint
    units: tuple[Unit, ...]
    junctions: tuple[Junction, ...]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example: Tensor,
        *,
        keep: Sequence[str] = PAPER_KEEP,
        granularity: Granularity = "unit",
    ) -> Network:
        """Trace a model and find its units; see :func:`extract_units`."""
        if granularity not in ("unit", "layer"):
            raise ConfigError(
                f"students: granularity={granularity!r} must be 'unit' or 'layer'."
                f"{nearest(str(granularity), ('unit', 'layer'))}"
            )
        blueprint = Blueprint.of(model, example)
        junctions = tuple(find_junctions(blueprint))
        return cls(blueprint, tuple(_units(blueprint, junctions, keep, granularity)), junctions)


def extract_units(
    model: nn.Module,
    example: Tensor,
    *,
    keep: Sequence[str] = PAPER_KEEP,
    granularity: Granularity = "unit",
) -> list[Unit]:
    """Return the units of a network in the order in which it runs.

    The first layer, the one that gives the logits, layers with a stride, layers that run twice
    and those on a shortcut always stay.

    Args:
        model: Traceable convolutional network; it is not changed.
        example: One or more examples, (batch, ...).
        keep: Kinds or names of units that must stay too; linear layers and average pools, as in
            the paper.
        granularity: ``unit`` drops a layer with its norm, activation and dropout, as for VGG;
            ``layer`` each of them by itself, as for residual networks.

    Raises:
        ConfigError: ``keep`` names neither a kind nor a unit.
        UnsupportedModelError: The model cannot be traced; names the module.

    Source: Ashok et al. 2018 (N2N Learning), section 3.1 and appendix on the implementation.
    """
    return list(Network.of(model, example, keep=keep, granularity=granularity).units)


def kind_of(blueprint: Blueprint, node: fx.Node) -> str:
    """Return the kind of a node; ``unknown`` for all that is not a layer."""
    if node.op == "call_module":
        layer = blueprint.module.get_submodule(str(node.target))
        return next((kind for kind, classes in _CLASSES if isinstance(layer, classes)), "unknown")
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target, "unknown")
    return "activation" if node.op == "call_method" and node.target == "relu" else "unknown"


def _units(
    blueprint: Blueprint,
    junctions: Sequence[Junction],
    keep: Sequence[str],
    granularity: Granularity,
) -> Iterable[Unit]:
    heads = _HEADS if granularity == "unit" else (*_HEADS, *_FOLLOWERS, "softmax")
    groups = [
        (node, _group(blueprint, node, granularity))
        for node in blueprint.module.graph.nodes
        if kind_of(blueprint, node) in heads
    ]
    names = [str(node.target) if node.op == "call_module" else node.name for node, _ in groups]
    unknown = sorted(set(keep) - set(KINDS) - set(names))
    if unknown:
        raise ConfigError(
            f"students: keep has {unknown[0]!r}, which is neither a kind nor a unit."
            f"{nearest(unknown[0], [*KINDS, *names])} Kinds: {', '.join(KINDS[1:])}."
        )
    places = _block_places([node for node, _ in groups], junctions)
    for index, (node, members) in enumerate(groups):
        block, start, end = places.get(node.name, (None, 0, 0))
        fixed = _fixed(blueprint, node, names[index], junctions, keep)
        kernel, stride, padding = _window(blueprint, node)
        yield Unit(
            index=index,
            name=names[index],
            kind=kind_of(blueprint, node),
            kernel=kernel,
            stride=stride,
            filters=blueprint.channels(node) if is_weighted(blueprint, node) else 0,
            padding=padding,
            skip_start=start,
            skip_end=end,
            fixed=fixed,
            group=block,
            nodes=members,
            layer=str(node.target) if node.op == "call_module" else None,
        )


def _group(blueprint: Blueprint, head: fx.Node, granularity: Granularity) -> tuple[str, ...]:
    """Return a unit's nodes: its head and the norm, activation and dropout behind it."""
    members = [head]
    while granularity == "unit" and kind_of(blueprint, head) in ("conv", "linear"):
        users = list(members[-1].users)
        if len(users) != 1 or kind_of(blueprint, users[0]) not in _FOLLOWERS:
            break
        if list(users[0].all_input_nodes) != [members[-1]]:
            break
        members.append(users[0])
    return tuple(node.name for node in members)


def _block_places(
    heads: Sequence[fx.Node], junctions: Sequence[Junction]
) -> dict[str, tuple[int, int, int]]:
    """Return block, distance to its start and to its end for heads inside of one."""
    places: dict[str, tuple[int, int, int]] = {}
    for number, junction in enumerate(junctions):
        for side in (junction.main_nodes, junction.shortcut_nodes):
            inside = [head.name for head in heads if head.name in side]
            for place, name in enumerate(inside):
                places.setdefault(name, (number, place + 1, len(inside) - place))
    return places


def _fixed(
    blueprint: Blueprint,
    node: fx.Node,
    name: str,
    junctions: Sequence[Junction],
    keep: Sequence[str],
) -> str:
    """Return why a unit must stay; empty where it may go."""
    weighted = [n for n in blueprint.module.graph.nodes if is_weighted(blueprint, n)]
    kind = kind_of(blueprint, node)
    if weighted and node is weighted[0]:
        return "first layer"
    if weighted and node is weighted[-1]:
        return "gives the output"
    if kind in keep or name in keep:
        return "kept"
    if kind == "conv" and _window(blueprint, node)[1] > 1:
        return "has a stride"
    if any(node.name in j.shortcut_nodes for j in junctions):
        return "on a shortcut"
    if kind == "softmax":
        return "gives the output"
    if is_weighted(blueprint, node) and _runs_twice(blueprint, node):
        return "runs more than once"
    return ""


def _runs_twice(blueprint: Blueprint, node: fx.Node) -> bool:
    return len([n for n in blueprint.module.graph.nodes if n.target == node.target]) > 1


def _window(blueprint: Blueprint, node: fx.Node) -> tuple[int, int, int]:
    """Return kernel, stride and padding along the first axis; zeros where there is none."""
    if node.op != "call_module":
        return 0, 0, 0
    layer = blueprint.module.get_submodule(str(node.target))
    values = (getattr(layer, key, 0) for key in ("kernel_size", "stride", "padding"))
    first = [max(v) if isinstance(v, tuple) else v for v in values]
    kernel, stride, padding = (v if isinstance(v, int) else 0 for v in first)
    return kernel, stride, padding


def describe(unit: Unit) -> Tensor:
    """Return what a policy reads of a unit, (FEATURES,) float32.

    Its kind, one of nine; kernel, stride, padding, filters and the two distances in its block,
    each as log2(1 + value) / 4.

    Differs: the authors feed the plain integers, among which the number of filters drowns all.
    """
    values = describe_sizes(unit.kernel, unit.stride, unit.filters, unit.padding)
    skips = [log2(1 + v) / 4 for v in (unit.skip_start, unit.skip_end)]
    return torch.tensor([float(unit.kind == kind) for kind in KINDS] + values + skips)


def describe_sizes(kernel: int, stride: int, filters: int, padding: int) -> list[float]:
    """Return the four numbers of a description that shrinking changes."""
    return [log2(1 + v) / 4 for v in (kernel, stride, filters, padding)]


def require_free(network: Network) -> None:
    """Raise UnsupportedModelError where no unit may be dropped."""
    if all(unit.fixed for unit in network.units):
        told = ", ".join(f"{u.name}: {u.fixed}" for u in network.units[:8])
        raise UnsupportedModelError(
            f"students: the network has no removable unit ({told}). Keep fewer kinds, or use "
            "stages=('shrinkage',)."
        )
