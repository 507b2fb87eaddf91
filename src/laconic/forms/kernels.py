"""How each form runs on this device: chosen by measurement, undone at will.

A form can multiply by itself, run as a dense tensor that is built once and cached, or, where it
holds 8-bit integers, in an integer kernel. Which is fastest depends on the machine, so each
kernel is timed on it once (see ``_timings``), and no form is run by a kernel slower than dense.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError, LaconicWarning, nearest
from laconic.forms._int8 import INT8_KERNELS, int8_run, why_unavailable
from laconic.forms._runner import SIMULATED, Cached, Layer, Runner, run_of
from laconic.forms._timings import Timings, cache_path, measure
from laconic.forms.base import Form
from laconic.forms.convolutions import Conv
from laconic.forms.dense import Dense
from laconic.forms.layers import (
    FormEmbedding,
    Installed,
    TransposedLinear,
    installed,
)
from laconic.forms.owner import FormOwner, Run, set_kernel_
from laconic.forms.quantized import Quantized

Mode = Literal["auto", "exact", "dense", "int8"]
BATCHES = (1, 32, 256)
# A form's own product must beat the cached dense one by this much: it may not win by noise.
_MARGIN = 1.05
_CONV_PIXELS, _CONV_IMAGES = 16, 1


@dataclass(frozen=True)
class Decision:
    """How one site runs, and why.

    Attributes:
        by_batch: Kernel by batch size: ``"form"`` (the form's own product), ``"dense"`` (a
            cached dense tensor), ``"int8-onednn"``, ``"int8-intmm"``, or ``"simulated"`` (inputs
            rounded and multiplied in floating point with a cached tensor). A batch in between
            runs as the nearest one (as a ratio).
        timings_us: Microseconds a call, by batch size and kernel, of all that were compared;
            empty where nothing was measured.
        reason: Why, in words.
        rounds: The form rounds its inputs: kernels in floating point only simulate that.
    """

    by_batch: dict[int, str]
    timings_us: dict[int, dict[str, float]]
    reason: str
    rounds: bool = False

    @property
    def kernel(self) -> str:
        """One name where all batch sizes agree, else each with its batch sizes."""
        shown = {batch: self._shown(kernel) for batch, kernel in self.by_batch.items()}
        names = dict.fromkeys(shown.values())
        if len(names) == 1:
            return next(iter(names))
        return ", ".join(
            f"{name} (batch {', '.join(str(b) for b, k in shown.items() if k == name)})"
            for name in names
        )

    def _shown(self, kernel: str) -> str:
        floating = self.rounds and kernel in ("form", SIMULATED)
        return "simulated activations" if floating else kernel

    @property
    def slowdown(self) -> float:
        """Largest time over dense at a batch size, as a ratio; 1.0 where nothing was measured."""
        ratios = [
            times[self.by_batch[batch]] / times["dense"]
            for batch, times in self.timings_us.items()
            if "dense" in times
        ]
        return max(ratios, default=1.0)


def prepare_(
    model: nn.Module, mode: Mode = "auto", *, batches: Sequence[int] = BATCHES
) -> dict[str, str]:
    """Choose for each installed form how it runs on this device, in place.

    Cached dense tensors and packed integers are plain attributes: they are in no ``state_dict``
    and count in no ``nbytes``. They are rebuilt when a form's tensors change, and dropped when
    the model trains, moves or loads a state; :func:`release_` drops them at once. They serve
    inference: where gradients are recorded (outside of ``torch.no_grad``) a form whose tensors
    want one runs by itself.

    Args:
        model: Model with installed forms.
        mode: ``"exact"`` runs each form's own product; ``"dense"`` caches dense tensors;
            ``"auto"`` takes the faster of the two at each batch size; ``"int8"`` runs what holds
            8-bit integers in an integer kernel (activations are rounded: the output differs by
            about 1 %), the rest as ``"auto"``.
        batches: Rows of input at which kernels are compared.

    Returns:
        Kernel by site; see :func:`decide` for timings and reasons.

    Raises:
        ConfigError: An unknown mode, a bad batch size, or a model on the meta device.

    Warns:
        LaconicWarning: A form that mode ``"int8"`` cannot run in integers, or runs slower so.
    """
    decisions = decide(model, mode, batches=batches)
    release_(model)
    for name, entry in installed(model).items():
        kernels = decisions[name].by_batch
        if isinstance(entry.form, Dense) or set(kernels.values()) == {"form"}:
            continue
        dense = Cached(entry.form, None)
        for layer in _layers(model, name, entry):
            set_kernel_(layer, Runner(layer, kernels, dense))
    if mode == "int8":
        _warn_int8(model, decisions)
    return {name: decision.kernel for name, decision in decisions.items()}


def release_(model: nn.Module) -> None:
    """Drop every kernel and cached tensor that :func:`prepare_` set, in place."""
    for module in model.modules():
        if isinstance(module, FormOwner):
            set_kernel_(module, None)


def decide(
    model: nn.Module, mode: Mode = "auto", *, batches: Sequence[int] = BATCHES
) -> dict[str, Decision]:
    """Return how :func:`prepare_` would run each site, with timings and reasons.

    The arguments and errors are those of :func:`prepare_`; the model is left as it is. What was
    measured on this machine before is not measured again.
    """
    if mode not in get_args(Mode):
        raise ConfigError(
            f"kernels: mode={mode!r} must be one of {', '.join(get_args(Mode))}."
            f"{nearest(str(mode), get_args(Mode))}"
        )
    if not batches or any(type(b) is not int or b < 1 for b in batches):
        raise ConfigError(f"kernels: batches={batches} must be whole numbers of at least 1.")
    timings = Timings(cache_path()) if mode in ("auto", "int8") else None
    decided: dict[str, Decision] = {}
    try:
        for name, entry in installed(model).items():
            if _is_meta(entry.form):
                raise ConfigError(
                    f"{name}: a form on the meta device holds no values and cannot run; load the "
                    f"model first."
                )
            layers = _layers(model, name, entry)
            chooser = _Chooser(entry.form, layers, mode, sorted(set(batches)), timings)
            lookup = isinstance(_owner(model, name), FormEmbedding)
            decided[name] = chooser.decision() if layers else chooser.unprepared(lookup=lookup)
    finally:
        if timings:
            timings.save()
    return decided


class _Chooser:
    """Decides for one site."""

    def __init__(
        self,
        form: Form,
        layers: list[Layer],
        mode: Mode,
        batches: list[int],
        timings: Timings | None,
    ) -> None:
        self.form, self.layers, self.mode, self.timings = form, layers, mode, timings
        conv = bool(layers) and isinstance(layers[0], Conv)
        self.batches = [_CONV_IMAGES] if conv else batches

    def decision(self) -> Decision:
        """Return the kernel for each batch size."""
        if isinstance(self.form, Dense):
            return self._all("dense", "it is dense already")
        if self.form.rounds_inputs:
            return self._rounding()
        if self.mode == "exact":
            return self._all("form", "exact: the form's own product")
        if self.mode == "dense":
            return self._all("dense", "dense: asked for")
        refused = ""
        if self.mode == "int8":
            kernels, refused = self._int8()
            if kernels:
                return self._fastest(kernels, "int8: asked for")
        decided = self._fastest(("form",), "the fastest measured")
        return Decision(decided.by_batch, decided.timings_us, refused or decided.reason)

    def _rounding(self) -> Decision:
        """Return the decision for a form that rounds its inputs: a dense tensor would not."""
        if self.mode == "exact" or isinstance(self.layers[0], Conv):
            return self._all("form", "its inputs are rounded, in floating point")
        whole = isinstance(self.form, Quantized)
        if self.mode == "dense":
            reason = "dense: asked for; its inputs are rounded"
            return self._all(SIMULATED if whole else "form", reason)
        kernels, refused = self._int8()
        if self.mode == "int8" and kernels:
            return replace(self._fastest(kernels, "int8: asked for"), rounds=True)
        held = [inner for _, inner in self.form.walk() if isinstance(inner, Quantized)]
        if any(inner.activations is None for inner in held):
            kernels = ()  # integers would round inputs that the form does not
        simulated = (SIMULATED,) if whole else ()
        found = self._fastest(("form", *simulated, *kernels), refused or "the fastest measured")
        return replace(found, rounds=True)

    def unprepared(self, *, lookup: bool) -> Decision:
        """Return the decision for a site that no linear or convolution layer runs."""
        if isinstance(self.form, Dense):
            return self._all("dense", "it is dense already")
        built = "its module is no layer of ours and builds the dense tensor at each call"
        return self._all("form", "its rows are looked up" if lookup else built)

    def _all(self, kernel: str, reason: str) -> Decision:
        return Decision(dict.fromkeys(self.batches, kernel), {}, reason, self.form.rounds_inputs)

    def _int8(self) -> tuple[tuple[str, ...], str]:
        """Return the integer kernels that can run the form here, or why none can."""
        if isinstance(self.layers[0], Conv):
            return (), "int8 refused: no integer kernel for convolutions"
        if _device(self.form).type != "cpu":
            return (), "int8 refused: the integer kernels run on the CPU only"
        missing = {kernel: why_unavailable(kernel) for kernel in INT8_KERNELS}
        usable = tuple(kernel for kernel in INT8_KERNELS if not missing[kernel])
        if not usable:
            return (), f"int8 refused: {'; '.join(missing.values())}"
        with torch.inference_mode(False), torch.no_grad():
            run = int8_run(self.form, usable[0])
        return ((), f"int8 refused: {run}") if isinstance(run, str) else (usable, "")

    def _fastest(self, kernels: tuple[str, ...], reason: str) -> Decision:
        by_batch: dict[int, str] = {}
        timings: dict[int, dict[str, float]] = {}
        for batch in self.batches:
            times = timings[batch] = self._times((*kernels, "dense"), batch)
            best = min(kernels, key=times.__getitem__)
            rounds = self.form.rounds_inputs
            slower = not rounds and times[best] * _MARGIN > times["dense"]
            by_batch[batch] = "dense" if best == "form" and slower else best
        return Decision(by_batch, timings, reason)

    def _times(self, kernels: tuple[str, ...], batch: int) -> dict[str, float]:
        """Return microseconds by kernel, measured together where one is not known yet."""
        timings = cast(Timings, self.timings)
        keys = {kernel: self._key(kernel, batch) for kernel in kernels}
        known = {kernel: timings.get(key) for kernel, key in keys.items()}
        if any(value is None for value in known.values()):
            with torch.inference_mode(False), torch.no_grad():
                found = measure(self._calls(kernels, batch), _device(self.form))
            for kernel, microseconds in found.items():
                timings.put(keys[kernel], microseconds)
        return {kernel: cast(float, timings.get(key)) for kernel, key in keys.items()}

    def _key(self, kernel: str, batch: int) -> str:
        form, layer = self.form, self.layers[0]
        device = _device(form)
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        what = f"{form.kind}-{_sizes(form)}/{form.rows}x{form.cols}"
        if isinstance(form, Quantized) and form.activations is not None:
            what += f"/a{form.activations.bits}-{form.activations.granularity}"
        if isinstance(layer, Conv):
            what += f"/conv-{layer.stride}-{layer.padding}-{layer.dilation}-{layer.groups}"
        threads = torch.get_num_threads()
        return f"{kernel}/{what}/b{batch}/{form.dtype}/{where}/t{threads}".replace(" ", "")

    def _calls(self, kernels: tuple[str, ...], batch: int) -> dict[str, Callable[[], Tensor]]:
        layer = self.layers[0]
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(_input_shape(layer, self.form, batch), generator=draw)
        x = x.to(device=_device(self.form), dtype=self.form.dtype)
        cached = Cached(self.form, None)
        return {k: _call(run_of(layer, self.form, k, cached), x) for k in kernels}


def _call(run: Run, x: Tensor) -> Callable[[], Tensor]:
    return lambda: run(x)


def _input_shape(layer: Layer, form: Form, batch: int) -> tuple[int, ...]:
    if not isinstance(layer, Conv):
        return (batch, form.cols)
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return (batch, layer.in_channels, *(max(_CONV_PIXELS, size) for size in reach))


def _sizes(form: Form) -> str:
    """Return a short digest of kinds and rough sizes: what the time of a product depends on."""
    found = [
        (inner.kind, inner.shape, [_rough(t.numel()) for t in _own_tensors(inner)])
        for _, inner in form.walk()
    ]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:12]


def _rough(count: int) -> int:
    """Round to two digits: two sites pruned to about the same share are timed once."""
    return count if count < 100 else int(float(f"{count:.1e}"))


def _own_tensors(form: Form) -> list[Tensor]:
    return [*form.parameters(recurse=False), *form.buffers(recurse=False)]


def _device(form: Form) -> torch.device:
    return next((t.device for t in (*form.parameters(), *form.buffers())), torch.device("cpu"))


def _is_meta(form: Form) -> bool:
    return _device(form).type == "meta"


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _layers(model: nn.Module, name: str, entry: Installed) -> list[Layer]:
    """Return the linear and convolution layers whose weight is a site's form."""
    found: list[Layer] = []
    for path in (name, *entry.aliases):
        owner = _owner(model, path)
        natural = "transposed" if isinstance(owner, TransposedLinear) else "natural"
        weight = path.rpartition(".")[2] == "weight" and entry.layout == natural
        if weight and isinstance(owner, Layer):
            found.append(owner)
    return found


def _warn_int8(model: nn.Module, decisions: dict[str, Decision]) -> None:
    refused = {n: d.reason for n, d in decisions.items() if d.reason.startswith("int8 refused")}
    if refused:
        name, reason = next(iter(refused.items()))
        warnings.warn(
            f"{len(refused)} of {len(decisions)} sites do not run in int8 and run as in mode "
            f"'auto'; {name}: {reason.removeprefix('int8 refused: ')}.",
            LaconicWarning,
            stacklevel=3,
        )
    slow = {
        name: decision
        for name, decision in decisions.items()
        # what rounds its inputs has no faster way: a dense product would not round them
        if "int8" in decision.kernel and decision.slowdown > 1 and not decision.rounds
    }
    if slow:
        name, worst = max(slow.items(), key=lambda item: item[1].slowdown)
        warnings.warn(
            f"int8 is slower than dense here at some batch size for {len(slow)} of "
            f"{len(decisions)} sites (up to {worst.slowdown:.1f}x, {name}); mode 'auto' is never.",
            LaconicWarning,
            stacklevel=3,
        )
