"""A traced network with the shapes of everything in it: what children are cut from."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from laconic.artifact import leaves
from laconic.errors import ConfigError, UnsupportedModelError
from laconic.weights.students.spec import StudentSpec, assemble

BATCH = 2  # examples in shape inference: more than one, so that the batch axis is told apart
Row = list[Any]  # a layer as artefacts tell it: [class, settings]
_PLAIN = {operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub,
          operator.itruediv: operator.truediv}  # fmt: skip
_BASES = 4  # axes of a batch of images


@dataclass(frozen=True)
class Blueprint:
    """A network ready to be cut.

    Attributes:
        module: Its graph; layers lie on the meta device.
        rows: Class and settings of each layer, by path.
        spec: Its architecture.
        shapes: Shape of what each node gives, with ``BATCH`` examples, by the node's name.
        example: One example with a batch axis, on the meta device.
        params: Number of parameters, all included.
        macs: Multiplications and additions of convolutions and linear layers, an example.
    """

    module: fx.GraphModule
    rows: Mapping[str, Row]
    spec: StudentSpec
    shapes: Mapping[str, tuple[int, ...]]
    example: Tensor
    params: int
    macs: int

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return a node's shape; empty where it gives no tensor."""
        return self.shapes.get(node.name, ())

    def channels(self, node: fx.Node) -> int:
        """Return how many channels or features a node gives; 0 where that has no meaning."""
        return self._channels.get(node.name, 0)

    def channels_in(self, node: fx.Node) -> int:
        """Return the channels of the first argument that a node had here; 0 where there is none.

        A child's node of the same name may have got another argument.
        """
        return self._channels_in.get(node.name, 0)

    @cached_property
    def _channels(self) -> dict[str, int]:
        """Channels lie along the second axis, of three axes along the last.

        With one-dimensional convolutions they always lie along the second.
        """
        one = any(isinstance(m, nn.Conv1d) for m in self.module.modules())
        return {
            name: shape[-1] if len(shape) == 3 and not one else shape[1]
            for name, shape in self.shapes.items()
            if len(shape) > 1
        }

    @cached_property
    def _channels_in(self) -> dict[str, int]:
        firsts = {n.name: n.args[0] for n in self.module.graph.nodes if n.args}
        return {name: self.channels(n) for name, n in firsts.items() if isinstance(n, fx.Node)}

    @classmethod
    def of(cls, model: nn.Module, example: Tensor) -> Blueprint:
        """Trace a model.

        Args:
            model: A network of plain layers, or with forms; it is not changed.
            example: One or more examples, (batch, ...).

        Raises:
            ConfigError: The example has no batch axis or is empty.
            UnsupportedModelError: It cannot be traced, or the traced network gives other
                outputs.
        """
        if example.dim() < 2 or not len(example):
            raise ConfigError(
                f"students: example input of shape {tuple(example.shape)} must be (batch, ...) "
                "with at least one example."
            )
        told = StudentSpec.of(model)
        module = assemble(told)
        rows = {path: leaves.describe(leaf, where=path) for path, leaf in _leaves(module)}
        like = torch.empty((BATCH, *example.shape[1:]), dtype=example.dtype, device="meta")
        shapes = {name: tuple(t.shape) for name, t in walk(module, like).items()}
        _normalise_(module, rows, shapes)
        module.recompile()
        spec = StudentSpec.of(module, told.free)
        _check_same(model, spec, example)
        made = assemble(spec)  # from its own record, so that names are those of every child
        values = walk(made, like)
        shapes = {name: tuple(t.shape) for name, t in values.items()}
        if len(shapes[_output(made).name]) != 2:
            raise UnsupportedModelError("students: the network must give (batch, classes) logits.")
        return cls(made, rows, spec, shapes, like, count_params(made), count_macs(made, values))


def _output(module: fx.GraphModule) -> fx.Node:
    result = list(module.graph.nodes)[-1].args[0]
    if not isinstance(result, fx.Node):
        raise UnsupportedModelError(
            f"students: the network gives {type(result).__name__}; it must give one tensor."
        )
    return result


def _leaves(module: fx.GraphModule) -> list[tuple[str, nn.Module]]:
    paths = dict.fromkeys(str(n.target) for n in module.graph.nodes if n.op == "call_module")
    return [(path, module.get_submodule(path)) for path in paths]


