"""Walk over the canonical graph against the torch module that it was exported from."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deploykit.bundle.folder import Bundle
from deploykit.commands.diagnose.layers.pieces import Subject
from deploykit.commands.diagnose.layers.report import graph_report, layer_report
from deploykit.commands.diagnose.layers.walk import walk_tensors
from deploykit.errors import GraphError
from deploykit.parity.diagnosis import LayerReport
from deploykit.specs.session import ImageBatch
from deploykit.system.progress import Note, Progress, Step

if TYPE_CHECKING:
    from deploykit.runtime._torch_layers import ModuleProbe


def walk_canonical(
    bundle: Bundle,
    subject: Subject,
    module: ModuleProbe,
    description: str,
    images: ImageBatch,
    progress: Progress,
) -> LayerReport:
    """Find where the canonical graph leaves its module.

    The outputs of its modules show whether it does, together with the weights, of which one among
    millions shows in no output. Where something is off, the module is exported once more: against
    a fresh graph it shows node by node. That may take a minute.

    Args:
        bundle: The bundle.
        subject: Its canonical graph, which takes bytes here.
        module: The module.
        description: What reports call the module.
        images: (N, H, W, 3) uint8.
        progress: Called with what is being done.
    """
    from deploykit.graph.modules import holds_weights_of

    progress(Step("walking over the modules"))
    report = _against_modules(subject, module, description, images)
    if report.passed and holds_weights_of(subject.graph, module.weights()):
        return report
    progress(Step("exporting again"))
    by_node = _against_export(bundle, subject, module, description, images, progress)
    return report if by_node is None or by_node.passed else by_node


def _against_export(
    bundle: Bundle,
    subject: Subject,
    module: ModuleProbe,
    description: str,
    images: ImageBatch,
    progress: Progress,
) -> LayerReport | None:
    """Walk against a fresh export; None where its nodes may have other names."""
    from deploykit.graph import passes
    from deploykit.graph.export import onnx_from_module
    from deploykit.graph.preprocessing import fuse_preprocessing

    manifest = bundle.manifest
    exported, here = manifest.versions.get("torch"), version("torch")
    if exported != here:
        progress(
            Note(
                f"torch {exported} exported {subject.spec.graph} and {here} is here, which may "
                "name its nodes otherwise: it is compared by modules only"
            )
        )
        return None
    preprocessing = manifest.preprocessing
    try:
        fresh = onnx_from_module(module.module, preprocessing.input_size, opset=manifest.opset)
    except GraphError as exc:
        progress(Note(f"compared by modules only: {exc.message}"))
        return None
    reference = passes.apply(fresh, [fuse_preprocessing(preprocessing)])
    return graph_report(subject, reference, f"{description}, exported again", images)


def _against_modules(
    subject: Subject, module: ModuleProbe, description: str, images: ImageBatch
) -> LayerReport:
    from deploykit.graph.modules import module_tensors

    numbers = module_tensors(subject.graph, module.run(images[:1]))

    def outputs(image: ImageBatch) -> dict[str, npt.NDArray[np.float32]]:
        calls = module.run(image)
        return {tensor: calls[number].output for tensor, number in numbers.items()}

    order = [value.name or "" for node in subject.graph.graph for value in node.outputs]
    names = [name for name in order if name in numbers]
    walked = walk_tensors(subject, names, images, outputs)
    return layer_report(subject, f"{description}, module by module", len(images), walked)
