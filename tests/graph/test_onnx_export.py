import json
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from deploykit.errors import GraphError, UsageError
from deploykit.graph import export as export_module
from deploykit.graph.export import onnx_from_module
from deploykit.graph.files import opset_of, save_graph, tensor_specs
from deploykit.runtime.opener import open_graph, open_module
from deploykit.specs.model import LABELS_KEY, Labels, TensorSpec
from deploykit.specs.preprocessing import PREPROCESSING_KEY, Preprocessing

LABELS = Labels(names=("mésange", "鹰", "owl"), source="test")
PREPROCESSING = Preprocessing(resize=(8, 6))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        print("chatter of the user's own")
        return self.head(self.block(x).mean((2, 3)))


class BatchBranch(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.shape[0] == 2 else x.amax((2, 3))


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def graph(module):
    return onnx_from_module(module, (8, 6))


def test_canonical_graph_inputs_and_outputs(graph):
    assert tensor_specs(graph) == (
        TensorSpec(name="input", dtype="float32", shape=("N", 3, 8, 6)),
        TensorSpec(name="logits", dtype="float32", shape=("N", 3)),
    )
    assert opset_of(graph) >= 18


def test_onnx_from_module_nodes_name_their_module(graph):
    paths = {node.op_type: node.metadata_props.get("module") for node in graph.graph}
    assert paths["Conv"] == "block.0"
    assert paths["Relu"] == "block.2"
    assert paths["Gemm"] == "head"


def test_save_graph_is_valid_onnx_with_metadata(graph, tmp_path):
    save_graph(graph, tmp_path / "model.onnx", labels=LABELS, preprocessing=PREPROCESSING)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    props = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(props[LABELS_KEY]) == ["mésange", "鹰", "owl"]
    assert json.loads(props[PREPROCESSING_KEY])["resize"] == [8, 6]
    assert b"test_onnx_export.py" not in model.SerializeToString()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_canonical_graph_gives_logits_of_the_module(module, graph, tmp_path, batch):
    path = tmp_path / "model.onnx"
    save_graph(graph, path, labels=LABELS, preprocessing=PREPROCESSING)
    images = np.random.default_rng(0).integers(0, 256, (batch, 8, 6, 3), dtype=np.uint8)
    with (
        open_module(module, preprocessing=PREPROCESSING, classes=3) as reference,
        open_graph(
            path,
            name="model.onnx",
            runtime="onnxruntime-cpu",
            precision="fp32",
            preprocessing=PREPROCESSING,
            labels=LABELS,
        ) as session,
    ):
        expected = reference.run(images)
        assert np.abs(session.run(images) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_onnx_from_module_keeps_stdout_clean(module, capsys):
    onnx_from_module(module, (8, 6))
    captured = capsys.readouterr()
    assert captured.out == ""


class OddPool(Net):
    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveMaxPool2d((3, 5))

    def forward(self, x):
        return self.head(self.pool(self.block(x)).mean((2, 3)))


class BatchLoop(Net):
    def forward(self, x):
        return torch.cat([self.head(each[None].mean((2, 3))) for each in self.block(x)])


class EarlyExit(Net):
    def forward(self, x):
        first = super().forward(x)
        if first.softmax(1).max() > 0.999:
            return first
        return first + 1


class Item(Net):
    def forward(self, x):
        brightness = x.mean().item()
        return super().forward(x) * (2 if brightness > 1 else 1)


class Sizes(Net):
    def forward(self, x):
        bright = torch.nonzero(x.mean((1, 2, 3)) > 0)
        return super().forward(x) if len(bright) > 1 else super().forward(x) + 1


class Median(Net):
    def forward(self, x):
        return self.head(self.block(x).flatten(2).median(2).values)


class Broken(Net):
    def forward(self, x):
        super().forward(x)
        raise RuntimeError("first line of the trouble\nsecond line")


class Wording(Net):
    def forward(self, x):
        super().forward(x)
        raise ValueError("specialized heads need a static shape; Constraints violated")


class Ending(Net):
    def forward(self, x):
        super().forward(x)
        sys.exit(3)


@pytest.mark.parametrize(
    ("network", "said", "line", "advice"),
    [
        (
            OddPool,
            "ONNX has no operator for adaptive_max_pool2d (pool, AdaptiveMaxPool2d(output_size="
            "(3, 5)); on N x 4 x 6 x 4; ",
            "return self.head(self.pool(",
            "output's size divides its input's",
        ),
        (Median, "ONNX has no operator for median (on N x 4 x 24; ", "median(2)", "other operat"),
        (EarlyExit, "branches on the values", "if first.softmax(1).max() > 0.999:", "torch.where"),
        (Item, "branches on the values", "(2 if brightness > 1 else 1)", "torch.where"),
        (Sizes, "branches on the values", "if len(bright) > 1 else", "torch.where"),
        (
            BatchLoop,
            "fixes the number of images of a batch",
            "return torch.cat([",
            "range(x.shape[0])",
        ),
        (BatchBranch, "fixes the number of images", "if x.shape[0] == 2 else", "a branch on"),
        (Broken, "RuntimeError: first line of the trouble (", "raise RuntimeError(", "other oper"),
        (Wording, "torch cannot trace forward(): ValueError: specialized", "raise", "other oper"),
        (Ending, "it ends the program, by sys.exit(3) (", "sys.exit(3)", "Take that call out"),
    ],
)
def test_onnx_from_module_error_names_the_operator_or_the_line(network, said, line, advice, capfd):
    with pytest.raises(GraphError) as caught:
        onnx_from_module(network().eval().requires_grad_(False), (8, 6))
    message = caught.value.message
    assert said in message
    assert "test_onnx_export.py:" in message
    assert line in message
    assert "\n" not in message
    assert advice in caught.value.hint
    assert ("branch" in caught.value.hint) is (
        network not in (OddPool, Median, Broken, Wording, Ending)
    )
    assert capfd.readouterr().err == ""


class InPlaceInput(Net):
    def forward(self, x):
        x.mul_(0.5).add_(0.1)
        return super().forward(x)


@pytest.mark.parametrize(
    "make", [InPlaceInput, lambda: nn.Sequential(nn.ReLU(inplace=True), Net())]
)
def test_onnx_from_module_of_an_input_changed_in_place(make, tmp_path):
    torch.manual_seed(0)
    module, path = make().eval().requires_grad_(False), tmp_path / "model.onnx"
    save_graph(onnx_from_module(module, (8, 6)), path, labels=LABELS, preprocessing=PREPROCESSING)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 6, 3), dtype=np.uint8)
    options = {"name": "model.onnx", "runtime": "onnxruntime-cpu", "precision": "fp32"}
    with (
        open_module(module, preprocessing=PREPROCESSING, classes=3) as reference,
        open_graph(path, **options, preprocessing=PREPROCESSING, labels=LABELS) as session,
    ):
        expected = reference.run(images)
        assert np.array_equal(reference.run(images), expected)
        assert np.abs(session.run(images) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("opset", [7, 17, 99])
def test_onnx_from_module_refuses_unsupported_opsets(module, opset):
    with pytest.raises(UsageError, match=f"Opset {opset}"):
        onnx_from_module(module, (8, 6), opset=opset)


@pytest.mark.parametrize("opset", [18, 21])
def test_onnx_from_module_opset(module, opset):
    assert opset_of(onnx_from_module(module, (8, 6), opset=opset)) == opset


def test_onnx_from_module_refuses_too_large_graphs(module, monkeypatch):
    monkeypatch.setattr(export_module, "_MAX_WEIGHT_BYTES", 100)
    with pytest.raises(GraphError, match="The weights take"):
        onnx_from_module(module, (8, 6))
