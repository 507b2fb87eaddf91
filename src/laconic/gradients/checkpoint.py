"""Error memory in checkpoints, also when the number of ranks changes.

The error memory e_i of rank i is gradient that still has to be applied, as the mean over ranks:
``sum_i e_i / N``. With N' ranks in the place of N the new memories are

    e'_j = (N' / N) * sum of e_i over the old ranks i with i mod N' = j,

so that ``sum_j e'_j / N'`` is what it was. Momentum kept on ranks goes the same way.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from laconic.errors import ConfigError, DataError, LaconicWarning
from laconic.files import write_atomic

if TYPE_CHECKING:
    from laconic.gradients.base import CommState

FORMAT = 1
_FILE = re.compile(r"gradients-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class Restored:
    """What became of a checkpoint.

    Attributes:
        step: The step that training goes on from.
        world_before: Ranks when it was saved.
        world_now: Ranks now.
        merged: Old ranks whose memory this rank took over.
        missing: Old ranks whose state was not given; what they had not sent yet is lost.
        dropped: Parameters in the checkpoint that the model does not have, or no longer
            compresses.
    """

    step: int
    world_before: int
    world_now: int
    merged: tuple[int, ...]
    missing: tuple[int, ...] = ()
    dropped: tuple[str, ...] = field(default=())

    @property
    def complete(self) -> bool:
        """Whether nothing was lost."""
        return not self.missing and not self.dropped

    def __str__(self) -> str:
        words = [f"step {self.step}"]
        if self.world_before != self.world_now:
            words.append(
                f"{self.world_before} ranks became {self.world_now}: memory of old ranks "
                f"{list(self.merged)} was added up and scaled, so that the mean update still to "
                "come is the same"
            )
        if self.missing:
            words.append(
                f"the states of old ranks {list(self.missing)} were not given, so that gradient "
                "which they had not sent yet is lost"
            )
        if self.dropped:
            words.append(f"memory of {', '.join(self.dropped)} has no place here and is dropped")
        return "; ".join(words)


def state_dict(state: CommState) -> dict[str, Any]:
    """Return one rank's state; see ``CommState.state_dict``."""
    return {
        "format": FORMAT,
        "method": state.method_name,
        "world_size": state.transport.size,
        "rank": state.transport.rank,
        "step": state.step,
        "skipped": state.skipped,
        "parameters": state.own_parameters(),
        "extra": state.extra_state(),
        "memory": state.remembered(),
    }


