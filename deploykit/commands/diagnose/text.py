"""A diagnosis as text and as values: stage by stage, and node by node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from deploykit.parity.diagnosis import (
    Explanation,
    LayerError,
    LayerReport,
    StageReport,
    StageStep,
    Variation,
)
from deploykit.parity.measurement import Measurement
from deploykit.specs.value import Shown, plain_value
from deploykit.system.text import commands_apart, counted, lines_text, table_text, visible

_STAGE_COLUMNS = ("stage", "from here on", "flips", "|dlogit|/scale", "|dp|", "verdict")
_CHANGE_COLUMNS = ("changed alone", "right", "gained", "export option")
_TRIED_COLUMNS = ("changed alone", "same decision", "|dp| left", "")
_LAYER_COLUMNS = ("node", "operator", "module", "added", "carried")
_SHOWN_LAYERS = 10


@dataclass(frozen=True)
class BrokenDiagnosis:
    """A diagnosis that ended with an error.

    Attributes:
        name: ``stages`` or ``layers``.
        message: The error's.
        hint: What to do about it; None where the error says nothing.
        exit_code: The error's.
    """

    name: str
    message: str
    hint: str | None
    exit_code: int


@dataclass(frozen=True, repr=False)
class Diagnosis(Shown):
    """What was asked for.

    Attributes:
        stages: The diagnosis by stage; None when it was not asked for, or ended with an error.
        layers: The diagnosis of each graph; None likewise.
        broken_off: Those that ended with an error.
        explanations: Which change gives the answers from elsewhere, one for each that differ.
    """

    stages: StageReport | None = None
    layers: tuple[LayerReport, ...] | None = None
    broken_off: tuple[BrokenDiagnosis, ...] = ()
    explanations: tuple[Explanation, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all that was asked for was done, and no fault was found."""
        reports = [*(self.layers or ()), *([self.stages] if self.stages else ())]
        nothing = self.layers == () or bool(self.broken_off)
        return not nothing and all(report.passed for report in reports)


def diagnosis_text(diagnosis: Diagnosis) -> Iterator[str]:
    """A block of lines for the stages, for each graph, and for each error."""
    if diagnosis.stages is not None:
        yield stage_report_text(diagnosis.stages)
    if diagnosis.layers == ():
        yield "FAILED  layers: no graph could be diagnosed"
    yield from map(layer_report_text, diagnosis.layers or ())
    yield from map(explanation_text, diagnosis.explanations)
    for broken in diagnosis.broken_off:
        first, *more = broken.message.splitlines() or [""]
        more += commands_apart(broken.hint or "").splitlines()
        # Indented, so that no line of a name that has several can look like one of ours.
        yield lines_text(
            (
                f"FAILED  {broken.name}: the diagnosis ended with an error: {first}",
                *(f"        {line}" for line in more),
            )
        )


def diagnosis_value(diagnosis: Diagnosis) -> dict[str, Any]:
    """The reports with their verdicts; null for one that was not asked for."""
    stages, layers = diagnosis.stages, diagnosis.layers
    return {
        "stages": stages
        and {
            **plain_value(stages),
            "passed": stages.passed,
            "first": None if stages.first is None else stages.steps.index(stages.first),
        },
        "layers": layers
        if layers is None
        else [{**plain_value(report), "passed": report.passed} for report in layers],
        **(
            {"explanations": [plain_value(each) for each in diagnosis.explanations]}
            if diagnosis.explanations
            else {}
        ),
        "broken_off": [asdict(broken) for broken in diagnosis.broken_off],
    }


def explanation_text(found: Explanation) -> str:
    """What was tried to get the answers from elsewhere, and whether something gives them."""
    rows = (
        (
            each.change,
            f"{each.agreed} of {found.images}",
            f"{each.probability_change:.1e}" if isfinite(each.probability_change) else "-",
            "explains it" if each.explains else "-",
        )
        for each in found.tried
    )
    lines = [
        f"stages     {found.candidate}, held against the canonical graph with one usual change "
        f"each, on {counted(found.images, 'image')}",
        "",
        *table_text(_TRIED_COLUMNS, rows).split("\n"),
        "",
    ]
    cause = found.cause
    if cause is None:
        lines.append(
            f"none of the {len(found.tried) - 1} usual changes explains it: another network, "
            "another precision, or an unusual preprocessing"
        )
    else:
        lines.append(f"FOUND  {cause.change}: gives what {found.candidate} answers")
    return lines_text(lines)


