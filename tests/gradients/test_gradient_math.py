"""Each method by itself: cases worked by hand, limits, and what the papers promise."""

from __future__ import annotations

import pytest
import torch
from gradient_support import gradients, mean, norm, ranks, small_model
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.gradients import QSGD, CommState, LoopbackGroup, PowerSGD, SignSGD, TopK
from laconic.gradients.powersgd import orthogonal


class Bag(nn.Module):
    """One matrix of a given shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


def one(cls: type[CommState], *shape: int, **settings: object) -> tuple[LoopbackGroup, CommState]:
    group = LoopbackGroup(1)
    return group, cls(Bag(*shape), transport=group.transport(0), **settings)


def send(group: LoopbackGroup, state: CommState, grad: Tensor) -> Tensor:
    return group.exchange([state], [{"weight": grad}])[0]["weight"]


def test_top_k_by_hand() -> None:
    group, state = one(TopK, 2, 4, density=0.25)
    first = send(group, state, torch.tensor([[1.0, -5.0, 2.0, 0.0], [3.0, 4.0, -1.0, 0.5]]))
    assert first.tolist() == [[0, -5, 0, 0], [0, 4, 0, 0]]
    # What waited is added: 2 + 2 and 3 + 0 win over a fresh 2.5.
    second = send(group, state, torch.tensor([[0.0, 2.5, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert second.tolist() == [[0, 0, 4, 0], [3, 0, 0, 0]]
    held = state.memory("weight", "residual")
    assert held is not None
    assert held.tolist() == [[1, 2.5, 0, 0], [0, 0, -1, 0.5]]


def test_two_ranks_that_send_the_same_entry_are_averaged() -> None:
    group = LoopbackGroup(2)
    model = Bag(1, 4)
    states = [TopK(model, density=0.25, transport=group.transport(rank)) for rank in range(2)]
    lots = [
        {"weight": torch.tensor([[0.0, 8.0, 1.0, 0.0]])},
        {"weight": torch.tensor([[3.0, 4.0, 0, 0]])},
    ]
    assert group.exchange(states, lots)[1]["weight"].tolist() == [[0, 6, 0, 0]]


def test_half_values_put_their_rounding_back() -> None:
    group, state = one(TopK, 2, 4, density=0.25, values="bfloat16")
    grad = torch.zeros(2, 4)
    grad[1, 2] = 1 + 2**-9
    grad[0, 0] = 1e-3
    out = send(group, state, grad)
    held = state.memory("weight", "residual")
    assert held is not None
    assert (out[1, 2].item(), held[1, 2].item()) == (1.0, 2**-9)


def test_all_entries_is_the_gradient() -> None:
    model = small_model()
    group, states = ranks("top-k", 3, model, density=1.0)
    lots = gradients(model, 0, 3)
    out = group.exchange(states, lots)[0]
    for name, value in mean(lots).items():
        torch.testing.assert_close(out[name], value, rtol=1e-6, atol=1e-6)
        held = states[0].memory(name, "residual")
        assert held is None or not held.any()
    # No indices are sent where all entries are.
    assert states[0].report()["step_bytes"] == states[0].report()["dense_bytes"]


def test_qsgd_by_hand() -> None:
    # Two bits: levels -1, 0, 1 times the largest magnitude of a bucket of four.
    group, state = one(QSGD, 1, 8, bits=2, bucket=4, dense=lambda name, p: False)
    state.fits = lambda name: True  # type: ignore[method-assign]
    out = send(group, state, torch.tensor([[4.0, -4.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0]]))
    assert out.tolist() == [[4, -4, 0, 4, 0, 0, 0, 0]]


def test_qsgd_is_unbiased_and_its_variance_is_that_of_the_formula() -> None:
    torch.manual_seed(1)
    grad = torch.randn(4, 32)
    for settings in ({"bits": 3}, {"bits": 4, "norm": "l2"}):
        group, state = one(QSGD, 4, 32, bucket=48, **settings)
        draws = torch.stack([send(group, state, grad.clone()) for _ in range(800)]).double()
        error = state.error_at("weight", grad, settings["bits"])
        # The mean of 800 draws lies within 5 deviations of a mean.
        assert norm(draws.mean(0) - grad) < 5 * error / 800**0.5
        measured = float((draws - grad).square().sum((1, 2)).mean().sqrt())
        assert measured == pytest.approx(error, rel=0.05)


def test_qsgd_at_eight_bits_is_close() -> None:
    torch.manual_seed(2)
    group, state = one(QSGD, 16, 64, bits=8, bucket=64)
    grad = torch.randn(16, 64)
    error = (send(group, state, grad) - grad).abs()
    assert bool((error <= grad.abs().amax(1, keepdim=True) / 127 * 1.0001).all())


def test_qsgd_survives_buckets_of_nothing_and_tiny_or_huge_scales() -> None:
    group, state = one(QSGD, 4, 64, bits=4, bucket=64)
    grad = torch.zeros(4, 64)
    grad[1, 0], grad[2, 0], grad[3, 0] = 1e-44, 3e38, 1.0
    out = send(group, state, grad)
    assert out.isfinite().all()
    assert not out[0].any()
    assert out[3, 0] == 1
    assert out[2, 0].item() == pytest.approx(3e38, rel=1e-5)


def test_qsgd_draws_depend_on_seed_step_rank_and_tensor_alone() -> None:
    grad = torch.linspace(-1, 1, 256).view(4, 64)
    outs = []
    for seed in (0, 0, 1):
        group, state = one(QSGD, 4, 64, bits=2, seed=seed)
        torch.manual_seed(len(outs))  # the global source is not asked
        before = torch.get_rng_state()
        outs.append((send(group, state, grad.clone()), send(group, state, grad.clone())))
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(outs[0][0], outs[1][0])
    assert not torch.equal(outs[0][0], outs[0][1])
    assert not torch.equal(outs[0][0], outs[2][0])


def test_qsgd_refuses_feedback_that_could_grow() -> None:
    with pytest.raises(ConfigError, match=r"error_feedback=True does not go with norm='l2'"):
        one(QSGD, 4, 64, norm="l2", error_feedback=True)


def test_signs_by_hand() -> None:
    group, state = one(SignSGD, 8, 8)
    grad = torch.zeros(8, 8)
    grad[0] = torch.tensor([8.0, -8.0, 4.0, -4.0, 2.0, -2.0, 4.0, 0.0])
    out = send(group, state, grad)
    assert out[0].tolist() == [0.5, -0.5, 0.5, -0.5, 0.5, -0.5, 0.5, 0.5]  # 32 / 64
    held = state.memory("weight", "residual")
    assert held is not None
    assert torch.equal(held, grad - out)
    assert state.payload_bytes("weight") == 16 + 8


def test_the_last_bucket_of_signs_has_the_mean_of_what_is_there() -> None:
    group, state = one(SignSGD, 5, 8, bucket=32)
    grad = torch.full((5, 8), -2.0)
    assert torch.equal(send(group, state, grad), grad)


def test_powersgd_is_exact_where_the_rank_suffices() -> None:
    torch.manual_seed(3)
    grad = torch.randn(24, 2) @ torch.randn(2, 16)
    group, state = one(PowerSGD, 24, 16, rank=2)
    assert norm(send(group, state, grad) - grad) < 1e-5 * norm(grad)
    held = state.memory("weight", "residual")
    assert held is not None
    assert norm(held) < 1e-5 * norm(grad)


def test_powersgd_at_full_rank_is_the_mean() -> None:
    model = small_model()
    group, states = ranks("powersgd", 3, model, rank=100)
    for state in states:  # the rule would leave them dense
        state.dense_names = frozenset(n for n, p in model.named_parameters() if p.dim() < 2)
    lots = gradients(model, 0, 3)
    out = group.exchange(states, lots)[0]
    for name, value in mean(lots).items():
        assert norm(out[name] - value) < 1e-5 * norm(value)


def test_a_warm_start_finds_the_largest_directions() -> None:
    torch.manual_seed(4)
    values = 2.0 ** -torch.arange(16.0)
    left, right = (torch.linalg.qr(torch.randn(n, 16)).Q for n in (40, 30))
    grad = left @ torch.diag(values) @ right.T
    best = norm(values[3:])
    errors = {}
    for warm in (True, False):
        group, state = one(PowerSGD, 40, 30, rank=3, error_feedback=False, warm_start=warm)
        errors[warm] = [norm(send(group, state, grad) - grad) for _ in range(6)]
    assert errors[True][-1] < 1.001 * best < errors[False][-1]
    assert errors[True][0] > 1.01 * best


@pytest.mark.parametrize("epsilon", [0.0, 1e-8])
def test_a_dead_layer_makes_no_nan_and_wakes_up(epsilon: float) -> None:
    group, state = one(PowerSGD, 24, 16, rank=3, epsilon=epsilon)
    flat = torch.zeros(24, 16)
    flat[:, 0] = 1.0  # rank 1, so that two columns are superfluous
    for _ in range(3):
        out = send(group, state, flat)
        assert norm(out - flat) < 1e-4 * norm(flat)
    torch.manual_seed(0)
    grad = torch.randn(24, 1) @ torch.randn(1, 16) + flat
    for _ in range(4):
        out = send(group, state, grad)
    assert out.isfinite().all()
    if epsilon == 0.0:  # Gram-Schmidt leaves columns of zeros behind
        assert norm(out - grad) < 0.5 * norm(grad)


def test_orthogonal_bases() -> None:
    torch.manual_seed(5)
    matrix = torch.randn(20, 4)
    for basis in (orthogonal(matrix.clone()), orthogonal(matrix.clone(), 1e-8)):
        torch.testing.assert_close(basis.T @ basis, torch.eye(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(basis @ (basis.T @ matrix), matrix, atol=1e-4, rtol=0)


def test_columns_stay_when_the_rank_changes() -> None:
    model = Bag(40, 30)
    group = LoopbackGroup(2)
    states = [PowerSGD(model, rank=3, transport=group.transport(rank)) for rank in range(2)]

    def step(at: int) -> None:
        group.exchange(states, gradients(model, at, 2))

    step(0)
    step(1)
    old = states[0].memory("weight", "q")
    assert old is not None
    for state in states:
        state.set_parameter("weight", 5)
    grown = states[0]._start("weight")
    assert torch.equal(grown[:, :3], old)
    assert norm(grown[:, 3:]) > 0
    assert torch.equal(grown, states[1]._start("weight"))
    step(2)
    for state in states:
        state.set_parameter("weight", 2)
    wide = states[0].memory("weight", "q")
    assert wide is not None
    longest = sorted(range(5), key=lambda at: -norm(wide[:, at]))[:2]
    assert torch.equal(states[1]._start("weight"), wide[:, sorted(longest)])
    step(3)
    held = [state.memory("weight", "q") for state in states]
    assert held[0] is not None
    assert held[1] is not None
    assert held[0].shape == (30, 2)
    assert torch.equal(held[0], held[1])


def test_matrices_that_gain_too_little_stay_dense() -> None:
    _, state = one(PowerSGD, 16, 16, rank=4)
    assert state.dense_names == {"weight"}  # (16 + 16) * 4 * 2 = 256: not less
    _, state = one(PowerSGD, 16, 17, rank=4)
    assert state.dense_names == set()
    _, state = one(PowerSGD, 4, 2, 3, 3, rank=1)  # a convolution is a matrix (4, 18)
    assert state.payload_bytes("weight") == 4 * (4 + 18)


@pytest.mark.parametrize(
    ("cls", "value", "message"),
    [
        (TopK, 0, "density=0 must be above 0"),
        (TopK, 1.5, "density=1.5 must be between 0 and 1"),
        (QSGD, 9, "bits=9 must be between 2 and 8"),
        (QSGD, 2.5, "bits=2.5 must be a whole number"),
        (PowerSGD, 0, "rank=0 must be a whole number from 1 on"),
    ],
)
def test_settings_of_single_tensors_have_bounds(
    cls: type[CommState], value: float, message: str
) -> None:
    _, state = one(cls, 64, 64)
    with pytest.raises(ConfigError, match=f"weight: {message}"):
        state.set_parameter("weight", value)
