"""Groups of sites between which a switch of levels keeps the cost exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from laconic.errors import ConfigError

GroupRule = Literal["size", "name", "none"]
GROUP_RULES: tuple[GroupRule, ...] = get_args(GroupRule)


def group_labels(
    sites: Sequence[str], ladders: Sequence[NDArray[Any]], rule: str
) -> tuple[str, ...] | None:
    """Return the group of each site.

    Args:
        sites: Names.
        ladders: Costs of each site's levels, rising.
        rule: ``"size"``: sites whose levels are the same distances apart, such as bit-widths of
            layers of equal size, or levels of one number of weights in layers of any size;
            ``"name"``: those that also share their path but for its numbers, such as all
            ``q_proj``; ``"none"``: no groups.

    Source: Sieberling et al. 2024 (EvoPress), appendix on the search space of quantization.

    Raises:
        ConfigError: Unknown rule.
    """
    if rule not in GROUP_RULES:
        raise ConfigError(f"groups: rule={rule!r} must be one of {list(GROUP_RULES)}.")
    if rule == "none":
        return None
    steps = ["+".join(map(str, np.unique(np.diff(ladder)))) or "alone" for ladder in ladders]
    if rule == "size":
        return tuple(steps)
    return tuple(f"{role_of(site)} {step}" for site, step in zip(sites, steps, strict=True))


def role_of(site: str) -> str:
    """Return a path without its numbers: what a site is, in whichever block.

    >>> role_of("model.layers.3.mlp.up_proj.weight")
    'model.layers.*.mlp.up_proj.weight'
    """
    return ".".join("*" if part.isdigit() else part for part in site.split("."))
