from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from artifact_support import read_body, write_body
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from laconic import artifact
from laconic.artifact import allowed, leaves
from laconic.artifact.arguments import from_json, to_json
from laconic.errors import ArtifactError, ConfigError, UnsupportedModelError

NET = """
import math
import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x, mask=None):
        b, n, w = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1)) * self.scale
        if mask is not None:
            scores = scores.masked_fill(mask, -math.inf)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, w))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16))
        self.place = nn.Parameter(torch.randn(1, 16, 16) * 0.1)
        self.register_buffer("order", torch.arange(16).flip(0))
        self.first = nn.LayerNorm(16)
        self.attention = Attention(16, 4)
        self.second = nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.kind = nn.Embedding(7, 16)
        self.head = nn.Linear(16, 5)
        self.gain = torch.tensor([1.5])  # neither a parameter nor a buffer

    def forward(self, image, kind, mask=None):
        x = F.relu(self.stem(image)).flatten(2).transpose(1, 2)[:, self.order] + self.place
        x = x + self.attention(self.first(x), mask)
        x = x + self.mlp(self.second(x)) * self.gain
        return {"logits": self.head(x.mean(1) + self.kind(kind)), "tokens": x[..., :2]}
"""

LOADER = """
import sys, torch
from laconic import artifact
assert "net_of_this_test" not in sys.modules
model = artifact.load(sys.argv[1], kernels="exact")
image, kind = torch.load(sys.argv[2], weights_only=True)
torch.save(model(image, kind), sys.argv[3])
"""


