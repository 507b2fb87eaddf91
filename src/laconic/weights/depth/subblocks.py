"""Find the parts of residual blocks that add to the residual stream, by what they do."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from laconic.artifact.removed import Removed
from laconic.errors import UnsupportedModelError
from laconic.task import Batch
from laconic.weights._flow import device_of, flat_output, quiet
from laconic.weights.sites import blocks_of

SubBlockKind = Literal["attention", "mlp"]
_PROBE = 12  # tokens of the text that a model is looked at with
_MIXES_TOKENS = ("attention_mask", "cache", "past_key_values", "past_key_value", "layer_past")


@dataclass(frozen=True)
class SubBlock:
    """One part of a residual block that adds its output to the residual stream.

    Attributes:
        name: Path of its module; of several (OPT keeps two bare layers) joined by ``+``.
        kind: ``attention`` where it mixes tokens, else ``mlp``.
        block: Index of its block.
        block_path: Path of the block.
        members: Names of its modules in the block, in the order in which they run.
        norms: Names of norms in the block that serve it alone.
        outputs: How many values its last module returns; 0 where it is a tensor alone.
        layer_idx: Place of an attention in the cache of keys and values.
    """

    name: str
    kind: SubBlockKind
    block: int
    block_path: str
    members: tuple[str, ...]
    norms: tuple[str, ...] = ()
    outputs: int = 0
    layer_idx: int | None = None

    def replacements(self) -> dict[str, Removed]:
        """Return what stands for each of its modules once it is removed, by path."""
        found: dict[str, Removed] = {}
        for name in (*self.norms, *self.members[:-1]):
            found[f"{self.block_path}.{name}"] = Removed()
        last = Removed(self.outputs, self.layer_idx)
        return {**found, f"{self.block_path}.{self.members[-1]}": last}


@dataclass
class _Called:
    """One call of a direct child of a block: what went in and what came out."""

    name: str
    given: Tensor | None
    out: Tensor | None
    outputs: int


@dataclass
class _Calls:
    """Calls of the children of all blocks; tensors are held so that none is mistaken."""

    by_block: dict[int, list[_Called]] = field(default_factory=dict)


def sub_blocks_of(model: nn.Module, batch: Batch | None = None) -> list[SubBlock]:
    """Return the attentions and feed-forward parts of a decoder's blocks, in model order.

    They are found by running a few tokens: a child of a block that holds matrices and is called
    once is a part; children that are bare linear layers (OPT) together are one. A norm whose
    output only one part reads, or that only reads one part's output, belongs to it. Then the parts
    of every block are taken out together, and the block must return what it is given.

    Args:
        model: A causal language model of ``transformers``, or any model whose blocks add their
            parts to a residual stream; it is left as it is.
        batch: Inputs of the model by name; a few token numbers where None.

    Raises:
        UnsupportedModelError: No blocks, or a block is not the sum of its input and its parts.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no list of residual blocks; depth pruning works on "
            "decoders of transformers such as Llama, GPT-2 or OPT."
        )
    inputs = dict(batch) if batch is not None else probe(model)
    calls = _watch(model, blocks, inputs)
    found: list[SubBlock] = []
    for index, (path, block) in enumerate(blocks.items()):
        found += _parts(index, path, block, calls.by_block.get(index, []))
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__}: its blocks have no parts that are called once each."
        )
    _check_sums(model, blocks, found, inputs)
    return found


def probe(model: nn.Module) -> dict[str, Tensor]:
    """Return a short text of drawn token numbers for a language model."""
    config = getattr(model, "config", None)
    vocabulary = getattr(config, "vocab_size", None)
    if not isinstance(vocabulary, int):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no config.vocab_size to draw tokens from; depth pruning "
            "works on language models of transformers."
        )
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (2, _PROBE), generator=source)
    return {"input_ids": ids.to(device_of(model))}


