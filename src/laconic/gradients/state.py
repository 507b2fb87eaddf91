"""The state of a hook: names, memory, bytes and settings of each tensor; no communication."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.gradients import checkpoint, report
from laconic.gradients.exchange import Exchange
from laconic.gradients.observer import Observer
from laconic.gradients.refuse import bare, trainable
from laconic.gradients.transport import ProcessGroupTransport, Transport
from laconic.settings import bounds_of, check_settings, setting

Keep = Literal["sum", "same"]
Value = int | float


@dataclass(kw_only=True, eq=False, repr=False)
class CommState(ABC):
    """The state of a DDP communication hook, keyed by parameter name.

    Building one is a collective: every rank builds it at the same place in the script.

    Args:
        model: The DDP module, or the module that DDP will wrap or has wrapped.
        group: Ranks that take part, as in DDP's ``process_group``; None is all. Compressed
            traffic gets a process group of its own over the same ranks.
        dense: ``dense(name, parameter)`` is true where a tensor is to be all-reduced as it is;
            None is the method's own rule.
        scaler: The ``torch.amp.GradScaler`` of mixed precision: gradients are unscaled before
            they enter any memory and scaled again for the optimiser. May be set later.
        timeout_s: Seconds until a collective that a rank does not join is given up; None is the
            process group's default.
        start_step: Steps that are all-reduced dense before the method begins.
        transport: Replaces the process group, see ``LoopbackGroup``.

    Attributes:
        named: Parameters that get gradients, by name.
        step: Backward passes that were exchanged.
        skipped: Those of them in which a rank had NaN or infinity, so that nothing was kept.
        observers: See :class:`Observer`.
        transport: What moves the bytes and counts them.

    Raises:
        ConfigError: A setting out of bounds, or ``torch.distributed`` is not initialised.
        UnsupportedModelError: FSDP, sparse gradients, DDP's Python reducer.
    """

    model: InitVar[nn.Module] = field(kw_only=False)
    group: dist.ProcessGroup | None = None
    dense: Callable[[str, Tensor], bool] | None = None
    scaler: Any = None
    timeout_s: float | None = setting(
        None, help="Seconds until a collective is given up.", low=0.001
    )
    start_step: int = setting(0, help="Steps that stay dense before the method begins.", low=0)
    transport: Transport = None  # type: ignore[assignment]

    method_name: ClassVar[str] = ""
    #: How messages meet: gathered, or added up on the way.
    route: ClassVar[Literal["gather", "reduce"]]
    #: What is remembered per tensor, and what a change of world size does with it: "sum" for
    #: error memory and momentum, which are added up; "same" for what all ranks hold alike.
    slots: ClassVar[Mapping[str, Keep]] = {}
    #: Name of the setting that may differ from tensor to tensor.
    tuned: ClassVar[str | None] = None

    def __post_init__(self, model: nn.Module) -> None:
        owner = type(self).__name__
        self.check()
        self.named = trainable(bare(model, owner=owner), owner=owner)
        self._names = {id(parameter): name for name, parameter in self.named.items()}
        self.index = {name: at for at, name in enumerate(self.named)}
        self.transport = self.transport or ProcessGroupTransport(
            self.group, timeout_s=self.timeout_s
        )
        self.step = self.skipped = self.version = 0
        self.observers: list[Observer] = []
        self._memory: dict[str, dict[str, Tensor]] = {}
        self._drafts: dict[str, dict[str, Tensor]] = {}
        self._parameters: dict[str, Value] = {}
        rule = self.dense or self.default_dense
        self.dense_names = frozenset(
            name
            for name, parameter in self.named.items()
            if not parameter.dtype.is_floating_point
            or parameter.numel() == 0
            or rule(name, parameter)
            or not self.fits(name)
        )
        self.exchange = Exchange(self)

    def check(self) -> None:
        """Refuse settings out of their declared bounds; a method adds what does not go together."""
        check_settings(self, owner=type(self).__name__)

    def default_dense(self, name: str, parameter: Tensor) -> bool:
        """Return whether a tensor stays dense unless told otherwise: vectors and scalars do."""
        return parameter.dim() < 2

    def fits(self, name: str) -> bool:
        """Return whether the method makes the tensor smaller at its default setting."""
        return self.payload_bytes(name) < self.dense_bytes(name)

    @property
    def stateful(self) -> bool:
        """Whether anything is remembered from step to step."""
        return bool(self.slots)

    @property
    def warming(self) -> bool:
        """Whether this step comes before ``start_step``, so that everything is dense."""
        return self.step < self.start_step

    # names

    def name_of(self, parameter: nn.Parameter) -> str:
        """Return the name of a parameter that DDP hands over.

        Raises:
            ConfigError: It is not a parameter of the model that the state was built with.
        """
        name = self._names.get(id(parameter))
        if name is None:
            raise ConfigError(
                f"{type(self).__name__}: DDP handed over a parameter of shape "
                f"{tuple(parameter.shape)} that the state does not know. Build the state with the "
                "module that DDP wraps, after its last parameter is made and unfrozen."
            )
        return name

    def shape(self, name: str) -> torch.Size:
        """Return the shape of a tensor."""
        return self.named[name].shape

    def work_dtype(self, name: str) -> torch.dtype:
        """Return what the tensor is computed in: float64 for float64, else float32."""
        wide = self.named[name].dtype == torch.float64
        return torch.float64 if wide else torch.float32

    # bytes

    def dense_bytes(self, name: str) -> int:
        """Return the bytes of the tensor as DDP sends it."""
        parameter = self.named[name]
        return parameter.numel() * parameter.element_size()

    def payload_bytes(self, name: str) -> int:
        """Return the bytes that one rank hands over for this tensor, without padding."""
        return self.payload_bytes_at(name, self.parameter(name))

    @abstractmethod
    def payload_bytes_at(self, name: str, value: Value) -> int:
        """Return :meth:`payload_bytes` if the tuned setting had another value."""

    # the setting that may differ from tensor to tensor

    def parameter(self, name: str) -> Value:
        """Return the tuned setting of one tensor."""
        default = 0 if self.tuned is None else getattr(self, self.tuned)
        return self._parameters.get(name, default)

    def own_parameters(self) -> dict[str, Value]:
        """Return the tuned settings that were given to single tensors."""
        return dict(self._parameters)

    def set_parameter(self, name: str, value: Value) -> None:
        """Give one tensor its own value of the tuned setting, on all ranks the same.

        Takes effect with the next step; error memory stays.

        Raises:
            ConfigError: The tensor is dense or unknown, or the value is not a candidate's kind.
        """
        if name not in self.named or name in self.dense_names or self.tuned is None:
            allowed = [n for n in self.named if n not in self.dense_names]
            raise ConfigError(
                f"{type(self).__name__}: {name!r} has no setting of its own. "
                f"Compressed here are: {', '.join(allowed) or 'none'}."
            )
        self.check_parameter(name, value)
        self._parameters[name] = value
        self.version += 1

    def check_parameter(self, name: str, value: Value) -> None:
        """Refuse a value of the tuned setting that the tensor cannot have.

        Raises:
            ConfigError: It is outside the setting's declared bounds.
        """
        bounds = bounds_of(type(self))[self.tuned or ""]
        low, high = bounds.low, bounds.high
        if (low is not None and value < low) or (high is not None and value > high):
            raise ConfigError(
                f"{type(self).__name__}: {name}: {self.tuned}={value} must be between "
                f"{low} and {high}."
            )

    def candidates(self, name: str) -> tuple[Value, ...]:
        """Return values of the tuned setting that are worth trying, cheapest first."""
        return (self.parameter(name),)

    def error_at(self, name: str, grad: Tensor, value: Value) -> float:
        """Return ``||grad - decoded||_2`` if this gradient were sent with this value."""
        raise ConfigError(f"{type(self).__name__}: {name!r} has no setting to choose.")

    # memory

    def memory(self, name: str, slot: str) -> Tensor | None:
        """Return what is remembered of a tensor, None where there is nothing yet."""
        return self._memory.get(name, {}).get(slot)

    def draft(self, name: str, **slots: Tensor) -> None:
        """Propose what to remember; it counts from :meth:`commit` on.

        The tensors must not be views of the gradient.
        """
        self._drafts.setdefault(name, {}).update(slots)

    def drafted(self, name: str, slot: str) -> Tensor:
        """Return what was proposed in this step."""
        return self._drafts[name][slot]

    def corrected(self, name: str, grad: Tensor) -> Tensor:
        """Return gradient + error memory as a new tensor: what the compressor sees."""
        residual = self.memory(name, "residual")
        return grad.clone() if residual is None else grad + residual

    def commit(self, name: str) -> None:
        """Remember what this step proposed for a tensor."""
        if name in self._drafts:
            self._memory.setdefault(name, {}).update(self._drafts.pop(name))

    def rollback(self, name: str | None = None) -> None:
        """Forget what this step proposed, for one tensor or for all."""
        if name is None:
            self._drafts.clear()
        else:
            self._drafts.pop(name, None)

    # checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return what a restart needs: plain values and tensors, by parameter name.

        Every rank has its own; ``torch.load(weights_only=True)`` can read it. The tensors are
        those of the memory, not copies; later steps do not write into them.
        """
        return checkpoint.state_dict(self)

    def load_state_dict(
        self, states: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    ) -> checkpoint.Restored:
        """Take over what was saved; see :func:`laconic.gradients.checkpoint.restore`.

        Args:
            states: This rank's :meth:`state_dict`, or those of all ranks in any order, which a
                change of the world size needs.
        """
        return checkpoint.restore(self, states)

    def extra_state(self) -> dict[str, Any]:
        """Return what else a method needs after a restart: plain values by name."""
        return {}

    def load_extra_state(self, extra: Mapping[str, Any]) -> None:
        """Take over what :meth:`extra_state` returned; the base has nothing to take.

        Raises:
            ConfigError: There is something that the method does not know.
        """
        if extra:
            raise ConfigError(
                f"{type(self).__name__}: the saved state holds {sorted(extra)}, which this version "
                "does not know. Load it with the version that wrote it."
            )

    def keeps(self, name: str, slot: str) -> bool:
        """Return whether a tensor can make use of what a checkpoint remembers of it."""
        return name in self.named and not (slot == "residual" and name in self.dense_names)

    def load_parameters(self, values: Mapping[str, Value]) -> None:
        """Replace the tuned settings of single tensors; of tensors that are known."""
        known = {name: value for name, value in values.items() if name in self.named}
        for name, value in known.items():
            self.check_parameter(name, value)
        self._parameters = known
        self.version += 1

    def replace_memory(self, memory: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Forget everything and remember this: tensors by parameter name and slot."""
        self._drafts.clear()
        self._memory = {
            name: {slot: value.to(self.named[name].device) for slot, value in slots.items()}
            for name, slots in memory.items()
        }

    def remembered(self) -> dict[str, dict[str, Tensor]]:
        """Return all that is remembered, by parameter name and slot."""
        return {name: dict(slots) for name, slots in self._memory.items() if slots}

    def report(self) -> dict[str, Any]:
        """Return bytes of a step by tensor, and the bytes counted so far."""
        return report.report(self)

    def detach(self) -> dict[str, float]:
        """Stop compressing: from the next step on every gradient is all-reduced as it is.

        DDP keeps its hook, whose result is now bit-equal to that of DDP without one.

        Returns:
            Euclidean norm of the error memory that was dropped, by parameter.
        """
        dropped = {
            name: float(torch.linalg.vector_norm(slots["residual"]))
            for name, slots in self._memory.items()
            if "residual" in slots
        }
        self._memory.clear()
        self._drafts.clear()
        self.dense_names = frozenset(self.named)
        self.version += 1
        return dropped

    # steps

    def begin_step(self) -> None:
        """Prepare a step; a collective is allowed here, nothing was launched yet."""
        for observer in self.observers:
            observer.step_begins(self)

    def end_step(self, *, committed: bool) -> None:
        """Count a step whose buckets are all decoded."""
        self.step += 1
        self.skipped += not committed
        for observer in self.observers:
            observer.step_ends(self, committed=committed)
