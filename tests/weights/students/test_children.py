import copy

import pytest
import torch
import torch.nn.functional as F
from students_support import Bottleneck, DenseGated, Residual, vgg
from torch import nn

from laconic import zoo
from laconic.errors import ConfigError, UnsupportedModelError
from laconic.weights.students.build import InvalidChildError, Plan, Sizes, draft, tied_layers
from laconic.weights.students.spec import StudentSpec
from laconic.weights.students.units import Network, extract_units

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
NETS = {
    "vgg": (vgg, X),
    "bottleneck": (Residual, X),
    "dense and gated": (DenseGated, X),
    "option A": (zoo.resnet20, torch.randn(4, 3, 16, 16)),
    "projection": (zoo.conv_bn_residual, X),
    "depthwise": (zoo.depthwise_conv, X),
    "transformer": (zoo.digits_vit, X),
}
CASES = [*((name, "unit") for name in NETS), ("bottleneck", "layer"), ("dense and gated", "layer")]


def network(name, **changes):
    build, x = NETS[name]
    model = build().eval()
    return model, x, Network.of(model, x, **{"keep": (), **changes})


def kinds(units):
    return [(u.kind, bool(u.fixed)) for u in units]


def test_units_of_a_plain_network_and_why_some_stay():
    units = extract_units(vgg(), X, keep=("max-pool",))
    assert [u.kind for u in units] == [
        "conv", "conv", "max-pool", "conv", "conv", "max-pool", "linear", "linear"
    ]  # fmt: skip
    assert [u.fixed for u in units] == [
        "first layer", "", "kept", "", "", "kept", "", "gives the output"
    ]  # fmt: skip
    second = units[1]
    assert (second.kernel, second.stride, second.filters, second.padding) == (3, 1, 8, 1)
    assert len(second.nodes) == 3  # with its norm and activation
    assert [u.index for u in units] == list(range(8))


def test_units_of_residual_blocks_know_their_place():
    units = {u.name: u for u in extract_units(Residual(), X)}
    first = units["blocks.1.c1"]
    assert (first.skip_start, first.skip_end, first.group) == (1, 3, 1)
    assert units["blocks.1.c3"].skip_end == 1
    assert units["stem"].group is None
    assert units["blocks.0.down.0"].fixed == "on a shortcut"
    assert units["blocks.2.c2"].fixed == "has a stride"


def test_layers_one_by_one():
    units = extract_units(vgg((8, 8)), X, granularity="layer")
    assert kinds(units)[:4] == [
        ("conv", True),
        ("norm", False),
        ("activation", False),
        ("conv", False),
    ]
    assert all(len(u.nodes) == 1 for u in units)


@pytest.mark.parametrize(("name", "granularity"), CASES)
def test_all_kept_is_the_same_network(name, granularity):
    model, x, net = network(name, granularity=granularity)
    made = draft(net, Plan())
    child = made.spec().build(weights=model.state_dict())
    assert made.params == sum(p.numel() for p in model.parameters())
    assert {n: p.shape for n, p in child.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    with torch.no_grad():
        assert torch.allclose(child(x), model(x), atol=1e-5)


@pytest.mark.parametrize(("name", "granularity"), CASES)
def test_any_legal_actions_give_a_working_child_or_a_reason(name, granularity):
    _, x, net = network(name, granularity=granularity)
    draw = torch.Generator().manual_seed(1)
    tied = tied_layers(net)
    free = [u.index for u in net.units if not u.fixed]
    wide = [
        u for u in net.units
        if u.kind in ("conv", "linear") and u.nodes[0] not in tied and u.fixed != "gives the output"
    ]  # fmt: skip
    outcomes = []
    for _ in range(5):
        removed = frozenset(i for i in free if torch.rand(1, generator=draw) < 0.5)
        share = 0.3 + 0.7 * float(torch.rand(1, generator=draw))
        sizes = {u.index: Sizes(filters=max(2, int(u.filters * share))) for u in wide}
        if name in ("transformer", "depthwise"):
            sizes = {}  # widths of heads and of depthwise layers are not free
        outcomes.append(outcome(net, Plan(removed, sizes), x))
    assert outcomes.count("works") >= 4
    assert all(outcomes)


def outcome(net, plan, x):
    """Return ``works``, or why there is no child; anything else is an error."""
    try:
        made = draft(net, plan)
    except InvalidChildError as error:
        return str(error)
    child = made.spec().build()
    assert made.params == sum(p.numel() for p in child.parameters())
    assert all(child(x[:count]).shape == (count, 10) for count in (1, 4))
    return "works"


def test_fixed_units_never_change():
    _, _, net = network("vgg", keep=("max-pool",))
    free = frozenset(u.index for u in net.units if not u.fixed)
    child = draft(net, Plan(free)).spec().build()
    stays = [m for m in child.modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d | nn.Linear)]
    assert [type(m).__name__ for m in stays] == ["Conv2d", "MaxPool2d", "MaxPool2d", "Linear"]
    assert stays[-1].in_features == 8 * 2 * 2


def test_the_second_convolution_of_a_block_goes_and_the_block_stays():
    """Hand-worked: two layers less; the first now gives what the shortcut gives."""
    model, x, net = network("bottleneck")
    by_name = {u.name: u for u in net.units}
    made = draft(net, Plan(frozenset({by_name["blocks.1.c2"].index, by_name["blocks.1.c3"].index})))
    child = made.spec().build()
    layer = child.get_submodule("blocks.1.c1")
    assert (layer.in_channels, layer.out_channels) == (32, 32)
    assert child.get_submodule("blocks.1.b1").num_features == 32
    sums = [n for n in made.module.graph.nodes if "add" in n.name]
    assert len(sums) == 4  # no shortcut was dropped
    del model, x


