"""Diagnoses by stage and by layer, made by hand."""

import numpy as np

from deploykit.parity.diagnosis import Finding, LayerError, LayerReport, StageReport, StageStep
from deploykit.parity.measures import measure
from deploykit.parity.tolerance import tolerance_for
from deploykit.specs.model import Labels
from deploykit.specs.session import SessionSpec

#: The function that makes each diagnosis, for a test to put another in its place.
JOBS = {
    "stages": "deploykit.commands.verify.diagnosis.diagnose_stages",
    "layers": "deploykit.commands.verify.diagnosis.diagnose_layers",
}
TOLERANCE = tolerance_for("fp32")
SPEC = SessionSpec(
    runtime="rehearsal",
    graph="deploy/fp16.onnx",
    precision="fp16",
    device="CPU",
    input_size=(8, 8),
    classes=2,
)
FINDING = Finding(stage="normalise", message="training used std 0.5", hint="--std 0.5,0.5,0.5")


def step(stage, change, error=0.0):
    reference = np.array([[4, 0], [0, 4]], np.float32)
    found = measure(
        reference,
        reference + np.float32([error, 0]),
        precision="fp32",
        paths=["0.jpg", "1.jpg"],
        labels=Labels(names=("dark", "bright"), source="test"),
        batch_sizes=[2],
    )
    return StageStep(
        stage=stage,
        change=change,
        added=found,
        reasons=TOLERANCE.reasons(found),
    )


def stages(*steps, findings=(), variations=()):
    return StageReport(
        beginning="train.py:transform and the checkpoint",
        steps=steps,
        findings=findings,
        variations=variations,
    )


def layer(node, added=0.0, **fields):
    values = {
        "node": node,
        "operator": "Conv",
        "module": "features.0",
        "tensor": f"{node}_out",
        "added": added,
        "carried": 2 * added,
        "non_finite": 0,
    }
    return LayerError(**{**values, **fields})


def layers(first=None, ranking=(), nodes=3, **fields):
    return LayerReport(
        candidate=SPEC,
        reference="deploy/fp32.onnx",
        images=4,
        tolerance=2e-3,
        first=first,
        ranking=ranking,
        nodes=nodes,
        **fields,
    )


GOOD_STAGES = stages(step("decode", "Pillow"), step("runtime", "onnxruntime-cpu"))
BAD_STAGES = stages(
    step("decode", "Pillow"),
    step("normalise", "std 0.25 instead of 0.5", 0.5),
    step("runtime", "onnxruntime-cpu"),
    findings=(FINDING,),
)
GOOD_LAYERS = layers(ranking=(layer("node_1", 1e-3),))
BAD_LAYERS = layers(first=layer("node_2", 0.1), ranking=(layer("node_2", 0.1),))