def test_a_vision_net_loads_where_its_code_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "net_of_this_test.py"
    module.write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    import net_of_this_test  # type: ignore[import-not-found]

    net = net_of_this_test.Net()
    net.train()(torch.randn(8, 3, 8, 8), torch.arange(8) % 7)  # batch statistics that are not 0, 1
    net.eval()
    inputs = torch.randn(2, 3, 8, 8), torch.tensor([3, 6])
    told = artifact.Architecture.of(net, inputs)
    assert told.kind == "graph"
    assert told.reason is None
    artifact.save(net, tmp_path / "a", architecture=told)
    module.unlink()
    torch.save(inputs, tmp_path / "in.pt")
    source = Path(artifact.__file__).parents[2]
    subprocess.run(
        [sys.executable, "-W", "error", "-c", LOADER, "a", "in.pt", "out.pt"], check=True,
        timeout=120, cwd=tmp_path, env={"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    expected = net(*inputs)
    assert torch.equal(out["logits"], expected["logits"])
    assert torch.equal(out["tokens"], expected["tokens"])
    loaded = artifact.load(tmp_path / "a", kernels="exact")
    assert loaded.state_dict().keys() == net.state_dict().keys()
    text = (tmp_path / "a" / "laconic.json").read_text()
    assert "net_of_this_test" not in text
    assert str(tmp_path) not in text


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x


def branching() -> nn.Module:
    """The factory that the tests name."""
    return _Branching()


def test_an_untraceable_model_says_why_and_what_to_give(tmp_path: Path) -> None:
    model = _Branching().eval()
    told = artifact.Architecture.of(model)
    assert told.kind == "factory"
    assert "control flow" in str(told.reason)
    artifact.save(model, tmp_path / "a", architecture=told)
    with pytest.raises(UnsupportedModelError, match=r"load\(path, model=\.\.\.\)") as caught:
        artifact.load(tmp_path / "a")
    assert "control flow" in str(caught.value)
    loaded = artifact.load(tmp_path / "a", model=_Branching())
    x = torch.randn(3, 4)
    assert torch.equal(loaded(x), model(x))


def test_a_factory_is_called_only_where_it_is_trusted(tmp_path: Path) -> None:
    model = _Branching()
    told = artifact.Architecture.factory(f"{__name__}:branching")
    artifact.save(model, tmp_path / "a", architecture=told)
    with pytest.raises(UnsupportedModelError, match="trust_factory"):
        artifact.load(tmp_path / "a")
    loaded = artifact.load(tmp_path / "a", trust_factory=True)
    assert torch.equal(loaded.state_dict()["layer.weight"], model.layer.weight)
    artifact.save(
        model, tmp_path / "b", architecture=artifact.Architecture.factory("no.such:thing")
    )
    with pytest.raises(UnsupportedModelError, match=r"no\.such:thing cannot be called"):
        artifact.load(tmp_path / "b", trust_factory=True)
    with pytest.raises(ConfigError, match=r"package\.module:function"):
        artifact.Architecture.factory("no_colon")


def test_a_graph_that_gives_other_outputs_is_not_used() -> None:
    class Sneaky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if type(x) is Tensor else x  # a traced value is no Tensor

    told = artifact.Architecture.of(Sneaky(), torch.ones(2))
    assert told.kind == "factory"
    assert "other outputs" in str(told.reason)


def test_an_argument_that_is_given_stays_an_input(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None, by: float = 2.0) -> Tensor:
            return (x if mask is None else x * mask) * by

    x, mask = torch.ones(3), torch.tensor([0.0, 1.0, 1.0])
    for inputs, expected in (((x,), x * 2), ((x, mask), mask * 2)):
        told = artifact.Architecture.of(Masked(), inputs)
        artifact.save(Masked(), tmp_path / "a", architecture=told, force=True)
        assert torch.equal(artifact.load(tmp_path / "a")(*inputs), expected)
    told = artifact.Architecture.of(Masked(), {"x": x, "mask": mask})
    assert told.kind == "graph"


def test_tracing_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    before = {name: value for name, value in vars(model).items() if name != "_modules"}
    artifact.Architecture.of(model, torch.ones(1, 4))
    assert model.training
    assert model[1].training
    assert {n: v for n, v in vars(model).items() if n != "_modules"} == before


LEAVES: list[tuple[nn.Module, tuple[Tensor, ...]]] = [
    (nn.Conv1d(4, 6, 3, padding="same", groups=2), (torch.randn(2, 4, 9),)),
    (nn.Conv2d(4, 6, (3, 1), stride=(2, 1), dilation=2, padding_mode="reflect", padding=1),
     (torch.randn(2, 4, 9, 9),)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (torch.randn(2, 4, 5, 5),)),
    (nn.BatchNorm2d(4, affine=False, momentum=None), (torch.randn(2, 4, 3, 3),)),
    (nn.InstanceNorm2d(4, affine=True), (torch.randn(2, 4, 3, 3),)),
    (nn.GroupNorm(2, 4, eps=1e-3), (torch.randn(2, 4, 3, 3),)),
    (nn.LayerNorm((3, 4), bias=False), (torch.randn(2, 3, 4),)),
    (nn.RMSNorm(4, eps=1e-4), (torch.randn(2, 4),)),
    (nn.Embedding(5, 3, padding_idx=1), (torch.tensor([1, 4]),)),
    (nn.Bilinear(3, 4, 2, bias=False), (torch.randn(2, 3), torch.randn(2, 4))),
    (nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=5, add_bias_kv=True, bias=False),
     (torch.randn(2, 3, 8), torch.randn(2, 4, 6), torch.randn(2, 4, 5))),
    (nn.TransformerEncoderLayer(8, 2, 12, 0.2, "gelu", batch_first=True, norm_first=True),
     (torch.randn(2, 3, 8),)),
    (nn.TransformerDecoderLayer(8, 2, 12, batch_first=True),
     (torch.randn(2, 3, 8), torch.randn(2, 4, 8))),
    (nn.LSTM(4, 6, 2, bidirectional=True, bias=False), (torch.randn(5, 2, 4),)),
    (nn.GRU(4, 6, batch_first=True), (torch.randn(2, 5, 4),)),
    (nn.RNN(4, 6, nonlinearity="relu"), (torch.randn(5, 2, 4),)),
    (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (torch.randn(2, 4, 8, 8),)),
    (nn.AdaptiveAvgPool2d((None, 2)), (torch.randn(2, 4, 8, 8),)),
    (nn.Softmax(dim=1), (torch.randn(2, 4),)),
    (nn.PReLU(4), (torch.randn(2, 4),)),
    (nn.Hardtanh(-2, 3), (torch.randn(9) * 4,)),
    (nn.Unflatten(1, (2, 2)), (torch.randn(3, 4),)),
    (nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True),
     (torch.randn(1, 2, 3, 3),)),
    (nn.ConstantPad2d((1, 0, 2, 1), 0.5), (torch.randn(1, 2, 3, 3),)),
    (nn.Unfold((2, 3), padding=(1, 0)), (torch.randn(1, 2, 5, 6),)),
]  # fmt: skip


