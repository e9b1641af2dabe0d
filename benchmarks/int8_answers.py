"""Compute with a folder's INT8 graphs, in a process of its own; for ``int8.py``.

    python benchmarks/int8_answers.py FOLDER BATCH ROUNDS

FOLDER has ``photos.npy``, (N, H, W, 3) uint8, and graphs ``NAME.onnx``. Each graph runs on ONNX
Runtime and on OpenVINO, with the options of their documentation, and OpenVINO's remainder in FP32
and not in BF16. The graphs take turns. ``NAME.RUNTIME.npy`` gets the answers, (N, K); stdout a JSON
object with the images/s of each, the median of the rounds. A graph that a runtime does not open is
left out: OpenVINO 2026.4 ends the process that compiles a DenseNet of ONNX Runtime's quantizer. Of
a DPN it may also compute with wrong weights, whoever quantized it: half of the answers are others
then. deploykit's own session tells that, and compiles again.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import openvino as ov

from deploykit.runtime._onnxruntime import DISABLED_OPTIMIZERS
from deploykit.specs.session import ImageBatch, Logits
from deploykit.system.threads import usable_cpus

#: What the names of graphs begin with that deploykit made.
OURS = ("FP32", "deploykit")
RUNTIMES = ("onnxruntime", "openvino")
Run = Callable[[ImageBatch], Logits]
CORES: list[ov.Core] = []  # kept, as deploykit's sessions keep theirs


def on_onnxruntime(graph: Path) -> Run:
    """Open it on ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cpus()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        graph,
        options,
        providers=["CPUExecutionProvider"],
        # deploykit's own sessions go without those that change answers.
        disabled_optimizers=DISABLED_OPTIMIZERS if graph.stem.startswith(OURS) else None,
    )
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def on_openvino(graph: Path) -> Run:
    """Open it on OpenVINO, a stream for each core."""
    CORES.append(core := ov.Core())
    model = core.read_model(graph)
    model.reshape([1, *model.input().partial_shape[1:]])
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT"}
    compiled = core.compile_model(model, "CPU", {**hints, "NUM_STREAMS": usable_cpus()})
    requests = ov.AsyncInferQueue(compiled)
    classes = compiled.output().shape[1]

    def run(images: ImageBatch) -> Logits:
        answers = np.empty((len(images), classes), np.float32)

        def keep(request: ov.InferRequest, index: int) -> None:
            answers[index] = request.get_output_tensor().data[0]

        requests.set_callback(keep)
        for index, image in enumerate(images):
            requests.start_async({0: image[None]}, index)
        requests.wait_all()
        return answers

    return run


OPENED: dict[str, Callable[[Path], Run]] = dict(
    zip(RUNTIMES, (on_onnxruntime, on_openvino), strict=True)
)


def opens(runtime: str, graph: Path) -> bool:
    """Whether a runtime opens a graph of others, asked of a process that may end with it."""
    if graph.stem.startswith(OURS):
        return True
    command = [sys.executable, __file__, runtime, str(graph)]
    return subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0


def main() -> None:
    """Answer the photos with each graph, then let the graphs take turns."""
    if sys.argv[1] in OPENED:
        OPENED[sys.argv[1]](Path(sys.argv[2]))
        return
    folder, batch, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    photos = np.load(folder / "photos.npy")
    rates = {}
    for runtime, opened in OPENED.items():
        graphs = (path for path in sorted(folder.glob("*.onnx")) if opens(runtime, path))
        runs = {path.stem: opened(path) for path in graphs}
        for name, run in runs.items():
            pieces = [run(photos[i : i + batch]) for i in range(0, len(photos), batch)]
            np.save(folder / f"{name}.{runtime}.npy", np.concatenate(pieces))
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run(photos[:batch])
                taken[name].append(time.perf_counter() - start)
        for name, seconds in taken.items():
            rates[f"{name}.{runtime}"] = min(batch, len(photos)) / statistics.median(seconds)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
