"""Closed forms of compression errors against what compressors really lose."""

from __future__ import annotations

import math

import pytest
import torch
from gradient_support import gradients, norm, small_model
from torch import Tensor, nn

from laconic.gradients import DGC, DGCSGD, QSGD, CommState, LoopbackGroup, PowerSGD, TopK
from laconic.gradients.planning import Problem, error_table
from laconic.gradients.tables import rank_errors, rounding_error, tail_errors, topk_errors


def decaying(rows: int, cols: int, base: float = 0.7) -> Tensor:
    left = torch.linalg.qr(torch.randn(rows, min(rows, cols))).Q
    right = torch.linalg.qr(torch.randn(cols, min(rows, cols))).Q
    return left @ torch.diag(base ** torch.arange(min(rows, cols))) @ right.T


@pytest.mark.parametrize("shape", [(7,), (40, 30), (3, 4, 5)])
def test_top_k(shape: tuple[int, ...]) -> None:
    probe = torch.randn(shape)
    size = probe.numel()
    counts = [size, 1, size // 2, 0]
    ordered = probe.double().abs().view(-1).sort(descending=True).values
    expected = [float(ordered[count:].norm()) for count in counts]
    assert topk_errors(probe, counts) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_top_k_keeps_small_tails_apart_from_large_heads() -> None:
    probe = torch.cat([torch.full((10,), 1e6), torch.full((100,), 1e-3)])
    assert topk_errors(probe, [10, 60]) == pytest.approx([1e-2, 1e-3 * math.sqrt(50)], rel=1e-6)


def test_power_iteration_against_singular_values() -> None:
    ranks = [1, 2, 4, 6]
    matrix = decaying(60, 40, 0.3)
    power, exact = rank_errors(matrix, ranks), tail_errors(matrix, ranks)
    for found, least in zip(power, exact, strict=True):
        assert least * (1 - 1e-4) <= found <= least * 1.01
    flat = torch.randn(60, 40)  # no decay: still never below the least
    for found, least in zip(rank_errors(flat, ranks), tail_errors(flat, ranks), strict=True):
        assert found >= least * (1 - 1e-6)
    assert rank_errors(matrix, [40, 100]) == [0.0, 0.0]
    assert tail_errors(matrix, [40, 100]) == [0.0, 0.0]


def test_one_run_of_the_iteration_holds_all_smaller_ones() -> None:
    matrix = torch.randn(50, 30)
    together = rank_errors(matrix, [3, 5, 12])
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(30, 12, generator=generator)
    for rank, found in zip([3, 5, 12], together, strict=True):
        right = start[:, :rank]
        for _ in range(5):
            left = torch.linalg.qr(matrix @ right).Q
            right = matrix.T @ left
        assert found == pytest.approx(norm(matrix - left @ right.T), rel=1e-5)


@pytest.mark.parametrize("scale_of", ["max", "l2"])
def test_rounding_against_draws(scale_of: str) -> None:
    bits, draws = 3, 4000
    levels = 2 ** (bits - 1) - 1
    probe = torch.randn(4, 25)
    order = math.inf if scale_of == "max" else 2
    scale = torch.linalg.vector_norm(probe, order, dim=1, keepdim=True)
    place = (probe / scale * levels).expand(draws, 4, 25)
    rounded = torch.floor(place + torch.rand(draws, 4, 25)) * scale / levels
    assert norm(rounded.mean(0) - probe) < 4 * rounding_error(probe, levels, scale) / draws**0.5
    measured = float((rounded - probe).square().sum((1, 2)).mean().sqrt())
    assert rounding_error(probe, levels, scale) == pytest.approx(measured, rel=0.05)
    assert rounding_error(torch.zeros(2, 5), 3, torch.zeros(2, 1)) == 0.0


def states(model: nn.Module) -> list[CommState]:
    transport = LoopbackGroup(1).transport(0)
    rule = DGCSGD(model.parameters())
    return [
        PowerSGD(model, rank=2, min_compression_rate=1.2, transport=transport),
        TopK(model, density=0.05, transport=transport),
        DGC(model, rule, density=0.05, min_numel=0, transport=transport),
        QSGD(model, bits=4, bucket=64, transport=transport),
    ]


@pytest.mark.parametrize("at", range(4))
def test_the_table_is_what_the_compressor_loses(at: int) -> None:
    """Send one gradient with each candidate; compare what arrives with what was given."""
    model = small_model()
    lot = gradients(model, 0, 1)[0]
    first = states(model)[at]
    problem = Problem.of(first, gamma=0.5, beta=2)
    table = error_table(first, problem, lot, method="power")
    for name in problem.names:
        assert len(problem.values[name]) >= 3
        for value, error in zip(problem.values[name], table[name], strict=True):
            measured = []
            for seed in range(12 if at == 3 else 1):
                state = states(model)[at]
                state.set_parameter(name, value)
                if isinstance(state, QSGD):
                    state.step = seed  # another draw
                for _ in range(30 if at == 0 else 1):  # PowerSGD: until Q has come to rest
                    state.replace_memory(_without_residual(state))
                    group = state.transport.loopback  # type: ignore[attr-defined]
                    out = group.exchange([state], [lot])[0][name]
                measured.append(norm(out - lot[name]))
            typical = math.sqrt(sum(m**2 for m in measured) / len(measured))
            slack = {0: 0.1, 3: 0.1}.get(at, 1e-5)  # five iterations; twelve draws
            assert error == pytest.approx(typical, rel=slack, abs=1e-5)


def _without_residual(state: CommState) -> dict[str, dict[str, Tensor]]:
    return {
        name: {slot: value for slot, value in slots.items() if slot == "q"}
        for name, slots in state.remembered().items()
    }