@pytest.mark.parametrize(("module", "inputs"), LEAVES, ids=lambda v: type(v).__name__)
def test_leaf_modules_are_built_with_their_settings(
    module: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    module.eval()
    rebuilt = leaves.build(leaves.describe(module, where="it"))
    assert type(rebuilt) is type(module)
    rebuilt = rebuilt.to_empty(device="cpu")
    rebuilt.load_state_dict(module.state_dict())
    out, expected = rebuilt(*inputs), module(*inputs)
    first = out if isinstance(out, Tensor) else out[0]
    assert torch.equal(first, expected if isinstance(expected, Tensor) else expected[0])


def test_default_settings_are_left_out() -> None:
    assert leaves.describe(nn.Conv2d(3, 8, 3), where="it") == [
        "Conv2d", {"in_channels": 3, "out_channels": 8, "kernel_size": [3, 3]}
    ]  # fmt: skip
    assert leaves.describe(nn.ReLU(), where="it") == ["ReLU"]
    assert leaves.describe(nn.LSTM(4, 6, proj_size=3), where="it") == [
        "LSTM", {"input_size": 4, "hidden_size": 6, "proj_size": 3}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([], "must be"),
        (["Linear"], "required positional"),
        (["Linear", {"in_features": 2, "out_features": 2, "device": "cuda"}], "no settings"),
        (["Linear", {"in_features": 2**50, "out_features": 2}], "too large"),
        (["Linear", {"in_features": -2, "out_features": 2}], "negative|positive|greater"),
        (["LSTM", {"input_size": 2, "hidden_size": 2, "num_layers": 10**9}], "layers"),
        (["LSTM", {"input_size": 2, "hidden_size": 2, "num_layers": 1e9}], "integer"),
        (["LayerNorm", {"normalized_shape": [1] * 1000}], "too long"),
        (["Module"], "not allowed"),
        (["Sequential"], "not allowed"),
        (["os.system", {"command": "true"}], "not allowed"),
        ([["Linear"]], "must be"),
        (["ReLU", {"inplace": {"n": 0}}], "cannot hold node"),
        (["ReLU", [], 3], "must be"),
    ],
)
def test_hostile_modules_are_refused(record: list[Any], reason: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError), match=reason):
        leaves.build(record)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.text(max_size=5)
    | st.floats(allow_nan=False) | st.sampled_from([torch.float32, torch.bool, torch.bfloat16])
    | st.sampled_from([Ellipsis, torch.channels_last])
    | st.builds(slice, st.none() | st.integers(-9, 9), st.integers(-9, 9), st.none()),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
    | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(_VALUES)
@settings(deadline=None, max_examples=50)
def test_arguments_come_back(value: Any) -> None:
    written = to_json(value, lambda _: None)
    back = from_json(written, lambda index: index, torch.device("cpu"))
    assert back == value
    assert type(back) is type(value)


def _saved(folder: Path) -> Path:
    artifact.save(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), folder / "a")
    return folder / "a"


_IN = ["in", "x"]
_OUT = ["out", {"n": 1}]


