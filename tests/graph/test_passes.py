import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from deploykit.errors import GraphError
from deploykit.graph.deploy import fuse_preprocessing
from deploykit.graph.passes import (
    CLEAN_UP,
    MODULE_PATH,
    apply,
    drop_other_metadata,
    keep_module_paths,
)
from deploykit.specs.preprocessing import Preprocessing

SCOPES = "pkg.torch.onnx.name_scopes"
CONVOLUTION = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[N, 3, 4, 5] input) => (float[N, 2, 4, 5] logits) {
    hidden = Conv(input, features.0.weight)
    logits = Relu(hidden)
}
"""
PREPROCESSING = Preprocessing(resize=(4, 5), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture
def model():
    """A Conv with a weight and a Relu, with the metadata of torch's exporter."""
    model = ir.from_onnx_text(
        CONVOLUTION.replace("net (", "net (").replace("(input, features.0.weight)", "(input, w)")
        .replace("=> (float[N, 2, 4, 5] logits) {",
                 "=> (float[N, 2, 4, 5] logits) <float[2, 3, 1, 1] w = {1, 2, 3, 4, 5, 6}> {")
    )  # fmt: skip
    weight = model.graph.initializers["w"]
    weight.name = "features.0.weight"
    conv, relu = model.graph
    conv.metadata_props.update({SCOPES: "['', 'features', 'features.1', 'batch_norm']"})
    relu.metadata_props.update({SCOPES: "['', 'features', 'features.2', 'relu']"})
    conv.metadata_props["pkg.torch.onnx.stack_trace"] = 'File "/home/me/secret.py", line 3'
    model.metadata_props["pkg.torch"] = "x"
    model.graph.metadata_props["pkg.torch"] = "x"
    model.graph.inputs[0].metadata_props["pkg.torch"] = "x"
    conv.outputs[0].metadata_props["pkg.torch"] = "x"
    conv.doc_string = "x"
    return model


def run(model, **feed):
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)[0]


def test_keep_module_paths_of_nodes(model):
    model, changed = keep_module_paths(model)
    assert changed
    conv, relu = model.graph
    # The weight's owner, not the BatchNorm that was folded into it.
    assert dict(conv.metadata_props) == {MODULE_PATH: "features.0"}
    assert dict(relu.metadata_props) == {MODULE_PATH: "features.2"}


def test_clean_up_removes_other_metadata(model):
    text = repr(ir.to_proto(apply(model, CLEAN_UP)))
    assert "pkg.torch" not in text
    assert "secret" not in text
    assert "doc_string" not in text


@pytest.mark.parametrize(
    "step", [keep_module_paths, drop_other_metadata, fuse_preprocessing(PREPROCESSING)]
)
def test_passes_twice_change_nothing(model, step):
    model, changed = step(model)
    assert changed
    once = ir.to_proto(model).SerializeToString()
    model, changed = step(model)
    assert not changed
    assert ir.to_proto(model).SerializeToString() == once


def test_clean_up_keeps_the_numbers(model):
    images = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    before = run(model, input=images)
    assert np.array_equal(run(apply(model, CLEAN_UP), input=images), before)


@pytest.mark.parametrize("batch", [1, 3])
def test_fuse_preprocessing_normalises_as_torchvision(model, batch):
    images = np.random.default_rng(0).integers(0, 256, (batch, 4, 5, 3), dtype=np.uint8)
    mean, std = (np.array(v, np.float32) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    normalised = ((images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    expected = run(model, input=normalised)
    deploy = apply(model, [fuse_preprocessing(PREPROCESSING)])
    found = run(deploy, images=images)
    assert found.shape == (batch, 2, 4, 5)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def test_fuse_preprocessing_casts_before_transpose(model):
    """TensorRT does not transpose uint8."""
    deploy = apply(model, [fuse_preprocessing(PREPROCESSING)])
    assert [node.op_type for node in deploy.graph][:4] == ["Cast", "Transpose", "Mul", "Add"]
    (images,) = deploy.graph.inputs
    assert (images.name, str(images.shape), images.dtype) == (
        "images",
        "[N,4,5,3]",
        ir.DataType.UINT8,
    )


def test_fuse_preprocessing_refuses_graphs_without_images():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]>'
        "net (float[N, 8] input) => (float[N, 8] logits) { logits = Relu(input) }"
    )
    with pytest.raises(GraphError, match=r"not \[N, 3, H, W\]"):
        fuse_preprocessing(PREPROCESSING)(model)
