"""What a run's rows follow from, and which run wrote the files that are there."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from deploykit.bundle.embeddings import EMBEDDINGS_GRAPH
from deploykit.bundle.manifest import printable
from deploykit.errors import InputError, UsageError
from deploykit.specs.model import Precision
from deploykit.specs.value import Value
from deploykit.system.deps import installed_versions, version_changes
from deploykit.system.files import open_file, read_file, replacing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.commands.predict.run import PredictionRun

_SHOWN_HASH_DIGITS = 12
_WORDS = {"top_k": "--top-k", "tf32": "--tf32", "source": "what is predicted"}
#: Another version may decode or compute the last digits otherwise.
_DECISIVE = (
    *("onnxruntime", "onnxruntime-gpu", "openvino"),
    *("pillow", "tensorrt", "tensorrt_rtx"),
)


class Fingerprint(Value, frozen=True):
    """What a run's rows follow from: had any of it been otherwise, so would they.

    The batch size and the number of threads are not here. They move an answer's last digits at
    most, and a run that ran out of memory must be able to go on with smaller batches.

    Attributes:
        file: The graph or engine that runs, relative to the bundle.
        sha256: That file's, in lowercase hex.
        runtime: What executes it.
        device: On which device.
        precision: The precision of its arithmetic.
        tf32: Whether FP32 arithmetic may round to TensorFloat-32.
        labels: The classes' names, in the order of the logits.
        preprocessing: As JSON, see :meth:`deploykit.specs.Preprocessing.to_metadata`.
        top_k: How many classes a row ranks.
        source: The folder or file that is predicted, absolute.
        versions: Of the packages that decode and compute.
    """

    file: str
    sha256: str
    runtime: str
    device: str
    precision: Precision
    tf32: bool
    labels: tuple[str, ...]
    preprocessing: str
    top_k: int
    source: str
    versions: dict[str, str]

    def options(self) -> str:
        """The options that choose what ran: ``--runtime onnxruntime-cpu --precision fp32``."""
        told = f"--runtime {self.runtime} --precision {self.precision}" + " --tf32" * self.tf32
        return told + " --embeddings FILE" * (self.file == EMBEDDINGS_GRAPH)

    def changes_to(self, now: Fingerprint) -> list[str]:
        """What is otherwise in another fingerprint: ``top_k was 5, now 3``."""
        changes = []
        for name in self.__struct_fields__:
            before, after = getattr(self, name), getattr(now, name)
            if before == after:
                continue
            if name == "labels":
                changes.append(_change_of_labels(before, after))
            elif name == "versions":
                changes += version_changes(before, after)
            elif name == "sha256":
                before, after = (f"{hash_[:_SHOWN_HASH_DIGITS]}..." for hash_ in (before, after))
                changes.append(f"the SHA-256 of {now.file} was {before}, now {after}")
            else:
                changes.append(f"{_WORDS.get(name, name)} was {before}, now {after}")
        return changes


def fingerprint_of(run: PredictionRun) -> Fingerprint:
    """The fingerprint of a run whose session is open."""
    spec, manifest = run.spec, run.bundle.manifest
    return Fingerprint(
        file=spec.graph,
        sha256=manifest.files[spec.graph].sha256,
        runtime=spec.runtime,
        device=spec.device,
        precision=spec.precision,
        tf32=spec.tf32,
        labels=manifest.labels.names,
        preprocessing=manifest.preprocessing.to_metadata(),
        top_k=run.top_k,
        source=printable(run.request.source.resolve()),
        versions={name: v for name, v in installed_versions().items() if name in _DECISIVE},
    )


def _change_of_labels(before: tuple[str, ...], after: tuple[str, ...]) -> str:
    if len(before) != len(after):
        return f"there were {len(before)} labels, now {len(after)}"
    place, old, new = next(
        (place, old, new)
        for place, (old, new) in enumerate(zip(before, after, strict=True))
        if old != new
    )
    return f"label {place} was {old!r}, now {new!r}"


class WritingRun(Value, frozen=True):
    """The run that wrote the tables and the page that are there, so that it may replace them.

    Attributes:
        written_by: What the file is, for whoever finds it.
        schema: The version of this layout.
        fingerprint: What the rows follow from.
        sha256: Of each file as it was written.
    """

    written_by: Literal["deploykit predict"]
    schema: Literal[1]
    fingerprint: Fingerprint
    sha256: tuple[str, ...]


def record_of(table: Path) -> Path:
    """Where it is recorded which run wrote the tables whose first this is."""
    return table.with_name(f".{table.name}.run")


def check_replaceable(outputs: Sequence[Path], now: Fingerprint) -> None:
    """Check that the outputs that are there are those of the same command, and unchanged.

    The versions of packages and the device may be others: who runs a command again, wants its
    tables anew.

    Args:
        outputs: The tables, and the page.
        now: What the rows will follow from.

    Raises:
        UsageError: Another run wrote one of them, or nobody knows what.
    """
    there = [path for path in outputs if path.exists()]
    if not there:
        return
    record = record_of(outputs[0])
    try:
        run = msgspec.json.decode(read_file(record), type=WritingRun)
    except (OSError, ValueError, RecursionError):
        reason = f"{record} does not tell which run wrote it"
    else:
        before = run.fingerprint
        same = msgspec.structs.replace(now, versions=before.versions, device=before.device)
        reason = "; ".join(before.changes_to(same))
        ours = {*run.sha256} - {""}
        there = there if reason else [path for path in there if _sha256(path) not in ours]
        reason = reason or "it is not as that command wrote it"
    if there:
        raise UsageError(
            f"{there[0]} is not from this command: {reason}.",
            hint="Name another file, or replace it: add --overwrite.",
        )


def record_run(outputs: Sequence[Path], fingerprint: Fingerprint) -> None:
    """Record which run wrote the outputs.

    Raises:
        InputError: The system fails to write it.
    """
    run = WritingRun(
        written_by="deploykit predict",
        schema=1,
        fingerprint=fingerprint,
        sha256=tuple(map(_sha256, outputs)),
    )
    record = record_of(outputs[0])
    try:
        with replacing(record) as partial:
            partial.write_bytes(msgspec.json.encode(run) + b"\n")
    except OSError as exc:
        raise InputError(
            f"Writing {record} failed: {exc.strerror or exc}.",
            hint="Check the folder's permissions and the free space on its disk.",
        ) from exc


def _sha256(path: Path) -> str:
    """A file's, in lowercase hex; empty where the system does not let us read it."""
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
