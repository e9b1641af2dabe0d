"""A verification as JUnit XML, the form in which CI systems read what passed and what failed.

The elements and attributes are those that GitLab, Jenkins and GitHub's reporters have in common:
https://github.com/testmoapp/junitxml. Tests have no time: a 0 would be taken for one.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle
from deploykit.commands.diagnose.text import layer_report_text, stage_report_text
from deploykit.commands.verify.conclusion import conclusion_of
from deploykit.commands.verify.result import Verification
from deploykit.commands.verify.text import accuracy_line, latencies_text
from deploykit.html.document import write_document
from deploykit.proof.text import flips_text, images_text, numbers_text
from deploykit.specs.session import SessionSpec

#: What stands at the beginning of every such file, and of no other.
JUNIT_MARK = '<testsuites name="deploykit verify"'

#: What XML 1.0 cannot hold, not even escaped: https://www.w3.org/TR/xml/#charsets
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(path: Path, bundle: Bundle, found: Verification) -> None:
    """Write the file; one that is there is replaced when the new one is whole.

    A suite ``verify`` has a test for each candidate, a suite ``diagnosis`` one for the stages and
    one for each graph whose nodes were compared. Where nothing was compared there is a test that
    fails: no CI system takes an empty comparison for a passed one.

    Args:
        path: The file.
        bundle: What was verified.
        found: What was found.

    Raises:
        InputError: The system fails to write it.
    """
    root = ET.Element("testsuites", name="deploykit verify")  # see JUNIT_MARK
    _add_comparison(root, bundle, found)
    _add_diagnosis(root, bundle, found)
    for element in (*root, root):
        element.set("tests", str(len(element.findall(".//testcase"))))
        element.set("failures", str(len(element.findall(".//failure"))))
        element.set("errors", "0")
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    write_document(path, ['<?xml version="1.0" encoding="utf-8"?>\n', text, "\n"])


def _add_comparison(root: ET.Element, bundle: Bundle, found: Verification) -> None:
    manifest, conclusion = bundle.manifest, conclusion_of(found)
    compared = found.reference.is_recorded and found.reference.kind == "module"
    graphs = [CANONICAL_GRAPH, *(verdict.candidate.graph for verdict in found.verdicts)]
    suite = _suite(root, "verify", found.created, found.seconds)
    facts = {
        "bundle": bundle.name,
        "architecture": manifest.architecture.name,
        f"{'checkpoint' if compared else 'exported-from'}.sha256": manifest.checkpoint.sha256,
        **{
            f"{graph}.sha256": manifest.files[graph].sha256
            for graph in dict.fromkeys(graphs)
            if graph in manifest.files
        },
        "reference": found.reference.description,
        "stand-in": conclusion.stand_in,
        "stand-in.command": conclusion.command,
        "conclusion": " ".join((conclusion.sentence, *conclusion.reasons)),
        "diagnosis.command": conclusion.diagnosis,
        "limits": " ".join(conclusion.limits),
        "images": images_text(found.images),
        "images.sha256": found.images.sha256,
        "images.unreadable": str(found.unreadable),
        **{f"version.{name}": version for name, version in found.versions.items()},
    }
    if len(found.head.class_measures) > 1:  # of one measure a class, the text alone tells
        names = ["reference", *(verdict.candidate.title for verdict in found.verdicts)]
        for name, side in zip(names, found.accuracy, strict=False):
            facts[f"accuracy of {name}"] = accuracy_line(side, found.head)
    properties = ET.SubElement(suite, "properties")
    for name, value in filter(all, facts.items()):
        ET.SubElement(properties, "property", name=_xml(name), value=_xml(value))
    for verdict in found.verdicts:
        lines = (*verdict.reasons, numbers_text(verdict), *latencies_text(found, verdict.candidate))
        text = "\n".join((*lines, *flips_text(verdict)))
        reason = "" if verdict.passed else verdict.reasons[0]
        _add_case(suite, bundle, _name_of(verdict.candidate), reason, text)
    if not found.verdicts:
        _add_case(suite, bundle, "candidates", "no candidate was compared", "")


def _add_diagnosis(root: ET.Element, bundle: Bundle, found: Verification) -> None:
    stages, layers = found.diagnosis.stages, found.diagnosis.layers
    if stages is None and layers is None and not found.diagnosis.broken_off:
        return
    suite = _suite(root, "diagnosis", found.created)
    reports = [
        *([("stages", stages.passed, stage_report_text(stages))] if stages else []),
        *(
            (f"layers of {_name_of(each.candidate)}", each.passed, layer_report_text(each))
            for each in layers or ()
        ),
    ]
    for name, passed, text in reports:
        verdict = text.splitlines()[-1].removeprefix("FAILED").strip()
        _add_case(suite, bundle, name, "" if passed else verdict, text)
    if layers == ():
        _add_case(suite, bundle, "layers", "no graph could be diagnosed", "")
    for part in found.diagnosis.broken_off:
        _add_case(suite, bundle, part.name, part.message, part.hint or "")


def _name_of(spec: SessionSpec) -> str:
    return f"{spec.graph} on {spec.runtime} in {spec.precision}{' with TF32' if spec.tf32 else ''}"


def _suite(root: ET.Element, name: str, created: str, seconds: float | None = None) -> ET.Element:
    suite = ET.SubElement(root, "testsuite", name=name, timestamp=created.removesuffix("+00:00"))
    if seconds is not None:
        suite.set("time", f"{seconds:.3f}")
    return suite


def _add_case(suite: ET.Element, bundle: Bundle, name: str, reason: str, text: str) -> None:
    """Add a test that failed for a reason, or passed without one."""
    classname = _xml(f"{bundle.name}.{suite.get('name')}")
    case = ET.SubElement(suite, "testcase", classname=classname, name=_xml(name))
    if reason:
        failure = ET.SubElement(case, "failure", message=_xml(reason), type="ParityError")
        failure.text = _xml(text)
    else:
        ET.SubElement(case, "system-out").text = _xml(text)


def _xml(text: str) -> str:
    """A text with what XML cannot hold written as escapes."""
    return _NO_XML.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
