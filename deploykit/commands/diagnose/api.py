"""``deploykit.diagnose``: which stage, or which node, moves the answer. From Python."""

from __future__ import annotations

from collections.abc import Mapping

from deploykit.commands.diagnose.layers.run import diagnose_layers, layer_candidates
from deploykit.commands.diagnose.request import DiagnosisRequest
from deploykit.commands.diagnose.stages.run import diagnose_stages, prepare_stages
from deploykit.commands.diagnose.text import Diagnosis, diagnosis_text
from deploykit.commands.python import BundleLike, PathLike, chosen_bundle, optional_path
from deploykit.errors import UsageError
from deploykit.proof.reference import ReferenceRequest
from deploykit.specs.model import Precision
from deploykit.system.progress import Progress, silent, without_repeats


def diagnose(
    bundle: BundleLike | None = None,
    *,
    stages: bool = True,
    layers: bool = True,
    images: PathLike | None = None,
    max_images: int | None = None,
    transform: str | None = None,
    trained_accuracy: float | None = None,
    expected: PathLike | None = None,
    runtime: str | None = None,
    precision: Precision | None = None,
    arch: str | None = None,
    ckpt: PathLike | None = None,
    arch_args: Mapping[str, object] | None = None,
    trust_pickle: bool = False,
    artifacts: PathLike | None = None,
    progress: Progress = silent,
) -> Diagnosis:
    """Find the stage that moves the answer, and the node that adds the error.

    The command does the same with ``deploykit verify`` and its switches of these names. A fault is
    a result, not an exception: see ``passed`` of what is returned.

    Args:
        bundle: What :func:`deploykit.export` returned, a bundle's name or its folder; None for the
            one there is, or the newest.
        stages: Whether to go from stage to stage; needs photos.
        layers: Whether to go from node to node.
        images: Photos; None for those of the export, and for the nodes else ``golden.npz``.
        max_images: At most so many, even over the classes.
        transform: Your own training transform, ``file.py:function``, to compare the recorded
            preprocessing with.
        trained_accuracy: The accuracy of the training on its test photos, 0..1. Below it, the usual
            mistakes are tried. None if unknown.
        expected: A table of the photos' classes, for the stages; None for what their folders tell.
        runtime: What executes; None for all that run here.
        precision: Of the graphs; None for all.
        arch: Compare with this architecture, your own code included.
        ckpt: Compare with this checkpoint; None for the recorded one.
        arch_args: Further arguments of the architecture; None for the recorded ones.
        trust_pickle: Let the checkpoint run the code in it; only for files you made yourself.
        artifacts: The home of bundles; None for ``artifacts``.
        progress: Called with what is being done.

    Raises:
        UsageError: An argument makes no sense, or there are no photos for the stages.
        BundleError: There is no such bundle, or a file of it is missing or damaged.
        InputError: The photos, the transform, or a checkpoint that was named cannot be used.
        MissingError: What was named needs a package or a device that is not here.
    """
    if not (stages or layers):
        raise UsageError("Neither stages nor layers are to be diagnosed.", hint="Ask for one.")
    if not stages and (transform, trained_accuracy, expected) != (None, None, None):
        raise UsageError(
            "transform, trained_accuracy and expected are for the diagnosis by stage.",
            hint="Set stages=True.",
        )
    chosen = chosen_bundle(bundle, artifacts, progress, packed=True)
    progress = without_repeats(progress)
    folder = optional_path(images)
    named = ReferenceRequest(arch, optional_path(ckpt), arch_args, trust_pickle)
    request = DiagnosisRequest(
        folder,
        max_images,
        transform,
        trained_accuracy,
        named,
        runtime,
        precision,
        optional_path(expected),
    )
    if layers:
        layer_candidates(chosen, runtime, precision, silent)  # or it would fail minutes later
    plan = prepare_stages(chosen, request, progress) if stages else None
    return Diagnosis(
        diagnose_stages(chosen, request, progress, plan) if stages else None,
        diagnose_layers(chosen, request, progress) if layers else None,
    )


def shown_text(found: Diagnosis) -> str:
    """A block of lines for the stages, and one for each graph."""
    return "\n\n".join(diagnosis_text(found))
