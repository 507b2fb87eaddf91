"""Find the weights of a model that methods can work on, by structure and not by model name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from laconic.artifact.removed import Removed
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.layers import Installed, Layout, installed, to_form
from laconic.weights.base import Site, SiteKind

_DOWN_WORDS = ("down", "w2", "fc2", "out")
_STACKED: tuple[Layout, ...] = ("stacked", "stacked-transposed")
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_TRANSPOSED_CONVS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class _Found:
    """How one parameter is used: the kind of its site, the layout, the groups."""

    kind: SiteKind
    layout: Layout = "natural"
    groups: int = 1


def find_sites(model: nn.Module) -> list[Site]:
    """Return every weight that methods can work on, in the order of the model's modules.

    Linear layers (GPT-2's ``Conv1D`` too), one- and two-dimensional convolutions, embeddings and
    stacked expert weights. A tied weight is one site, with its other names as aliases. Forms
    that are installed already are found again: the site's form is the installed object, and its
    ``original`` is the tensor that this form stands for.

    Sites share memory with the model: nothing is copied.
    """
    held = installed(model)
    blocks = list(blocks_of(model))
    sites: dict[str, Site] = {}
    first_name: dict[int, str] = {}
    for path, module in walk_modules(model):
        beside: Layout | None = None  # layout of a form in the same module
        for name, entry in _installed_at(held, path):
            sites[name], beside = _installed_site(name, module, entry, blocks), entry.layout
        for key, parameter in module._parameters.items():
            name = f"{path}.{key}" if path else key
            found = None if parameter is None else _classify(module, key, parameter, beside)
            if parameter is None or found is None:
                continue
            if id(parameter) in first_name:
                site = sites[first_name[id(parameter)]]
                site.aliases = (*site.aliases, name)
                continue
            first_name[id(parameter)] = name
            sites[name] = _plain_site(name, parameter, found, blocks)
    return list(sites.values())


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the model's residual blocks by path, in order; empty where it has none.

    They are the longest list of at least two modules of one class that have layers inside
    and weights, among lists that lie in no other such list; the larger list where two are
    equally long.
    """
    best: dict[str, nn.Module] = {}
    best_key = (0, 0)
    inside: list[str] = []
    for path, module in walk_modules(model):
        if any(path.startswith(outer) for outer in inside):
            continue
        members = _same_class_members(path, module)
        if not members:
            continue
        inside.append(f"{path}." if path else "")
        size = sum(p.numel() for block in members.values() for p in block.parameters())
        if (len(members), size) > best_key:
            best, best_key = members, (len(members), size)
    return best


def unsupported(model: nn.Module) -> dict[str, str]:
    """Return the weights that no method works on, by parameter path, each with the reason.

    Vectors (biases, norms) are not listed: only floating parameters of two or more dimensions.
    """
    covered = {name for site in find_sites(model) for name in (site.name, *site.aliases)}
    reasons: dict[str, str] = {}
    for path, module in walk_modules(model):
        for key, parameter in module._parameters.items():
            name = f"{path}.{key}" if path else key
            if parameter is None or name in covered:
                continue
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                reasons[name] = "a lazy parameter without a shape: run the model once before"
            elif parameter.dim() >= 2 and parameter.is_floating_point():
                reasons[name] = _reason(module, key, parameter)
    return reasons


def walk_modules(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield ``(path, module)`` of a model without the insides of forms; shared ones each time."""
    yield path, model
    for name, child in model._modules.items():
        if child is not None and not isinstance(child, Form):
            yield from walk_modules(child, f"{path}.{name}" if path else name)


def _same_class_members(path: str, module: nn.Module) -> dict[str, nn.Module]:
    if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
        return {}
    members = {f"{path}.{name}" if path else name: child for name, child in module.named_children()}
    names = {(type(m).__module__, type(m).__qualname__) for m in members.values()}
    layered = all(
        any(not isinstance(child, Form) for child in member.children())
        and (
            any(p.dim() >= 2 for p in member.parameters())
            or any(isinstance(child, Removed) for child in member.modules())
        )
        for member in members.values()
    )
    return members if len(names) == 1 and layered and len(members) == len(module) else {}


def _installed_at(held: Mapping[str, Installed], path: str) -> Iterator[tuple[str, Installed]]:
    for name, entry in held.items():
        if name.rpartition(".")[0] == path:
            yield name, entry


def _block_index(name: str, blocks: list[str]) -> int | None:
    return next((i for i, path in enumerate(blocks) if name.startswith(f"{path}.")), None)


def _plain_site(name: str, parameter: Tensor, found: _Found, blocks: list[str]) -> Site:
    value = to_form(parameter.detach(), found.layout)
    return Site(
        name=name,
        kind=found.kind,
        form=Dense(value),
        original=value,
        layout=found.layout,
        block=_block_index(name, blocks),
        groups=found.groups,
    )


def _installed_site(name: str, module: nn.Module, entry: Installed, blocks: list[str]) -> Site:
    kind: SiteKind = "linear"
    if entry.layout in _STACKED:
        kind = "experts"
    elif hasattr(module, "num_embeddings"):
        kind = "embedding"
    elif hasattr(module, "kernel_size"):
        kind = "conv"
    return Site(
        name=name,
        kind=kind,
        form=entry.form,
        original=entry.form.dense().detach(),
        layout=entry.layout,
        block=_block_index(name, blocks),
        groups=_installed_groups(kind, module, entry),
        aliases=tuple(entry.aliases),
    )


def _installed_groups(kind: SiteKind, module: nn.Module, entry: Installed) -> int:
    if kind == "experts":
        return int(entry.parameter_shape[0])
    return int(getattr(module, "groups", 1)) if kind == "conv" else 1


def _classify(
    module: nn.Module, key: str, parameter: Tensor, beside: Layout | None
) -> _Found | None:
    """Return how a parameter is used; None where no method can work on it."""
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return None
    if not parameter.is_floating_point() or parameter.numel() == 0:
        return None
    if key == "weight" and isinstance(module, nn.Linear):
        # The output projection inside nn.MultiheadAttention is never called as a layer.
        inside_attention = type(module).__name__ == "NonDynamicallyQuantizableLinear"
        return None if inside_attention else _Found("linear")
    if key == "weight" and isinstance(module, nn.Conv1d | nn.Conv2d):
        plain = not isinstance(module, _TRANSPOSED_CONVS)
        return _Found("conv", groups=module.groups) if plain else None
    if key == "weight" and isinstance(module, nn.Embedding):
        fixed = module.max_norm is None and not module.scale_grad_by_freq
        return _Found("embedding") if fixed else None
    if key == "weight" and _is_transposed_linear(module, parameter):
        return _Found("linear", "transposed")
    layout = _stacked_layout(module, key)
    if layout is None and beside in _STACKED and key in _expert_parameters(module):
        layout = beside
    return _Found("experts", layout, groups=parameter.shape[0]) if layout else None


def _is_transposed_linear(module: nn.Module, weight: Tensor) -> bool:
    """Return whether a module is GPT-2's ``Conv1D``: a linear layer that keeps (in, out)."""
    outputs = getattr(module, "nf", None)
    return type(module).__name__ == "Conv1D" and weight.dim() == 2 and weight.shape[1] == outputs


def _expert_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return the stacked weights ``(experts, a, b)`` of a module that says it has experts."""
    counts = {
        value
        for name, value in vars(module).items()
        if "expert" in name and isinstance(value, int) and not isinstance(value, bool)
    }
    return {
        key: p
        for key, p in module._parameters.items()
        if p is not None and p.dim() == 3 and p.shape[0] in counts and min(p.shape[1:]) >= 2
    }


def _stacked_layout(module: nn.Module, key: str) -> Layout | None:
    """Return whether expert weights are kept (experts, out, in) or (experts, in, out).

    What the module says of itself counts first; then sizes: what comes out of the last weight
    (the smallest, or the one whose name says so) has the width of what goes into the others.
    """
    experts = _expert_parameters(module)
    if key not in experts:
        return None
    transposed = getattr(module, "is_transposed", None)
    if isinstance(transposed, bool):
        return "stacked-transposed" if transposed else "stacked"
    for into, out in (("input_size", "output_size"), ("in_features", "out_features")):
        sizes = (getattr(module, out, None), getattr(module, into, None))
        shape = tuple(experts[key].shape[1:])
        if sizes[0] != sizes[1] and shape in (sizes, sizes[::-1]):
            return "stacked" if shape == sizes else "stacked-transposed"
    down = _down_key(experts)
    if down is None:
        return None
    up = next(p for name, p in experts.items() if name != down)
    votes: list[Layout] = []
    if up.shape[2] == experts[down].shape[1]:
        votes.append("stacked")
    if up.shape[1] == experts[down].shape[2]:
        votes.append("stacked-transposed")
    return votes[0] if len(votes) == 1 else None


def _down_key(experts: Mapping[str, Tensor]) -> str | None:
    if len(experts) < 2:
        return None
    sizes = {name: p.numel() for name, p in experts.items()}
    smallest = [name for name, size in sizes.items() if size == min(sizes.values())]
    if len(smallest) > 1:
        smallest = [name for name in experts if any(word in name for word in _DOWN_WORDS)]
    return smallest[0] if len(smallest) == 1 else None


def _reason(module: nn.Module, key: str, parameter: Tensor) -> str:
    name = type(module).__name__
    if isinstance(module, _RECURRENT):
        return f"{name} runs in a fused kernel that takes dense weights only"
    if isinstance(module, nn.MultiheadAttention) or name == "NonDynamicallyQuantizableLinear":
        return "nn.MultiheadAttention runs in a fused kernel that takes dense weights only"
    if isinstance(module, _TRANSPOSED_CONVS):
        return f"{name} has no compressed layer yet"
    if isinstance(module, nn.Conv3d):
        return "Conv3d has no compressed layer yet"
    if isinstance(module, nn.EmbeddingBag):
        return "EmbeddingBag has no compressed layer yet"
    if isinstance(module, nn.Embedding):
        return "an embedding with max_norm or scale_grad_by_freq changes by itself"
    if "parametrizations" in key or type(module).__name__ == "ParametrizationList":
        return "a parametrised weight: call torch.nn.utils.parametrize.remove_parametrizations"
    if key in _expert_parameters(module):
        return f"stacked expert weights of {name}: sizes do not tell which axis is the input"
    shape = tuple(parameter.shape)
    return f"a plain parameter {shape} of {name}: how the model uses it is not known"
