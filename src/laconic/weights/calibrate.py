"""Gather what reaches each weight on calibration data: once, block by block, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.forms.base import Form
from laconic.forms.dense import Dense
from laconic.forms.layers import Installed, install_, installed
from laconic.progress import NullProgress, Progress
from laconic.task import Task
from laconic.weights._flow import Data, Keep, Stream, device_of, flat_output, quiet, record_streams
from laconic.weights._inputs import Accumulator, input_rows, statistics_bytes
from laconic.weights._watch import hooked, owner_of, watched_experts
from laconic.weights.base import Site, Statistic
from laconic.weights.sites import blocks_of

Needs = Mapping[str, frozenset[Statistic]]
LIMIT_BYTES = 2**30


# Long for its docstring: what is seen of which model, and when, is told here once.
def gather_(
    model: nn.Module,
    sites: Sequence[Site],
    task: Task | None,
    needs: Needs,
    *,
    propagate: Literal["original", "compensated"] = "original",
    sequential: bool = False,
    limit_bytes: int = LIMIT_BYTES,
    progress: Progress | None = None,
) -> Iterator[list[Site]]:
    """Yield sites in groups with their statistics filled in place; freed when asked for the next.

    Where the model has residual blocks, each batch is run up to the first of them once, and
    from there block by block, so that only one block's statistics live at a time. Otherwise,
    and for layers outside the blocks, the whole model is run once for every ``limit_bytes`` of
    statistics. Layers that are called with the same tensor share one sum.

    With ``"compensated"`` the caller puts new forms into ``model`` between two groups, and later
    groups see what these give. Inside a block the sites' original weights are put in for the
    time of gathering, so that the error before a block is seen and the error inside it is not;
    with ``sequential`` only those that the caller has not had yet, layer after layer in the order
    in which they run (those with one input together), so that each sees the error before it.

    Training modes, gradients and random states of the model and the process stay as they are.

    Args:
        model: The original model, or for ``"compensated"`` the model at work.
        sites: Sites to gather for; their ``statistics`` are set and unset.
        task: Gives the calibration data and runs the model.
        needs: Statistics by site name; sites that need none come first, in one group.
        propagate: Whose activations are seen.
        sequential: With ``"compensated"``, layers of a block are gathered one after another.
        limit_bytes: Most bytes of statistics at a time; one input's are always allowed.
        progress: Where progress is shown.

    Raises:
        ConfigError: The task has no calibration data, or ``sequential`` without
            ``"compensated"``.
        LayerError: No row reached a site, or its inputs are not finite; names the site.
    """
    wanted = [site for site in sites if needs.get(site.name)]
    rest = [site for site in sites if not needs.get(site.name)]
    if rest:
        yield rest
    if not wanted:
        return
    if task is None or not len(task.calibration_split() or ()):
        raise ConfigError(
            f"calibration: {len(wanted)} layers need statistics and the task has no calibration "
            "or training examples. Give --data NAME, or a Task with calibration."
        )
    if sequential and propagate != "compensated":
        raise ConfigError(
            f"calibration: sequential=True needs propagate='compensated', not {propagate!r}: the "
            "original's layers do not change from one to the next."
        )
    gathering = _Gathering(
        model, task, needs, propagate == "compensated", limit_bytes, sequential=sequential
    )
    shown = progress or NullProgress()
    bar = shown.start("calibrate", len(wanted))
    for group in gathering.groups(wanted):
        yield group
        for site in group:
            site.statistics = None
        shown.advance(bar, len(group))
    shown.finish(bar)


@dataclass
class _Trace:
    """What one example tells of a model: when each site is reached and what it shares.

    Attributes:
        order: Number of the first call of each site that was reached.
        inputs: Identity of what each site was called with.
        first_block: Number of the call before which the first block began.
    """

    order: dict[str, int]
    inputs: dict[str, tuple[Any, ...]]
    first_block: int


class _Gathering:
    """One walk over a model and its calibration data."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        needs: Needs,
        compensated: bool,
        limit_bytes: int,
        *,
        sequential: bool,
    ) -> None:
        self.model, self.task, self.needs, self.sequential = model, task, needs, sequential
        self.compensated, self.limit_bytes = compensated, limit_bytes
        self.data = Data(task, device_of(model))

    def groups(self, sites: list[Site]) -> Iterator[list[Site]]:
        """Yield sites group by group, in the order in which the model reaches them."""
        trace = self._probe(sites)
        order = {site.name: trace.order.get(site.name, len(sites)) for site in sites}
        sites = sorted(sites, key=lambda site: order[site.name])
        blocks = list(blocks_of(self.model))
        inside = [s for s in sites if any(s.name.startswith(f"{path}.") for path in blocks)]
        outside = [s for s in sites if s not in inside]
        early = [s for s in outside if order[s.name] < trace.first_block]
        yield from self._whole(early, trace)
        if inside:
            yield from self._blocks(blocks, inside, trace)
        yield from self._whole([s for s in outside if s not in early], trace)

    def _probe(self, sites: list[Site]) -> _Trace:
        """Run one example and note which sites are called, when, and with which tensor."""
        calls: list[tuple[str, Tensor]] = []
        begun: list[int] = []
        blocks = list(blocks_of(self.model))
        with ExitStack() as stack:
            for site in sites:
                note = partial(_note, calls, site.name)
                stack.enter_context(hooked(owner_of(self.model, site), note))
            if blocks:
                first = self.model.get_submodule(blocks[0])
                stack.enter_context(hooked(first, lambda module, x: begun.append(len(calls))))
            with quiet(self.model):
                self.task.forward(self.model, next(self.data.batches(1)))
        order: dict[str, int] = {}
        inputs: dict[str, tuple[Any, ...]] = {}
        for number, (name, x) in enumerate(calls):  # calls holds the tensors: no id is used twice
            order.setdefault(name, number)
            inputs[name] = (*inputs.get(name, ()), (id(x), x._version))
        return _Trace(order, inputs, begun[0] if begun else 0)

    def _shared(self, sites: list[Site], trace: _Trace) -> list[list[Site]]:
        """Split sites into lists of those that share their input."""
        lists: dict[Any, list[Site]] = {}
        for site in sites:
            key: Any = trace.inputs.get(site.name) if site.kind == "linear" else None
            lists.setdefault(site.name if key is None else key, []).append(site)
        return list(lists.values())

    def _chunks(
        self, shared: list[list[Site]], most: int | None = None
    ) -> Iterator[list[list[Site]]]:
        """Yield lists of sharing sites whose statistics fit the limit together."""
        chunk: list[list[Site]] = []
        held = 0
        for sharing in shared:
            size = statistics_bytes(sharing[0], self._wants(sharing))
            if chunk and (held + size > self.limit_bytes or len(chunk) == most):
                yield chunk
                chunk, held = [], 0
            chunk.append(sharing)
            held += size
        if chunk:
            yield chunk

    def _wants(self, sharing: list[Site]) -> frozenset[Statistic]:
        return frozenset[Statistic]().union(*(self.needs[site.name] for site in sharing))

    def _whole(self, sites: list[Site], trace: _Trace) -> Iterator[list[Site]]:
        """Gather by runs of the whole model; one input a run where later ones see its change."""
        shared = self._shared(sites, trace)
        for chunk in self._chunks(shared, most=1 if self.compensated else None):

            def run(watch: _Watch) -> None:
                with watch.on(), quiet(self.model):
                    for batch in self.data.batches():
                        watch.keep = self.data.keep(batch)
                        self.task.forward(self.model, batch)

            yield self._gather(chunk, run)

    def _blocks(self, blocks: list[str], sites: list[Site], trace: _Trace) -> Iterator[list[Site]]:
        """Gather block by block on kept inputs; by whole runs where blocks do not form a chain."""
        modules = [self.model.get_submodule(path) for path in blocks]
        streams = record_streams(self.model, self.task, self.data, modules)
        if streams is None:
            yield from self._whole(sites, trace)
            return
        left = len(sites)
        for index, path in enumerate(blocks):
            here = [site for site in sites if site.name.startswith(f"{path}.")]
            waiting = list(here)  # not compressed yet, as far as this walk is concerned
            for chunk in self._chunks(self._shared(here, trace), 1 if self.sequential else None):

                def run(watch: _Watch, index: int = index, held: list[Site] = waiting) -> None:
                    with _originals(self.model, held if self.compensated else []):
                        self._replay(blocks[index], index, streams, watch)

                group = self._gather(chunk, run)
                yield group
                if self.sequential:
                    waiting = [site for site in waiting if site not in group]
            left -= len(here)
            if not left:
                return
            self._advance(path, index, streams)

    def _replay(self, path: str, index: int, streams: list[Stream], watch: _Watch) -> None:
        block = self.model.get_submodule(path)
        with watch.on(), quiet(self.model):
            for stream in streams:
                watch.keep = stream.keep
                args, kwargs = stream.calls[index].bound(stream.state)
                block(*args, **kwargs)

    def _advance(self, path: str, index: int, streams: list[Stream]) -> None:
        """Replace each stream's state by what the block gives as it stands now."""
        block = self.model.get_submodule(path)
        with quiet(self.model):
            for stream in streams:
                args, kwargs = stream.calls[index].bound(stream.state)
                stream.state = flat_output(block(*args, **kwargs))

    def _gather(self, chunk: list[list[Site]], run: Callable[[_Watch], None]) -> list[Site]:
        watch = _Watch(self.model, [(sharing[0], self._wants(sharing)) for sharing in chunk])
        run(watch)
        for sharing, found in zip(chunk, watch.sums, strict=True):
            statistics = found.statistics(sharing[0].groups)
            for site in sharing:
                site.statistics = statistics
        return [site for sharing in chunk for site in sharing]


