from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from zoo_support import needs_data

from laconic import artifact, datasets, measure, zoo
from laconic.zoo._resnet import Shortcut


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_networks_have_the_published_numbers_of_parameters() -> None:
    counts = [parameters(build()) for build in (zoo.resnet20, zoo.resnet32, zoo.resnet56)]
    assert counts == [269_722, 464_154, 853_018]


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    image = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    out = Shortcut(2)(image)
    assert out.shape == (1, 4, 2, 2)
    assert out[0, 1].tolist() == [[0.0, 2.0], [8.0, 10.0]]
    assert out[0, 2].tolist() == [[16.0, 18.0], [24.0, 26.0]]
    assert not out[0, [0, 3]].any()


def test_the_initial_weights_depend_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = zoo.resnet20(), zoo.resnet20(), zoo.resnet20(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.conv1.weight, again.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    assert not first.training


def test_a_resnet_is_traceable_and_comes_back_from_its_artifact(tmp_path: Path) -> None:
    model = zoo.resnet20(classes=7)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(fx.symbolic_trace(model)(images), expected)
        artifact.save(model, tmp_path / "net")
        assert artifact.read_manifest(tmp_path / "net").architecture.kind == "graph"
        assert torch.equal(artifact.load(tmp_path / "net", kernels="exact")(images), expected)


def test_a_net_without_classes_is_refused() -> None:
    from laconic.errors import ConfigError

    with pytest.raises(ConfigError, match=r"resnet32: classes=0"):
        zoo.resnet32(classes=0)


@needs_data
def test_published_weights_reach_their_accuracy_on_lossless_images() -> None:
    task = datasets.load("cifar10", normalise=True, test="lossless")
    found = {
        name: measure.evaluate(zoo.pretrained(name), task)["top1"]["value"]
        for name in ("resnet20", "resnet56")
    }
    assert found == {"resnet20": 0.90, "resnet56": 0.91}


@needs_data
def test_the_published_net_needs_normalised_images() -> None:
    model = zoo.pretrained("resnet20")
    plain = datasets.load("cifar10", test="lossless").test
    batch = next(iter(plain.batches(200)))
    with torch.no_grad():
        loss = F.cross_entropy(model(batch["x"]), batch["y"])
    assert loss > 1.0