def test_an_empty_block_is_its_shortcut():
    _, _, net = network("bottleneck")
    gone = frozenset(u.index for u in net.units if u.name.startswith("blocks.1."))
    made = draft(net, Plan(gone))
    assert len([n for n in made.module.graph.nodes if "add" in n.name]) == 3
    assert not [n for n, _ in made.module.named_modules() if n.startswith("blocks.1.c")]


def test_widths_follow_the_shortcut_or_the_main_path():
    _, _, net = network("bottleneck")
    index = {u.name: u.index for u in net.units}
    tied = tied_layers(net)
    assert {"blocks_0_down_0", "blocks_1_c3", "blocks_2_down_0", "blocks_3_c3"} == tied
    made = draft(net, Plan(sizes={index["blocks.0.c3"]: Sizes(filters=20)})).spec().build()
    widths = [made.get_submodule(f"blocks.{n}").out_channels for n in ("0.down.0", "0.c3", "1.c3")]
    assert widths == [20, 20, 20]


def test_concatenations_add_their_widths():
    _, _, net = network("dense and gated")
    index = {u.name: u.index for u in net.units}
    child = draft(net, Plan(sizes={index["a"]: Sizes(filters=3)})).spec().build()
    assert (child.b.in_channels, child.t.in_channels) == (15, 23)
    twice = draft(net, Plan(frozenset({index["a"]}))).spec().build()
    assert twice.b.in_channels == 24  # the stem, twice


def test_the_key_stands_for_the_architecture_not_for_the_way_there():
    _, _, net = network("vgg")
    one, other, third = (draft(net, Plan(frozenset({i}))) for i in (1, 3, 4))
    assert one.key != other.key
    assert other.key == third.key  # whichever goes, 8 -> 12 is what is left
    same = Network.of(vgg((8, 8, 8)), X)
    assert draft(same, Plan(frozenset({1}))).key == draft(same, Plan(frozenset({2}))).key


def test_a_linear_layer_that_would_read_too_much_is_refused(monkeypatch):
    monkeypatch.setattr("laconic.weights.students._fitting.LARGEST_LINEAR", 100)
    _, _, net = network("vgg")
    pools = frozenset(u.index for u in net.units if u.kind == "max-pool")
    with pytest.raises(InvalidChildError, match="a linear layer would read 768 numbers"):
        draft(net, Plan(pools))


def test_a_spec_is_json_and_builds_the_same_network_each_time():
    _, x, net = network("bottleneck")
    spec = draft(net, Plan(frozenset({2}))).spec()
    again = StudentSpec.from_json(spec.to_json())
    before = torch.random.get_rng_state()
    one, two = spec.build(seed=3), again.build(seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one(x), two(x))
    assert not torch.equal(one(x), again.build(seed=4)(x))
    with pytest.raises(ConfigError, match="not an architecture"):
        StudentSpec.from_json("{}")
    with pytest.raises(ConfigError, match="do not fit its layers"):
        spec.build(weights={})


def test_weights_are_drawn_anew():
    model, _, net = network("transformer")
    child = draft(net, Plan()).spec().build()
    held = dict(model.named_parameters())
    for name, p in child.named_parameters():
        assert (p == p.flatten()[0]).all() or not torch.equal(p, held[name]), name


def test_the_teacher_is_left_as_it_was():
    model = vgg().train()
    before = copy.deepcopy(model.state_dict())
    draft(Network.of(model, X), Plan(frozenset({1}))).spec().build()
    assert model.training
    assert model[2].inplace
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Inner()

    def forward(self, x):
        return self.part(x)


class Inner(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class LostInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = self.fc(x.flatten(1))
        x.add_(1.0)
        return x


def test_what_cannot_be_traced_names_the_module():
    with pytest.raises(UnsupportedModelError, match=r"cannot be traced at module 'part'"):
        extract_units(Branching(), X)
    with pytest.raises(UnsupportedModelError, match="add_ changes a tensor in place"):
        extract_units(LostInPlace(), X)
    with pytest.raises(UnsupportedModelError, match=r"must give \(batch, classes\)"):
        extract_units(nn.Sequential(nn.Conv2d(1, 2, 3)), X)


def test_mistakes_are_told():
    with pytest.raises(ConfigError, match=r"neither a kind nor a unit.*Did you mean 'conv'"):
        extract_units(vgg(), X, keep=("convs",))
    with pytest.raises(ConfigError, match="granularity='block' must be"):
        extract_units(vgg(), X, granularity="block")
    with pytest.raises(ConfigError, match=r"must be \(batch, ...\)"):
        extract_units(vgg(), torch.zeros(8))


def test_dropout_is_on_in_training():
    """The functional dropout of a traced network would stay off for ever."""
    child = StudentSpec.of(draft(Network.of(Residual().eval(), X), Plan()).module).build().train()
    torch.manual_seed(0)
    assert any(isinstance(m, nn.Dropout) for m in child.modules())
    features = torch.ones(2, 64)
    dropped = next(m for m in child.modules() if isinstance(m, nn.Dropout))(features)
    assert not torch.equal(dropped, features)
    assert torch.equal(F.dropout(features, 0.1, False), features)
    assert Bottleneck(4, 2, 4).down is None
