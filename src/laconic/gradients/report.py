"""What a state sends: by tensor, by step, and in all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laconic.gradients.base import CommState


def report(state: CommState) -> dict[str, Any]:
    """Return the figures of a state as plain values.

    Returns:
        ``method``, ``world_size``, ``step``, ``skipped``; ``step_bytes``: what one rank hands
        over in a step, without the heads of messages, beside ``dense_bytes``; ``ratio``, the
        second divided by the first; ``tensors``: for each its ``route``, ``shape``, ``bytes``,
        ``dense_bytes`` and, where it has one, its ``setting``; ``traffic``: bytes really
        counted, see ``Traffic``.
    """
    tensors: dict[str, dict[str, Any]] = {}
    for name, parameter in state.named.items():
        dense = name in state.dense_names
        full = state.dense_bytes(name)
        tensors[name] = {
            "route": "dense" if dense else state.route,
            "shape": list(parameter.shape),
            "bytes": full if dense else state.payload_bytes(name),
            "dense_bytes": full,
        }
        if not dense and state.tuned:
            tensors[name]["setting"] = state.parameter(name)
    handed = sum(row["bytes"] for row in tensors.values())
    whole = sum(row["dense_bytes"] for row in tensors.values())
    return {
        "method": state.method_name,
        "world_size": state.transport.size,
        "step": state.step,
        "skipped": state.skipped,
        "step_bytes": handed,
        "dense_bytes": whole,
        "ratio": whole / handed,
        "tensors": tensors,
        "traffic": state.transport.traffic.as_dict(),
    }
