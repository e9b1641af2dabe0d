"""What runs in a Ray worker: a session that is opened once, and shards that it answers.

It imports no Ray. What it is told and what it says are plain values, small ones: names of files go
out, and rows come back, never pixels.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

import deploykit
from deploykit.bundle.folder import open_bundle
from deploykit.bundle.manifest import MANIFEST_NAME, Manifest
from deploykit.bundle.packed import bundles_cache
from deploykit.commands.predict.ledger import part_body
from deploykit.commands.predict.plan import path_of
from deploykit.commands.predict.run import PredictionRun, PredictRequest
from deploykit.commands.predict.schedulers import PartClock
from deploykit.errors import BundleError, DeploykitError
from deploykit.images.scan import ImageFile
from deploykit.images.sources import listed_file
from deploykit.specs.value import Value
from deploykit.system.deps import installed_versions
from deploykit.system.files import staged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.bundle.folder import Bundle

FileOnTheWire: TypeAlias = tuple[str, str | None, tuple[str, ...] | None, dict[str, Any]]
"""What :func:`~deploykit.images.sources.listed_file` takes, the last its ``place``."""

Sample: TypeAlias = tuple[str, int]
"""The name of a file, and its size in bytes."""


class Order(Value, frozen=True):
    """What a worker is to open.

    Attributes:
        host: What the host is called in the rows' parts.
        bundle: The bundle's folder where the run was begun.
        digest: See :func:`digest_of`.
        root: What the files' names are relative to, see
            :func:`~deploykit.commands.predict.plan.kept_path`.
        top_k: How many classes a row ranks.
        runtime: See :class:`~deploykit.commands.predict.run.PredictRequest`, as the others.
        precision: The deploy graph's.
        batch_size: Images a run of the session.
        threads: For decoding, and for computing on the CPU.
        tf32: Whether a GPU may compute FP32 in TensorFloat-32.
        embeddings: Whether to give embeddings, too.
    """

    host: str
    bundle: str
    digest: str
    root: str
    top_k: int
    runtime: str
    precision: str | None
    batch_size: int | None
    threads: int
    tf32: bool
    embeddings: bool


class RayWorker:
    """The class of the actors. Each method's answer is a dict: ``refused`` says why it cannot."""

    def __init__(self) -> None:
        self._run: PredictionRun | None = None
        self._host = ""

    def hello(self) -> dict[str, Any]:
        """What is installed here."""
        return {"deploykit": deploykit.__version__, "versions": installed_versions()}

    def open(self, order: bytes, packed: bytes | None = None) -> dict[str, Any]:
        """Open the session.

        Args:
            order: An :class:`Order` as JSON.
            packed: The bundle, see :func:`packed`, where this host has none at its place.

        Returns:
            ``spec`` is the session's as JSON; or ``wants_bundle`` is true.
        """
        told = msgspec.json.decode(order, type=Order)
        self._host = told.host
        try:
            bundle = _bundle_here(told, packed)
            if bundle is None:
                return {"wants_bundle": True}
            request = PredictRequest(
                source=path_of(told.root),
                top_k=told.top_k,
                runtime=told.runtime,
                precision=told.precision,  # type: ignore[arg-type]  # opening it checks the name
                batch_size=told.batch_size,
                threads=told.threads,
                tf32=told.tf32,
                embeddings=told.embeddings,
            )
            self._run = PredictionRun(bundle, request, listed=True)
        except DeploykitError as exc:
            return {"refused": exc.message}
        except OSError as exc:  # the disk is full, or may not be written
            return {"refused": f"the bundle cannot be kept in {tempfile.gettempdir()}: {exc}"}
        return {"spec": msgspec.json.encode(self._run.spec)}

    def admit(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """See whether the photos are here, and the golden images have the recorded answers.

        Args:
            samples: Some of the files, or archives. One that is here is enough: others may have
                vanished.
        """
        from deploykit.proof.self_test import judge_golden

        run = self._opened()
        sizes = [(_size_of(ImageFile(run.root, name).path), size) for name, size in samples]
        if sizes and not any(there == size for there, size in sizes):
            missing = ImageFile(run.root, samples[0][0]).path
            what = "is not there" if sizes[0][0] is None else "is another file there"
            return {"refused": f"{missing} {what}"}
        try:
            verdict, _ = judge_golden(run.bundle, run.session)
        except DeploykitError as exc:
            return {"refused": exc.message}
        if not verdict.passed:
            reasons = "; ".join(verdict.reasons)
            return {"refused": f"its answers to the golden images are not the recorded: {reasons}"}
        return {}

    def predict(self, start: int, files: Sequence[FileOnTheWire]) -> dict[str, Any]:
        """Predict a shard.

        Args:
            start: The first file's ordinal.
            files: The shard's.

        Returns:
            ``body``: see :func:`~deploykit.commands.predict.ledger.part_body`.
        """
        run = self._opened()
        clock = PartClock(run, self._host)
        try:
            there = (
                listed_file(run.root, name, expected, labels, **place)
                for name, expected, labels, place in files
            )
            rows = [*run.answers(there, len(files))]
        except DeploykitError as exc:
            return {"refused": exc.message}
        return {"body": part_body(start, rows, clock.work())}

    def _opened(self) -> PredictionRun:
        if self._run is None:
            raise RuntimeError("the session is not open")
        return self._run


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


# The bundle --------------------------------------------------------------------------------------


def digest_of(manifest: Manifest) -> str:
    """What tells a bundle from another; proofs that are added later do not count."""
    files = sorted((name, record.sha256) for name, record in manifest.files.items())
    decisive = files, manifest.labels, manifest.preprocessing.to_metadata()
    return hashlib.sha256(msgspec.json.encode(decisive)).hexdigest()


def packed(bundle: Bundle) -> bytes:
    """A bundle as a tar of the files that its manifest names, and the manifest."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in (MANIFEST_NAME, *bundle.manifest.files):
            if (path := bundle.folder / name).is_file():
                tar.add(path, name)
    return stream.getvalue()


def _bundle_here(order: Order, packed_bundle: bytes | None) -> Bundle | None:
    """The bundle at its place, else from this host's cache, else from what was sent."""
    cached = bundles_cache() / order.digest
    for folder in (Path(order.bundle), cached):
        try:
            bundle = open_bundle(folder)
        except BundleError:
            continue
        if digest_of(bundle.manifest) == order.digest:
            return bundle
    if packed_bundle is None:
        return None
    with staged(cached.parent) as staging, tarfile.open(fileobj=io.BytesIO(packed_bundle)) as tar:
        tar.extractall(staging / "bundle", filter="data")
        try:
            (staging / "bundle").rename(cached)
        except OSError:  # another worker of this host was faster, or a damaged one is there
            if not cached.exists():
                raise
            bundle = open_bundle(cached)
            if digest_of(bundle.manifest) != order.digest:
                shutil.rmtree(cached)
                (staging / "bundle").rename(cached)
    return open_bundle(cached)
