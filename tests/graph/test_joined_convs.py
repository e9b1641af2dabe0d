import numpy as np
import pytest
import torch
from rewritten_graphs import check_rewrite, check_unchanged, names, network, node_named, operators
from torch import nn
from torch.nn import functional

from deploykit.graph.export import onnx_from_module
from deploykit.graph.instruments import model_bytes
from deploykit.graph.joined_convs import group_convs_of_splits, split_batchnorms_of_concats
from deploykit.runtime.opener import open_probe

# --- Convs of the parts of a Split ----------------------------------------------------------------

SPLIT = """
    [s] p, q = Split<axis=1, num_outputs=2>(input)
    [a] x = Conv<strides=[2, 2]>(p, first, bias)
    [b] y = Conv<strides=[2, 2]>(q, second, more)
    [c] joined = Concat<axis=1>(x, y)
    [last] logits = Relu(joined)
"""
PARTS = {"first": (6, 4, 3, 3), "second": (6, 4, 3, 3), "bias": (6,), "more": (6,)}
ALIKE = {
    "biases": SPLIT,
    "no bias": SPLIT.replace(", bias", "").replace(", more", ""),
    "groups": SPLIT.replace("strides", "group=2, strides"),
    "one weight for both": SPLIT.replace("second", "first"),
}
GIVES = "float[N, 12, 2, 2] logits"


@pytest.mark.parametrize("kind", ALIKE)
def test_group_convs_of_splits(kind):
    channels = 2 if kind == "groups" else 4
    shapes = PARTS | dict.fromkeys(("first", "second"), (6, channels, 3, 3))
    model = check_rewrite(network(ALIKE[kind], gives=GIVES, **shapes), group_convs_of_splits)
    assert operators(model) == {"Conv": 1, "Relu": 1}
    assert node_named(model, "c").outputs[0].name == "joined"


