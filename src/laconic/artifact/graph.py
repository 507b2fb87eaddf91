"""A model as a graph of allow-listed calls: traced when saving, rebuilt when loading.

The graph is that of ``torch.fx`` (Reed, DeVito, He, Ussery, Ansel, 2022). The file holds no code:
a node names a module, a function or a method from a fixed list, and its arguments are data.
"""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, fx, nn

from laconic.artifact import leaves
from laconic.artifact.allowed import function_names, functions, is_attribute, is_method
from laconic.artifact.arguments import from_json, to_json
from laconic.artifact.limits import MANIFEST, UNTRUSTED
from laconic.artifact.manifest import GraphRecord
from laconic.artifact.tree import descend_, find, named_tensors
from laconic.errors import ArtifactError, UnsupportedModelError
from laconic.forms.layers import densify_

_ATOM = re.compile(r"[A-Za-z0-9_:+-]{1,200}")


Earlier = Callable[[int], fx.Node]


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # what is computed from a buffer is traced, not frozen

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return leaves.is_leaf(m)


def trace(model: nn.Module, given: set[str] | None = None) -> tuple[GraphRecord, dict[str, Tensor]]:
    """Trace a model in eval mode; its layers must be plain.

    Args:
        model: The model; it is changed: give a copy.
        given: Arguments of ``forward`` that callers give although they have a default. All
            others with a default are fixed to it.

    Returns:
        The graph, and the constants that its code held beside parameters and buffers.

    Raises:
        UnsupportedModelError: The model cannot be told as such a graph; says why.
    """
    model.eval()
    fixed = _fixed_arguments(model, given or set())
    try:
        traced = _Tracer().trace(model, concrete_args=fixed or None)
    except Exception as error:  # user code runs under proxies and may raise anything
        raise UnsupportedModelError(f"tracing failed: {type(error).__name__}: {error}") from error
    _drop_fixed(traced, model, fixed)
    numbers = {node: index for index, node in enumerate(traced.nodes)}
    nodes = [_describe(node, numbers) for node in traced.nodes]
    known = {
        name for held in named_tensors(model, without=set()) for name in (held.name, *held.aliases)
    }
    constants: dict[str, Tensor] = {}
    for node in traced.nodes:
        if node.op == "get_attr" and node.target not in known:
            constants[str(node.target)] = _constant(model, str(node.target))
    modules: dict[str, list[Any]] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{leaf}.") for leaf in modules)
        if path and leaves.is_leaf(module) and not inside:
            modules[path] = leaves.describe(module, where=path)
    record = GraphRecord(kind="graph", modules=modules, nodes=nodes, constants=list(constants))
    return record, constants


def _constant(model: nn.Module, name: str) -> Tensor:
    value: Any = model
    for atom in name.split("."):
        value = getattr(value, atom)
    if not isinstance(value, Tensor):
        raise UnsupportedModelError(f"{name}: an attribute of type {type(value).__name__} is used")
    return value.detach()


def input_names(model: nn.Module) -> list[str]:
    """Return the names of the arguments of ``forward``."""
    return list(inspect.signature(model.forward).parameters)


def _fixed_arguments(model: nn.Module, given: set[str]) -> dict[str, Any]:
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise UnsupportedModelError("forward takes any number of arguments (*args or **kwargs)")
    plain = (bool, int, float, str, type(None))
    return {
        p.name: p.default
        for p in parameters
        if p.default is not p.empty and p.name not in given and isinstance(p.default, plain)
    }


def _drop_fixed(traced: fx.Graph, model: nn.Module, fixed: Mapping[str, Any]) -> None:
    """Take out the inputs that were fixed, and the checks that tracing put on them."""
    inputs = [node for node in traced.nodes if node.op == "placeholder"]
    for name, node in zip(input_names(model), inputs, strict=True):
        if name not in fixed:
            continue
        for user in reversed(_users(node)):
            traced.erase_node(user)
        traced.erase_node(node)


