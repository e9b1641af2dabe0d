import math

import numpy as np
import pytest
import torch
from rewritten_graphs import check_rewrite, check_unchanged, network, node_named, operators
from runtime_graphs import ERROR_LIMIT, relative_error
from torch import nn
from torch.nn import functional

from deploykit.graph.export import onnx_from_module
from deploykit.graph.instruments import model_bytes
from deploykit.graph.pads import fold_pads
from deploykit.runtime.opener import open_graph
from deploykit.specs.model import Labels
from deploykit.specs.preprocessing import Preprocessing

INF = math.inf
LOWEST = float(np.finfo(np.float32).min)
POOL = "kernel_shape=[3, 3], strides=[2, 2]"


def graph(nodes, pads, value, *, gives="float[N, C, A, B] logits"):
    """A graph with the constants ``amounts`` and ``value``, of the images ``input``."""
    constants = {
        "amounts": np.array(pads, np.int64),
        "value": np.array(value, np.float32),
        "height_and_width": np.array([-2, 3], np.int64),
    }
    shapes = {"weight": (8, 8, 3, 3), "separable": (8, 1, 2, 2)}
    return network(nodes, gives=gives, constants=constants, **shapes)


#: Rows and columns, in front; then behind.
BEHIND, UNEVEN, WIDE = (0, 0, 1, 1), (1, 0, 2, 1), (3, 3, 4, 4)


def both(pads):
    return [0, 0, *pads[:2], 0, 0, *pads[2:]]