UNLIKE = {
    "another order": SPLIT.replace("Concat<axis=1>(x, y)", "Concat<axis=1>(y, x)"),
    "the same part twice": SPLIT.replace("(q, second", "(p, second"),
    "one bias": SPLIT.replace(", more", ""),
    "other strides": SPLIT.replace(
        "[b] y = Conv<strides=[2, 2]>", "[b] y = Conv<strides=[2, 2], pads=[1, 1, 0, 0]>"
    ),
    "something between": SPLIT.replace("[c]", "[r] z = Relu(y) [c]").replace("(x, y)", "(x, z)"),
    "joined along the images": SPLIT.replace("Concat<axis=1>", "Concat<axis=0>"),
    "split along the rows": SPLIT.replace("[s]", "[t] u = Transpose<perm=[0, 2, 1, 3]>(input) [s]")
    .replace("Split<axis=1, num_outputs=2>(input)", "Split<axis=2, num_outputs=2>(u)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNLIKE)
def test_group_convs_of_splits_stays(kind):
    shapes = PARTS
    if kind == "split along the rows":
        shapes = PARTS | dict.fromkeys(("first", "second"), (6, 5, 3, 3))
    model = network(UNLIKE[kind], gives="float[M, C, A, B] logits", **shapes)
    check_unchanged(model, group_convs_of_splits)


def test_group_convs_of_splits_that_another_takes():
    """The Split and the first Conv's output stay for who else takes them."""
    nodes = SPLIT.replace("[last]", "[n] more_of_it = Neg(p) [last]")
    gives = f"{GIVES}, float[N, 4, 5, 5] more_of_it"
    model = check_rewrite(network(nodes, gives=gives, **PARTS), group_convs_of_splits)
    assert operators(model) == {"Split": 1, "Conv": 1, "Neg": 1, "Relu": 1}
    nodes = SPLIT.replace("[last]", "[n] more_of_it = Neg(x) [last]")
    gives = f"{GIVES}, float[N, 6, 2, 2] more_of_it"
    check_unchanged(network(nodes, gives=gives, **PARTS), group_convs_of_splits)


# --- BatchNorm behind a Concat of Convs -----------------------------------------------------------

JOINED = """
    [a] x = Conv<pads=[1, 1, 1, 1]>(input, narrow)
    [b] y = Conv<pads=[2, 2, 2, 2]>(input, wide, bias)
    [c] joined = Concat<axis=1>(x, y)
    [n] z = BatchNormalization(joined, scale, shift, mean, variance)
    [last] logits = Relu(z)
"""
SHAPES = {
    "narrow": (16, 8, 3, 3), "wide": (8, 8, 5, 5), "bias": (8,),
    "scale": (24,), "shift": (24,), "mean": (24,),
}  # fmt: skip
VARIANCE = {"variance": np.linspace(0.5, 2, 24, dtype=np.float32)}


def test_split_batchnorms_of_concats():
    # ONNX Runtime folds what is behind a Conv by itself, which rounds.
    model = check_rewrite(
        network(JOINED, constants=VARIANCE, **SHAPES), split_batchnorms_of_concats
    )
    assert operators(model) == {"Conv": 2, "BatchNormalization": 2, "Concat": 1, "Relu": 1}
    assert node_named(model, "last").inputs[0].name == "z"
    assert node_named(model, "n/channels_0_16").inputs[0].name == "x"
    assert {"x", "y", "z"} <= names(model)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(joined, scale", "(input, scale"),
        ("Concat<axis=1>(x, y)", "Concat<axis=1>(x, v) [r] v = Relu(y)"),
        ("Concat<axis=1>(x, y)", "Concat<axis=1>(x, y) [r] v = Neg(joined) [s] w = Abs(y)"),
    ],
)
def test_split_batchnorms_of_concats_stays(old, new):
    nodes = JOINED.replace(old, new)
    if "[r] v = Relu(y)" in nodes:  # in the order of the graph
        nodes = nodes.replace(" [r] v = Relu(y)", "").replace("[c]", "[r] v = Relu(y) [c]")
    shapes = SHAPES | ({"scale": (8,), "shift": (8,), "mean": (8,)} if "(input, s" in nodes else {})
    variance = {"variance": VARIANCE["variance"][: shapes["scale"][0]]}
    gives = f"float[N, {shapes['scale'][0]}, 5, 5] logits"
    if "[s]" in nodes:
        gives += ", float[N, 24, 5, 5] v, float[N, 8, 5, 5] w"
    model = network(nodes, gives=gives, constants=variance, **shapes)
    check_unchanged(model, split_batchnorms_of_concats)


class MixedConv(nn.Module):
    """As timm's: Convs of several kernel sizes, joined before the BatchNorm."""

    def __init__(self):
        super().__init__()
        self.narrow = nn.ModuleList(nn.Conv2d(8, 8, 1, bias=False) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, size, padding="same") for size in (3, 5))
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x):
        for convs in (self.narrow, self.convs):
            parts = torch.split(x, 8, 1)
            x = torch.cat([conv(part) for conv, part in zip(convs, parts, strict=True)], 1)
            x = functional.silu(self.norm(x))
        return x


def test_export_of_mixed_convs():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 1), MixedConv(), nn.AvgPool2d(8), nn.Flatten()).eval()
    with torch.no_grad():
        module[1].norm.running_mean.normal_()
        module[1].norm.running_var.uniform_(0.5, 2)
    model = onnx_from_module(module, (8, 8))
    assert operators(model)["Conv"] == 4
    assert not operators(model)["BatchNormalization"]
    paths = [node.metadata_props["module"] for node in model.graph if node.op_type == "Conv"]
    assert paths[-2:] == ["1.convs.0", "1.convs.1"]
    images = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    with torch.inference_mode():
        expected = module(torch.tensor(images)).numpy()
    with open_probe(model_bytes(model), threads=1) as probe:
        (logits,) = probe.run({"input": images}).values()
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