def _users(node: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []
    for user in node.users:
        found += [user, *_users(user)]
    return list(dict.fromkeys(found))


def _describe(node: fx.Node, numbers: Mapping[fx.Node, int]) -> list[Any]:
    def written(value: Any) -> Any:
        return to_json(value, lambda item: numbers[item] if isinstance(item, fx.Node) else None)

    if node.op == "placeholder":
        return ["in", str(node.target), *(written(default) for default in node.args)]
    if node.op == "output":
        return ["out", written(node.args[0])]
    target = str(node.target)
    if node.op == "get_attr":
        return ["get", target]
    row: list[Any] = [{"call_module": "mod", "call_method": "do"}.get(node.op, "fn"), target]
    if node.op == "call_function":
        name = function_names().get(node.target) if callable(node.target) else None
        readable = getattr(node.target, "__name__", target)
        if name is None:
            raise UnsupportedModelError(f"function {readable!r} is not among those that load")
        if name == "getattr" and not is_attribute(node.args[1]):
            raise UnsupportedModelError(f"attribute {node.args[1]!r} of a tensor is read")
        row[1] = name
    elif node.op == "call_method" and not is_method(target):
        raise UnsupportedModelError(f"method {target!r} is not among those that load")
    row.append([written(value) for value in node.args])
    if node.kwargs:
        row.append({key: written(value) for key, value in node.kwargs.items()})
    return row


def skeleton(record: GraphRecord) -> fx.GraphModule:
    """Build the module tree of a graph on the meta device; free tensors are added later.

    Raises:
        ArtifactError: A module that is not allowed, or cannot stand there.
    """
    model = fx.GraphModule(nn.Module(), fx.Graph(), class_name="LoadedGraph")
    for path, row in record.modules.items():
        try:
            *atoms, leaf = _atoms(path)
            owner: nn.Module = model
            for atom in atoms:
                owner = descend_(owner, atom)
            if leaf in owner._modules:
                raise ValueError("two modules stand at one path")
            owner.add_module(leaf, leaves.build(row))
        except UNTRUSTED as error:
            raise ArtifactError(MANIFEST, f"not a module: {error}", tensor=path[:200]) from error
    return model.eval()


def connect_(model: fx.GraphModule, record: GraphRecord, device: torch.device) -> None:
    """Give a module tree the nodes of its graph, in place.

    Raises:
        ArtifactError: A node that is not allowed, or that names what does not stand.
    """
    made = fx.Graph()
    nodes: list[fx.Node] = []

    def earlier(index: int) -> fx.Node:
        if not 0 <= index < len(nodes):
            raise ValueError(f"node {index} does not come before its use")
        return nodes[index]

    for index, row in enumerate(record.nodes):
        try:
            nodes.append(_node(made, model, row, earlier, device))
        except UNTRUSTED as error:
            raise ArtifactError(MANIFEST, f"{error}", tensor=f"node {index}") from error
    outputs = [node for node in nodes if node.op == "output"]
    if len(outputs) != 1 or nodes[-1] is not outputs[0]:
        raise ArtifactError(MANIFEST, "a graph must end in its one output")
    try:
        model.graph = made
    except UNTRUSTED as error:
        raise ArtifactError(MANIFEST, f"not a graph: {error}") from error


def _node(
    made: fx.Graph, model: nn.Module, row: list[Any], earlier: Earlier, device: torch.device
) -> fx.Node:
    op, *rest = row
    if op == "out" and len(rest) == 1:
        return made.create_node("output", "output", (from_json(rest[0], earlier, device),))
    if not isinstance(op, str) or not rest or not isinstance(rest[0], str):
        raise ValueError("a node must be [op, target, arguments, named arguments]")
    target = rest[0]
    if op == "in" and len(rest) <= 2:
        if not target.isidentifier() or keyword.iskeyword(target) or not target.isascii():
            raise ValueError(f"{target[:80]!r} is not the name of an input")
        default = tuple(from_json(value, earlier, device) for value in rest[1:])
        return made.create_node("placeholder", target, default)
    if op == "get" and len(rest) == 1:
        _atoms(target)
        if find(model, target) is None:
            raise ValueError(f"{target[:80]!r} is not a parameter or buffer")
        return made.create_node("get_attr", target)
    if len(rest) not in (2, 3) or not isinstance(rest[1], list):
        raise ValueError("a call must have a list of arguments")
    args = tuple(from_json(value, earlier, device) for value in rest[1])
    kwargs = _named(rest[2] if len(rest) == 3 else {}, earlier, device)
    if op == "mod":
        _check_module(model, target)
        return made.create_node("call_module", target, args, kwargs)
    if op == "do":
        if not is_method(target):
            raise ValueError(f"method {target[:80]!r} is not allowed")
        return made.create_node("call_method", target, args, kwargs)
    if op != "fn" or target not in functions():
        raise ValueError(f"call of {target[:80]!r} is not allowed")
    if target == "getattr" and (len(args) != 2 or kwargs or not is_attribute(args[1])):
        raise ValueError("this attribute may not be read")
    return made.create_node("call_function", functions()[target], args, kwargs)


def _named(value: Any, earlier: Earlier, device: torch.device) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("named arguments must be an object")
    for key in value:
        if not key.isidentifier() or keyword.iskeyword(key) or not key.isascii():
            raise ValueError(f"{key[:80]!r} is not the name of an argument")
    return {key: from_json(item, earlier, device) for key, item in value.items()}


def _check_module(model: nn.Module, path: str) -> None:
    module = model
    for atom in _atoms(path):
        below = module._modules.get(atom)
        if below is None:
            raise ValueError(f"the model has no module {path[:80]!r}")
        module = below


def _atoms(path: str) -> list[str]:
    atoms = path.split(".")
    if not all(_ATOM.fullmatch(atom) for atom in atoms):
        raise ValueError(f"{path[:80]!r} is not a path of names")
    return atoms


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose layers are plain: no forms."""
    copy = deepcopy(model).eval()
    densify_(copy)
    return copy
