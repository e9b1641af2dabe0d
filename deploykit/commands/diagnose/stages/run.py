"""The diagnosis by stage: which step from an image's file to the answer moved the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from deploykit.bundle.folder import Bundle
from deploykit.commands.diagnose.request import DiagnosisRequest
from deploykit.commands.diagnose.stages.accuracy import check_answers
from deploykit.commands.diagnose.stages.graphs import (
    add_candidates,
    add_fp32_steps,
    wanted_candidates,
)
from deploykit.commands.diagnose.stages.images import draw_images, list_images
from deploykit.commands.diagnose.stages.preprocessing import answer_ways, ways_from_training
from deploykit.commands.diagnose.stages.table import StageTable
from deploykit.commands.diagnose.stages.transform import load_transform, probe_transform
from deploykit.errors import UsageError
from deploykit.images.scan import Scan
from deploykit.inference.candidates import Candidate
from deploykit.parity.diagnosis import StageReport
from deploykit.proof.reference import OpenReference, open_reference
from deploykit.specs.session import NormalisedSession
from deploykit.system.progress import Note, Progress, silent

if TYPE_CHECKING:
    from deploykit.models.transforms import Transform

#: The last change before the network: from here on the bundle's own code does it all.
_OWN_NORMALISATION = "normalised by deploykit"


@dataclass(frozen=True)
class StagesPlan:
    """What the diagnosis needs, found and checked before anything takes long.

    Attributes:
        folder: The listed images.
        classes: Those of the folder; empty where it is not labelled.
        known: The right classes of images, by their names.
        transform: What training does to an image; None where there is nothing to compare with.
        candidates: The precisions and runtimes to compare.
    """

    folder: Scan
    classes: tuple[str, ...]
    known: Mapping[str, tuple[str, ...]]
    transform: Transform | None
    candidates: Sequence[Candidate]


def prepare_stages(
    bundle: Bundle, request: DiagnosisRequest, progress: Progress = silent
) -> StagesPlan:
    """Find the images, and load and probe the transform, so that an error shows within seconds.

    Args:
        bundle: The bundle.
        request: What to compare. ``first`` need not be known yet.
        progress: Told which images are taken, and what is skipped.

    Raises:
        UsageError: There are no images, no such transform, runtime or precision, or an accuracy
            that makes no sense.
        ImagesError: There is no image file.
        InputError: The transform is random, fails, or gives what is no network input, or images of
            another size than the bundle takes.
        BundleError: The bundle has nothing of the named runtime and precision.
        MissingError: The transform needs a package that is not here.
    """
    trained = request.trained_accuracy
    if trained is not None and not 0 <= trained <= 1:
        raise UsageError(
            f"An accuracy is a number between 0 and 1, not {trained:g}.",
            hint="Give it as a part of 1: --trained-accuracy 0.97 for 97 %.",
        )
    preprocessing = bundle.manifest.preprocessing
    candidates = wanted_candidates(bundle, request.runtime, request.precision, progress)
    folder, classes, known = list_images(bundle, request.images, progress, request.expected)
    if trained is not None and not classes:
        raise UsageError(
            f"The photos of {folder.path} are in no folder that is named after a class, so "
            "that an accuracy says nothing about them.",
            hint="Name a folder with a sub-folder a class, or a table of the photos' classes "
            "(--expected FILE), or leave out --trained-accuracy.",
        )
    transform = load_transform(preprocessing, request.transform, progress)
    if transform is not None:
        probe_transform(transform, folder.files, preprocessing.input_size)
    return StagesPlan(folder, classes, known, transform, candidates)


def diagnose_stages(
    bundle: Bundle,
    request: DiagnosisRequest,
    progress: Progress = silent,
    plan: StagesPlan | None = None,
    *,
    reference: OpenReference | None = None,
) -> StageReport:
    """Go from training to what is deployed, one change at a time on the same images.

    Each step is measured against the one before. A lower precision is a step from the FP32 deploy
    graph, a runtime from its precision on the CPU, and a batch size from the same graph one by one.
    Where the images are labelled, the order of the labels is checked; where their accuracy is below
    training's and nothing found so far explains it, the usual changes to the preprocessing are
    tried.

    Args:
        bundle: The bundle.
        request: What to compare, and on what.
        progress: Told of each step.
        plan: What :func:`prepare_stages` found for this request; None to prepare now.
        reference: What ``request.reference`` names, open already; it stays open. None to open it
            where it is needed.

    Raises:
        UsageError: A reference makes no sense for this bundle; or see :func:`prepare_stages`.
        ImagesError: Not one image can be read.
        InputError: The transform is random, fails, or gives what is no network input.
        BundleError: A file of the bundle is missing or damaged.
        MissingError: What was named needs a package that is not here.
    """
    plan = plan or prepare_stages(bundle, request, progress)
    manifest = bundle.manifest
    preprocessing = manifest.preprocessing
    images = draw_images(
        plan.folder,
        plan.classes,
        preprocessing,
        request.max_images,
        progress,
        request.first,
        plan.known,
        request.expected,
    )
    ways, findings = ways_from_training(preprocessing, plan.transform, images, progress)
    with ExitStack() as stack:
        if reference is None:
            reference = open_reference(bundle, request.reference, progress)
            stack.enter_context(reference.session)
        if reference.reason is not None:
            progress(Note(reference.reason))
        # A module and a canonical graph take normalised images; the deploy graphs do not.
        network = cast("NormalisedSession", reference.session)
        answers = answer_ways(ways, images, network, progress)
        table = StageTable(
            images,
            answers[0],
            network=reference.description,
            labels=manifest.labels,
            progress=progress,
        )
        table.findings += findings
        for way, before, after in zip(ways[1:], answers, answers[1:], strict=False):
            step = table.add(way.stage, way.change, after, since=before)
            if way.fault is not None and step.reasons:
                table.findings.append(way.fault)
        recorded = table.ask(network, _OWN_NORMALISATION)
        table.add("normalise", _OWN_NORMALISATION, recorded, since=answers[-1])
    deployed = add_fp32_steps(table, bundle, recorded, is_reference=reference.kind == "graph")
    add_candidates(table, bundle, plan.candidates, deployed)
    report = StageReport(
        beginning=f"{ways[0].change}, then {reference.description}",
        steps=tuple(table.steps),
        findings=tuple(table.findings),
        trained_accuracy=request.trained_accuracy,
    )
    if plan.classes and all(name is None for name in images.truth):
        progress(
            Note(
                "labels and accuracy are not checked: every photo was picked for its answers, "
                "which says nothing about how often a model is right; --max-images takes more"
            )
        )
    return check_answers(
        bundle, images, report, answers[0], deployed, progress, compared=request.right
    )
