"""Results as text for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence

from deploykit.jobs.export import ExportResult
from deploykit.jobs.labels import CLASSES_FILE
from deploykit.jobs.train import CURVES, TrainingResult
from deploykit.jobs.verdicts import Verdict
from deploykit.jobs.verification import Verification
from deploykit.measurements import Measurement
from deploykit.parity.accuracy import Accuracy, ClassAccuracy
from deploykit.proofs import PhotoSet
from deploykit.report.claims import claim_of, searched_claims
from deploykit.specs import counted

_VERDICT_COLUMNS = (
    *("graph", "runtime", "precision"),
    *("flips", "error/scale", "|dp|", "batches", "verdict"),
)
_SHOWN_FLIPS = 10
_SHOWN_CLASSES = 20
_WORST_CLASSES = 10


def export_text(result: ExportResult) -> str:
    """What was exported, what was assumed, and the proof."""
    manifest = result.bundle.manifest
    architecture = manifest.architecture
    names = ", ".join(manifest.labels.names[:6]) + (", ..." if len(manifest.labels) > 6 else "")
    return "\n".join(
        (
            verdicts_text(result.verdicts),
            f"network        {architecture.name}, {architecture.parameters:,} parameters, "
            f"{architecture.classes} classes",
            f"classes        {names} ({manifest.labels.source})",
            f"preprocessing  {manifest.preprocessing.describe()} ({manifest.preprocessing.source})",
            f"verified on    {photos_text(result.photos)}",
            f"bundle         {result.bundle.folder} (in {sum(result.seconds.values()):.1f} s)",
        )
    )


def verification_text(result: Verification) -> str:
    """The verdicts, the flips, and what speaks against those that failed."""
    lines = [
        verdicts_text(result.verdicts),
        f"reference  {result.reference}",
    ]
    claim = claim_of(result)
    if claim.limit:
        lines.append(f"           {claim.limit}")
    lines.append(f"images     {photos_text(result.photos)}")
    if result.photos.kind == "golden":
        lines.append("           chosen at export for their margins: no bound follows for photos")
    if result.unreadable:
        lines.append(f"           {result.unreadable} more could not be read")
    lines += (f"           {claim}" for claim in searched_claims(result))
    if result.mining is not None:
        first, *others = result.mining.sentences
        lines += (f"margins    {first}", *(f"           {sentence}" for sentence in others))
    if result.accuracy:
        lines += accuracy_text(result)
    for verdict in result.verdicts:
        lines += flips_text(verdict)
    for verdict in result.verdicts:
        lines += (f"FAILED  {verdict.candidate.title}: {reason}" for reason in verdict.objections)
        if verdict.note is not None:
            lines.append(f"note    {verdict.candidate.title}: {verdict.note}")
    if not result.verdicts:
        lines.append("FAILED  no candidate was compared")
    return "\n".join(lines)


def comparison_text(result: Verification) -> str:
    """The comparison's own verdict, where other lines follow that may fail the whole."""
    if result.passed:
        return "PASSED  comparison: every candidate is within its tolerance"
    if not result.verdicts:
        return "FAILED  comparison: no candidate was compared"
    failed = sum(not verdict.passed for verdict in result.verdicts)
    return f"FAILED  comparison: {failed} of {counted(len(result.verdicts), 'candidate')} failed"


def verdict_text(passed: bool) -> str:
    """The last line."""
    return "PASSED" if passed else "FAILED"


def accuracy_text(result: Verification) -> list[str]:
    """How often each side is right on the labelled images, and on which classes."""
    reference, *candidates = result.accuracy
    sides = {"reference": reference}
    lines = [f"accuracy   {_rate_text(reference)}: the reference"]
    for verdict, found in zip(result.verdicts, candidates, strict=True):
        name = verdict.candidate.title
        if found == reference:
            lines.append(f"           the same, class by class: {name}")
        else:
            lines.append(f"           {_rate_text(found)}: {name}")
            sides[name] = found
    return [*lines, "", _classes_text(sides), ""]


def _rate_text(found: Accuracy) -> str:
    """``97.9 % (47 of 48), errors at most 9.4 %``."""
    return (
        f"{100 * found.rate:.1f} % ({found.correct} of {found.images}), "
        f"errors at most {100 * found.error_rate_bound:.1f} %"
    )


