"""No sentence about a verdict contradicts the numbers, whatever was measured."""

from __future__ import annotations

import html
import re
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from made_verifications import BIRDS, made_bundle, made_logits, made_verification, spec_of

from deploykit.commands.verify.conclusion import conclusion_of
from deploykit.commands.verify.junit import write_junit
from deploykit.commands.verify.page import write_certificate
from deploykit.commands.verify.result import Verification
from deploykit.commands.verify.text import verdict_text, verification_text, verification_value
from deploykit.parity.answers import Answers
from deploykit.parity.measurement import Measurement
from deploykit.parity.measures import measure
from deploykit.proof.text import outcome_of
from deploykit.proof.verdict import judge
from deploykit.specs.heads import Binary, MultiLabel
from deploykit.specs.model import Labels
from deploykit.system.text import rate_digits

CANDIDATE = st.fixed_dictionaries(
    {
        "precision": st.sampled_from(["fp32", "fp16", "int8"]),
        "flips": st.sampled_from([0, 0, 0, 1, 2, 50]),
        "turned": st.sampled_from([0, 0, 1, 2, 50]),
        "moved": st.sampled_from([0.0, 1e-6, 0.4]),
        "broken": st.sampled_from([False] * 5 + [True]),
        "bounded": st.booleans(),
        "extremes": st.sampled_from([(), (), (), ("NaN on black images",)]),
        "refused": st.sampled_from(["", "", "", "the reference is not proven"]),
    }
)
#: Candidates that pass, most of them.
CALM = st.fixed_dictionaries(
    {
        "precision": st.sampled_from(["fp32", "fp16", "int8"]),
        "flips": st.sampled_from([0, 0, 0, 1, 2]),
        "turned": st.sampled_from([0, 0, 1, 2]),
        "moved": st.sampled_from([0.0, 1e-6]),
        "broken": st.just(False),
        "bounded": st.sampled_from([True, True, False]),
        "extremes": st.just(()),
        "refused": st.just(""),
    }
)
PLAIN = {
    "precision": "fp32",
    "flips": 0,
    "turned": 0,
    "moved": 0.0,
    "broken": False,
    "bounded": True,
    "extremes": (),
    "refused": "",
}


#: One of each head.
HEADS = {
    "single-label": BIRDS,
    "multi-label": msgspec.structs.replace(BIRDS, head=MultiLabel(thresholds=(0.5, 0.5, 0.5))),
    "binary": Labels(names=("cat", "dog"), source="made", head=Binary(thresholds=(0.5,))),
}


def verification_of(
    images: int, ties: int, kind: str, candidates: list[dict], labels: Labels = BIRDS
) -> Verification:
    """Judge made candidates.

    Args:
        images: How many.
        ties: How many of them, the last ones, are undecidable, every other one below FP32 only.
        kind: Of the images.
        candidates: What each of them changes.
        labels: What the logits mean.
    """
    sigmoids = labels != BIRDS
    decided = max(images - ties, 0)
    ties = images - decided
    reference = made_logits(images)
    # The first are close enough that no probability moves far, and clear enough to be decided.
    reference[: min(decided, 5)] = (1.016, 1, -2)
    reference[decided::2] = (1.00005, 1, -2)
    reference[decided + 1 :: 2] = (1.005, 1, -2)
    if sigmoids:
        # The first logit is as far from its threshold as it was from the second.
        reference += 0.1 * np.sign(reference)
        reference[: min(decided, 5)] = (0.016, 1, -2)
        reference[decided::2] = (0.00005, 1, -2)
        reference[decided + 1 :: 2] = (0.004, 1, -2)
        reference = reference[:, : labels.logits]
    paths = [f"{place}.png" for place in range(images)]
    verdicts, answers = [], []
    for number, each in enumerate(candidates):
        logits = reference.copy()
        logits[:, -1] += each["moved"] * np.sign(logits[:, -1])
        flipped = [*range(min(each["flips"], decided))]
        flipped += range(decided, decided + min(each["turned"], ties))
        if sigmoids:
            logits[flipped, 0] = -reference[flipped, 0]
        else:
            logits[flipped, :2] = reference[flipped][:, 1::-1]
        if each["broken"] and images:
            logits[0, 0] = np.nan
        found = measure(
            reference,
            logits,
            precision=each["precision"],
            paths=paths,
            labels=labels,
            batch_sizes=[1],
            bounded=kind == "photos" and each["bounded"],
        )
        spec = msgspec.structs.replace(
            spec_of("deploy/fp32.onnx", labels.logits),
            runtime=f"runtime-{number}",
            precision=each["precision"],
        )
        verdict = judge(spec, found).with_extremes(each["extremes"])
        verdicts.append(verdict.refused(each["refused"]) if each["refused"] else verdict)
        answers.append(logits)
    empty = made_verification(reference, {}, folder=Path("birds"), paths=paths, labels=labels)
    return replace(
        empty,
        images=msgspec.structs.replace(empty.images, kind=kind),
        verdicts=tuple(verdicts),
        answers=Answers(tuple(paths), (1,), reference, tuple(answers)),
    )


