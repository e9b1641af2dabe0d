"""Who is to blame: the walks over the stages and over the nodes, as text and as values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from deploykit.parity.diagnosis import LayerError, LayerReport, StageReport, StageStep, Variation
from deploykit.parity.measurement import Measurement
from deploykit.specs.value import Shown, plain_value
from deploykit.system.text import counted, table_text

_STAGE_COLUMNS = ("stage", "from here on", "flips", "|dlogit|/scale", "|dp|", "in all", "verdict")
_LAYER_COLUMNS = ("node", "operator", "module", "added", "carried")
_SHOWN_LAYERS = 10


@dataclass(frozen=True)
class BrokenWalk:
    """A walk that was asked for, and broke off.

    Attributes:
        name: ``stages`` or ``layers``.
        message: Why, as the error says.
        hint: What to do about it; None where the error says nothing.
        exit_code: The error's.
    """

    name: str
    message: str
    hint: str | None
    exit_code: int


@dataclass(frozen=True, repr=False)
class Blame(Shown):
    """The walks that were asked for.

    Attributes:
        stages: The walk over the stages; None when it was not asked for, or broke off.
        layers: The walks over the nodes of each candidate; None likewise.
        broken_off: The walks that broke off.
    """

    stages: StageReport | None = None
    layers: tuple[LayerReport, ...] | None = None
    broken_off: tuple[BrokenWalk, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether what was asked for was walked, and nobody is to blame."""
        stages = self.stages is None or self.stages.passed
        layers = self.layers is None or bool(self.layers)
        walked = all(report.passed for report in self.layers or ())
        return stages and layers and walked and not self.broken_off


def blame_text(blame: Blame) -> Iterator[str]:
    """A block of lines for each walk."""
    if blame.stages is not None:
        yield stage_report_text(blame.stages)
    if blame.layers == ():
        yield "FAILED  layers: no graph could be walked"
    yield from map(layer_report_text, blame.layers or ())
    for walk in blame.broken_off:
        hint = f"\n        {walk.hint}" if walk.hint else ""
        yield f"FAILED  {walk.name}: the walk broke off: {walk.message}{hint}"


def blame_value(blame: Blame) -> dict[str, Any]:
    """The walks; null for one that was not asked for."""
    layers = None if blame.layers is None else [*map(layer_report_value, blame.layers)]
    return {
        "stages": None if blame.stages is None else stage_report_value(blame.stages),
        "layers": layers,
        "broken_off": [asdict(walk) for walk in blame.broken_off],
    }


def stage_report_text(report: StageReport) -> str:
    """The steps, what is wrong and what corrects it, and what the usual changes would gain."""
    lines = [
        f"stages     from {report.beginning}",
        "",
        table_text(_STAGE_COLUMNS, map(_stage_row, report.steps)),
        "",
    ]
    if report.labelled:
        lines += [_accuracy_text(report), ""]
    for finding in report.findings:
        lines += [f"FOUND  {finding.stage}: {finding.message}", f"       {finding.hint}"]
    if report.variations:
        agreement = report.compared_with == "agreement"
        columns = ("changed alone", "as in training" if agreement else "right", "gained")
        rows = map(_variation_row, report.variations)
        lines += ["", table_text((*columns, "export option"), rows), ""]
    lines.append(_stage_verdict(report))
    return "\n".join(lines)


def _stage_row(step: StageStep) -> tuple[str, ...]:
    added, total = step.added, step.in_all
    in_all = f"{counted(total.flips, 'flip')}, {_error_text(total)}" if total else "-"
    if added.images == 0:
        verdict = "FAILED" if step.reasons else "not judged"
        return step.stage, step.change, "no photo compared", "-", "-", in_all, verdict
    return (
        step.stage,
        step.change,
        f"{added.flips} of {added.decidable}",
        _error_text(added),
        "-" if added.non_finite else f"{added.max_probability_change:.1e}",
        in_all,
        "FAILED" if step.reasons else "passed",
    )


def _error_text(measurement: Measurement) -> str:
    """The largest error as a part of the scale, in words where it is no number."""
    if measurement.non_finite:
        return "not finite"
    if measurement.max_abs_error == 0:
        return "0.0e+00"  # of logits that are all zero, too, which have no scale
    return f"{measurement.max_relative_error:.1e}" if measurement.scale else "all were zero"


def _accuracy_text(report: StageReport) -> str:
    """How many photos are right that were not picked for their answers, and what training had."""
    trained = ""
    if report.trained_accuracy is not None:
        trained = f"; training had {100 * report.trained_accuracy:.1f} % right"
    return (
        f"accuracy   {report.correct} of {report.labelled} photos that were not picked for their "
        f"answers get their folder's class{trained}"
    )


def _variation_row(tried: Variation) -> tuple[str, ...]:
    correct = f"{tried.correct} of {tried.images}"
    return tried.change, correct, f"{tried.gained:+d}", tried.option or "none"


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
        rows = map(_layer_row, report.ranking[:_SHOWN_LAYERS])
        lines += ["", table_text(_LAYER_COLUMNS, rows), ""]
    lines += (f"FOUND  {difference}" for difference in report.differences)
    lines.append(_layer_verdict(report))
    return "\n".join(lines)


def _layer_row(layer: LayerError) -> tuple[str, ...]:
    return (
        layer.node,
        layer.operator,
        layer.module or "-",
        f"{layer.added:.1e}",
        f"{layer.carried:.1e}",
    )


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
    where = f"{first.node} ({first.operator}{f' of {first.module}' if first.module else ''})"
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
    return f"{where}: {'; '.join(parts)}"


def stage_report_value(report: StageReport) -> dict[str, Any]:
    """The diagnosis by stage, its verdict, and which step is the first beyond its tolerance."""
    first = None if report.first is None else report.steps.index(report.first)
    return {**plain_value(report), "passed": report.passed, "first": first}


def layer_report_value(report: LayerReport) -> dict[str, Any]:
    """The walk over the nodes, and its verdict."""
    return {**plain_value(report), "passed": report.passed}