def _classes_text(sides: Mapping[str, Accuracy]) -> str:
    """A table with a row for each class, or for the worst ones where there are many."""
    rows = list(zip(*(side.classes for side in sides.values()), strict=True))
    caption = []
    if len(rows) > _SHOWN_CLASSES:
        caption = [f"the worst {_WORST_CLASSES} of {len(rows)} classes:"]
        rows = sorted(rows, key=lambda row: min(found.rate for found in row))[:_WORST_CLASSES]
    header = ["class", "images"]
    for side in sides:
        header += (side, "its errors at most")
    table = table_text(header, map(_class_row, rows))
    return "\n".join((*caption, table))


def _class_row(sides: Sequence[ClassAccuracy]) -> list[str]:
    cells = [sides[0].label, str(sides[0].images)]
    for found in sides:
        cells += (f"{100 * found.rate:.1f} %", f"{100 * found.error_rate_bound:.1f} %")
    return cells


def verdicts_text(verdicts: Iterable[Verdict]) -> str:
    """A table with a row for each candidate."""
    rows = [
        (
            verdict.candidate.graph,
            verdict.candidate.runtime,
            verdict.candidate.precision,
            flips_of(verdict.measurement),
            f"{verdict.measurement.max_relative_error:.1e}",
            f"{verdict.measurement.max_probability_change:.1e}",
            ",".join(map(str, verdict.measurement.batch_sizes)),
            "passed" if verdict.passed else "FAILED",
        )
        for verdict in verdicts
    ]
    return table_text(_VERDICT_COLUMNS, rows)


def flips_of(measurement: Measurement) -> str:
    """``0 of 225, at most 1.3 %``: the flips and the bound on their rate."""
    text = f"{measurement.flips} of {measurement.decidable}"
    if measurement.flip_rate_bound is not None:
        text += f", at most {rate_digits(measurement.flip_rate_bound)} %"
    if measurement.undecidable:
        text += f" ({measurement.undecidable} undecidable)"
    return text


def rate_digits(rate: float) -> str:
    """A rate in percent that must not look like none: ``1.3``, and ``0.03`` where it is small."""
    return f"{100 * rate:.1f}" if rate >= 0.01 or rate == 0 else f"{100 * rate:.2g}"


def flips_text(verdict: Verdict) -> list[str]:
    """A line for each different image whose class changed, the largest margins first."""
    flipped = verdict.measurement.distinct_flips
    lines = [
        f"flip  {verdict.candidate.title}: {flip.path}: {flip.reference} -> {flip.candidate}, "
        f"margin {flip.margin:.2e}{'' if flip.decidable else ' (undecidable)'}"
        for flip in flipped[:_SHOWN_FLIPS]
    ]
    if len(flipped) > _SHOWN_FLIPS:
        lines.append(f"      ... and {len(flipped) - _SHOWN_FLIPS} more")
    if copies := len(verdict.measurement.flipped) - len(flipped):
        lines.append(f"      ... and {counted(copies, 'copy', 'copies')} of these")
    return lines


def photos_text(photos: PhotoSet) -> str:
    """``225 photos of bird_photos``; the bound beside it holds for photos like these only."""
    return f"{_kind_text(photos)}{copies_text(photos)}"


def copies_text(photos: PhotoSet) -> str:
    """``, 3 of them copies``: they were compared, and tell nothing of how sure that makes us."""
    if not photos.copies:
        return ""
    return f", {photos.copies} of them {'a copy' if photos.copies == 1 else 'copies'}"


def _kind_text(photos: PhotoSet) -> str:
    if photos.kind == "photos":
        return f"{counted(photos.images, 'photo')} of {photos.source}"
    if photos.kind == "golden":
        return f"the bundle's {counted(photos.images, 'golden image')}"
    made = counted(
        photos.images, "made image, which is no photo", "made images, which are no photos"
    )
    return f"{made}: verify again with --images"


def training_text(result: TrainingResult, next_command: str) -> str:
    """The best epoch, the files, and the command that comes next."""
    folder = result.checkpoint.parent
    return "\n".join(
        (
            f"best epoch  {result.best.epoch} of {len(result.history)}: test accuracy "
            f"{result.best.test_accuracy:.1%} on {result.test_photos} photos "
            f"({result.train_photos} trained on), in {result.seconds:.0f} s",
            f"written     {result.checkpoint}, {folder / CLASSES_FILE}, {folder / CURVES}",
            f"next        {next_command}",
        )
    )


def table_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table without colours, as wide as it needs to be."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=box.ASCII2, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    stream = io.StringIO()
    Console(file=stream, width=10_000, markup=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())