def _note(calls: list[tuple[str, Tensor]], name: str, module: nn.Module, x: Tensor) -> None:
    calls.append((name, x))


class _Watch:
    """Adds up what some sites are called with, while it is entered.

    Args:
        model: The model that is run.
        wants: Sites and what to gather for each.

    Attributes:
        keep: Tokens of the batch at hand that are not padding; set by who runs the model.
        sums: One accumulator for each site, in order.
    """

    def __init__(self, model: nn.Module, wants: list[tuple[Site, frozenset[Statistic]]]) -> None:
        self.model, self.sites = model, [site for site, _ in wants]
        self.sums = [Accumulator(site.name, want) for site, want in wants]
        self.keep: Keep = None

    @contextmanager
    def on(self) -> Iterator[None]:
        """Watch the sites' layers as they stand in the model now."""
        with ExitStack() as stack:
            for site, found in zip(self.sites, self.sums, strict=True):
                stack.enter_context(self._watched(site, found))
            yield

    def _watched(self, site: Site, found: Accumulator) -> AbstractContextManager[None]:
        module = owner_of(self.model, site)
        if site.kind == "experts":
            return watched_experts(module, site, found)

        def add(module: nn.Module, x: Tensor) -> None:
            for rows in input_rows(site, module, x, self.keep):
                found.add(rows)

        return hooked(module, add)


@contextmanager
def _originals(model: nn.Module, sites: list[Site]) -> Iterator[None]:
    """Put the original weights of sites in, and what stood there back afterwards."""
    held = dict(installed(model)) if sites else {}
    changed = [site for site in sites if site.name in held]
    for site in changed:
        _put(model, site.name, Dense(site.original), held[site.name])
    try:
        yield
    finally:
        for site in changed:
            _put(model, site.name, held[site.name].form, held[site.name])


def _put(model: nn.Module, name: str, form: Form, entry: Installed) -> None:
    install_(model, name, form, layout=entry.layout, parameter_shape=entry.parameter_shape)
