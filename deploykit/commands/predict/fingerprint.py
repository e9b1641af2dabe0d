"""What a prediction's rows follow from, so that an interrupted run goes on as it was begun."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.bundle.manifest import printable
from deploykit.specs.model import Precision
from deploykit.specs.value import Value
from deploykit.system.deps import installed_versions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.bundle.folder import Bundle
    from deploykit.commands.predict.run import PredictionRun

_SHOWN_HASH_DIGITS = 12
_WORDS = {"top_k": "--top-k", "tf32": "--tf32", "source": "what is predicted"}
#: Another version may decode or compute the last digits otherwise.
_DECISIVE = ("onnxruntime", "onnxruntime-gpu", "pillow", "tensorrt", "tensorrt_rtx")


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
        return f"--runtime {self.runtime} --precision {self.precision}" + " --tf32" * self.tf32

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
                changes += _changes_of_versions(before, after)
            elif name == "sha256":
                before, after = (f"{hash_[:_SHOWN_HASH_DIGITS]}..." for hash_ in (before, after))
                changes.append(f"the SHA-256 of {now.file} was {before}, now {after}")
            else:
                changes.append(f"{_WORDS.get(name, name)} was {before}, now {after}")
        return changes


def fingerprint_of(bundle: Bundle, run: PredictionRun, source: Path) -> Fingerprint:
    """The fingerprint of a run whose session is open.

    Args:
        bundle: What predicts.
        run: The run.
        source: What is predicted.
    """
    spec, manifest = run.spec, bundle.manifest
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
        source=printable(source.resolve()),
        versions={name: v for name, v in installed_versions().items() if name in _DECISIVE},
    )


def _changes_of_versions(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return [
        f"{name} was {before.get(name, 'not installed')}, now {after.get(name, 'not installed')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _change_of_labels(before: tuple[str, ...], after: tuple[str, ...]) -> str:
    if len(before) != len(after):
        return f"there were {len(before)} labels, now {len(after)}"
    place, old, new = next(
        (place, old, new)
        for place, (old, new) in enumerate(zip(before, after, strict=True))
        if old != new
    )
    return f"label {place} was {old!r}, now {new!r}"
