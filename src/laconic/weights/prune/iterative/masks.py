"""Masks: which weights of a model are kept, shared by the methods that prune."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError, LayerError, nearest
from laconic.forms.dense import Dense
from laconic.forms.layers import Layout, from_form, install_, to_form
from laconic.forms.sparse import Sparse
from laconic.weights.base import Site
from laconic.weights.prune._step import sparse_form


@dataclass(frozen=True)
class Masks:
    """Which weights are kept, by parameter name.

    Args:
        kept: bool tensors in the shape of the parameters, True where a weight is kept.
        layouts: How a parameter maps to the rows and columns of its form; natural where a name
            is missing.

    Raises:
        ConfigError: No mask at all, or one that is not bool.
    """

    kept: Mapping[str, Tensor]
    layouts: Mapping[str, Layout] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.kept or not sum(mask.numel() for mask in self.kept.values()):
            raise ConfigError(
                "pruning: no weight is in the scope. Name at least one linear or convolution "
                "weight; `laconic doctor MODEL` lists what there is."
            )
        for name, mask in self.kept.items():
            if mask.dtype != torch.bool:
                raise ConfigError(f"masks: {name} has {mask.dtype}; it must be bool.")

    @classmethod
    def of_sites(cls, sites: Iterable[Site]) -> Masks:
        """Return what stands in sites: the masks of sparse forms, all weights of dense ones.

        Raises:
            LayerError: A site holds another form.
            ConfigError: There are no sites.
        """
        kept, layouts = {}, {}
        for site in sites:
            layouts[site.name] = site.layout
            shape = _parameter_shape(site)
            if isinstance(site.form, Sparse):
                mask = site.form.mask.reshape(site.form.shape).cpu()
                kept[site.name] = from_form(mask, site.layout, shape).contiguous()
            elif isinstance(site.form, Dense):
                kept[site.name] = torch.ones(shape, dtype=torch.bool)
            else:
                raise LayerError(
                    f"{site.name}: a {site.form.signature} form has no mask; prune before it is "
                    "made, or exclude this weight."
                )
        return cls(kept, layouts)

    @property
    def total(self) -> int:
        """Number of weights, kept or not."""
        return sum(mask.numel() for mask in self.kept.values())

    @property
    def survivors(self) -> int:
        """Number of weights that are kept."""
        return sum(int(mask.sum()) for mask in self.kept.values())

    @property
    def density(self) -> float:
        """Share of the weights that is kept."""
        return self.survivors / self.total

    def matrix(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor in the shape of a parameter as (rows, cols), a row an output."""
        shaped = to_form(tensor, self.layouts.get(name, "natural"))
        return shaped.reshape(shaped.shape[0], -1)

    def matrices(self) -> dict[str, Tensor]:
        """Return the masks as (rows, cols) by name."""
        return {name: self.matrix(name, mask) for name, mask in self.kept.items()}

    def from_matrices(self, matrices: Mapping[str, Tensor]) -> Masks:
        """Return masks with other values, given as (rows, cols) by name."""
        kept = {}
        for name, mask in self.kept.items():
            layout = self.layouts.get(name, "natural")
            shape = to_form(mask, layout).shape
            shaped = from_form(matrices[name].reshape(shape), layout, tuple(mask.shape))
            kept[name] = shaped.contiguous()
        return Masks(kept, self.layouts)

    def within(self, other: Masks) -> bool:
        """Return whether every weight that is kept here is kept there."""
        return self.kept.keys() == other.kept.keys() and all(
            not bool((mask & ~other.kept[name]).any()) for name, mask in self.kept.items()
        )

    def apply_(self, model: nn.Module) -> None:
        """Set the pruned weights of a model to zero, in place.

        Raises:
            LayerError: The model has no such parameter, or one of another shape.
        """
        with torch.no_grad():
            for _, parameter, mask in self._pairs(model):
                parameter.masked_fill_(~mask.to(parameter.device), 0.0)

    def nonzero(self, model: nn.Module) -> dict[str, int]:
        """Return how many pruned weights of a model are not zero, by name, where any is."""
        counts = {
            name: int((parameter.detach()[~mask.to(parameter.device)] != 0).sum())
            for name, parameter, mask in self._pairs(model)
        }
        return {name: count for name, count in counts.items() if count}

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the weights under the masks as (rows, cols) by name, on the CPU."""
        return {name: self.matrix(name, p.detach().cpu()) for name, p, _ in self._pairs(model)}

    def install_(self, model: nn.Module, values: Mapping[str, Tensor]) -> None:
        """Put sparse forms of some values into a model, in place.

        Args:
            model: Model whose weights are replaced.
            values: Weights by name, in the shape of the parameters.
        """
        for name, mask in self.kept.items():
            layout = self.layouts.get(name, "natural")
            form = Dense(to_form(values[name].detach(), layout).contiguous())
            matrix = form.value.detach().reshape(form.rows, form.cols)
            held = self.matrix(name, mask).to(matrix.device)
            install_(model, name, sparse_form(matrix, held, form, "unstructured"), layout=layout)

    def _pairs(self, model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
        held = dict(model.named_parameters(remove_duplicate=False))
        for name, mask in self.kept.items():
            if name not in held:
                raise LayerError(f"{name}: the model has no such parameter.{nearest(name, held)}")
            if held[name].shape != mask.shape:
                raise LayerError(
                    f"{name}: has shape {tuple(held[name].shape)} and its mask "
                    f"{tuple(mask.shape)}; training must leave the shapes of parameters alone."
                )
            yield name, held[name], mask


def _parameter_shape(site: Site) -> tuple[int, ...]:
    """Return the shape of the parameter that a site's form stands for."""
    shape = tuple(site.form.shape)
    if site.layout == "natural":
        return shape
    if site.layout == "transposed":
        return shape[1], shape[0]
    out = shape[0] // site.groups
    return (site.groups, out, shape[1]) if site.layout == "stacked" else (
        site.groups, shape[1], out
    )  # fmt: skip