PAD = "[p] t = Pad(input, amounts, value)"
POSITIVE = "[r] x = Relu(input) [p] t = Pad(x, amounts, value)"
FOLDS = {
    "conv": (f"{PAD} [last] logits = Conv<strides=[2, 2]>(t, weight)", BEHIND, 0.0),
    "conv, uneven": (f"{PAD} [last] logits = Conv(t, weight)", UNEVEN, 0.0),
    "conv, wider than the kernel": (f"{PAD} [last] logits = Conv(t, weight)", WIDE, 0.0),
    "conv with own padding": (
        f"{PAD} [last] logits = Conv<pads=[1, 0, 0, 2]>(t, weight)", UNEVEN, 0.0,
    ),
    "conv of one channel a group": (
        f"{PAD} [last] logits = Conv<group=8>(t, separable)", BEHIND, 0.0,
    ),
    "conv with dilation": (
        f"{PAD} [last] logits = Conv<dilations=[2, 2]>(t, weight)", UNEVEN, 0.0,
    ),
    "max": (f"{PAD} [last] logits = MaxPool<{POOL}>(t)", BEHIND, -INF),
    "max, lowest number": (f"{PAD} [last] logits = MaxPool<{POOL}>(t)", UNEVEN, LOWEST),
    "max, rounded up": (f"{PAD} [last] logits = MaxPool<{POOL}, ceil_mode=1>(t)", BEHIND, -INF),
    "max of no negatives": (f"{POSITIVE} [last] logits = MaxPool<{POOL}>(t)", UNEVEN, 0.0),
    "max of no negatives, below": (f"{POSITIVE} [last] logits = MaxPool<{POOL}>(t)", BEHIND, -3.0),
    "average": (f"{PAD} [last] logits = AveragePool<{POOL}>(t)", UNEVEN, 0.0),
    "average that counts": (
        f"{PAD} [last] logits = AveragePool<{POOL}, pads=[1, 1, 0, 0], count_include_pad=1>(t)",
        BEHIND, 0.0,
    ),
    "average, rounded up to the same": (
        f"{PAD} [last] logits = AveragePool<{POOL}, ceil_mode=1>(t)", (0, 0, 2, 2), 0.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDS)
def test_fold_pads(kind):
    nodes, pads, value = FOLDS[kind]
    model = check_rewrite(graph(nodes, both(pads), value), fold_pads, exact=True)
    assert not operators(model)["Pad"]


STAYS = {
    "conv, not zero": (f"{PAD} [last] logits = Conv(t, weight)", both(BEHIND), 1e-8),
    "conv, negative zero": (f"{PAD} [last] logits = Conv(t, weight)", both(BEHIND), -0.0),
    "conv, crop": (f"{PAD} [last] logits = Conv(t, weight)", both((-1, 0, 1, 0)), 0.0),
    "conv, reflected": (
        "[p] t = Pad<mode=\"reflect\">(input, amounts) [last] logits = Conv(t, weight)",
        both(BEHIND), 0.0,
    ),
    "max of negatives": (f"{PAD} [last] logits = MaxPool<{POOL}>(t)", both(BEHIND), 0.0),
    "max, not low enough": (f"{PAD} [last] logits = MaxPool<{POOL}>(t)", both(BEHIND), -1e9),
    "max, above": (f"{POSITIVE} [last] logits = MaxPool<{POOL}>(t)", both(BEHIND), 1.0),
    "max, as wide as the window": (
        f"{PAD} [last] logits = MaxPool<{POOL}>(t)", both((0, 0, 3, 3)), -INF,
    ),
    "max, a window of padding": (
        f"{PAD} [last] logits = MaxPool<kernel_shape=[2, 2], dilations=[6, 6]>(t)",
        both((1, 1, 1, 1)), -INF,
    ),
    "max, channels": (f"{PAD} [last] logits = MaxPool<{POOL}>(t)", [0, 1, 1, 1, 0, 0, 1, 1], -INF),
    "average, not zero": (f"{PAD} [last] logits = AveragePool<{POOL}>(t)", both(BEHIND), 1e-8),
    "average that counts the image alone": (
        f"{PAD} [last] logits = AveragePool<{POOL}, pads=[1, 1, 1, 1]>(t)", both(BEHIND), 0.0,
    ),
    "average, rounded up": (
        f"{PAD} [last] logits = AveragePool<{POOL}, ceil_mode=1>(t)", both((0, 0, 1, 1)), 0.0,
    ),
    "nothing that pads": (f"{PAD} [last] logits = Neg(t)", both(BEHIND), 0.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", STAYS)
def test_fold_pads_stays(kind):
    check_unchanged(graph(*STAYS[kind]), fold_pads)


def test_fold_pads_on_named_axes():
    nodes = """
        [p] t = Pad(input, amounts, value, height_and_width)
        [last] logits = Conv(t, weight)
    """
    model = check_rewrite(graph(nodes, [1, 0, 2, 1], 0.0), fold_pads, exact=True)
    assert node_named(model, "last").attributes.get_ints("pads") == (1, 0, 2, 1)


def test_fold_pads_in_a_row():
    nodes = """
        [p] t = Pad(input, amounts, value)
        [q] u = Pad(t, amounts)
        [last] logits = Conv(u, weight)
    """
    model = check_rewrite(graph(nodes, both(UNEVEN), 0.0), fold_pads, exact=True)
    assert node_named(model, "last").attributes.get_ints("pads") == (2, 0, 4, 2)
    model = check_rewrite(graph(nodes, both(UNEVEN), 5.0), fold_pads, exact=True)
    assert operators(model) == {"Pad": 1, "Conv": 1}


def test_fold_pads_for_some_who_take_it():
    """As in timm's HGNetV2: a Conv and a pool take the same padded image."""
    nodes = """
        [p] t = Pad(input, amounts, value)
        [c] u = Conv<strides=[2, 2]>(t, weight)
        [m] v = MaxPool<kernel_shape=[3, 3], strides=[2, 2]>(t)
        [last] logits = Add(u, v)
    """
    model = check_rewrite(graph(nodes, both(BEHIND), 0.0), fold_pads, exact=True)
    assert operators(model)["Pad"] == 1
    assert node_named(model, "c").inputs[0].name == "input"
    assert node_named(model, "m").inputs[0].name == "t"


def test_fold_pads_that_is_an_output():
    nodes = "[p] t = Pad(input, amounts, value) [last] logits = Conv(t, weight)"
    gives = "float[N, 8, C, D] t, float[N, 8, A, B] logits"
    model = check_rewrite(graph(nodes, both(BEHIND), 0.0, gives=gives), fold_pads, exact=True)
    assert operators(model) == {"Pad": 1, "Conv": 1}


def test_fold_pads_of_nothing():
    nodes = "[p] t = Pad(input, amounts, value) [last] logits = Neg(t)"
    model = check_rewrite(graph(nodes, [0] * 8, 1.0), fold_pads, exact=True)
    assert operators(model) == {"Neg": 1}


def test_fold_pads_known_at_run_time():
    """An initializer that is an input as well may be given anew in each run."""
    model = graph(*FOLDS["conv"][:1], both(BEHIND), 0.0)
    model.graph.inputs.append(model.graph.initializers["amounts"])
    check_unchanged(model, fold_pads)


# --- whole networks, written as people write them -------------------------------------------------


def same(x, kernel, stride, dilation=1, value=0.0):
    """TensorFlow's padding, computed in ``forward`` as timm and efficientnet_pytorch do."""
    amounts = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((math.ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
        amounts += [total // 2, total - total // 2]
    return functional.pad(x, amounts, value=value)


def same_by_numpy(x, kernel, stride):
    height, width = x.size()[-2:]
    rows, columns = (int(np.ceil(size / stride)) for size in (height, width))
    down = int(np.maximum((rows - 1) * stride + kernel - height, 0))
    right = int(np.maximum((columns - 1) * stride + kernel - width, 0))
    if down > 0 or right > 0:
        x = nn.ZeroPad2d((right // 2, right - right // 2, down // 2, down - down // 2))(x)
    return x


class SameNetwork(nn.Module):
    """Every kind of layer that TensorFlow pads "same"."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 5, stride=2, groups=16)
        self.dilated = nn.Conv2d(16, 16, 3, dilation=2)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = functional.silu(self.norm(self.stem(same(x, 3, 2))))
        x = functional.max_pool2d(same(x, 3, 2, value=-INF), 3, 2)
        x = functional.relu(self.depthwise(same_by_numpy(x, 5, 2)))
        x = functional.max_pool2d(same(x, 3, 2), 3, 2)
        x = self.dilated(same(x, 3, 1, dilation=2))
        x = functional.avg_pool2d(same(x, 2, 2), 2, 2, count_include_pad=False)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def same_network():
    torch.manual_seed(0)
    module = SameNetwork().eval()
    module.norm.running_mean.normal_()
    return module


@pytest.mark.parametrize("size", [(32, 32), (33, 50)])
def test_export_of_same_padding(same_network, size):
    model = onnx_from_module(same_network, size)
    assert operators(model) == {
        "Conv": 3, "Sigmoid": 1, "Mul": 1, "MaxPool": 2, "Relu": 1, "AveragePool": 1,
        "ReduceMean": 1, "Gemm": 1,
    }  # fmt: skip
    images = np.concatenate(
        [
            np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8),
            np.stack([np.full((*size, 3), level, np.uint8) for level in (0, 128, 255)]),
        ]
    )
    preprocessing = Preprocessing(resize=size)
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    pixels = ((images / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.inference_mode():
        expected = same_network(torch.tensor(pixels)).numpy()
    for runtime in ("onnxruntime-cpu", "openvino"):
        with open_graph(
            model_bytes(model),
            name="same",
            runtime=runtime,
            precision="fp32",
            preprocessing=preprocessing,
            labels=Labels.numbered(4),
        ) as session:
            assert relative_error(session.run(images), expected) <= ERROR_LIMIT["fp32"]