def stage_report_text(report: StageReport) -> str:
    """The steps, what is wrong and what corrects it, and what the usual changes would gain."""
    lines = [
        f"stages     from {report.beginning}",
        "",
        *table_text(_STAGE_COLUMNS, map(_stage_row, report.steps)).split("\n"),
        "",
    ]
    if report.labelled:
        trained = ""
        if report.trained_accuracy is not None:
            trained = f"; training had {100 * report.trained_accuracy:.1f} % right"
        lines += [
            f"this part  {report.correct} of the {report.labelled} photos diagnosed here that were "
            f"not picked for their answers get {report.right}{trained}",
            "",
        ]
    for finding in report.findings:
        lines.append(f"FOUND  {finding.stage}: {finding.message}")
        lines += (f"       {line}" for line in commands_apart(visible(finding.hint)).split("\n"))
    if report.variations:
        rows = (
            (it.change, f"{it.correct} of {it.images}", f"{it.gained:+d}", _option_text(it))
            for it in report.variations
        )
        lines += ["", *table_text(_CHANGE_COLUMNS, rows).split("\n"), ""]
    lines.append(_stage_verdict(report))
    return lines_text(lines)


def _option_text(tried: Variation) -> str:
    """The option that makes a change, where that gains more than chance."""
    if tried.is_clear:
        return tried.option or "none"
    return "no clear gain" if tried.gained > 0 else "-"


def _stage_row(step: StageStep) -> tuple[str, ...]:
    added = step.added
    if added.images == 0:
        verdict = "FAILED" if step.reasons else "not judged"
        return step.stage, step.change, "no image compared", "-", "-", verdict
    return (
        step.stage,
        step.change,
        f"{added.flips} of {added.decidable}",
        _error_text(added),
        "-" if added.non_finite else f"{added.max_probability_change:.1e}",
        "FAILED" if step.reasons else "passed",
    )


def _error_text(measurement: Measurement) -> str:
    """The largest error as a part of the scale, in words where it is no number."""
    if measurement.non_finite:
        return "not finite"
    if measurement.max_abs_error == 0:
        return "0.0e+00"  # of logits that are all zero, too, which have no scale
    return f"{measurement.max_relative_error:.1e}" if measurement.scale else "all were zero"


def _stage_verdict(report: StageReport) -> str:
    """The first step that leaves its tolerance, and why; or that none does."""
    if not report.steps:
        return "FAILED  stages: no step could be compared"
    first = report.first
    if first is not None:
        reasons = "; ".join(first.reasons)
        return f"FAILED  stages: first at {first.stage}, {first.change}: {reasons}"
    if report.findings:
        return "FAILED  stages: every step is within its tolerance, but a fault was found"
    return "PASSED  stages: every step is within its tolerance"


def layer_report_text(report: LayerReport) -> str:
    """The first node that leaves the tolerance, and those that add most error."""
    spec = report.candidate
    lines = [
        f"layers     {spec.graph} on {spec.runtime} against {report.reference}: "
        f"{counted(report.nodes, 'node')} on {counted(report.images, 'image')}, each may add "
        f"{report.tolerance:.1e}",
    ]
    if report.ranking:
        rows = (
            (it.node, it.operator, it.module or "-", f"{it.added:.1e}", f"{it.carried:.1e}")
            for it in report.ranking[:_SHOWN_LAYERS]
        )
        lines += ["", *table_text(_LAYER_COLUMNS, rows).split("\n"), ""]
    lines += (f"FOUND  {difference}" for difference in report.differences)
    lines.append(_layer_verdict(report))
    return lines_text(lines)


def _layer_verdict(report: LayerReport) -> str:
    graph, first = report.candidate.graph, report.first
    if report.nodes == 0:
        return f"FAILED  layers of {graph}: no node could be compared"
    if first is not None:
        return f"FAILED  layers of {graph}: first at {first_node_text(first, report.tolerance)}"
    if report.differences:
        return f"FAILED  layers of {graph}: every node is right, but the answer is not"
    return f"PASSED  layers of {graph}: no node adds more than it may"


def first_node_text(first: LayerError, tolerance: float) -> str:
    """``node_relu (Relu of stem.2): its error is 2.1e-01, before it 3.0e-07; ...``."""
    parts = [first.reason] if first.reason else []
    if first.non_finite:
        parts.append(f"{first.non_finite} of its values are NaN or infinite")
    if isfinite(first.carried):
        parts.append(
            f"the error is {first.inherited:.1e} before it and {first.carried:.1e} after it; it "
            f"adds {first.added:.1e}, and {tolerance:.1e} is allowed"
        )
    else:
        parts.append(f"the error before it is {first.inherited:.1e}")
    return f"{first.title}: {'; '.join(parts)}"
