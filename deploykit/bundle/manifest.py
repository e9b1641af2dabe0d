"""``bundle.json``: what a bundle is, read strictly and updated atomically."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import msgspec
from filelock import Timeout

from deploykit.bundle.accepted import Accepted, MachineIdentity
from deploykit.bundle.embeddings import EmbeddingsRecord
from deploykit.bundle.onnx_file import MAX_GRAPH_BYTES
from deploykit.bundle.verdicts import CandidateKey, KeptVerdict
from deploykit.errors import BundleError
from deploykit.parity.budget import Budget
from deploykit.specs.model import KeptNode, Labels, Precision, TensorSpec
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.value import Value, decode_json, schema_of
from deploykit.system.files import (
    held,
    move_into_place,
    open_file,
    read_file,
    refusal,
    remove_partials,
    replacing,
)

GoldenChoice: TypeAlias = Literal["photos", "generated"]
"""Whether ``golden.npz`` may hold the user's photos, or only made images."""

SCHEMA = 7
MANIFEST_NAME = "bundle.json"
LOCK_NAME = f".{MANIFEST_NAME}.lock"
"""The lock inside a bundle, which whoever may write into the bundle can make."""

PACKED_ENDING = ".zip"
"""Of a bundle in one file, by which it is known."""

UNPACKED_MARK = ".unpacked"
"""Beside the folder of a bundle that was unpacked from one file: nothing is added to it."""

_LOCK_SECONDS = 30.0
#: Of a manifest: it has some kilobytes for each verdict.
_MAX_BYTES = 64 * 2**20
#: Of other files, by their endings: a file of 1 TB takes no space on a disk if nothing is in it,
#: and would be hashed for an hour.
_MAX_BYTES_OF = {".onnx": MAX_GRAPH_BYTES, ".npz": 2**30}
#: Of an image's side. A manifest that says more is made to fill the memory.
_MAX_SIDE = 2**14
#: Values of an embedding; VGG's have 4,096.
_MAX_EMBEDDING = 2**24


class FileRecord(Value, frozen=True):
    """One file of a bundle.

    Attributes:
        sha256: In lowercase hex.
        bytes: Its size.
    """

    sha256: str
    bytes: int


class ArchitectureRecord(Value, frozen=True):
    """The network that the bundle was exported from.

    Attributes:
        name: As ``--arch`` takes it.
        origin: Whose code it was at export, for readers; what may run is told by the name alone.
        args: What ``--arch-arg`` gave.
        classes: The number of logits, K; 1 where the head is binary.
        parameters: The number of trainable values.
        activation: What its forward ends in and the graphs leave out: ``sigmoid``, ``softmax``;
            empty where it gives logits.
    """

    name: str
    origin: Literal["zoo", "torchvision", "timm", "user"]
    args: dict[str, Any]
    classes: int
    parameters: int
    activation: str = ""


class CheckpointRecord(Value, frozen=True):
    """The file that the weights came from.

    Attributes:
        path: Absolute, on the machine that exported; see :func:`recorded_path`.
        sha256: In lowercase hex.
        trusted_pickle: Whether reading it runs code, as ``--trust-pickle`` allowed at export.
        weights: The entry that was loaded, ``model.state_dict``; empty for the file itself.
    """

    path: str
    sha256: str
    trusted_pickle: bool = False
    weights: str = ""


class SearchRecord(Value, frozen=True):
    """What chose the FP32 nodes of a graph below FP32, and its INT8 ranges.

    Attributes:
        runtime: What the search tried graphs on, and INT8 for CPUs is made for.
        images: Those of search and calibration, each the start of its pixels' SHA-256: no
            proof rests on them.
        kept: The nodes that stay in FP32, and why.
        integers: How many nodes of an INT8 graph compute with integers; None where nobody counted.
        weight_bits: Of an INT8 graph's weights; None of other precisions.
        budget: What the user allows the graph; it is judged by that. None for what its precision
            allows.
    """

    runtime: str
    images: tuple[str, ...]
    kept: tuple[KeptNode, ...] = ()
    integers: int | None = None
    weight_bits: int | None = None
    budget: Budget | None = None


