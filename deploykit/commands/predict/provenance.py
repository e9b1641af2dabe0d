"""What a run's rows follow from, and which run wrote the files that are there."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from deploykit.bundle.embeddings import EMBEDDINGS_GRAPH
from deploykit.bundle.manifest import printable, sha256_of
from deploykit.errors import InputError, UsageError
from deploykit.specs.heads import ASSUMED_HEAD, Head
from deploykit.specs.model import Precision
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.value import Value, decode_json
from deploykit.system.deps import installed_versions, version_changes
from deploykit.system.files import read_file, replacing
from deploykit.system.text import command_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.commands.predict.run import PredictionRun

_SHOWN_HASH_DIGITS = 12
_WORDS = {"top_k": "--top-k", "tf32": "--tf32", "every": "--every", "source": "what is predicted"}
_HASHES = {"sha256": "the SHA-256 of {file}", "expected": "the SHA-256 of --expected"}
#: Another version may decode or compute the last digits otherwise.
_DECISIVE = (
    *("onnxruntime", "onnxruntime-gpu", "openvino"),
    *("pillow", "tensorrt", "tensorrt_rtx"),
)


class Fingerprint(Value, frozen=True, omit_defaults=True):
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
        head: How logits decide for classes.
        expected: The SHA-256 of the table of labels; empty without one.
        every: Of a video, from one frame to the next: ``0.5s``; empty where nobody said.
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
    head: Head = ASSUMED_HEAD
    expected: str = ""
    every: str = ""

    def way_back(self, now: Fingerprint) -> str:
        """What to do so that another fingerprint becomes this one: ``add --top-k 5``."""
        fields = self.__struct_fields__
        others = {name for name in fields if getattr(self, name) != getattr(now, name)}
        ways = []
        if "source" in others:
            ways.append(f"predict {command_line([self.source])}")
        if options := self._options_not_of(now):
            ways.append(f"add {command_line(options)}")
        ways += (f"leave out {option}" for option in now._flags_not_of(self))
        if now.every and not self.every:
            ways.append("leave out --every")
        # Another runtime has other files, and is told already.
        if others & {"labels", "preprocessing"} or (
            others & {"file", "sha256"}
            and not others & {"runtime", "precision"}
            and EMBEDDINGS_GRAPH not in (self.file, now.file)
        ):
            ways.append("name the bundle that it was begun with, as it was then, with --bundle")
        if "device" in others:
            ways.append(f"run it on {self.device}")
        versions = (
            f"{name} {version}"
            for name, version in self.versions.items()
            if now.versions.get(name) != version
        )
        if "versions" in others:
            wanted = ", ".join(versions) or "the packages that it was begun with and no others"
            ways.append(f"install {wanted}")
        return "; ".join(ways)

    def _options_not_of(self, now: Fingerprint) -> list[str]:
        """The options that another run lacks."""
        options = []
        if (self.runtime, self.precision) != (now.runtime, now.precision):
            options += ["--runtime", self.runtime, "--precision", self.precision]
        if self.top_k != now.top_k:
            options += ["--top-k", str(self.top_k)]
        if self.every and self.every != now.every:
            options += ["--every", self.every]
        for flag in self._flags_not_of(now):
            options += [flag, "FILE"] if flag == "--embeddings" else [flag]
        return options

    def _flags_not_of(self, other: Fingerprint) -> list[str]:
        """What is switched on here, and not there."""
        flags = ["--tf32"] if self.tf32 and not other.tf32 else []
        return flags + ["--embeddings"] * (self.file == EMBEDDINGS_GRAPH != other.file)

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
            elif name == "head":
                changes.append(_change_of_head(before, after, now.labels))
            elif name == "preprocessing":
                changes.append(_change_of_preprocessing(before, after))
            elif what := _HASHES.get(name):
                before, after = (
                    f"{hash_[:_SHOWN_HASH_DIGITS]}..." if hash_ else "none"
                    for hash_ in (before, after)
                )
                changes.append(f"{what.format(file=now.file)} was {before}, now {after}")
            else:
                changes.append(f"{_WORDS.get(name, name)} was {before}, now {after}")
        return changes


def _change_of_preprocessing(before: str, after: str) -> str:
    """In words, where both are of a version that can say them, and the words differ."""
    with suppress(ValueError):
        words = tuple(decode_json(each, Preprocessing).describe() for each in (before, after))
        if len({*words}) == 2:
            before, after = words
    return f"preprocessing was {before}, now {after}"


def fingerprint_of(run: PredictionRun) -> Fingerprint:
    """The fingerprint of a run whose session is open."""
    spec, manifest = run.spec, run.bundle.manifest
    head = manifest.labels.head
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
        versions=decisive_versions(getattr(run.session, "versions", installed_versions())),
        head=ASSUMED_HEAD if head.is_assumed else head,
        every="" if run.request.every is None else f"{float(run.request.every):g}s",
        expected="" if run.request.expected is None else _table_hash(run.request.expected),
    )


def _table_hash(path: Path) -> str:
    """The SHA-256 of a table of labels.

    Raises:
        InputError: It cannot be read.
    """
    from deploykit.images.scan import read_text

    read_text(path, "table of labels", "image")  # which says what is wrong with it
    return sha256_of(path)


def decisive_versions(versions: Mapping[str, str]) -> dict[str, str]:
    """Those of the packages that decode and compute."""
    return {name: version for name, version in versions.items() if name in _DECISIVE}


def _change_of_labels(before: tuple[str, ...], after: tuple[str, ...]) -> str:
    if len(before) != len(after):
        return f"there were {len(before)} labels, now {len(after)}"
    place, old, new = next(
        (place, old, new)
        for place, (old, new) in enumerate(zip(before, after, strict=True))
        if old != new
    )
    return f"label {place} was {old!r}, now {new!r}"


def _change_of_head(before: Head, after: Head, labels: tuple[str, ...]) -> str:
    thresholds = before.thresholds, after.thresholds
    if before.name != after.name or len(thresholds[0]) != len(thresholds[1]):
        return f"the head was {before.describe()}, now {after.describe()}"
    # The one threshold of two classes is the second one's.
    named = zip(labels[-len(thresholds[0]) :], *thresholds, strict=True)
    label, old, new = next(each for each in named if each[1] != each[2])
    return f"the threshold of {label!r} was {old:g}, now {new:g}"


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
        run = decode_json(read_file(record), WritingRun)
    except (OSError, ValueError):
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
        return sha256_of(path)
    except OSError:
        return ""
