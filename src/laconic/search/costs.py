"""What a level costs other than bytes: multiplications, or time measured on this device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.forms._timings import Timings, cache_path, measure
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.kernels import prepare_
from laconic.forms.layers import install_
from laconic.forms.lowrank import LowRank
from laconic.forms.sparse import Sparse
from laconic.forms.sum import Sum
from laconic.search.database import FormDatabase
from laconic.task import Task
from laconic.weights._flow import device_of, quiet
from laconic.weights.base import Site


@dataclass(frozen=True)
class Costs:
    """Costs of every level at every site, and of what no level changes.

    Attributes:
        rows: Whole numbers, (sites, levels); 0 where a site has no such level.
        fixed: Cost of the rest of the model.
        dense: Cost of the whole model as it was.
        unit: What is counted.
    """

    rows: list[list[int]]
    fixed: int
    dense: int
    unit: str


def macs(model: nn.Module, sites: Sequence[Site], database: FormDatabase, task: Task) -> Costs:
    """Count multiplications of one example: those of the sites, for nothing else has many.

    A form of factors counts its factors, a sparse one the values that are kept, whatever the
    device makes of them; an embedding that is only looked up counts nothing.

    Raises:
        ConfigError: A site's layer is not called as a layer, as experts are.
    """
    calls = input_shapes(model, sites, task)
    rows, dense = [], 0
    for site in sites:
        times = 0
        if site.kind != "embedding" or site.aliases:
            times = _positions(site, calls[site.name])
        held = _forms(site, database)
        rows.append([0 if form is None else times * macs_per_row(form) for form in held])
        dense += times * site.form.rows * site.form.cols
    return Costs(rows, 0, dense, "MACs")


def macs_per_row(form: Form) -> int:
    """Return the multiplications of a form with one row of inputs.

    >>> macs_per_row(Dense(torch.ones(4, 6)))
    24
    """
    if isinstance(form, LowRank | Sum):
        return sum(map(macs_per_row, form.children_forms().values()))
    if isinstance(form, Sparse):
        return macs_per_row(form.values)
    return form.rows * form.cols


def _forms(site: Site, database: FormDatabase) -> list[Form | None]:
    found: list[Form | None] = []
    for level, entry in enumerate(database.entries[site.name]):
        form = database.form(site.name, level) if entry is not None else None
        found.append(Dense(site.original) if entry is not None and entry.kept else form)
    return found


@dataclass(frozen=True)
class Call:
    """Shapes of what a layer was called with and returned, on one example."""

    given: Tensor
    out_shape: tuple[int, ...]


def input_shapes(model: nn.Module, sites: Sequence[Site], task: Task) -> dict[str, Call]:
    """Return what every site's layer is called with when one example is run.

    Raises:
        ConfigError: A layer is not called.
    """
    found: dict[str, Call] = {}

    def look(name: str) -> Any:
        def hook(_m: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
            if given is not None and isinstance(output, Tensor) and name not in found:
                found[name] = Call(given.detach().clone(), tuple(output.shape))

        return hook

    split = task.calibration_split() or task.test
    batch = next(iter(split.batches(1)))
    with ExitStack() as stack, quiet(model):
        for site in sites:
            if site.kind == "experts":
                continue
            module = model.get_submodule(site.module_name)
            handle = module.register_forward_hook(look(site.name), with_kwargs=True)
            stack.callback(handle.remove)
        task.forward(model, {key: t.to(device_of(model)) for key, t in batch.items()})
    for site in sites:
        if site.name not in found:
            raise ConfigError(
                f"{site.name}: its layer is not called as a layer, so that MACs and latency of its "
                "levels are not known. Exclude it, or give a budget in bytes."
            )
    return found


def _positions(site: Site, call: Call) -> int:
    """Return how many rows of inputs meet a weight on one example."""
    total = 1
    for size in call.out_shape:
        total *= size
    if site.kind == "embedding":  # a table that is the head too: a product for each token
        return call.given.numel()
    return total // site.form.rows


def latency(model: nn.Module, sites: Sequence[Site], database: FormDatabase, task: Task) -> Costs:
    """Time every level at every site on this device, in microseconds for one example.

    Each layer is run as the finished model would run it, by the fastest exact kernel. Layers of
    one shape with forms of one kind and size are timed once, and kept for the next search beside
    the timings of kernels.
    """
    timings = Timings(cache_path())
    calls = input_shapes(model, sites, task)
    rows: list[list[int]] = []
    dense = 0
    for site in sites:
        module, call = model.get_submodule(site.module_name), calls[site.name]
        times = [
            0 if form is None else _timed(timings, module, site, form, call.given)
            for form in _forms(site, database)
        ]
        rows.append(times)
        dense += _timed(timings, module, site, Dense(site.original), call.given)
    whole = _whole(model, task)
    timings.save()
    return Costs(rows, max(0, whole - dense), max(whole, dense), "us")


def _timed(timings: Timings, module: nn.Module, site: Site, form: Form, given: Tensor) -> int:
    key = _key(module, site, form, given)
    known = timings.get(key)
    if known is None:
        known = _time_layer(module, site, form, given)
        timings.put(key, known)
    return max(1, round(known))


def _time_layer(module: nn.Module, site: Site, form: Form, given: Tensor) -> float:
    layer = deepcopy(module).eval()
    if not isinstance(form, Dense):
        holder = nn.ModuleDict({"layer": layer})
        name = site.name.rpartition(".")[2]
        install_(holder, f"layer.{name}", deepcopy(form).to(given.device), layout=site.layout)
        prepare_(holder, "auto")
        layer = holder["layer"]
    run: Callable[[], Tensor] = lambda: layer(given)  # noqa: E731 - a call without arguments
    with torch.no_grad():
        return measure({"layer": run}, given.device)["layer"]


def _whole(model: nn.Module, task: Task) -> int:
    batch = next(iter((task.calibration_split() or task.test).batches(1)))
    with quiet(model):
        batch = {key: tensor.to(device_of(model)) for key, tensor in batch.items()}
        found = measure({"model": lambda: task.forward(model, batch)}, device_of(model))
    return round(found["model"])


def _key(module: nn.Module, site: Site, form: Form, given: Tensor) -> str:
    sizes = [
        (inner.kind, inner.shape, [_rough(t.numel()) for t in (*inner.parameters(recurse=False),
                                                               *inner.buffers(recurse=False))])
        for _, inner in form.walk()
    ]  # fmt: skip
    conv = [getattr(module, key, None) for key in ("stride", "padding", "dilation", "groups")]
    told = f"{sizes}/{conv}/{tuple(given.shape)}/{form.dtype}/{given.device.type}"
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    return f"level/{site.kind}/{form.signature}/{digest}/t{torch.get_num_threads()}".replace(
        " ", ""
    )


def _rough(count: int) -> int:
    return count if count < 100 else int(float(f"{count:.1e}"))