@pytest.mark.parametrize(
    "nodes",
    [
        [],
        [_IN],
        [_IN, ["out", {"n": 0}], ["out", {"n": 0}]],
        [["out", {"n": 0}], _IN],
        [_IN, ["out", {"n": 7}]],
        [_IN, ["out", {"n": -1}]],
        [_IN, ["fn", "os.system", ["true"]], _OUT],
        [_IN, ["fn", "torch.load", ["x.pt"]], _OUT],
        [_IN, ["fn", "operator.attrgetter", ["x"]], _OUT],
        [_IN, ["fn", "operator.methodcaller", ["x"]], _OUT],
        [_IN, ["fn", "builtins.eval", ["1"]], _OUT],
        [_IN, ["fn", "getattr", [{"n": 0}, "__class__"]], _OUT],
        [_IN, ["fn", "getattr", [{"n": 0}, "data"]], _OUT],
        [_IN, ["fn", "getattr", [{"n": 0}, "shape", 1]], _OUT],
        [_IN, ["fn", "getattr", [{"n": 0}], {"name": "shape"}], _OUT],
        [_IN, ["do", "__reduce_ex__", [{"n": 0}, 2]], _OUT],
        [_IN, ["do", "numpy", [{"n": 0}]], _OUT],
        [_IN, ["do", "apply_", [{"n": 0}]], _OUT],
        [_IN, ["do", "view); import os; (x", [{"n": 0}]], _OUT],
        [_IN, ["mod", "2", [{"n": 0}]], _OUT],
        [_IN, ["mod", '0"].x; import os; ["', [{"n": 0}]], _OUT],
        [_IN, ["get", "0.weight\nimport os"], _OUT],
        [_IN, ["get", "forward"], _OUT],
        [_IN, ["get", "0"], _OUT],
        [["in", "x): import os #"], ["out", {"n": 0}]],
        [["in", "lambda"], ["out", {"n": 0}]],
        [["in", "\uff58"], ["out", {"n": 0}]],
        [_IN, ["fn", "F.relu", [{"n": 0}], {"inplace=os": True}], _OUT],
        [_IN, ["fn", "F.relu", [{"n": 0}], {"if": True}], _OUT],
        [_IN, ["fn", "F.relu", {"n": 0}], _OUT],
        [_IN, ["fn", "F.relu", [{"q": 0}]], _OUT],
        [_IN, ["fn", "F.relu", [{"n": 0, "t": []}]], _OUT],
        [_IN, ["fn", "F.relu", [{"f": "1e999"}]], _OUT],
        [_IN, ["fn", "F.relu", [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]], _OUT],
        [_IN, ["fn", "operator.add", [{"n": 0}]], _OUT],
        [_IN, ["jump", "0", []], _OUT],
        [_IN, [["fn"], "F.relu", []], _OUT],
        [_IN, ["fn"], _OUT],
        [_IN, [], _OUT],
    ],
    ids=str,
)
def test_hostile_graphs_are_refused(tmp_path: Path, nodes: list[Any]) -> None:
    folder = _saved(tmp_path)
    body = read_body(folder)
    body["architecture"]["nodes"] = nodes
    write_body(folder, body)
    with pytest.raises(ArtifactError, match=r"laconic\.json"):
        artifact.load(folder)


@pytest.mark.parametrize(
    "path", ["forward", "graph", "code", "a..b", "", "x y", "training", "_modules", "0.weight"]
)
def test_hostile_module_paths_are_refused(tmp_path: Path, path: str) -> None:
    folder = _saved(tmp_path)
    body = read_body(folder)
    body["architecture"]["modules"][path] = ["ReLU"]
    write_body(folder, body)
    with pytest.raises(ArtifactError):
        artifact.load(folder)


def test_nothing_that_leaves_the_process_is_allowed() -> None:
    names = {name.rpartition(".")[2] for name in allowed.functions()} | allowed._METHODS
    for word in ("load", "save", "import", "eval", "exec", "compile", "open", "numpy", "file",
                 "attrgetter", "methodcaller", "itemgetter", "tofile", "ops", "hub"):  # fmt: skip
        assert word not in names
    assert all(callable(function) for function in allowed.functions().values())
    assert allowed.function_names()[F.relu] in ("F.relu", "torch.relu")


def test_strings_in_a_graph_stay_strings(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {'a"b\n': torch.einsum("ij,jk->ik", x, x)}

    told = artifact.Architecture.of(Odd(), torch.ones(2, 2))
    artifact.save(Odd(), tmp_path / "a", architecture=told)
    assert list(artifact.load(tmp_path / "a")(torch.ones(2, 2))) == ['a"b\n']


def test_devices_in_a_graph_follow_the_loader(tmp_path: Path) -> None:
    class Range(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.arange(3, device=torch.device("cpu"))

    # An operation without a traced argument is a constant of the graph.
    told = artifact.Architecture.of(Range(), torch.ones(3))
    assert list(told.constants)
    written = to_json(torch.device("cuda", 1), lambda _: None)
    assert written == {"v": "cuda:1"}
    assert from_json(written, int, torch.device("cpu")) == torch.device("cpu")
    artifact.save(Range(), tmp_path / "a", architecture=told)
    assert artifact.load(tmp_path / "a")(torch.zeros(3)).tolist() == [0, 1, 2]


def test_docs_name_every_operation_of_a_node() -> None:
    text = textwrap.dedent((Path(__file__).parents[2] / "docs" / "format.md").read_text())
    for word in ('"in"', '"get"', '"mod"', '"fn"', '"do"', '"out"'):
        assert word in text
