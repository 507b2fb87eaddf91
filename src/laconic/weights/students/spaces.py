"""The two stages as sequences of decisions: which units stay, and how far the others shrink."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import floor
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from laconic.budget.policy import Decisions
from laconic.errors import ConfigError
from laconic.weights.students._fitting import is_depthwise
from laconic.weights.students.build import Plan, Sizes, tied_layers
from laconic.weights.students.units import KINDS, Network, Unit, describe, describe_sizes

Stage = Literal["removal", "shrinkage"]
FIELDS = ("kernel", "stride", "filters", "padding")
RATIOS = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
PAPER_RATIOS = (0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_WINDOWED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


class Space(Protocol):
    """What a policy decides in a stage."""

    @property
    def network(self) -> Network:
        """What children are cut from."""
        ...

    @property
    def decisions(self) -> Decisions:
        """The sequence of decisions."""
        ...

    def plan(self, actions: Sequence[int]) -> Plan:
        """Return the child that a sequence of actions asks for."""
        ...

    def tell(self, actions: Sequence[int]) -> dict[str, Any]:
        """Return the actions as plain values by unit name."""
        ...

    def least(self) -> list[int]:
        """Return the actions of the smallest child."""
        ...

    def still(self) -> list[int]:
        """Return the actions that change nothing."""
        ...


@dataclass(frozen=True)
class RemovalSpace:
    """Keep (1) or drop (0) each unit; fixed units are kept.

    Source: Ashok et al. 2018 (N2N Learning), section 3.1.
    """

    network: Network

    @cached_property
    def decisions(self) -> Decisions:
        """Units by options, (units, 2)."""
        features = torch.stack([describe(unit) for unit in self.network.units])
        allowed = torch.tensor([[not unit.fixed, True] for unit in self.network.units])
        return Decisions(features, allowed)

    def plan(self, actions: Sequence[int]) -> Plan:
        """Return the child of the units whose action is 1."""
        return Plan(frozenset(i for i, action in enumerate(actions) if not action))

    def tell(self, actions: Sequence[int]) -> dict[str, Any]:
        """Return the names of dropped units."""
        dropped = [u.name for u, a in zip(self.network.units, actions, strict=True) if not a]
        return {"dropped": dropped}

    def least(self) -> list[int]:
        """Return the actions that drop every free unit."""
        return [int(bool(unit.fixed)) for unit in self.network.units]

    def still(self) -> list[int]:
        """Return the actions that keep every unit."""
        return [1] * len(self.network.units)


@dataclass(frozen=True)
class ShrinkSpace:
    """A ratio for the kernel, the stride, the filters and the padding of each unit in turn.

    New sizes are the floor of old size times ratio: at least 1 for kernel and stride, at least
    ``min_filters`` filters (or what there were). What cannot change is fixed: layers with a
    stride, linear layers and pools that are kept, widths that follow another layer's.

    Args:
        network: What is shrunk.
        ratios: Options; 1 must be among them.
        min_filters: Fewest filters; 10, as in the paper.
        padding: ``follow`` takes the nearest odd kernel where a convolution preserves the
            image's size, and moves its padding with it; ``free`` takes the floor and decides
            padding by itself, as in the paper, where many children do not fit together.
        keep: Kinds or names of units that are not shrunk.

    Raises:
        ConfigError: Ratios outside (0, 1], or none of them 1.

    Source: Ashok et al. 2018 (N2N Learning), section 3.2.

    Differs: a layer's type, which cannot shrink, is not decided on: 4 steps a layer, not 5.
    """

    network: Network
    ratios: tuple[float, ...] = RATIOS
    min_filters: int = 10
    padding: Literal["follow", "free"] = "follow"
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not all(0 < ratio <= 1 for ratio in self.ratios) or 1 not in self.ratios:
            raise ConfigError(
                f"students: ratios={self.ratios} must lie above 0 up to 1, and 1 be among them."
            )
        if self.min_filters < 1 or self.padding not in ("follow", "free"):
            raise ConfigError(
                f"students: min_filters={self.min_filters} must be at least 1, and padding="
                f"{self.padding!r} 'follow' or 'free'."
            )

    @cached_property
    def _choices(self) -> list[list[list[Any]]]:
        """New value of each unit, field and option; equal ones where nothing can change."""
        tied = tied_layers(self.network)
        return [[self._field(u, f, tied) for f in FIELDS] for u in self.network.units]

    def _layer(self, unit: Unit) -> Any:
        if unit.layer is None:
            return None
        return self.network.blueprint.module.get_submodule(unit.layer)

    def _field(self, unit: Unit, field: str, tied: frozenset[str]) -> list[Any]:
        now = self._now(unit, field)
        still = [now] * len(self.ratios)
        layer = self._layer(unit)
        frozen = unit.kind in self.keep or unit.name in self.keep or unit.kind == "avg-pool"
        if now is None or frozen or not self._may_shrink(unit):
            return still
        if field == "filters":
            locked = unit.nodes[0] in tied or is_depthwise(layer)
            return still if locked else [self._filters(layer, now, r) for r in self.ratios]
        if field == "padding":
            follows = self._follows(unit)
            return still if follows else [_scaled(now, r, 0) for r in self.ratios]
        if field == "kernel" and self._follows(unit):
            return [tuple(_nearest_odd(k * r) for k in now) for r in self.ratios]
        return [_scaled(now, r, 1) for r in self.ratios]

    @staticmethod
    def _may_shrink(unit: Unit) -> bool:
        if unit.fixed in ("gives the output", "runs more than once"):
            return False
        return (
            unit.kind == "linear"
            or (unit.kind == "conv" and unit.stride == 1)
            or (unit.kind == "max-pool")
        )

    def _filters(self, layer: Any, now: int, ratio: float) -> int:
        groups = getattr(layer, "groups", 1)
        least = min(now, self.min_filters)
        wanted = max(floor(now * ratio + 1e-9), least)
        return min(now, -(-wanted // groups) * groups)

    def _now(self, unit: Unit, field: str) -> Any:
        """Return the present value of a field; None where the unit has none."""
        layer = self._layer(unit)
        if field == "filters":
            return unit.filters or None
        name = {"kernel": "kernel_size"}.get(field, field)
        value = getattr(layer, name, None) if isinstance(layer, _WINDOWED) else None
        if isinstance(value, str):
            return None
        return (value,) if isinstance(value, int) else value

    def _follows(self, unit: Unit) -> bool:
        """Return whether a unit's padding keeps the image's size and moves with its kernel."""
        layer = self._layer(unit)
        if self.padding == "free" or unit.kind != "conv" or isinstance(layer.padding, str):
            return False
        return all(
            2 * p == d * (k - 1)
            for p, d, k in zip(layer.padding, layer.dilation, layer.kernel_size, strict=True)
        )

    @cached_property
    def decisions(self) -> Decisions:
        """Units and fields by ratios, (4 * units, ratios)."""
        stays = self._stays
        rows, allowed = [], []
        for unit, fields in zip(self.network.units, self._choices, strict=True):
            for number, values in enumerate(fields):
                one_hot = torch.eye(len(FIELDS))[number]
                rows.append(torch.cat([describe(unit), one_hot]))
                free = any(value != values[stays] for value in values)
                allowed.append([free or i == stays for i in range(len(self.ratios))])
        return Decisions(torch.stack(rows), torch.tensor(allowed), self._feedback)

    @cached_property
    def _read(self) -> Tensor:
        """What a policy reads of each new value, (units, fields, options)."""
        read = [
            [[describe_sizes(_first(v), 0, 0, 0)[0] for v in values] for values in fields]
            for fields in self._choices
        ]
        return torch.tensor(read)

    def _feedback(self, step: int, before: Tensor) -> Tensor:
        """Return a step's description with the fields that were decided before it."""
        unit, field = divmod(step, len(FIELDS))
        x = self.decisions.features[step].repeat(len(before), 1)
        for earlier in range(field):
            taken = before[:, step - field + earlier]
            x[:, len(KINDS) + earlier] = self._read[unit, earlier][taken]
        return x

    def plan(self, actions: Sequence[int]) -> Plan:
        """Return the child of the ratios that the actions stand for."""
        sizes = {}
        for unit, fields in zip(self.network.units, self._choices, strict=True):
            start = unit.index * len(FIELDS)
            taken = [fields[j][actions[start + j]] for j in range(len(FIELDS))]
            now = [self._now(unit, field) for field in FIELDS]
            changed = {f: t for f, t, n in zip(FIELDS, taken, now, strict=True) if t != n}
            if "kernel" in changed and self._follows(unit):
                dilation = self._layer(unit).dilation
                changed["padding"] = tuple(
                    d * (k - 1) // 2 for k, d in zip(changed["kernel"], dilation, strict=True)
                )
            if changed:
                sizes[unit.index] = Sizes(**changed)
        return Plan(sizes=sizes)

    def tell(self, actions: Sequence[int]) -> dict[str, Any]:
        """Return the new sizes by unit name."""
        told = {}
        for index, sizes in self.plan(actions).sizes.items():
            fields = {f: getattr(sizes, f) for f in FIELDS}
            told[self.network.units[index].name] = {
                f: list(v) if isinstance(v, tuple) else v
                for f, v in fields.items()
                if v is not None
            }
        return {"shrunk": told}

    def least(self) -> list[int]:
        """Return the actions of the smallest ratios everywhere they are allowed."""
        smallest = min(range(len(self.ratios)), key=self.ratios.__getitem__)
        stays = self._stays
        allowed = self.decisions.allowed[:, smallest].tolist()
        return [smallest if free else stays for free in allowed]

    def still(self) -> list[int]:
        """Return the actions of ratio 1 everywhere."""
        return [self._stays] * (len(FIELDS) * len(self.network.units))

    @property
    def _stays(self) -> int:
        """The last option that changes nothing; fixed steps take it."""
        return max(i for i, ratio in enumerate(self.ratios) if ratio == 1)


def _scaled(values: tuple[int, ...], ratio: float, least: int) -> tuple[int, ...]:
    return tuple(max(floor(value * ratio + 1e-9), least) for value in values)


def _nearest_odd(size: float) -> int:
    return 2 * floor((size - 1) / 2 + 0.5) + 1 if size > 1 else 1


def _first(value: Any) -> int:
    if value is None:
        return 0
    return int(max(value)) if isinstance(value, tuple) else int(value)