def walk(
    module: fx.GraphModule,
    example: Tensor,
    prepare: Callable[[fx.Node, Tensor], None] | None = None,
) -> dict[str, Tensor]:
    """Run a graph on the meta device and return what gives tensors, by node name.

    Args:
        module: The graph and its layers.
        example: Batch on the meta device.
        prepare: Called with the node and its input before a layer is run; may replace the layer.
    """
    values: dict[str, Any] = {}
    inputs = 0
    for node in module.graph.nodes:
        args = fx.map_arg(node.args, lambda n: values[n.name])
        kwargs = fx.map_arg(node.kwargs, lambda n: values[n.name])
        if node.op == "placeholder":
            values[node.name] = example if not inputs else next(iter(args), None)
            inputs += 1
        elif node.op == "get_attr":
            owner: Any = module
            for atom in str(node.target).split("."):
                owner = getattr(owner, atom)
            values[node.name] = owner.detach().to("meta") if isinstance(owner, Tensor) else owner
        elif node.op == "call_module":
            if prepare is not None and isinstance(args[0], Tensor):
                prepare(node, args[0])
            values[node.name] = module.get_submodule(str(node.target))(*args, **kwargs)
        elif node.op == "call_function":
            values[node.name] = node.target(*args, **kwargs)
        elif node.op == "call_method":
            values[node.name] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def count_params(module: nn.Module) -> int:
    """Return the number of parameters, biases and norms included."""
    return sum(p.numel() for p in module.parameters())


def count_macs(module: fx.GraphModule, values: Mapping[str, Tensor]) -> int:
    """Return the multiply-additions of convolutions and linear layers, for one example."""
    total = 0
    for node in module.graph.nodes:
        if node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            weight = getattr(layer, "weight", None)
            if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                out = values[node.name].numel() // len(values[node.name])
                total += out * (weight.numel() // weight.shape[0]) if weight is not None else 0
    return total


def _normalise_(module: fx.GraphModule, rows: dict[str, Row], shapes: Mapping[str, Any]) -> None:
    """Take out what would break when layers go or change their width, in place.

    Nothing is done in place of its input, for the input may then be the shortcut; a reshape to
    (batch, everything) becomes a flatten; functional dropout becomes a layer, which training
    turns on.
    """
    for path, row in rows.items():
        if len(row) > 1 and row[1].pop("inplace", False):
            setattr(module.get_submodule(path), "inplace", False)  # noqa: B010
    for node in list(module.graph.nodes):
        _leave_input_alone_(node)
        if node.op == "call_function" and node.target is F.dropout:
            _dropout_layer_(module, rows, node)
        elif _is_flatten(node, shapes):
            node.op, node.target = "call_function", torch.flatten
            node.args, node.kwargs = (node.args[0], 1), {}


def _leave_input_alone_(node: fx.Node) -> None:
    if node.op == "call_function":
        node.target = _PLAIN.get(node.target, node.target)  # type: ignore[arg-type]
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        if node.target in (F.relu, F.relu6, F.silu, F.hardswish) and len(node.args) > 1:
            node.args = (node.args[0],)
    elif (
        node.op == "call_method" and str(node.target).endswith("_") and "__" not in str(node.target)
    ):
        if not node.users:
            raise UnsupportedModelError(
                f"students: {node.target} changes a tensor in place and its result is not used "
                f"(node {node.name}). Use the result, or the method without the underscore."
            )
        node.target = str(node.target)[:-1]


def _dropout_layer_(module: fx.GraphModule, rows: dict[str, Row], node: fx.Node) -> None:
    chance = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
    name = f"dropout_{node.name}"
    module.add_module(name, nn.Dropout(float(chance)).eval())  # type: ignore[arg-type]
    rows[name] = ["Dropout", {"p": float(chance)}]  # type: ignore[arg-type]
    node.op, node.target, node.args, node.kwargs = "call_module", name, (node.args[0],), {}


def _is_flatten(node: fx.Node, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    method = node.op == "call_method" and node.target in ("view", "reshape", "flatten")
    function = node.op == "call_function" and node.target is torch.reshape
    if not (method or function) or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    before, after = shapes.get(node.args[0].name, ()), shapes.get(node.name, ())
    whole = len(after) == 2 and after[0] == BATCH and after[1] == math.prod(before[1:])
    return whole and len(before) >= _BASES - 1


def _check_same(model: nn.Module, spec: StudentSpec, example: Tensor) -> None:
    """Compare the outputs of the traced network and the model, with the model's weights."""
    from laconic.artifact.graph import plain_copy

    copy = plain_copy(model)
    state = copy.state_dict()
    made = assemble(spec).to_empty(device="cpu")
    made.load_state_dict({name: state[name] for name in made.state_dict()})
    for name, tensor in made.named_buffers():
        held = dict(copy.named_buffers()).get(name)
        if held is not None:
            tensor.copy_(held)
    few = example[:2]
    with torch.no_grad():
        wanted, got = copy(few), made.eval()(few)
    if not isinstance(wanted, Tensor) or not torch.allclose(wanted, got, rtol=1e-4, atol=1e-5):
        raise UnsupportedModelError(
            "students: the traced network gives other outputs than the teacher: its forward "
            "depends on its input in a way that tracing does not see."
        )
