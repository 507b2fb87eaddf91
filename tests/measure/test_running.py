"""Where a model is judged: moved there, moved back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from measure_support import Echo, classification
from torch import nn

from laconic.errors import ConfigError
from laconic.measure import evaluate
from laconic.measure.running import judged


class Traveller(nn.Module):
    """Notes where it is sent, and goes nowhere: a machine may have one device only."""

    def __init__(self, refuse: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.sent: list[str] = []
        self.refuse = refuse

    def to(self, *args: Any, **kwargs: Any) -> Traveller:
        self.sent.append(str(args[0]))
        if self.refuse:
            raise RuntimeError("out of memory")
        return self


def test_a_model_goes_to_the_device_and_comes_back() -> None:
    model = Traveller()
    with judged(model, "meta"):
        assert model.sent == ["meta"]
    assert model.sent == ["meta", "cpu"]
    with pytest.raises(KeyError), judged(model, "meta"):
        raise KeyError
    assert model.sent[2:] == ["meta", "cpu"]


def test_a_model_that_is_there_stays_there() -> None:
    model = Traveller()
    with judged(model, torch.device("cpu")):
        pass
    assert model.sent == []


def test_modes_are_restored_where_the_model_cannot_be_moved() -> None:
    model = Traveller(refuse=True).train()
    with pytest.raises(RuntimeError, match="out of memory"), judged(model, "meta"):
        pass
    assert model.training


def test_a_model_on_two_devices_is_refused_and_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")).train()
    with pytest.raises(ConfigError, match=r"\['cpu', 'meta'\]; move it to one device"):
        evaluate(model, classification(torch.ones(2, 2), [0, 1]))
    assert model.training


def test_a_model_without_tensors_is_judged() -> None:
    with judged(nn.Identity(), "cpu"):
        assert not torch.is_grad_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_figures_on_a_gpu_are_those_of_the_processor() -> None:
    model, task = Echo(), classification(torch.eye(3), [0, 1, 1])
    assert evaluate(model, task, device="cuda")["top1"] == evaluate(model, task)["top1"]
    assert model.shift.device == torch.device("cpu")