class Manifest(Value, frozen=True):
    """The contents of ``bundle.json``.

    Attributes:
        schema: The version of this layout.
        name: The bundle's name.
        created: When it was exported, UTC, ISO 8601.
        architecture: The network.
        checkpoint: The weights' file.
        labels: The classes' names, and what the logits mean.
        preprocessing: From a decoded photo to the network's input.
        canonical_input: ``model.onnx``'s input.
        deploy_input: The deploy graphs' input, the same at every precision.
        output: The graphs' output.
        opset: The ONNX operator set.
        requested_opset: The one that export was asked for; None for torch's own choice.
        golden: What ``golden.npz`` may hold, as export was told.
        embeddings: The graph that gives embeddings; None where export was not asked for one.
        deploy: The deploy graph of each precision, a path relative to the bundle.
        searches: How each graph below FP32 was made, by its path or that of an engine made from it.
        engines: TensorRT engines, paths relative to the bundle, the newest last; each has its
            passport beside it.
        accepted: What the user chose from ``bench``, the newest last; one for each machine.
        files: Every file of the bundle but this one, by its path with ``/``.
        images: The folder of photos that export was given, absolute; None without. See
            :func:`recorded_path`.
        verdicts: What has been shown, the newest last; see :meth:`with_verdict`.
        versions: Of the packages that exported it.
    """

    schema: int
    name: str
    created: str
    architecture: ArchitectureRecord
    checkpoint: CheckpointRecord
    labels: Labels
    preprocessing: Preprocessing
    canonical_input: TensorSpec
    deploy_input: TensorSpec
    output: TensorSpec
    opset: int
    deploy: dict[Precision, str]
    files: dict[str, FileRecord]
    images: str | None
    verdicts: tuple[KeptVerdict, ...]
    versions: dict[str, str]
    searches: dict[str, SearchRecord] = {}  # noqa: RUF012  # msgspec copies it
    engines: tuple[str, ...] = ()
    accepted: tuple[Accepted, ...] = ()
    requested_opset: int | None = None
    golden: GoldenChoice = "photos"
    embeddings: EmbeddingsRecord | None = None

    def __post_init__(self) -> None:
        outside = [name for name in self.files if not _is_inside(name)]
        if outside:
            raise ValueError(f"{outside[0]!r} names no file inside the bundle")
        if self.labels.logits != self.architecture.classes:
            raise ValueError(
                f"labels with {self.labels.logits} logits do not fit a network with "
                f"{self.architecture.classes}"
            )
        named = {*self.deploy.values(), *self.engines, *(each.graph for each in self.verdicts)}
        large = [
            name
            for name, record in self.files.items()
            if record.bytes > _MAX_BYTES_OF.get(Path(name).suffix, record.bytes)
        ]
        if large:
            raise ValueError(f"{large[0]} has too many bytes: {self.files[large[0]].bytes}")
        graphs = [*self.deploy.values()]
        if self.embeddings is not None:
            graphs.append(self.embeddings.graph)
            named.add(self.embeddings.graph)
            if not 0 < self.embeddings.tap.size <= _MAX_EMBEDDING:
                raise ValueError(f"embeddings of {self.embeddings.tap.size} values make no sense")
        odd = [name for name in graphs if not name.endswith(".onnx")]
        if odd:
            raise ValueError(f"{odd[0]!r} is no ONNX file, which a deploy graph is")
        if max(self.preprocessing.input_size) > _MAX_SIDE:
            raise ValueError(f"images of {self.preprocessing.input_size} pixels are too large")
        nameless = named - self.files.keys()
        if nameless:
            raise ValueError(f"no file is recorded for {', '.join(sorted(nameless))}")

    def key_of(self, file: str, runtime: str, precision: Precision, device: str) -> CandidateKey:
        """What identifies a graph or an engine, as it is now, on a runtime and device."""
        return CandidateKey(self.files[file].sha256, runtime, precision, device)

    def with_verdict(self, verdict: KeptVerdict) -> Manifest:
        """A copy that keeps a verdict, unless one that it would not replace shows more.

        A candidate has one verdict for each device and version of its runtime, and one of its
        self-test there: the last on at least as many images, or the last that failed.
        """
        others = tuple(each for each in self.verdicts if not verdict.replaces(each))
        if any(each.replaces(verdict) for each in others):
            return self
        return msgspec.structs.replace(self, verdicts=(*others, verdict))

    def without_verdicts_of(self, file: str) -> Manifest:
        """A copy without what is known of a graph or an engine."""
        kept = tuple(each for each in self.verdicts if each.graph != file)
        return msgspec.structs.replace(self, verdicts=kept)

    def kept_in(self, graph: str) -> tuple[KeptNode, ...]:
        """The nodes of a graph below FP32 that stay in FP32, and why."""
        search = self.searches.get(graph)
        return () if search is None else search.kept

    def calibration_images(self, files: Iterable[str]) -> frozenset[str]:
        """The images that had a part in making graphs or engines, told as in SearchRecord."""
        searches = (self.searches[file] for file in files if file in self.searches)
        return frozenset(digest for search in searches for digest in search.images)

    def with_accepted(self, accepted: Accepted) -> Manifest:
        """A copy that keeps a choice, in place of an earlier one for the same machine."""
        others = self.without_accepted(accepted.machine).accepted
        return msgspec.structs.replace(self, accepted=(*others, accepted))

    def without_accepted(self, machine: MachineIdentity) -> Manifest:
        """A copy without the choice for a machine, whatever was installed there."""
        others = (each for each in self.accepted if each.machine.hardware != machine.hardware)
        return msgspec.structs.replace(self, accepted=tuple(others))