def _watch(model: nn.Module, blocks: Mapping[str, nn.Module], inputs: Batch) -> _Calls:
    calls = _Calls()

    def look(index: int, name: str) -> Any:
        def hook(_m: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
            values = (kwargs.get("hidden_states"), *args, *kwargs.values())
            given = next((v for v in values if isinstance(v, Tensor)), None)
            first = flat_output(output)[0] if flat_output(output) else None
            outputs = len(output) if isinstance(output, tuple) else 0
            out = first if isinstance(first, Tensor) else None
            calls.by_block.setdefault(index, []).append(_Called(name, given, out, outputs))

        return hook

    with ExitStack() as stack, quiet(model):
        for index, block in enumerate(blocks.values()):
            for name, child in block.named_children():
                handle = child.register_forward_hook(look(index, name), with_kwargs=True)
                stack.callback(handle.remove)
        model(**inputs)
    return calls


def _parts(index: int, path: str, block: nn.Module, calls: Sequence[_Called]) -> list[SubBlock]:
    heavy = [c for c in calls if _has_matrices(block.get_submodule(c.name))]
    names = [call.name for call in heavy]
    if len(set(names)) != len(names):
        raise UnsupportedModelError(f"{path}: a part of the block runs more than once.")
    bare = [call for call in heavy if not _is_group(block.get_submodule(call.name))]
    groups = [[call] for call in heavy if _is_group(block.get_submodule(call.name))]
    groups += [bare] if bare else []
    groups.sort(key=lambda group: names.index(group[0].name))
    light = [call for call in calls if not _has_matrices(block.get_submodule(call.name))]
    return [_part(index, path, block, group, calls, light) for group in groups]


def _part(
    index: int,
    path: str,
    block: nn.Module,
    group: Sequence[_Called],
    calls: Sequence[_Called],
    light: Sequence[_Called],
) -> SubBlock:
    members = tuple(call.name for call in group)
    module = block.get_submodule(members[0])
    mixes = _mixes_tokens(module)
    place = getattr(module, "layer_idx", None) if mixes else None
    norms = tuple(
        call.name
        for call in light
        if list(block.get_submodule(call.name).parameters()) and _serves(call, group, calls)
    )
    name = f"{path}." + "+".join(members)
    kind: SubBlockKind = "attention" if mixes else "mlp"
    return SubBlock(
        name, kind, index, path, members, norms, group[-1].outputs,
        place if isinstance(place, int) else None,
    )  # fmt: skip


def _serves(norm: _Called, group: Sequence[_Called], calls: Sequence[_Called]) -> bool:
    """Return whether a norm reads only this part's output, or only this part reads the norm's."""
    if norm.given is not None and norm.given is group[-1].out:
        return True
    readers = {call.name for call in calls if call.given is norm.out and norm.out is not None}
    return bool(readers) and readers <= {call.name for call in group}


def _has_matrices(module: nn.Module) -> bool:
    return any(p.dim() >= 2 for p in module.parameters())


def _is_group(module: nn.Module) -> bool:
    """Return whether a child is a part by itself: it has layers inside, or stacked experts."""
    return any(True for _ in module.children()) and not isinstance(module, nn.Linear)


def _mixes_tokens(module: nn.Module) -> bool:
    names = inspect.signature(module.forward).parameters
    return any(name in names for name in _MIXES_TOKENS)


def _check_sums(
    model: nn.Module, blocks: Mapping[str, nn.Module], parts: Sequence[SubBlock], inputs: Batch
) -> None:
    """Take the parts of every block out together and see that the stream passes unchanged."""
    stream: dict[int, tuple[Tensor, Tensor]] = {}

    def look(index: int) -> Any:
        def hook(_m: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
            values = (kwargs.get("hidden_states"), *args, *kwargs.values())
            given = next((v for v in values if isinstance(v, Tensor)), None)
            first = flat_output(output)[0]
            if isinstance(given, Tensor) and isinstance(first, Tensor):
                stream[index] = (given, first)

        return hook

    with ExitStack() as stack, taken_out(model, parts), quiet(model):
        for index, block in enumerate(blocks.values()):
            handle = block.register_forward_hook(look(index), with_kwargs=True)
            stack.callback(handle.remove)
        model(**inputs)
    for index, path in enumerate(blocks):
        if index not in stream or not torch.equal(*stream[index]):
            raise UnsupportedModelError(
                f"{path}: without its parts the block does not pass on what it is given (it may "
                "norm the residual stream itself), so that no part of it can be removed."
            )


class taken_out:  # noqa: N801 - used as a function in a with statement
    """Take parts out of a model for the time of a ``with`` block.

    Args:
        model: The model.
        parts: What is taken out.
    """

    def __init__(self, model: nn.Module, parts: Sequence[SubBlock]) -> None:
        self.model, self.parts = model, parts
        self.held: dict[str, nn.Module] = {}

    def __enter__(self) -> None:
        for part in self.parts:
            for path, module in part.replacements().items():
                self.held[path] = exchange_(self.model, path, module)

    def __exit__(self, *_: object) -> None:
        for path, module in self.held.items():
            exchange_(self.model, path, module)


def exchange_(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put a module in the place of another, in place; return the one that stood there."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    held = owner._modules[name]
    if held is None:
        raise UnsupportedModelError(f"{path}: there is no module.")
    owner._modules[name] = module.train(owner.training)
    return held