def titles_in(names: str) -> set[str]:
    """The titles in ``deploy/int8.onnx on onnxruntime-cpu and openvino``."""
    titles, graph = set(), ""
    for name in re.split(", | and ", names):
        if " on " in name:
            graph = name.rpartition(" on ")[0]
        titles.add(f"{graph} on {name.rpartition(' on ')[2]}")
    return titles


def check_names(
    said: str, noun: str, by_name: Mapping[str, Measurement]
) -> tuple[list[Measurement], list[Measurement]]:
    """Hold the changed decisions and the changed undecidable ones against the measurements.

    Returns:
        The measurements of which each is told.
    """
    changed_in, turned_in = [], []
    for flips, decisions, name in re.findall(
        r"(\d+) of (\d+) decisions? changed in (\S+ .*?), which", said
    ):
        for each in map(by_name.get, titles_in(name)):
            assert (int(flips), int(decisions)) == (each.flips, each.decidable)
            changed_in.append(each)
    for turned, name in re.findall(rf"(\d+) undecidable \w+ got another {noun} from (.*?):", said):
        for each in map(by_name.get, titles_in(name)):
            assert int(turned) == each.undecidable_flips
            turned_in.append(each)
    return changed_in, turned_in


def check_sentences(found: Verification) -> None:
    """Hold every number in the conclusion against the measurements."""
    conclusion = conclusion_of(found)
    said = " ".join((conclusion.sentence, *conclusion.reasons))
    by_name = {each.candidate.title: each.measurement for each in found.verdicts}
    measured = [*by_name.values()]
    images = len(found.answers.paths)

    outcomes = {outcome_of(each) for each in found.verdicts}
    assert (conclusion.outcome == "passed") is found.passed is (outcomes == {"passed"})
    assert (conclusion.outcome == "failed") is ("failed" in outcomes)
    claims = re.search(r"(?<!whether )the deployed model decides", conclusion.sentence, re.I)
    assert bool(claims) is (conclusion.outcome == "passed")

    if same := re.search(
        r"(All|The one|The) ([\d,]+ of )?([\d,]+ )?\w+( that can be judged)? got", said
    ):
        changed = sum(len(each.flipped) for each in measured)
        assert not any(each.flips for each in measured)
        assert bool(same[4]) is bool(changed)
        if same[4]:
            judged, compared = re.findall(r"\d+", same[0])
            assert (int(judged), int(compared)) == (min(m.decidable for m in measured), images)
        elif same[3]:
            assert int(same[3]) == images
        deployed = re.search(r"each of the (\d+) deployed ones|the deployed one\.", said)
        assert int(deployed[1] or 1) == len(found.verdicts)
    noun = {"labels": "set of labels", "class": "class"}[found.head.decided]
    told = " ".join((said, *(line for each in found.verdicts for line in each.reasons)))
    assert not found.head.several or not re.search(r"\bclass\b", told)
    changed_in, turned_in = check_names(said, noun, by_name)
    if conclusion.outcome == "passed":
        for each in measured:
            assert bool(each.flips) is (each in changed_in)
            assert bool(each.undecidable_flips) is (each in turned_in)
        bounds = [m.flip_rate_bound for m in measured if m.flip_rate_bound is not None]
        told = re.findall(r"at most (\S+) % of the decisions", said)
        assert told == ([rate_digits(max(bounds))] if bounds else [])
        without = [name for name, each in by_name.items() if each.flip_rate_bound is None]
        told = re.findall(r"For (.*) no such rate follows", said)
        assert [*map(titles_in, told)] == ([{*without}] if without and bounds else [])
    for count, of, precisions in re.findall(
        r"(\d+) of (\d+) \w+ (?:is|are) undecidable in (.*?):", " ".join(conclusion.limits)
    ):
        for precision in re.split(", | and ", precisions):
            assert (int(count), int(of)) in [
                (each.measurement.undecidable, images)
                for each in found.verdicts
                if each.candidate.precision == precision
            ]
    sentences = (*conclusion.reasons, *conclusion.limits)
    assert len(set(sentences)) == len(sentences)


