"""What the rows of a run follow from, without a run."""

from deploykit.commands.predict.provenance import Fingerprint

FINGERPRINT = Fingerprint(
    file="deploy/fp32.onnx",
    sha256="ab" * 32,
    runtime="onnxruntime-cpu",
    device="CPU",
    precision="fp32",
    tf32=False,
    labels=("crow", "owl"),
    preprocessing="resize 224x224 (stretch)",
    top_k=2,
    source="/photos",
    versions={"pillow": "13.0.0"},
)
