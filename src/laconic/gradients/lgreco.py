"""L-GreCo: each tensor's setting chosen again and again during training.

Alimohammadi, Markov, Frantar and Alistarh 2024. The bytes on the wire are made as few as can be
while the summed error of compression stays within that of a uniform setting.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from laconic.errors import BudgetError, ConfigError, LaconicWarning
from laconic.gradients.accordion import Accordion
from laconic.gradients.base import CommState, Observer, Value
from laconic.gradients.checkpoint import Restored
from laconic.gradients.exchange import Exchange
from laconic.gradients.planning import ErrorMethod, Plan, Problem, make_plan
from laconic.gradients.transport import Transport
from laconic.registry import method
from laconic.settings import check_settings, setting

_PROBE = "probe"
_HEAD = 2  # values before a plan's own in what is broadcast: whether it counts, the next period


@method(
    "l-greco",
    family="allocate",
    source="Alimohammadi, Markov, Frantar and Alistarh 2024",
    wing="gradients",
)
@dataclass(kw_only=True, eq=False, repr=False)
class LGreCo(Observer):
    """Choose the setting of each tensor of a compressor by a dynamic programme.

    Registered like the compressor itself: ``ddp.register_comm_hook(LGreCo(inner), hook)``.
    Up to ``start_step`` and for one period after it every tensor has the uniform setting, which
    the compressor was built with. In the last ``probe_steps`` steps of a period rank 0 adds up
    the gradients with their error memory, as the compressor sees them. Then it solves

    ```
    least  sum of bytes(l, c_l)   with   sum of error(l, c_l) <= alpha * sum of error(l, uniform)
    ```

    over candidates c_l of each tensor l, where error is the norm of what is lost of the probe,
    and broadcasts the choice. Error memory and warm starts stay.

    Args:
        inner: ``PowerSGD`` (ranks), ``TopK`` or ``DGC`` (densities), ``QSGD`` (bits).
        alpha: Share of the uniform setting's error that is allowed.
        period: Steps from one choice to the next; ``"epoch"`` makes one at each
            :meth:`step_epoch`, from the second on (the first shows how long an epoch is).
        probe_steps: Steps that a probe adds up (10, as in the paper's code).
        start_step: Step at which the first period begins (1000, as there), or the compressor's
            own ``start_step`` where that is later.
        gamma: Least rank as a share of the uniform one; None is 0.5, or 0.25 with Accordion.
        beta: Largest rank as a multiple; None is 2, or 4 with Accordion.
        candidates: Values for every tensor in place of the method's own: ranks by ``gamma`` and
            ``beta``, densities eight times less to eight times more, 2 to 8 bits.
        probe: ``"local"``: of rank 0; ``"average"``: the mean over ranks, for one dense
            all-reduce a period.
        error_method: Errors of ranks: five steps of subspace iteration, or singular values.
        units: Steps that the error limit is counted in, see ``laconic.budget.cheapest``.
        accordion: Moves the error limit with the regime of each tensor.
        max_period: Where given, the period doubles up to it as long as the bytes chosen change
            by less than ``settled``, and falls back to ``period`` when they change by more.
        settled: Relative change of bytes below which a choice counts as unchanged.

    Raises:
        ConfigError: A setting out of bounds, or an ``inner`` that has nothing to choose.

    Warns:
        LaconicWarning: A probe that is not finite or missing, or a limit below every candidate;
            the settings stay as they are. On rank 0.

    Source: Alimohammadi et al. 2024, sections 3 and 4.
    Differs: Never dearer than the uniform setting (theirs may be, by rounding); columns of
        PowerSGD's Q survive a change of rank; ``max_period`` is ours.
    """

    inner: CommState = field(kw_only=False)
    alpha: float = setting(1.0, help="Share of the uniform error allowed.", low=0)
    period: int | Literal["epoch"] = setting(1000, help="Steps between choices.", low=1)
    probe_steps: int = setting(10, help="Steps that a probe adds up.", low=1)
    start_step: int = setting(1000, help="Step of the first period.", low=0)
    gamma: float | None = setting(None, help="Least rank, as a share.", low=0, high=1)
    beta: float | None = setting(None, help="Largest rank, as a multiple.", low=1)
    candidates: Sequence[Value] | None = None
    probe: Literal["local", "average"] = setting("local", help="Whose gradients.")
    error_method: ErrorMethod = setting("power", help="How errors of ranks are found.")
    units: int | None = setting(None, help="Units of the error limit.", low=1)
    accordion: Accordion | None = None
    max_period: int | None = setting(None, help="Longest period.", low=1)
    settled: float = setting(0.02, help="Change of bytes that counts as none.", low=0)

    method_name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_settings(self, owner="LGreCo")
        _check_inner(self.inner)
        shortest = self.probe_steps if self.period == "epoch" else self.period
        if self.probe_steps > shortest or (self.max_period or shortest) < shortest:
            raise ConfigError(
                f"LGreCo: probe_steps={self.probe_steps}, period={self.period} and "
                f"max_period={self.max_period} must rise in this order."
            )
        low, high = (0.5, 2.0) if self.accordion is None else (0.25, 4.0)
        gamma, beta = self.gamma, self.beta
        self.problem = Problem.of(
            self.inner,
            gamma=low if gamma is None else gamma,
            beta=high if beta is None else beta,
            candidates=self.candidates,
        )
        self.choice = tuple(self.problem.uniform())
        self.history: list[dict[str, Any]] = []
        self._probe: dict[str, Tensor] = {}
        self._probed = 0
        self._norms: dict[str, float] = {}
        self._epoch_began: int | None = None
        self._due = False
        self._length = None if self.period == "epoch" else int(self.period)
        self._start = max(self.start_step, self.inner.start_step)
        self._next = None if self._length is None else self._start + self._length
        self.inner.observers.append(self)

    # what a hook and a checkpoint need

    @property
    def exchange(self) -> Exchange:
        """What runs the buckets."""
        return self.inner.exchange

    @property
    def transport(self) -> Transport:
        """What moves the bytes and counts them."""
        return self.inner.transport

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """Parameters that get gradients, by name."""
        return self.inner.named

    @property
    def step(self) -> int:
        """Backward passes that were exchanged."""
        return self.inner.step

    def name_of(self, parameter: nn.Parameter) -> str:
        """Return the name of a parameter that DDP hands over."""
        return self.inner.name_of(parameter)

    def assignment(self) -> dict[str, Value]:
        """Return the setting that each compressed tensor has now."""
        return {name: self.inner.parameter(name) for name in self.problem.names}

    # when

    def step_epoch(self, epoch: int) -> None:
        """Say that a new epoch begins with the next step; on every rank, handed on to DGC."""
        step_epoch = getattr(self.inner, "step_epoch", None)
        if step_epoch is not None:
            step_epoch(epoch)
        if self.period != "epoch":
            return
        if self._epoch_began is not None and self.step > self._epoch_began:
            self._due = self._length is not None and self.step > self._start
            self._length = self.step - self._epoch_began
        self._epoch_began = self.step
        if self._length is not None:
            self._next = self.step + self._length

    @property
    def collecting(self) -> bool:
        """Whether this step is one of those that a probe adds up."""
        if self._next is None or self.step < self._start:
            return False
        return self.step >= self._next - self.probe_steps

    def step_begins(self, state: CommState) -> None:
        """Choose anew where a period has ended."""
        ended = self._due if self.period == "epoch" else self._next == state.step
        if ended:
            self._due = False
            self._replan()

    def gradient_ready(self, state: CommState, name: str, grad: Tensor) -> None:
        """Add a gradient with its error memory to the probe."""
        if self.collecting and (self.probe == "average" or state.transport.rank == 0):
            seen = state.corrected(name, grad)
            held = self._probe.get(name)
            self._probe[name] = seen if held is None else held.add_(seen)

    def step_ends(self, state: CommState, *, committed: bool) -> None:
        """Count a step of the probe; a step with NaN or infinity spoils it and begins it anew."""
        if not self._probe:
            return
        if committed:
            self._probed += 1
        else:
            self._forget()

    def _forget(self) -> None:
        self._probe, self._probed = {}, 0

    # the choice

    def _replan(self) -> None:
        step, transport = self.step, self.transport
        self._average()
        plan, reason = None, ""
        if transport.rank == 0:
            plan, reason = self._solve()
        size = _HEAD + 7 + len(self.problem.names)
        device = next(iter(self.named.values())).device
        told = torch.zeros(size, dtype=torch.float64)
        if plan is not None:
            told[:_HEAD] = torch.tensor([1.0, self._next_length(plan)], dtype=torch.float64)
            told[_HEAD:] = torch.tensor([*_figures(plan), *plan.choice], dtype=torch.float64)
        where = f"step {step}, broadcast of settings"
        told = transport.broadcast(told.to(device), source=0, where=where).cpu()
        self._take(told.tolist(), reason or "rank 0 kept its settings")
        self._forget()

    def _average(self) -> None:
        """Replace probes by their mean over ranks, where that is asked for."""
        if self.probe != "average":
            return
        for name in self.problem.names:
            shape, device = self.inner.shape(name), self.named[name].device
            mine = self._probe.get(name)
            if mine is None:
                mine = torch.zeros(shape, dtype=self.inner.work_dtype(name), device=device)
            where = f"step {self.step}, probe of {name}"
            total = self.transport.all_reduce(mine.contiguous(), where=where).wait()
            self._probe[name] = total.view(shape) / self.transport.size

    def _solve(self) -> tuple[Plan | None, str]:
        """Return the plan, or why there is none."""
        if not self._probed:
            if self.inner.warming:
                return None, "everything is dense still"
            return None, self._warn("no step of the probe was finite on all ranks")
        probes = {name: self._probe[name] / self._probed for name in self.problem.names}
        for name, probe in probes.items():
            if not math.isfinite(float(torch.linalg.vector_norm(probe))):
                return None, self._warn(f"the probe of {name} is not finite")
        try:
            plan, norms = make_plan(
                self.inner,
                self.problem,
                probes,
                alpha=self.alpha,
                method=self.error_method,
                units=self.units,
                accordion=self.accordion,
                norms_before=self._norms,
            )
        except BudgetError as error:
            return None, self._warn(str(error))
        self._norms = norms
        return plan, ""

    def _warn(self, reason: str) -> str:
        warnings.warn(
            f"LGreCo: step {self.step}: {reason}; the settings stay as they are. Where this goes "
            "on, lower the learning rate or the loss scale, or raise alpha.",
            LaconicWarning,
            stacklevel=2,
        )
        return reason

    def _next_length(self, plan: Plan) -> int:
        """Return the steps of the period that begins."""
        if self._length is None or self.period == "epoch" or self.max_period is None:
            return self._length or 0
        before = next((past["bytes"] for past in reversed(self.history) if past["bytes"]), None)
        change = math.inf if before is None else abs(plan.bytes - before) / max(before, 1)
        return min(2 * self._length, self.max_period) if change < self.settled else self.period

    def _take(self, told: list[float], reason: str) -> None:
        """Apply what rank 0 said; the same on every rank."""
        planned = bool(told[0])
        record: dict[str, Any] = {"step": self.step, "planned": planned}
        if planned:
            figures, choice = told[_HEAD : _HEAD + 7], told[_HEAD + 7 :]
            plan = Plan(tuple(map(int, choice)), int(figures[0]), int(figures[1]), *figures[2:])
            self.choice = plan.choice
            for name, at in zip(self.problem.names, plan.choice, strict=True):
                self.inner.set_parameter(name, self.problem.values[name][at])
            record |= asdict(plan) | {"assignment": self.assignment()}
            del record["choice"]
            if self.period != "epoch":
                self._length = int(told[1])
        else:
            record |= {"reason": reason, "bytes": None}
        if self.period != "epoch":
            self._next = self.step + (self._length or 0)
        self.history.append(record)

    # reports and checkpoints

    def report(self) -> dict[str, Any]:
        """Return the compressor's report and ``periods``: one entry for each choice.

        An entry has ``step``, ``planned``, and where it was ``assignment``, ``bytes``,
        ``uniform_bytes``, ``error``, ``uniform_error``, ``limit``, ``table_ms``, ``solver_ms``;
        where not, ``reason``. Bytes are those of the compressed tensors; ``step_bytes`` of the
        report has the dense ones too.
        """
        return self.inner.report() | {"periods": [dict(past) for past in self.history]}

    def state_dict(self) -> dict[str, Any]:
        """Return the compressor's state with the plan and the probe so far."""
        content = self.inner.state_dict()
        memory = {name: dict(slots) for name, slots in content["memory"].items()}
        for name, probe in self._probe.items():
            memory.setdefault(name, {})[_PROBE] = probe.clone()
        own = {
            "choice": list(self.choice),
            "history": [dict(past) for past in self.history],
            "probed": self._probed,
            "norms": dict(self._norms),
            "epoch_began": self._epoch_began,
            "due": self._due,
            "length": self._length,
            "next": self._next,
        }
        return {**content, "memory": memory, "lgreco": own}

    def load_state_dict(self, states: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Restored:
        """Take over what was saved, one rank's state or those of all ranks.

        Raises:
            ConfigError: The state of a compressor alone, or as for the compressor.
        """
        given = [states] if isinstance(states, Mapping) else list(states)
        lacking = [one for one in given if "lgreco" not in one]
        if lacking:
            raise ConfigError(
                "LGreCo: the saved state is of a compressor without LGreCo. Load it into the "
                "compressor itself, before LGreCo is built around it."
            )
        restored = self.inner.load_state_dict([_without_probe(one) for one in given])
        mine = [one for one in given if one["rank"] == self.transport.rank] or given
        own = mine[0]["lgreco"]
        self.choice, self.history = tuple(own["choice"]), [dict(past) for past in own["history"]]
        self._norms, self._probed = dict(own["norms"]), int(own["probed"])
        self._epoch_began, self._due = own["epoch_began"], bool(own["due"])
        self._length, self._next = own["length"], own["next"]
        self._probe = {
            name: slots[_PROBE].clone().to(self.named[name].device)
            for name, slots in mine[0]["memory"].items()
            if _PROBE in slots and name in self.named
        }
        return restored


def _check_inner(inner: object) -> None:
    if not isinstance(inner, CommState):
        raise ConfigError(
            f"LGreCo: inner is a {type(inner).__name__}; it must be a compressor's state, which "
            "LGreCo goes around. Use LGreCo(PowerSGD(model, rank=4), ...), or TopK, DGC, QSGD."
        )


def _without_probe(one: Mapping[str, Any]) -> dict[str, Any]:
    memory = {
        name: {slot: value for slot, value in slots.items() if slot != _PROBE}
        for name, slots in one["memory"].items()
    }
    return {**one, "memory": memory}


def _figures(plan: Plan) -> list[float]:
    errors = [plan.error, plan.uniform_error, plan.limit]
    return [plan.bytes, plan.uniform_bytes, *errors, plan.table_ms, plan.solver_ms]
