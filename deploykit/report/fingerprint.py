"""What a prediction's rows follow from, so that an interrupted run goes on as it was begun."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.manifest import printable
from deploykit.specs import Precision, Value

if TYPE_CHECKING:
    from deploykit.bundle import Bundle
    from deploykit.jobs.predict import PredictionRun

_SHOWN_HASH_DIGITS = 12


class Fingerprint(Value, frozen=True):
    """What a run's rows follow from: had any of it been otherwise, so would they.

    The batch size and the number of threads are not here. They move an answer's last digits at
    most, and a run that ran out of memory must be able to go on with smaller batches.

    Attributes:
        bundle: Its name.
        file: The graph or engine that runs, relative to the bundle.
        sha256: That file's, in lowercase hex.
        runtime: What executes it.
        precision: The precision of its arithmetic.
        tf32: Whether FP32 arithmetic may round to TensorFloat-32.
        labels: The classes' names, in the order of the logits.
        preprocessing: In words, as :meth:`deploykit.specs.Preprocessing.describe` has it.
        top_k: How many classes a row ranks.
        source: The folder or file that is predicted, absolute.
    """

    bundle: str
    file: str
    sha256: str
    runtime: str
    precision: Precision
    tf32: bool
    labels: tuple[str, ...]
    preprocessing: str
    top_k: int
    source: str

    def changes_to(self, now: Fingerprint) -> list[str]:
        """What is otherwise in another fingerprint: ``top_k was 5, now 3``."""
        changes = []
        for name in self.__struct_fields__:
            before, after = getattr(self, name), getattr(now, name)
            if before == after:
                continue
            if name == "labels":
                changes.append(_change_of_labels(before, after))
            elif name == "sha256":
                before, after = (f"{hash_[:_SHOWN_HASH_DIGITS]}..." for hash_ in (before, after))
                changes.append(f"the SHA-256 of {now.file} was {before}, now {after}")
            else:
                changes.append(f"{name} was {before}, now {after}")
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
        bundle=printable(Path(bundle.name)),
        file=spec.graph,
        sha256=manifest.files[spec.graph].sha256,
        runtime=spec.runtime,
        precision=spec.precision,
        tf32=spec.tf32,
        labels=manifest.labels.names,
        preprocessing=manifest.preprocessing.describe(),
        top_k=run.top_k,
        source=printable(source.resolve()),
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