def restore(state: CommState, states: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Restored:
    """Take over saved states; warns where anything is merged or lost.

    Args:
        state: A state of the same method, before its first step.
        states: One rank's state dict, or those of all ranks that there were.

    Returns:
        What was kept and what was dropped.

    Raises:
        ConfigError: Another method, a newer format, states of different steps or runs, or a
            tensor of another shape.
    """
    given = [states] if isinstance(states, Mapping) else list(states)
    _check(state, given)
    first = given[0]
    before, now = int(first["world_size"]), state.transport.size
    by_rank = {int(one["rank"]): one for one in given}
    mine = [rank for rank in range(before) if rank % now == state.transport.rank]
    wanted = mine if before == now else list(range(before))
    merged = [rank for rank in mine if rank in by_rank]
    memory: dict[str, dict[str, Tensor]] = {}
    scale = 1.0 if before == now else now / before
    for rank in merged:
        _add(memory, by_rank[rank]["memory"], state.slots, scale)
    _share(memory, by_rank[min(by_rank)]["memory"], state.slots)
    kept = {
        name: {slot: value for slot, value in slots.items() if state.keeps(name, slot)}
        for name, slots in memory.items()
    }
    dropped = sorted(name for name, slots in memory.items() if len(slots) > len(kept[name]))
    _check_shapes(state, kept)
    # What may refuse comes first: a state that raised is as it was.
    state.load_extra_state(first["extra"])
    state.load_parameters(first["parameters"])
    state.replace_memory(kept)
    state.step, state.skipped = int(first["step"]), int(first["skipped"])
    missing = tuple(rank for rank in wanted if rank not in by_rank)
    out = Restored(state.step, before, now, tuple(merged), missing, tuple(dropped))
    if before != now or not out.complete:
        warnings.warn(f"{type(state).__name__}: {out}.", LaconicWarning, stacklevel=3)
    return out


def _add(
    memory: dict[str, dict[str, Tensor]],
    saved: Mapping[str, Mapping[str, Tensor]],
    slots: Mapping[str, str],
    scale: float,
) -> None:
    for name, held in saved.items():
        for slot, value in held.items():
            if slots.get(slot) == "sum":
                part = value.clone() if scale == 1.0 else value * scale
                place = memory.setdefault(name, {})
                place[slot] = place[slot] + part if slot in place else part


def _share(
    memory: dict[str, dict[str, Tensor]],
    saved: Mapping[str, Mapping[str, Tensor]],
    slots: Mapping[str, str],
) -> None:
    for name, held in saved.items():
        for slot, value in held.items():
            if slots.get(slot) == "same":
                memory.setdefault(name, {})[slot] = value.clone()


def _check(state: CommState, given: Sequence[Mapping[str, Any]]) -> None:
    owner = type(state).__name__
    if not given:
        raise ConfigError(f"{owner}: no saved state was given. Give one, or one of each rank.")
    for one in given:
        if one.get("format") != FORMAT:
            raise ConfigError(
                f"{owner}: the saved state has format {one.get('format')!r}; this version reads "
                f"format {FORMAT}. Load it with the version that wrote it."
            )
        if one["method"] != state.method_name:
            raise ConfigError(
                f"{owner}: the saved state is one of {one['method']!r}, this is "
                f"{state.method_name!r}. Build the method that was saved, or start afresh."
            )
    kinds = {(one["world_size"], one["step"]) for one in given}
    ranks = [one["rank"] for one in given]
    if len(kinds) > 1 or len(set(ranks)) < len(ranks):
        raise ConfigError(
            f"{owner}: the saved states are of ranks {ranks} and (world size, step) "
            f"{sorted(kinds)}; they must be of different ranks of one step."
        )


def _check_shapes(state: CommState, memory: Mapping[str, Mapping[str, Tensor]]) -> None:
    for name, held in memory.items():
        for slot, value in held.items():
            if state.slots[slot] == "sum" and value.shape != state.shape(name):
                raise ConfigError(
                    f"{type(state).__name__}: {name}: the saved {slot} has shape "
                    f"{tuple(value.shape)}, the parameter {tuple(state.shape(name))}. Load a "
                    "checkpoint of this model."
                )


def save(state: CommState, folder: str | Path) -> Path:
    """Write this rank's state into a folder that all ranks share; every rank calls it.

    Args:
        state: Any method's state.
        folder: Where; one folder a checkpoint.

    Returns:
        The file: ``gradients-RANK-of-SIZE.safetensors``.
    """
    content = state.state_dict()
    memory = content.pop("memory")
    tensors = {
        f"{name}//{slot}": value.contiguous().cpu()
        for name, slots in memory.items()
        for slot, value in slots.items()
    }
    name = f"gradients-{content['rank']:05d}-of-{content['world_size']:05d}.safetensors"
    path = Path(folder) / name
    write_atomic(path, save_tensors(tensors, metadata={"laconic": json.dumps(content)}))
    return path


def load(state: CommState, folder: str | Path) -> Restored:
    """Take over what :func:`save` wrote, with as many ranks as there are now.

    Raises:
        DataError: There is nothing to load.
        ConfigError: Files of runs with different numbers of ranks, or as in :func:`restore`.
    """
    found = {path: _FILE.fullmatch(path.name) for path in sorted(Path(folder).glob("gradients-*"))}
    files = {path: match for path, match in found.items() if match}
    if not files:
        raise DataError(
            f"{folder} has no gradients-*.safetensors. Give the folder that save() was given, or "
            "start with an empty memory by not loading."
        )
    worlds = {int(match[2]) for match in files.values()}
    if len(worlds) > 1:
        raise ConfigError(
            f"{folder} has states of runs with {sorted(worlds)} ranks. Keep one folder a "
            "checkpoint, and remove the files that do not belong to it."
        )
    if worlds == {state.transport.size}:
        files = {p: m for p, m in files.items() if int(m[1]) == state.transport.rank} or files
    return state.load_state_dict([read(path) for path in files])


def read(path: Path) -> dict[str, Any]:
    """Return the state dict in one file of :func:`save`."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    content: dict[str, Any] = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["laconic"])
    memory: dict[str, dict[str, Tensor]] = {}
    for key, value in load_tensors(data).items():
        name, slot = key.rsplit("//", 1)
        memory.setdefault(name, {})[slot] = value
    return {**content, "memory": memory}
