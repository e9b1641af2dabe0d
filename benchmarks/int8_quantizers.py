"""The quantizers that ``int8.py`` compares: each makes a graph of one FP32 graph and photos."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from deploykit.bundle.folder import Bundle
from deploykit.commands.quantize.int8 import ON_AVX2, ON_CPU, Int8, calibrate
from deploykit.commands.quantize.strategy import Scheme
from deploykit.graph.files import load_graph, save_graph
from deploykit.graph.values import in_preprocessing
from deploykit.inference.candidates import Candidate, open_candidate
from deploykit.proof.answered import AnsweredImages
from deploykit.proof.extremes import answer_extremes
from deploykit.proof.images import ImageSample
from deploykit.runtime.opener import CPU, OPENVINO
from deploykit.specs.session import ImageBatch
from deploykit.system.progress import silent

NNCF_SCRIPT = """
import sys
import nncf, numpy, onnx
graph, photos, output, left_alone = sys.argv[1:]
model, photos = onnx.load(graph), numpy.load(photos)
(name,) = (each.name for each in model.graph.input)
dataset = nncf.Dataset(list(photos), lambda photo: {name: photo[None]})
scope = nncf.IgnoredScope(names=left_alone.split(","))
done = nncf.quantize(model, dataset, subset_size=len(photos), ignored_scope=scope)
onnx.save(done, output)
"""


class Source:
    """What a quantizer is given.

    Args:
        bundle: The bundle.
        sample: The photos to calibrate on.

    Attributes:
        graph: The FP32 graph's file. It takes pixels, (N, H, W, 3) uint8.
        photos: (N, H, W, 3) those to calibrate on.
    """

    def __init__(self, bundle: Bundle, sample: ImageSample) -> None:
        self.bundle = bundle
        self.graph = bundle.checked(bundle.deploy_graph("fp32"))
        self._sample = sample
        self._names, self.photos = drawn(sample)

    @cached_property
    def model(self) -> Any:
        """The FP32 graph."""
        return load_graph(self.graph)

    @cached_property
    def preprocessing_nodes(self) -> list[str]:
        """The names of the nodes that are no part of the network."""
        return [node.name for node in self.model.graph if in_preprocessing(node)]

    @cached_property
    def answered(self) -> AnsweredImages:
        """The photos with the answers of the FP32 graph, as deploykit wants them."""
        candidate = Candidate(self.bundle.deploy_graph("fp32"), CPU, "fp32")
        with open_candidate(self.bundle, candidate) as session:
            return AnsweredImages(
                [(self._names, self.photos)],
                session.run(self.photos),
                self._sample.drawn(),
                self._sample.digests,
                answer_extremes(session, silent),
                expected={},
                budget=None,
            )

    @cached_property
    def seen(self) -> Any:
        """The ranges and rounded weights by the photos, as deploykit wants them."""
        return calibrate(self.model, self.bundle, self.answered.batches, (8, 7), silent)


Quantizer: TypeAlias = Callable[[Source, Path], None]
"""Makes an INT8 graph, and writes it into a file."""


def drawn(sample: ImageSample) -> tuple[list[str], ImageBatch]:
    """All of a sample's names and photos, (N, H, W, 3)."""
    batches = [(names, images.copy()) for names, images in sample]
    return [name for names, _ in batches for name in names], np.concatenate([i for _, i in batches])


def quantizers(nncf_environment: Path) -> dict[str, Quantizer]:
    """All of them, by their names."""
    return {
        "deploykit for ONNX Runtime": by_deploykit(ON_CPU, CPU),
        "deploykit for OpenVINO": by_deploykit(ON_CPU, OPENVINO),
        "deploykit, 7-bit weights": by_deploykit(ON_AVX2, OPENVINO),
        "ONNX Runtime": by_onnxruntime(reduce_range=False),
        "ONNX Runtime, 7-bit weights": by_onnxruntime(reduce_range=True),
        "NNCF": by_nncf(nncf_environment),
    }


def by_deploykit(scheme: Scheme, runtime: str) -> Quantizer:
    """INT8 of deploykit with no node in FP32, as it is made for a runtime."""

    def quantize(source: Source, output: Path) -> None:
        arguments = (source.model, scheme, runtime, source.bundle, source.answered, silent)
        strategy = Int8(source.seen, *arguments)
        strategy.begin()  # it chooses how to calibrate
        manifest = source.bundle.manifest
        graph = strategy.converted(frozenset())
        save_graph(graph, output, labels=manifest.labels, preprocessing=manifest.preprocessing)

    return quantize


class Photos(CalibrationDataReader):  # type: ignore[misc]
    """Photos as ONNX Runtime's quantizer asks for them, one by one."""

    def __init__(self, source: Source) -> None:
        self._name = source.model.graph.inputs[0].name
        self._photos = iter(source.photos)

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        """The next photo."""
        photo = next(self._photos, None)
        return None if photo is None else {self._name: photo[None]}


def by_onnxruntime(*, reduce_range: bool) -> Quantizer:
    """ONNX Runtime's static quantizer, per channel, else with its defaults: QDQ, int8 tensors."""

    def quantize(source: Source, output: Path) -> None:
        logging.disable(logging.WARNING)  # it recommends a clean-up, which the graph has had
        quantize_static(
            source.graph,
            output,
            Photos(source),
            per_channel=True,
            reduce_range=reduce_range,
            nodes_to_exclude=source.preprocessing_nodes,
        )

    return quantize


def by_nncf(environment: Path) -> Quantizer:
    """The quantizer of NNCF with its defaults, in a process of its own."""

    def quantize(source: Source, output: Path) -> None:
        python, photos = nncf_python(environment), output.with_suffix(".npy")
        np.save(photos, source.photos)
        files = (source.graph, photos, output)
        run(python, "-c", NNCF_SCRIPT, *files, ",".join(source.preprocessing_nodes))

    return quantize


def nncf_python(environment: Path) -> str:
    """A Python that has NNCF: this one, or that of an environment that is made for it."""
    if find_spec("nncf"):
        return sys.executable
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    finished = environment / "installed"
    if not finished.exists():
        print(f"installing NNCF into {environment}", file=sys.stderr)
        venv.create(environment, with_pip=True)
        pinned = (f"onnx=={onnx.__version__}", f"onnxruntime=={ort.__version__}")
        run(python, "-m", "pip", "install", "--quiet", "nncf", *pinned)
        finished.touch()
    return str(python)


def run(*command: str | Path, **environment: str) -> str:
    """Run a process that must end well, and return its stdout."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command[:3]))} failed:\n{done.stderr[-2000:]}")
    return done.stdout
