"""A verification as JUnit XML, the form in which CI systems read what passed and what failed.

The elements and attributes are those that GitLab, Jenkins and GitHub's reporters have in common:
https://github.com/testmoapp/junitxml. What was not timed has no time: a 0 would be taken for one.
"""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle
from deploykit.commands.diagnose.text import BrokenDiagnosis
from deploykit.commands.verify.claims import claim_of, limits_of
from deploykit.commands.verify.result import Verification
from deploykit.commands.verify.text import numbers_text
from deploykit.errors import InputError
from deploykit.parity.diagnosis import LayerError, LayerReport, StageReport, StageStep
from deploykit.proof.text import flips_of, flips_text, photos_text
from deploykit.specs.session import SessionSpec
from deploykit.system.files import replacing
from deploykit.system.text import counted

#: What XML 1.0 cannot hold, not even escaped: https://www.w3.org/TR/xml/#charsets
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SHOWN_NODES = 10


def write_junit(
    path: Path,
    bundle: Bundle,
    verification: Verification,
    *,
    stages: StageReport | None = None,
    layers: Sequence[LayerReport] = (),
    broken_off: Sequence[BrokenDiagnosis] = (),
) -> None:
    """Write the file; one that is there is replaced when the new one is whole.

    A suite ``verify`` has a test for each candidate, ``stages`` one for each step, and ``layers``
    one for each candidate that was walked. A suite that should have a test and has none gets one
    that fails: no CI system takes an empty comparison for a passed one.

    Args:
        path: The file.
        bundle: What was verified.
        verification: What was found.
        stages: The walk over the stages; None where none was made.
        layers: The walks over the nodes.
        broken_off: The walks that broke off; each is a suite with a test that failed.

    Raises:
        InputError: The system fails to write it.
    """
    root = ET.Element("testsuites", name="deploykit")
    root.append(_verify_suite(bundle, verification, stages))
    if stages is not None:
        root.append(_stages_suite(bundle, stages, verification.created))
    if layers:
        root.append(_layers_suite(bundle, layers, verification.created))
    for walk in broken_off:
        suite = _suite(walk.name, verification.created, {})
        details = [walk.hint] if walk.hint else []
        _case(suite, f"{bundle.name}.{walk.name}", "walk", [walk.message], details)
        root.append(suite)
    _count_tests(root)
    ET.indent(root)
    try:
        with replacing(path) as partial:
            ET.ElementTree(root).write(partial, encoding="utf-8", xml_declaration=True)
    except OSError as exc:
        raise InputError(
            f"Writing {path} failed: {exc.strerror or exc}.",
            hint="Check the folder, its permissions and the free space on its disk.",
        ) from exc


def _verify_suite(
    bundle: Bundle, verification: Verification, stages: StageReport | None
) -> ET.Element:
    manifest, photos = bundle.manifest, verification.photos
    graphs = [CANONICAL_GRAPH, *(verdict.candidate.graph for verdict in verification.verdicts)]
    limits = limits_of(verification, stages)
    compared = verification.is_recorded and verification.reference_kind == "module"
    origin = "checkpoint" if compared else "exported-from"
    facts = {
        "bundle": bundle.name,
        "architecture": manifest.architecture.name,
        f"{origin}.sha256": manifest.checkpoint.sha256,
        **{
            f"{graph}.sha256": manifest.files[graph].sha256
            for graph in dict.fromkeys(graphs)
            if graph in manifest.files
        },
        "reference": verification.reference,
        "claim": claim_of(verification).holds,
        **({"limit": " ".join(limits)} if limits else {}),
        "photos": photos_text(photos),
        "photos.sha256": photos.sha256,
        "photos.unreadable": str(verification.unreadable),
        **{f"version.{name}": version for name, version in verification.versions.items()},
    }
    suite = _suite("verify", verification.created, facts, verification.seconds)
    for verdict in verification.verdicts:
        found = verdict.measurement
        case = _case(
            suite,
            f"{bundle.name}.verify",
            _name_of(verdict.candidate),
            verdict.reasons,
            [numbers_text(verdict), *flips_text(verdict), *filter(None, [verdict.note])],
            verdict.seconds,
        )
        properties = {
            "kind": verdict.kind,
            "device": verdict.candidate.device,
            "images": str(found.images),
            "flips": str(found.flips),
            "undecidable": str(found.undecidable),
            "max_relative_error": f"{found.max_relative_error:.3e}",
            "max_probability_change": f"{found.max_probability_change:.3e}",
        }
        case.insert(0, _properties(properties))
    if not verification.verdicts:
        _case(suite, f"{bundle.name}.verify", "candidates", ["no candidate was compared"], [])
    return suite


