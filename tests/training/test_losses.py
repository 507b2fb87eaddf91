"""Distillation against hand-worked numbers."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import nn

from laconic.task import Task, TensorSplit
from laconic.training.losses import Objective, distillation_loss, matching_loss
from laconic.training.schedule import cosine_factor


def test_worked_divergence() -> None:
    # At T = 2 the teacher's logits (2 ln 3, 0) become (3/4, 1/4), the student's (0, 0) one half
    # each: KL = 3/4 ln(3/2) + 1/4 ln(1/2), times T^2 = 4.
    teacher, student = torch.tensor([[2 * log(3), 0.0]]), torch.zeros(1, 2)
    expected = 4 * (0.75 * log(1.5) + 0.25 * log(0.5))
    assert distillation_loss(student, teacher, temperature=2.0).item() == pytest.approx(expected)
    assert distillation_loss(teacher, teacher, temperature=2.0).item() == pytest.approx(0, abs=1e-7)


def test_gradient_keeps_its_size_at_high_temperature() -> None:
    # Hinton et al. 2015, equation 4: for logits of mean zero the gradient of one prediction tends
    # to (z - v) / N.
    z = torch.tensor([[0.3, -0.3]], requires_grad=True)
    v = torch.tensor([[-0.5, 0.5]])
    distillation_loss(z, v, temperature=200.0).backward()
    assert z.grad is not None
    assert torch.allclose(z.grad, (z - v).detach() / 2, rtol=1e-2)


def test_mask_leaves_predictions_out() -> None:
    a, b = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    kept = mask.bool()
    whole = distillation_loss(a[kept], b[kept], temperature=1.0)
    assert torch.allclose(distillation_loss(a, b, temperature=1.0, mask=mask), whole)


def test_worked_matching() -> None:
    # squared error (1 + 0) / 2 over mean square (4 + 4) / 2
    assert matching_loss(torch.tensor([[1.0, 2]]), torch.tensor([[2.0, 2]])).item() == 0.125


def test_alpha_mixes_and_one_needs_no_labels() -> None:
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    split = TensorSplit({"x": x, "y": y})
    task = Task(kind="classification", test=split)
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    batch = {"x": x, "y": y}
    soft = Objective(task, teacher, 2.0, 1.0)(student, {"x": x})
    hard = task.compute_loss(student(x), batch)
    mixed = Objective(task, teacher, 2.0, 0.25)(student, batch)
    assert torch.allclose(mixed, 0.25 * soft + 0.75 * hard)


def test_hidden_states_are_matched() -> None:
    x = torch.randn(8, 4)
    task = Task(kind="classification", test=TensorSplit({"x": x, "y": torch.zeros(8).long()}))
    student = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    teacher = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    plain = Objective(task, teacher, 2.0, 1.0)(student, {"x": x})
    more = Objective(task, teacher, 2.0, 1.0, hidden=("0",), hidden_weight=3.0)
    expected = plain + 3.0 * matching_loss(student[0](x), teacher[0](x))
    assert torch.allclose(more(student, {"x": x}), expected)
    assert not student[0]._forward_hooks
    assert not teacher[0]._forward_hooks


def test_schedule_climbs_then_falls() -> None:
    factors = [cosine_factor(step, 100, warmup=0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert sorted(factors[10:], reverse=True) == factors[10:]
    assert 0 < factors[-1] < 0.001
    assert cosine_factor(0, 1, warmup=0.1) == 1.0
