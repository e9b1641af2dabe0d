"""A proof, as if 225 photos had been compared."""

from deploykit.bundle.verdicts import ImageSet, KeptVerdict
from deploykit.parity.measurement import Measurement
from deploykit.parity.tolerance import Tolerance

PROOF = KeptVerdict(
    graph="deploy/fp32.onnx",
    graph_sha256="0" * 64,
    runtime="onnxruntime-cpu",
    device="CPU",
    precision="fp32",
    kind="executed",
    reference="torch module from the checkpoint",
    reference_kind="module",
    images=ImageSet(kind="photos", source="bird_photos", count=225, sha256="0" * 64),
    measurement=Measurement(
        images=225,
        batch_sizes=(1, 8),
        scale=10.0,
        max_abs_error=1e-5,
        flips=0,
        undecidable=0,
        flipped=(),
        max_probability_change=2e-6,
        p99_probability_change=1e-7,
        non_finite=0,
        flip_rate_bound=0.01323,
        classes=3,
        spread=0.9,
    ),
    tolerance=Tolerance(max_flip_rate=0.0),
    created="2026-11-22T03:11:26+00:00",
    versions={},
    among=225,
)