def _stages_suite(bundle: Bundle, stages: StageReport, created: str) -> ET.Element:
    suite = _suite("stages", created, {"beginning": stages.beginning})
    name = f"{bundle.name}.stages"
    for step in stages.steps:
        _case(suite, name, f"{step.stage}: {step.change}", step.reasons, [_step_text(step)])
    for finding in stages.findings:
        _case(suite, name, f"{finding.stage}: finding", [finding.message], [finding.hint])
    if not stages.steps:
        _case(suite, name, "steps", ["no stage was compared"], [])
    return suite


def _step_text(step: StageStep) -> str:
    if step.added.images == 0:
        return "no photo was compared" + ("" if step.reasons else ": this step is not judged")
    added, total = step.added, step.in_all
    text = f"adds: flips {flips_of(added)}, error {added.max_relative_error:.1e} of the scale"
    if total is None:
        return text
    return (
        f"{text}; since the beginning: flips {flips_of(total)}, error "
        f"{total.max_relative_error:.1e}"
    )


def _layers_suite(bundle: Bundle, layers: Sequence[LayerReport], created: str) -> ET.Element:
    suite = _suite("layers", created, {})
    for layer in layers:
        reasons = list(layer.differences)
        if layer.first is not None:
            reasons.insert(0, f"the first node out of tolerance: {_node_text(layer.first)}")
        if layer.nodes == 0:
            reasons.append("no node was compared")
        details = [
            f"{counted(layer.nodes, 'node')} compared with {layer.reference} on "
            f"{counted(layer.images, 'image')}, a node may add {layer.tolerance:.1e}",
            *map(_node_text, layer.ranking[:_SHOWN_NODES]),
        ]
        _case(suite, f"{bundle.name}.layers", _name_of(layer.candidate), reasons, details)
    return suite


def _node_text(node: LayerError) -> str:
    where = f"{node.operator} of {node.module}" if node.module else node.operator
    text = f"{node.node} ({where}) adds {node.added:.1e}, carries {node.carried:.1e}"
    if node.non_finite:
        text += f", {node.non_finite} values are NaN or infinite"
    return f"{text}: {node.reason}" if node.reason else text


def _name_of(spec: SessionSpec) -> str:
    return f"{spec.graph} on {spec.runtime} in {spec.precision}{' with TF32' if spec.tf32 else ''}"


def _suite(
    name: str, created: str, facts: Mapping[str, str], seconds: float | None = None
) -> ET.Element:
    suite = ET.Element("testsuite", name=name, timestamp=created.removesuffix("+00:00"))
    _set_time(suite, seconds)
    if facts:
        suite.append(_properties(facts))
    return suite


def _properties(facts: Mapping[str, str]) -> ET.Element:
    properties = ET.Element("properties")
    for name, value in facts.items():
        ET.SubElement(properties, "property", name=_xml(name), value=_xml(value))
    return properties


def _case(
    suite: ET.Element,
    classname: str,
    name: str,
    reasons: Sequence[str],
    details: Iterable[str],
    seconds: float | None = None,
) -> ET.Element:
    case = ET.SubElement(
        suite, "testcase", classname=_xml(classname), name=_unused(suite, _xml(name))
    )
    _set_time(case, seconds)
    text = _xml("\n".join((*reasons, *details)))
    if reasons:
        failure = ET.SubElement(case, "failure", message=_xml(reasons[0]), type="ParityError")
        failure.text = text
    else:
        ET.SubElement(case, "system-out").text = text
    return case


def _unused(suite: ET.Element, name: str) -> str:
    """A name that no other test of the suite has: CI systems keep one of those with the same."""
    taken = {case.get("name") for case in suite.findall("testcase")}
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    return next(each for each in itertools.chain([name], numbered) if each not in taken)


def _set_time(element: ET.Element, seconds: float | None) -> None:
    if seconds is not None:
        element.set("time", f"{seconds:.3f}")


def _count_tests(root: ET.Element) -> None:
    for element in (*root, root):
        element.set("tests", str(len(element.findall(".//testcase"))))
        element.set("failures", str(len(element.findall(".//failure"))))
        element.set("errors", "0")


def _xml(text: str) -> str:
    """A text with what XML cannot hold written as escapes."""
    return _NO_XML.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
