"""Probabilities as a graph's second output."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from deploykit.graph.probabilities import with_probabilities
from deploykit.specs.heads import head_of
from deploykit.specs.model import Labels

GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[N, {logits}] images) => (float[N, {logits}] logits)
{{ probabilities = Neg(images)
   logits = Mul(probabilities, images) }}
"""


@pytest.mark.parametrize(
    ("name", "classes", "logits"),
    [("single-label", 5, 5), ("multi-label", 5, 5), ("multi-label", 1, 1), ("binary", 2, 1)],
)
def test_with_probabilities_gives_the_head_s(name, classes, logits):
    names = tuple(f"class {i}" for i in range(classes))
    labels = Labels(names=names, source="made", head=head_of(name, [0.5] * classes))
    proto = onnx.parser.parse_model(GRAPH.format(logits=logits))
    model = with_probabilities(ir.from_proto(proto), labels)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    images = np.random.default_rng(0).normal(0, 3, (7, logits)).astype(np.float32)
    found, probabilities = session.run(["logits", "probabilities"], {"images": images})
    assert np.array_equal(found, -images * images)
    assert probabilities.shape == (7, classes)
    assert np.allclose(probabilities, labels.head.probabilities(found), rtol=0, atol=1e-6)
