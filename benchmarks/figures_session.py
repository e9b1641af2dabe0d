"""One way to compute a batch, in a process of its own: a turn for each line on stdin.

    python benchmarks/figures_session.py WAY BUNDLE BATCH

``figures.py`` starts it. It writes ``ready``, and after each turn the mean seconds of a run: a
batch of uint8 images in memory to logits in memory, normalisation included, with all cores.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle, open_bundle
from deploykit.errors import BundleError, MissingError
from deploykit.inference.candidates import Candidate, open_candidate
from deploykit.proof.reference import ReferenceRequest, module_reason, module_reference
from deploykit.runtime._base import normalised
from deploykit.runtime.opener import graph_precision
from deploykit.specs.model import Precision
from deploykit.specs.session import ImageBatch
from deploykit.system.deps import need

OURS: dict[str, tuple[str, Precision]] = {
    "deploykit onnxruntime-cpu fp32": ("onnxruntime-cpu", "fp32"),
    "deploykit openvino fp32": ("openvino", "fp32"),
    "deploykit openvino bf16": ("openvino", "bf16"),
    "deploykit onnxruntime-cpu int8": ("onnxruntime-cpu", "int8"),
    "deploykit openvino int8": ("openvino", "int8"),
}
TORCH, PLAIN_ORT, PLAIN_OPENVINO = "torch eager", "plain ONNX Runtime", "plain OpenVINO"
#: Each turn takes as long as the clock needs to be sure.
TURN_SECONDS = 0.5


def opened(way: str, bundle: Bundle) -> Callable[[ImageBatch], object]:
    """Open what computes; it imports nothing that another way needs."""
    preprocessing = bundle.manifest.preprocessing
    graph = str(bundle.folder / CANONICAL_GRAPH)
    if way == TORCH:
        import torch

        if reason := module_reason(bundle):
            raise MissingError(reason)
        reference: Any = module_reference(bundle, ReferenceRequest()).session  # torch's
        module = reference.module.eval()

        def eager(images: ImageBatch) -> object:
            with torch.inference_mode():
                return module(torch.from_numpy(normalised(images, preprocessing)))

        return eager
    if way == PLAIN_ORT:
        import onnxruntime as ort

        session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"input": normalised(images, preprocessing)})
    if way == PLAIN_OPENVINO:
        compiled = need("openvino").compile_model(graph, "CPU")
        return lambda images: compiled(normalised(images, preprocessing))
    runtime, precision = OURS[way]
    graph = bundle.deploy_graph(graph_precision(precision))
    return open_candidate(bundle, Candidate(graph, runtime, precision)).run


def main() -> None:
    """Take turns; the first run of all is a warm-up."""
    way, folder, batch = sys.argv[1:]
    bundle = open_bundle(Path(folder))
    size = bundle.manifest.preprocessing.input_size
    images = np.random.default_rng(0).integers(0, 256, (int(batch), *size, 3), np.uint8)
    try:
        run = opened(way, bundle)
    except (MissingError, BundleError) as exc:
        raise SystemExit(exc.message) from exc
    run(images)
    print("ready", flush=True)
    for _ in sys.stdin:
        start, runs = time.perf_counter(), 0
        while time.perf_counter() - start < TURN_SECONDS:
            run(images)
            runs += 1
        print((time.perf_counter() - start) / runs, flush=True)


if __name__ == "__main__":
    main()
