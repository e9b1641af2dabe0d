"""What an export is asked for, and the model it is about: settled before the long work starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec

from deploykit.bundle.checkpoint_files import checkpoint_files, checkpoint_sha256
from deploykit.bundle.folder import default_artifacts
from deploykit.bundle.manifest import GoldenChoice
from deploykit.commands.export.heads import choose_head, with_head
from deploykit.errors import CheckpointError, UsageError
from deploykit.images.labels import choose_labels, classes_folder
from deploykit.specs.heads import HeadName
from deploykit.specs.model import Labels
from deploykit.specs.preprocessing import Preprocessing, Size
from deploykit.specs.preprocessing_options import PreprocessingOptions, choose_preprocessing
from deploykit.system.progress import Note, Progress

if TYPE_CHECKING:
    from deploykit.models.loading import LoadedModel
    from deploykit.models.registry import Architecture

GOLDEN_CHOICES: tuple[GoldenChoice, ...] = get_args(GoldenChoice)


@dataclass(frozen=True)
class ExportRequest:
    """The arguments of :func:`deploykit.export`.

    Attributes:
        classes: See :func:`deploykit.images.labels.choose_labels`.
        number_duplicates: See there.
        head: What the user says that the answers mean; None where nothing was said.
        threshold: Above which a class is decided for, where each is decided for by itself; None for
            0.5.
        thresholds: The same for single classes, by their names.
        embeddings: Whether to make the graph that gives embeddings.
        tap: Which tensor they are, see :func:`deploykit.graph.embeddings.find_tap`.
    """

    arch: str
    checkpoint: Path
    arch_args: Mapping[str, object] = field(default_factory=dict)
    classes: str | None = None
    number_duplicates: bool = False
    preprocessing: PreprocessingOptions = field(default_factory=PreprocessingOptions)
    images: Path | None = None
    golden: GoldenChoice = "photos"
    opset: int | None = None
    name: str | None = None
    artifacts: Path = field(default_factory=default_artifacts)
    overwrite: bool = False
    weights: str | None = None
    trust_pickle: bool = False
    diagnose: bool = True
    head: HeadName | None = None
    threshold: float | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    embeddings: bool = False
    tap: str | None = None

    def __post_init__(self) -> None:
        if self.tap is not None and not self.tap.strip():
            raise UsageError(
                "--tap is empty, which names no tensor.",
                hint="Name a module of the network, --tap layer4; or leave it out for what the "
                "last layer takes.",
            )
        if self.tap is not None and not self.embeddings:
            raise UsageError(
                f"--tap {self.tap} chooses what embeddings are, and none were asked for.",
                hint="Add --embeddings.",
            )

    @property
    def images_folder(self) -> Path | None:
        """The folder of photos that the user gave, with --images or with --classes."""
        return self.images or classes_folder(self.classes)


@dataclass(frozen=True)
class Subject:
    """All that is known of the model before it is exported.

    Attributes:
        architecture: What makes the network.
        model: The module with its weights.
        checkpoint_sha256: Of the file that they were read from.
        labels: The classes' names, and the head.
        preprocessing: From a decoded photo to the network's input.
        within_unit: Whether all answers for made images lie within 0 and 1.
    """

    architecture: Architecture
    model: LoadedModel
    checkpoint_sha256: str
    labels: Labels
    preprocessing: Preprocessing
    within_unit: bool


def default_name(arch: str) -> str:
    """``timm/dpn92`` => ``timm-dpn92``; ``models/net.py:Net`` => ``Net``."""
    if ":" in arch:
        return arch.rpartition(":")[2]
    return arch.removeprefix("torchvision/").replace("/", "-")


def load_subject(request: ExportRequest, progress: Progress) -> Subject:
    """Make the module, and settle what the answers mean and what the images need."""
    from deploykit.models.probe import check_answers
    from deploykit.models.registry import resolve_architecture, timm_preprocessing

    try:
        msgspec.json.encode(dict(request.arch_args))  # the manifest keeps them
    except (TypeError, ValueError) as exc:
        raise UsageError(
            f"The architecture's arguments {dict(request.arch_args)} are no plain values: {exc}.",
            hint="Numbers, texts, lists and true or false can be recorded in the bundle.",
        ) from exc
    architecture = resolve_architecture(request.arch, allow_user_code=True)
    preprocessing = choose_preprocessing(
        request.preprocessing,
        default=architecture.preprocessing,
        timm=lambda: timm_preprocessing(architecture),
    )
    model, sha256 = _read_checkpoint(architecture, request, preprocessing.input_size)
    if model.takes_grey:
        preprocessing = _of_one_channel(preprocessing)
        progress(
            Note(
                "the network takes one channel: images are made grey before they are resized, as "
                "transforms.Grayscale() does"
            )
        )
    for note in model.notes:
        progress(Note(note))
    head = choose_head(
        request.head,
        activation=model.activation,
        logits=model.num_classes,
        said=model.head,
        progress=progress,
    )
    labels = choose_labels(
        request.classes,
        request.checkpoint,
        2 if head == "binary" else model.num_classes,
        number_duplicates=request.number_duplicates,
        binary=head == "binary",
    )
    labels = with_head(labels, head, request.threshold, request.thresholds)
    if labels.source == "assumed":
        progress(Note(f"class names assumed: {labels.names[0]} ...; --classes gives the real ones"))
    if request.preprocessing.preset is None and architecture.preprocessing is None:
        progress(
            Note(f"preprocessing assumed ({preprocessing.source}): {preprocessing.describe()}")
        )
    within_unit = check_answers(model.module, preprocessing.input_size, model.num_classes, progress)
    if model.activation:
        within_unit = False  # what is left are logits
    return Subject(architecture, model, sha256, labels, preprocessing, within_unit)


def _of_one_channel(preprocessing: Preprocessing) -> Preprocessing:
    """The same, with grey images.

    Raises:
        UsageError: Its channels are normalised differently, and the network takes one.
    """
    mean, std = preprocessing.mean, preprocessing.std
    if len({*mean}) > 1 or len({*std}) > 1:
        raise UsageError(
            "The network takes one channel, which training normalised with one mean and one std; "
            f"{preprocessing.source} has those of three, {mean} and {std}.",
            hint="Give training's: --mean 0.1307 --std 0.3081, as MNIST's, --mean 0.5 --std 0.5, "
            "or, where it had no Normalize, --mean 0 --std 1",
        )
    return msgspec.structs.replace(preprocessing, grayscale=True)


def _read_checkpoint(
    architecture: Architecture, request: ExportRequest, input_size: Size
) -> tuple[LoadedModel, str]:
    """Load the weights, with the hash of the very file that they came from."""
    from deploykit.models.loading import load_model

    path = request.checkpoint

    def identity() -> tuple[tuple[int, int, int], ...] | None:
        """What changes when one of its files is written or replaced; None when one is not there."""
        try:
            found = [file.stat() for file in checkpoint_files(path)]
        except OSError:
            return None
        return tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in found)

    before = identity()
    model = load_model(
        architecture,
        path,
        input_size,
        arch_args=request.arch_args,
        weights=request.weights,
        trust_pickle=request.trust_pickle,
    )
    sha256 = checkpoint_sha256(path)
    if identity() != before:
        raise CheckpointError(
            f"{path} changed while it was read.", hint="Export again when the training is done."
        )
    return model, sha256