def read_manifest(folder: Path) -> Manifest:
    """Read ``bundle.json`` strictly.

    Raises:
        BundleError: It is missing, no JSON, of another schema, or has unknown or missing fields.
    """
    path = folder / MANIFEST_NAME
    try:
        data = read_file(path, limit=_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST_NAME} ({exc.strerror}).",
            hint="Make one: deploykit export --arch NAME --ckpt FILE",
        ) from exc
    except OSError as exc:
        raise BundleError(
            f"{path} cannot be read: {exc.strerror}.", hint="Let it be a file that you may read."
        ) from exc
    try:
        schema = schema_of(data)
        manifest = decode_json(data, Manifest) if schema == SCHEMA else None
    except ValueError as exc:
        raise BundleError(f"{path} is damaged: {exc}.", hint="Export the bundle again.") from exc
    if manifest is None:
        action = "Update deploykit." if schema > SCHEMA else "Export the bundle again."
        raise BundleError(
            f"{path} has schema {schema}; this version of deploykit reads schema {SCHEMA}.",
            hint=action,
        )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``bundle.json`` so that a reader sees the old one or the new one, whole.

    Raises:
        ValueError: It has what JSON cannot hold: NaN and infinity become null.
    """
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    decode_json(data, Manifest)  # or nobody could read the bundle any more
    with replacing(folder / MANIFEST_NAME, follow_link=False) as path:
        path.write_bytes(data + b"\n")


@contextlib.contextmanager
def locked(folder: Path, *, replacing: bool = False) -> Iterator[None]:
    """Hold the locks of a bundle, under which it is published and its manifest is changed.

    One lies beside the bundle, ``.NAME.lock``, because publishing replaces the folder. The other
    one lies in it: not everybody who may change a bundle may write beside it, and all who do must
    wait for each other. Of a bundle that is a link, what it leads to is locked as well. They are
    there only while they are held.

    Args:
        folder: The bundle; it need not be there yet.
        replacing: Whether the folder may be renamed meanwhile.

    Raises:
        BundleError: Another process holds a lock.
        OSError: A lock cannot be made.
    """
    with contextlib.ExitStack() as locks:
        try:
            for lock in _locks_beside(folder):
                locks.enter_context(held(lock, seconds=_LOCK_SECONDS))
            # On Windows no folder is renamed in which a file is open: it is lock enough.
            if (folder / MANIFEST_NAME).exists() and not (replacing and os.name == "nt"):
                locks.enter_context(held(folder.resolve() / LOCK_NAME, seconds=_LOCK_SECONDS))
        except Timeout as exc:
            if not Path(exc.lock_file).exists():  # nobody holds it: as in /proc, it cannot be made
                raise BundleError(
                    f"{folder.parent} cannot be written to: {refusal(FileNotFoundError())}.",
                    hint="Choose another --artifacts.",
                ) from exc
            raise BundleError(
                f"Another process has been changing {folder} for {_LOCK_SECONDS:.0f} seconds.",
                hint="Wait until it is done, and run this again.",
            ) from exc
        yield


def _locks_beside(folder: Path) -> list[Path]:
    """The locks that lie beside a bundle, as far as it can be written there; in a fixed order."""
    places = dict.fromkeys([folder.parent.resolve() / folder.name, folder.resolve()])
    return [
        place.with_name(f".{place.name}.lock")
        for place in places
        if os.access(place.parent, os.W_OK) or not folder.is_dir()
    ]


_MAKE_WRITABLE = "Make it writable, or use a copy of it."
_WHEN_NOT_CHANGED = {
    errno.EACCES: _MAKE_WRITABLE,
    errno.EPERM: _MAKE_WRITABLE,
    errno.EROFS: _MAKE_WRITABLE,
    errno.ENOENT: "It may have been replaced meanwhile: run the command again.",
}


def update_manifest(
    folder: Path,
    change: Callable[[Manifest], Manifest],
    files: Mapping[str, Path] = MappingProxyType({}),
    *,
    remove: Iterable[str] = (),
) -> Manifest:
    """Change ``bundle.json`` under a lock, so that two processes do not lose each other's change.

    Args:
        folder: The bundle.
        change: Makes the new manifest from the one on disk, or raises. What depends on the
            manifest is decided in it: the one that was read earlier may be out of date.
        files: Files that the new manifest names, by their path in the bundle: where they are now,
            on the same file system. They are moved into place under the same lock.
        remove: Files that the new manifest names no more, by their path in the bundle.

    Raises:
        BundleError: Another process holds the lock, or the bundle cannot be read or written.
    """
    folder = folder.resolve()  # a link may lead elsewhere by and by
    if (folder.parent / UNPACKED_MARK).is_file():
        raise BundleError(
            f"nothing is added to {folder.name}, which is in a .zip file.",
            hint="Unpack the file, and name the folder.",
        )
    try:
        with locked(folder):
            manifest = change(read_manifest(folder))
            for name, source in files.items():
                move_into_place(source, folder / name)
            remove_partials(folder / MANIFEST_NAME, follow_link=False)
            write_manifest(folder, manifest)
            for name in remove:
                (folder / name).unlink(missing_ok=True)
            return manifest
    except OSError as exc:
        raise BundleError(
            f"{folder} cannot be changed: {exc.strerror or exc}.",
            hint=_WHEN_NOT_CHANGED.get(exc.errno or 0, "Check the space on its disk."),
        ) from exc


def recorded_path(text: str | None) -> Path | None:
    r"""A path that a manifest records, where it may be followed; None where it may not.

    A bundle may come from anybody. A relative path would lead to whatever lies there for whoever
    runs this, perhaps into the bundle itself; and to open one on another machine (``\\server``),
    Windows proves the user's identity to that machine.
    """
    path = None if text is None or "\0" in text else Path(text)
    if path is None or not path.is_absolute() or path.drive.startswith("\\\\"):
        return None
    return path


def _is_inside(name: str) -> bool:
    """Whether a file's name, with ``/``, stays in the bundle on every system."""
    return not any(bad in name for bad in "\\:\0") and all(
        part not in ("", ".", "..") for part in name.split("/")
    )


def printable(path: Path) -> str:
    """A path as text; what is not Unicode in it is escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def record_file(path: Path) -> FileRecord:
    """Size and hash of a file."""
    return FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size)


def is_recorded(path: Path, record: FileRecord) -> bool:
    """Whether a file is the recorded one; one of another size is not hashed.

    Raises:
        OSError: It cannot be read.
    """
    with open_file(path) as file:
        return os.fstat(file.fileno()).st_size == record.bytes and _digest(file) == record.sha256


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's contents in lowercase hex."""
    with open_file(path) as file:
        return _digest(file)


def _digest(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
