"""What a run of the suite is about: a bundle, its candidates, and images with their answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle, default_artifacts, find_bundle
from deploykit.bundle.verdicts import PhotoSet, ReferenceKind
from deploykit.errors import MissingError, UsageError
from deploykit.images.scan import scan_images
from deploykit.inference.candidates import Candidate, named_candidates
from deploykit.inference.engines import engines_left_out
from deploykit.parity.compare import OPT_BATCH_SIZE
from deploykit.proof.photos import Photos, bundle_photos
from deploykit.proof.reference import ReferenceRequest, open_reference
from deploykit.runtime.opener import CPU
from deploykit.specs.precision import PRECISIONS, Precision
from deploykit.specs.session import ImageBatch, Logits, Session
from deploykit.specs.value import choice
from deploykit.system.progress import Note, Step

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True)
class Subject:
    """What the command line asks to be tested.

    Attributes:
        bundle: The bundle; no test changes it.
        candidates: What is to be compared, whether it can run here or not.
        folder: The photos' folder; None for the one given at export, else the golden images.
        max_images: At most so many of them; None for all.
        reference: What the user named to compare with.
        transform: The training's own transform, ``file.py:name``.
        runtime: The only one that is meant; None for all.
        precision: The same.
    """

    bundle: Bundle
    candidates: tuple[Candidate, ...]
    folder: Path | None
    max_images: int | None
    reference: ReferenceRequest
    transform: str | None
    runtime: str | None
    precision: Precision | None

    @property
    def files(self) -> list[str]:
        """The bundle's files, but for engines that a copy was made without."""
        left_out = engines_left_out(self.bundle)
        return [file for file in self.bundle.manifest.files if file not in left_out]

    @property
    def engines(self) -> list[str]:
        """The engines that this copy of the bundle has, whole or not."""
        left_out = engines_left_out(self.bundle)
        return [engine for engine in self.bundle.manifest.engines if engine not in left_out]


@dataclass(frozen=True, eq=False)
class Images:
    """The images that every candidate and the reference answer, all of them in memory.

    Attributes:
        names: One an image.
        pixels: (N, H, W, 3) uint8 RGB, preprocessed but for the normalisation.
        described: What reports say of them.
        unreadable: How many more could not be read.
        expected: The labels of those whose folder names one, by the image's name.
    """

    names: tuple[str, ...]
    pixels: ImageBatch
    described: PhotoSet
    unreadable: int
    expected: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class ReferenceAnswers:
    """What the reference answered.

    Attributes:
        logits: (N, K) float32.
        kind: What answered.
        description: What reports call it.
        objection: Why nothing can be proven by it; None when it can.
    """

    logits: Logits
    kind: ReferenceKind
    description: str
    objection: str | None


@dataclass
class Notes:
    """Gathers the notes of a job that a test waits for."""

    lines: list[str] = field(default_factory=list)

    def __call__(self, event: Step | Note) -> None:
        if isinstance(event, Note):
            self.lines.append(event.message)


def read_subject(config: pytest.Config) -> Subject:
    """Read the suite's options.

    Raises:
        UsageError: There is no ``--deploykit-bundle``, or an option that makes no sense.
        BundleError: There is no such bundle, it is damaged, or has nothing of the kind to be run.
    """
    name: str | None = config.getoption("deploykit_bundle")
    if name is None:
        raise UsageError(
            "The parity suite needs a bundle to test.",
            hint="pytest --pyargs deploykit.suite --deploykit-bundle=artifacts/NAME "
            "--deploykit-images=DIR",
        )
    bundle, _ = find_bundle(name, default_artifacts())
    folder, checkpoint = _path(config, "images"), _path(config, "ckpt")
    runtime: str | None = config.getoption("deploykit_runtime")
    named: str | None = config.getoption("deploykit_precision")
    precision = None if named is None else choice(named, PRECISIONS, "precision")
    max_images: int = config.getoption("deploykit_max_images")
    if max_images < 0:
        raise UsageError(f"--deploykit-max-images takes 0 or more, not {max_images}.")
    return Subject(
        bundle=bundle,
        candidates=tuple(_candidates(bundle, runtime, precision)),
        folder=folder,
        max_images=max_images or None,
        reference=ReferenceRequest(
            arch=config.getoption("deploykit_arch"),
            checkpoint=checkpoint,
            trust_pickle=config.getoption("deploykit_trust_pickle"),
        ),
        transform=config.getoption("deploykit_transform"),
        runtime=runtime,
        precision=precision,
    )


def check_subject(subject: Subject) -> None:
    """Open what the options name, so that a mistake ends the run before a test takes long.

    What this machine lacks is no mistake: the tests that need it tell.

    Raises:
        DeploykitError: There are no such images, or the reference or the transform cannot be used.
    """
    if subject.folder is not None:
        scan_images(subject.folder)
    with suppress(MissingError):
        if subject.reference.named:
            open_reference(subject.bundle, subject.reference, Notes()).session.close()
        if subject.transform is not None:
            from deploykit.models.transforms import user_transform

            user_transform(subject.transform)


def _path(config: pytest.Config, option: str) -> Path | None:
    """An option's path, which is relative to where pytest was called, wherever tests are run."""
    text: str | None = config.getoption(f"deploykit_{option}")
    return None if text is None else config.invocation_params.dir / text


def _candidates(
    bundle: Bundle, runtime: str | None, precision: Precision | None
) -> Iterator[Candidate]:
    """The canonical graph, then whatever is made from it; BF16, no graph's own, if it is named."""
    if runtime in (None, CPU) and precision in (None, "fp32"):
        yield Candidate(CANONICAL_GRAPH, CPU, "fp32")
    yield from named_candidates(bundle, runtime, precision)


def read_images(subject: Subject) -> Images:
    """Read and preprocess the images that the options name.

    Raises:
        ImagesError: Not one can be read.
        BundleError: The golden images are needed and damaged.
    """
    return drawn_images(
        bundle_photos(subject.bundle, subject.folder, limit=subject.max_images, progress=Notes())
    )


def drawn_images(photos: Photos) -> Images:
    """Draw photos into memory.

    Raises:
        ImagesError: Not one can be read.
    """
    names: list[str] = []
    batches: list[ImageBatch] = []
    for batch, pixels in photos:
        names += batch
        batches.append(pixels.copy())  # its buffer is reused
    described = photos.drawn()  # refuses none
    return Images(
        names=tuple(names),
        pixels=np.concatenate(batches),
        described=described,
        unreadable=photos.unreadable,
        expected=photos.expected,
    )


def ask_reference(subject: Subject, images: Images) -> ReferenceAnswers:
    """Open the reference, let it answer, and close it again.

    Raises:
        DeploykitError: See :func:`deploykit.proof.reference.open_reference`.
    """
    notes = Notes()
    reference = open_reference(subject.bundle, subject.reference, notes)
    with reference.session:
        logits = run_in_batches(reference.session, images.pixels, OPT_BATCH_SIZE)
    return ReferenceAnswers(
        logits=logits,
        kind=reference.kind,
        description="; ".join([reference.description, *notes.lines]),
        objection=reference.objection,
    )


def run_in_batches(session: Session, pixels: ImageBatch, size: int) -> Logits:
    """Answer images in batches of one size; the last has what is left over.

    Args:
        session: What answers.
        pixels: (N, H, W, 3) uint8 RGB.
        size: The most that go in at once.

    Returns:
        (N, K) float32.
    """
    starts = range(0, len(pixels), size)
    return np.concatenate([session.run(pixels[start : start + size]) for start in starts])