def check_reports(found: Verification, labels: Labels = BIRDS) -> None:
    """Every report tells the same sentences and numbers."""
    conclusion = conclusion_of(found)
    text = verification_text(found)
    words = {"passed": "PASSED", "failed": "FAILED", "unproven": "UNPROVEN"}
    assert verdict_text(found) == words[conclusion.outcome]
    assert verification_value(found)["conclusion"]["sentence"] == conclusion.sentence
    for verdict in found.verdicts:
        row = next(line for line in text.splitlines() if verdict.candidate.runtime in line)
        assert row.split("|")[-1].strip().upper() == words[outcome_of(verdict)]
    with tempfile.TemporaryDirectory() as name:
        bundle = made_bundle(Path(name), labels)
        write_certificate(Path(name) / "page.html", bundle, found)
        write_junit(Path(name) / "junit.xml", bundle, found)
        page = html.unescape((Path(name) / "page.html").read_text(encoding="utf-8"))
        junit = ET.parse(Path(name) / "junit.xml")
    properties = " ".join(each.get("value", "") for each in junit.iter("property"))
    for sentence in (conclusion.sentence, *conclusion.reasons, *conclusion.limits):
        assert sentence in text
        assert sentence in page
        assert sentence in properties
    failures = len(junit.findall(".//failure"))
    assert failures == sum(not each.passed for each in found.verdicts) + (not found.verdicts)
    tiles = page.partition('<ul class="tiles">')[2].partition("</ul>")[0]
    assert bool(tiles) is bool(found.verdicts)
    if tiles:
        measured = [each.measurement for each in found.verdicts]
        plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", tiles))
        flips = max(each.flips for each in measured)
        assert re.search(rf"(?<!\d){flips} decisions? changed|{flips} decision changed", plain)
        turned = max(each.undecidable_flips for each in measured)
        assert (f"and {turned} undecidable one" in plain) is bool(turned)
        bounds = [each.flip_rate_bound for each in measured if each.flip_rate_bound is not None]
        told = re.findall(r"≤\s?(\S+)\s%", plain)
        assert told == ([rate_digits(max(bounds))] if bounds else [])


MADE = {
    "images": st.sampled_from([0, 1, 3, 28, 40, 250]),
    "ties": st.sampled_from([0, 0, 1, 2, 20, 300]),
    "kind": st.sampled_from(["photos", "golden", "generated"]),
    "head": st.sampled_from([*HEADS]),
    "candidates": st.one_of(st.lists(CALM, max_size=6), st.lists(CANDIDATE, max_size=6)),
}
#: Shrinking a failing example takes longer than reading it.
FAST = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": (Phase.explicit, Phase.generate),
}
FLIPPED = {**PLAIN, "precision": "int8", "flips": 2, "turned": 1}
NO_BOUND = {**PLAIN, "precision": "fp16", "turned": 1, "bounded": False}


@settings(max_examples=150, **FAST)
@given(**MADE)
@example(images=40, ties=2, kind="photos", head="single-label", candidates=[PLAIN] * 5 + [NO_BOUND])
@example(images=250, ties=2, kind="photos", head="binary", candidates=[PLAIN, NO_BOUND])
@example(images=250, ties=2, kind="photos", head="multi-label", candidates=[PLAIN, FLIPPED])
@example(images=250, ties=2, kind="photos", head="single-label", candidates=[PLAIN, FLIPPED])
@example(
    images=28,
    ties=0,
    kind="photos",
    head="single-label",
    candidates=[{**PLAIN, "precision": "int8"}],
)
def test_sentences_agree_with_the_numbers(images, ties, kind, head, candidates):
    check_sentences(verification_of(images, ties, kind, candidates, HEADS[head]))


@settings(max_examples=8, **FAST)
@given(**MADE)
@example(images=40, ties=2, kind="photos", head="single-label", candidates=[PLAIN] * 5 + [NO_BOUND])
@example(images=250, ties=2, kind="photos", head="multi-label", candidates=[PLAIN, FLIPPED])
@example(images=250, ties=2, kind="photos", head="single-label", candidates=[PLAIN, FLIPPED])
def test_sentences_are_the_same_in_every_report(images, ties, kind, head, candidates):
    check_reports(verification_of(images, ties, kind, candidates, HEADS[head]), HEADS[head])
