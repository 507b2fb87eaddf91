from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from zoo_support import needs_data

from laconic import artifact, datasets, measure, zoo
from laconic.errors import ConfigError, DataError, LaconicError

OURS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "mlp": (lambda: zoo.mlp((20, 7, 5)), (20,), 20 * 7 + 7 + 7 * 5 + 5),
    "lenet_300_100": (zoo.lenet_300_100, (1, 28, 28), 266_610),
    "lenet5": (zoo.lenet5, (1, 28, 28), 431_080),
    "conv_bn_residual": (zoo.conv_bn_residual, (1, 8, 8), 19_706),
    "depthwise_conv": (zoo.depthwise_conv, (1, 8, 8), 4_138),
    "gru_classifier": (zoo.gru_classifier, (1, 8, 8), 14_858),
    "digits_vit": (zoo.digits_vit, (1, 8, 8), 487_978),
    "resnet20": (zoo.resnet20, (3, 32, 32), 269_722),
}


def settle_(model: nn.Module) -> None:
    """Give batch norms statistics that are no identity, as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)


@pytest.mark.parametrize("name", OURS)
def test_the_number_of_parameters(name: str) -> None:
    build, _, count = OURS[name]
    assert sum(p.numel() for p in build().parameters()) == count


@pytest.mark.parametrize("name", OURS)
def test_a_network_traces_and_comes_back_from_its_artifact(name: str, tmp_path: Path) -> None:
    build, shape, _ = OURS[name]
    model = build()
    assert not any(module.training for module in model.modules())
    settle_(model)
    x = torch.randn(3, *shape)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(fx.symbolic_trace(model)(x), expected, rtol=0, atol=0)
        artifact.save(model, tmp_path / "net")
        assert artifact.read_manifest(tmp_path / "net").architecture.kind == "graph"
        loaded = artifact.load(tmp_path / "net", kernels="exact")
        torch.testing.assert_close(loaded(x), expected, rtol=0, atol=0)
    assert expected.std() > 0


@pytest.mark.parametrize("name", OURS)
def test_a_seed_gives_the_same_weights_and_leaves_the_global_state(name: str) -> None:
    build = OURS[name][0]
    state = torch.get_rng_state()
    first = build()
    torch.rand(3)
    again = build()
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    torch.set_rng_state(state)
    build()
    assert torch.equal(torch.get_rng_state(), state)


def test_an_mlp_computes_its_layers_by_hand() -> None:
    model = zoo.mlp((2, 2, 1))
    with torch.no_grad():
        model.fc1.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 1.0]]))
        model.fc1.bias.zero_()
        model.fc2.weight.copy_(torch.tensor([[10.0, 100.0]]))
        model.fc2.bias.fill_(1.0)
        assert model(torch.tensor([[3.0, 1.0]])).item() == 51.0  # 5 * 10; relu(-2) = 0; + 1


def test_the_recurrent_net_reads_rows_in_order() -> None:
    model = zoo.gru_classifier(features=4, hidden=8, classes=3)
    image = torch.randn(2, 1, 5, 4)
    with torch.no_grad():
        assert torch.equal(model(image), model(image[:, 0]))
        assert not torch.allclose(model(image), model(image.flip(2)))


def test_depthwise_filters_do_not_mix_channels() -> None:
    block = zoo.depthwise_conv(width=4, blocks=2).blocks[0]
    x = torch.randn(1, 4, 6, 6)
    moved = x.clone()
    moved[:, 2] += 1.0
    with torch.no_grad():
        changed = (block.depthwise(x) != block.depthwise(moved)).flatten(2).any(2)
    assert changed.tolist() == [[False, False, True, False]]


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: zoo.mlp((5,)), r"sizes=\(5,\)"),
        (lambda: zoo.mlp((5, 0)), r"sizes=\(5, 0\)"),
        (lambda: zoo.mlp(activation="rleu"), "Did you mean 'relu'"),
        (lambda: zoo.conv_bn_residual(width=0), "width=0"),
        (lambda: zoo.depthwise_conv(blocks=0), "blocks=0"),
        (lambda: zoo.gru_classifier(layers=0), "layers=0"),
        (lambda: zoo.tiny_llama(width=60), "width=60"),
        (lambda: zoo.tiny_llama(heads=8, kv_heads=3), "kv_heads=3"),
        (lambda: zoo.byte_llama(blocks=0), "blocks=0"),
        (lambda: zoo.pretrained("resnet-20"), "Did you mean 'resnet20'"),
    ],
)
def test_what_cannot_be_built_is_refused(build: Callable[[], nn.Module], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build()


def test_missing_files_say_where_they_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "cache"))
    for name in zoo.published():
        with pytest.raises(DataError, match=r"not found\. Put the file .*LACONIC_DATA/weights_"):
            zoo.pretrained(name)


def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights_mnist_mlp" / "mlp_784_128_32_10.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"\x00" * 64)
    monkeypatch.setenv("LACONIC_DATA", str(tmp_path))
    with pytest.raises(LaconicError, match="SHA-256"):
        zoo.pretrained("mnist-mlp")


def test_a_byte_llama_reads_the_bytes_of_the_data_sets(tmp_path: Path) -> None:
    model = zoo.byte_llama(width=32, blocks=2, heads=4)
    config = model.config
    assert (config.vocab_size, config.num_key_value_heads, config.eos_token_id) == (256, 2, 0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.tensor([datasets.encode_bytes("abc")])
    with torch.no_grad():
        expected: Tensor = model(input_ids=ids).logits
        artifact.save(model, tmp_path / "net")
        loaded = artifact.load(tmp_path / "net", kernels="exact")
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=0, atol=0)


@needs_data
def test_the_published_mlp_reaches_its_accuracy() -> None:
    figures = measure.evaluate(zoo.pretrained("mnist-mlp"), datasets.load("mnist"))
    assert figures["top1"]["value"] == pytest.approx(0.9451, abs=1e-3)
